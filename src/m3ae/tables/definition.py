"""What a table is, by configs/tables/: its rows, columns, published numbers and claims."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from m3ae import strict_yaml
from m3ae.config import require

TABLES = Path("configs/tables")
ABLATIONS = Path("configs/pretrain/ablations")
SHARED = ("sizes", "tasks", "data")  # files there that are no tables
Protocols = tuple[Literal["paper", "strict", "image_disjoint"], ...]


@dataclass(frozen=True)
class Size:
    """An entry of sizes.yaml: what an empty list of ablations stands for, and how runs start."""

    title: str
    pretrain: str
    launcher: str


@dataclass(frozen=True)
class Source:
    """An entry of data.yaml: how a prepared folder is made, and where its corpus is to be had."""

    prepare: str
    get: str


@dataclass(frozen=True)
class Task:
    """A column: what is fine-tuned, and what of it is shown."""

    title: str
    config: str
    protocols: Protocols
    parts: tuple[str, ...]
    set: tuple[str, ...] = ()
    questions: int | None = None  # test questions of the published numbers
    pretrained: bool = True  # False: takes nothing from the row, e.g. a released checkpoint


@dataclass(frozen=True)
class Row:
    """A row: a pre-training (its config or ablations), or None."""

    title: str
    pretrain: tuple[str, ...] | None
    steps: Literal["same", "all"] = "same"  # all: without pre-training, its steps in fine-tuning
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Published:
    """Numbers of others, in percent by part, beside a row of ours or under a name of their own."""

    column: str
    protocol: str
    values: dict[str, float]
    source: str
    row: str | None = None
    name: str | None = None
    questions: int | None = None
    how: str | None = None


@dataclass(frozen=True)
class Claim:
    """An ordering that the paper states: row `above` is better than row `below`."""

    above: str
    below: str
    part: str
    source: str


@dataclass(frozen=True)
class Figure:
    """A plot over the rows' x (line) or x and y (heat)."""

    kind: Literal["line", "heat"]
    x: str
    part: str
    y: str | None = None


@dataclass(frozen=True)
class Differences:
    """A sheet of pictures: the first `most` questions of each kind on which two rows differ."""

    here: str
    there: str
    part: str
    most: int


@dataclass(frozen=True)
class Table:
    """A file of configs/tables/."""

    name: str
    title: str
    source: str
    columns: dict[str, tuple[str, ...]]
    rows: dict[str, Row]
    note: str | None = None
    tasks: dict[str, Task] | None = None
    figure: Figure | None = None
    published: tuple[Published, ...] = ()
    claims: tuple[Claim, ...] = ()
    differences: Differences | None = None


def read_table(name: str) -> Table:
    """A table by its name in configs/tables/, or by the path of a YAML file.

    Raises FileNotFoundError or ValueError, naming the file and the key.
    """
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else TABLES / f"{name}.yaml"
    known = names()
    if not own and name not in known:
        raise ValueError(f"--tables {name}: none of {', '.join(known)}; or give a .yaml file")
    content = {"source": "own", **strict_yaml.read(path), "name": path.stem}
    rows = content.get("rows")
    for row in rows.values() if isinstance(rows, dict) else ():
        if isinstance(row, dict) and isinstance(row.get("pretrain"), str):
            row["pretrain"] = [row["pretrain"]]
    try:
        table = strict_yaml.build(Table, content)
        _check(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return table


def names() -> list[str]:
    """The tables there are: the paper's first, as they stand in it."""
    found = {path.stem for path in TABLES.glob("*.yaml")} - set(SHARED)
    return sorted(found, key=lambda name: (not name.isdigit(), not name.startswith("fig"), name))


def read_shared(name: str, cls: type) -> dict[str, Any]:
    """sizes.yaml, tasks.yaml or data.yaml: entries by name."""
    path = TABLES / f"{name}.yaml"
    content = strict_yaml.read(path)
    try:
        return {key: strict_yaml.build(cls, value, f"{key}.") for key, value in content.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check(table: Table) -> None:
    """Names that the parts of a table use of one another; raises ValueError naming the key."""

    def known(where: str, name: str | None, among: Sequence[str] | dict[str, Any]) -> None:
        require(name in among, f"{where}: {name!r} is none of {', '.join(among)}")

    columns = {name for some in table.columns.values() for name in some}
    for number, entry in enumerate(table.published):
        where = f"published[{number}]"
        if entry.row is not None:
            known(f"{where}.row", entry.row, table.rows)
        require(bool(entry.row or entry.name), f"{where}: it has neither row nor name")
        known(f"{where}.column", entry.column, sorted(columns))
    for number, claim in enumerate(table.claims):
        known(f"claims[{number}].above", claim.above, table.rows)
        known(f"claims[{number}].below", claim.below, table.rows)
    if table.differences is not None:
        known("differences.here", table.differences.here, table.rows)
        known("differences.there", table.differences.there, table.rows)
    for name, row in table.rows.items():
        wrong = "all is for rows without pre-training (pretrain: null)"
        require(row.steps == "same" or row.pretrain is None, f"rows.{name}.steps: {wrong}")
