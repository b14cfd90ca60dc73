"""The paper's tables and figures: run what is missing, re-use what is there, write the report.

    python run_tables.py --dry-run                      what would be run, what it lacks and costs
    python run_tables.py --tables 1 4 --seeds 3         at the paper's size, on 8 GPUs
    python run_tables.py --size small --tables 4 fig2 --jobs 2       phantoms, on two CPU cores
    python run_tables.py --tables my_table.yaml         a table of your own (see docs/tables.md)
    python run_tables.py --report-only                  the report of what is finished

A cell is one run: a pre-training, or a fine-tuning of a row and a column. It is known by its kind,
resolved config, data, code and seed, and run once, whatever tables show it; a change of one of
these makes it another cell. Interrupted cells resume. Several processes, also on several machines
that share --out, may run this at once. Seed s of a row is pre-training s and fine-tuning s.
"""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from m3ae.command import exit_status, parser_for
from m3ae.installation import check_installation
from m3ae.tables import slurm
from m3ae.tables.cells import Cell
from m3ae.tables.definition import names, read_table
from m3ae.tables.keep import keep
from m3ae.tables.plan import Plan, make_plan
from m3ae.tables.results import collect
from m3ae.tables.runner import Runner, is_done, why_not

log = logging.getLogger("m3ae")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 1 where a cell failed or after a user's mistake."""
    parser = parser_for(__doc__)
    add = parser.add_argument
    add("--tables", nargs="+", metavar="NAME", help="of configs/tables, or .yaml files (all)")
    add("--size", default="paper", help="paper, or another of configs/tables/sizes.yaml (paper)")
    add("--seeds", type=int, default=3, metavar="N", help="pre-trainings a row: seeds 0..N-1 (3)")
    add("--out", type=Path, default=Path("runs/tables"), metavar="DIR", help="cells and report")
    add("--only", metavar="CELL", help="only cells whose name holds this, and what they start from")
    add("--list", action="store_true", help="print every cell and how it stands; run nothing")
    add("--dry-run", action="store_true", help="print commands, what is lacking, hours and memory")
    add("--report-only", action="store_true", help="write the report of what is finished")
    kept = "also copy the report and the predictions it rests on, without texts of a corpus, to DIR"
    add("--keep", type=Path, metavar="DIR", help=kept)
    add("--slurm", type=Path, metavar="FILE", help="write a SLURM script that runs all cells")
    add("--jobs", type=int, default=1, metavar="N", help="cells at a time here (1)")
    launcher = "what starts a run, e.g. 'torchrun --nproc_per_node 8' (by size)"
    add("--launcher", metavar="COMMAND", help=launcher)
    rate = (
        "TFLOP/s that a run reaches in all, for --dry-run (of finished cells, else measured here)"
    )
    add("--rate", type=float, metavar="N", help=rate)
    given = "laid over every {}, e.g. data.workers=8"
    add(
        "--set-pretrain",
        nargs="+",
        default=[],
        metavar="key=value",
        help=given.format("pre-training"),
    )
    add(
        "--set-finetune",
        nargs="+",
        default=[],
        metavar="key=value",
        help=given.format("fine-tuning"),
    )
    words = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(words)
    return exit_status(lambda: tables(args, words))


def tables(args: Namespace, words: list[str]) -> None:
    """The whole work; words: the command line."""
    from m3ae.tables import forecast
    from m3ae.training.logs import start_logging

    check_installation()
    start_logging(True)
    if not Path("run_pretrain.py").is_file():
        raise ValueError("run_pretrain.py is not here: start this in the repository's folder")
    if args.seeds < 1 or args.jobs < 1:
        raise ValueError("--seeds and --jobs: at least 1")
    wanted = [read_table(name) for name in args.tables or names()]
    plan = make_plan(wanted, args.size, args.seeds, args.set_pretrain, args.set_finetune)
    cells = chosen(plan.all, args.only)
    for table in wanted:
        if table not in plan.tables:
            log.info(
                "%s: not at size %s, only at %s", table.name, args.size, ", ".join(table.columns)
            )
    launcher = args.launcher or plan.size.launcher
    if args.list:
        listing(cells, args.out)
    elif args.dry_run:
        forecast.show(cells, args.out, launcher, args.rate)
    elif args.slurm:
        slurm.write(args.slurm, cells, args.out, words)
    else:
        report(plan, cells, args, launcher)


def report(plan: Plan, cells: list[Cell], args: Namespace, launcher: str) -> None:
    """Run what is not finished, unless told not to, and write the pages."""
    from m3ae.reports.tables import write_pages

    unfinished = {}
    if not args.report_only:
        unfinished = Runner(cells, args.out, launcher, args.jobs).run()
    if args.only is None or args.report_only:
        results = collect(plan, args.out)
        write_pages(results, args.out)
        if args.keep:
            write_pages(keep(results, args.out, args.keep), args.keep)
        log.info("report: %s", args.out / "index.html")
    for name, why in unfinished.items():
        log.info("not finished: %s: %s", name, why)
    failed = sum("failed (status" in why for why in unfinished.values())
    if failed:
        raise ValueError(f"{failed} of {len(cells)} cells are not finished because of failures")


def chosen(cells: list[Cell], only: str | None) -> list[Cell]:
    """The cells whose id holds `only`, with the pre-trainings they start from."""
    if only is None:
        return cells
    found = [cell for cell in cells if only in cell.id]
    if not found:
        raise ValueError(f"--only {only}: no cell's name holds it; --list shows them")
    needed = {cell.init.id for cell in found if cell.init} | {cell.id for cell in found}
    return [cell for cell in cells if cell.id in needed]


def listing(cells: list[Cell], out: Path) -> None:
    """Every cell, and whether it is finished or why not."""
    for cell in cells:
        print(f"{cell.id}  {'finished' if is_done(cell, out) else why_not(cell, out)}")
    print(f"{sum(is_done(cell, out) for cell in cells)} of {len(cells)} cells are finished")


if __name__ == "__main__":
    sys.exit(main())
