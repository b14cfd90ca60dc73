"""Cells as a SLURM script: the template configs/tables/slurm.sh, filled in."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from m3ae.files import write_text
from m3ae.tables.cells import Cell
from m3ae.tables.definition import TABLES
from m3ae.tables.runner import is_done


def write(file: Path, cells: Sequence[Cell], out: Path, arguments: Sequence[str]) -> None:
    """Write a script with a job for each cell that is not finished; pre-trainings come first.

    arguments: of run_tables.py, which each job runs with `--only CELL`. Raises ValueError where a
    cell's data are lacking, since its name follows from them.
    """
    left = [cell for cell in cells if not is_done(cell, out)]
    if lacking := sorted({path for cell in left for path in cell.lacks}):
        raise ValueError(f"--slurm: prepare first {', '.join(lacking)}; --dry-run says how")
    left.sort(key=lambda cell: (cell.kind != "pretrain", cell.seed))
    given = list(arguments)
    place = next(k for k, word in enumerate(given) if word.startswith("--sl"))
    del given[place : place + (1 if "=" in given[place] else 2)]
    values = {
        "CELLS": "\n".join(f"  {shlex.quote(cell.id)}" for cell in left),
        "PRETRAININGS": str(sum(cell.kind == "pretrain" for cell in left)),
        "FOLDER": shlex.quote(str(Path.cwd())),
        "COMMAND": shlex.join(["python", "run_tables.py", *given]),
    }
    text = (TABLES / "slurm.sh").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    write_text(file, text)
    print(f"{file}: {len(left)} jobs. Submit them: bash {file}. Then: --report-only")
