"""From tables, size and seeds to cells: what is run, once for all tables that show it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3ae import strict_yaml
from m3ae.config import load_config
from m3ae.tables.cells import Cell, flat, folders_of, quoted
from m3ae.tables.definition import ABLATIONS, Row, Size, Table, Task, read_shared


@dataclass(frozen=True)
class Plan:
    """Tables at a size: `cells[table][row, column]` = a cell a seed, `all` in the order to run."""

    size: Size
    name: str
    seeds: int
    tables: list[Table]
    tasks: dict[str, dict[str, Task]]  # by table and column
    cells: dict[str, dict[tuple[str, str], list[Cell]]]

    @property
    def all(self) -> list[Cell]:
        """Every cell once: pre-trainings first, seed by seed, so that seed 0 is whole first."""
        every: dict[str, Cell] = {}
        for table in self.cells.values():
            for some in table.values():
                for cell in some:
                    every |= {one.id: one for one in (cell.init, cell) if one is not None}
        return sorted(every.values(), key=lambda cell: (cell.seed, cell.kind != "pretrain"))


def make_plan(
    tables: Sequence[Table],
    size: str,
    seeds: int,
    pretrain_set: Sequence[str] = (),
    finetune_set: Sequence[str] = (),
) -> Plan:
    """The cells of tables; ValueError where a table, task or size names what is not there."""
    sizes, shared = read_shared("sizes", Size), read_shared("tasks", Task)
    if size not in sizes:
        raise ValueError(f"--size {size}: none of {', '.join(sizes)}")
    tasks: dict[str, dict[str, Task]] = {}
    cells: dict[str, dict[tuple[str, str], list[Cell]]] = {}
    known: dict[Any, Cell] = {}  # a pre-training is one object for all that start from it
    shown = [table for table in tables if size in table.columns]
    if len({table.name for table in shown}) < len(shown):
        raise ValueError("--tables: two have the same name; rename the file of one")
    for table in shown:
        own = {**shared, **(table.tasks or {})}
        if unknown := [name for name in table.columns[size] if name not in own]:
            there = ", ".join(own)
            raise ValueError(f"{table.name}: columns: {unknown[0]!r} is none of the tasks {there}")
        tasks[table.name] = {name: own[name] for name in table.columns[size]}
        maker = _Maker(sizes[size], size, pretrain_set, finetune_set, known)
        cells[table.name] = {
            (row, column): [maker.cell(table, row, column, task, s) for s in range(seeds)]
            for row in table.rows
            for column, task in tasks[table.name].items()
        }
    return Plan(sizes[size], size, seeds, shown, tasks, cells)


@dataclass
class _Maker:
    size: Size
    size_name: str
    pretrain_set: Sequence[str]
    finetune_set: Sequence[str]
    known: dict[Any, Cell]

    def cell(self, table: Table, name: str, column: str, task: Task, seed: int) -> Cell:
        """The fine-tuning of a row and a column, with its pre-training; errors name the two."""
        try:
            return self._cell(table, name, column, task, seed)
        except (ValueError, OSError) as error:
            raise ValueError(f"{table.name}: row {name}, column {column}: {error}") from error

    def _cell(self, table: Table, name: str, column: str, task: Task, seed: int) -> Cell:
        row = table.rows[name]
        given = [text.replace("{seed}", str(seed)) for text in (*task.set, *self.finetune_set)]
        init, more, start = None, 0, []
        if task.pretrained:
            config, overrides = pretraining(row, self.size, self.pretrain_set)
            if row.pretrain is not None:
                short = "+".join(Path(item).stem for item in row.pretrain) or Path(config).stem
                init = Cell("pretrain", f"{self.size_name}-{short}", config, overrides, seed)
                init = self._once(init)
            else:
                steps = load_config(config, overrides).train.steps
                more = steps if row.steps == "all" else 0
                start = [
                    f"architecture={config}",
                    f"architecture_set={quoted([*overrides, f'seed={seed}'])}",
                ]
        label = init.name if init else f"{self.size_name}-{name}"
        cell = Cell(
            "finetune", f"{label}--{column}", task.config, (*given, *start), seed, init, more
        )
        return self._once(cell)

    def _once(self, cell: Cell) -> Cell:
        """The cell of this identity that there is already, maybe for a row of another name.

        Where data are lacking their paths tell cells apart, since digests cannot.
        """
        start = cell.init and cell.init.id
        key = (cell.digest, *folders_of(cell.resolved), cell.more_steps, start)
        return self.known.setdefault(key, cell)


def pretraining(row: Row, size: Size, more: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The config of a row's pre-training and what is laid over it.

    Of a row without one, the size's own, from whose initial weights it starts.
    """
    config, overrides = size.pretrain, []
    for item in row.pretrain or ():
        if item.endswith((".yaml", ".yml")):
            config = item
        else:
            overrides += ablation(item)
    return config, (*overrides, *more)


def ablation(name: str) -> list[str]:
    """The keys of a file of configs/pretrain/ablations/, as overrides."""
    path = ABLATIONS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in ABLATIONS.glob("*.yaml")))
        raise FileNotFoundError(f"{path}: no such ablation; there are {known}")
    content = strict_yaml.read_file(path)
    content.pop("base", None)
    return [f"{key}={_text(value)}" for key, value in flat(content).items()]


def _text(value: Any) -> str:
    return (
        strict_yaml.dump({"x": value})[3:].strip() if not isinstance(value, list) else quoted(value)
    )
