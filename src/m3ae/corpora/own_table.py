"""A user's own table of images: one file or several, its columns, its rows with their splits."""

import argparse
import glob
import re
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from m3ae.corpora.items import Drops, Stored
from m3ae.corpora.splits import Groups
from m3ae.corpora.stored import SPLIT_NAMES, InParquet, on_disk, parquet_splits
from m3ae.corpora.tables import image_of, read_column_names, read_table
from m3ae.files import need, printable

SPLIT_AND_ID = ("split", "id")  # columns that every such table may have
_LIKE_GROUPS = re.compile(r"(patient|subject|study|case)", re.IGNORECASE)
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """The options of a user's own table: its files, its columns, and how splits are drawn."""
    add = parser.add_argument
    table = ".csv, .tsv, .jsonl or .parquet; several, a pattern, or a folder of the hub's parquet"
    add("--table", type=Path, nargs="+", required=True, metavar="FILE", help=table)
    columns = "what the table calls a column, e.g. image=filename; others keep their names"
    add("--columns", nargs="+", metavar="NAME=COLUMN", help=columns)
    group = "column of the patient, study or case: what it joins is drawn into one split"
    add("--group", metavar="COLUMN", help=group)
    part = "part of the images that becomes the test split, where the table has no splits"
    add("--test-share", type=float, metavar="X", help=part)
    add("--valid-share", type=float, metavar="X", help="the same for the valid split")
    add("--seed", type=int, default=0, help="of that draw (default: %(default)s)")


class LeftOut(NamedTuple):
    """A row that cannot be used: why, its place, and its split and image where they are known."""

    reason: str
    where: str
    split: str
    image: str


@dataclass
class OwnTable:
    """Rows of a table, each with its place for messages and its number, from 1 in all files.

    `name` is for messages; image paths start from `raw`; `unused` are columns that nothing reads.
    `drops`: what is no row; `left_out`: rows that cannot be used.
    """

    name: str
    raw: Path
    rows: list[tuple[str, int, dict[str, Any]]]
    groups: Groups = field(default_factory=lambda: Groups(None))
    drops: Drops = field(default_factory=Drops)
    unused: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    of_another_case: set[str] = field(default_factory=set)

    def image(self, row: dict[str, Any]) -> tuple[str, Stored | None]:
        """`tables.image_of` a row, named as the file is where that differs by case alone.

        So that a.jpg and a.JPG are one image, of one split.
        """
        name, stored = image_of(row, self.raw)
        if stored is None:
            path = PurePosixPath(name)
            found = str(path.with_name(on_disk(self.raw / name).name))
            if found != str(path):
                self.of_another_case.add(name)
                return found, None
        return name, stored

    def leave_out(self, reason: object, where: str, split: str, image: str) -> None:
        """Note a row that cannot be used; split, image: "" where they are not known."""
        self.left_out.append(LeftOut(f"row: {reason}", where, split, image))

    def book(
        self, used: Mapping[str, Collection[str]], drawn: bool
    ) -> tuple[dict[str, Drops], dict[str, Any]]:
        """What was left out of each split, and for the report what is of none.

        used: the images of each split; drawn: whether these were drawn, so that a row is of the
        split of its image. An image all of whose rows were left out is counted too. Of no split
        are rows that do not say theirs, or whose split, or drawn image, has no usable row.
        """
        home = {image: split for split, images in used.items() for image in images}
        dropped, of_none = {split: Drops() for split in used}, Drops()
        of_none.merge(self.drops.as_dict())
        lost: dict[tuple[str, str], Drops] = {}
        for row in self.left_out:
            split = home.get(row.image, "") if drawn else row.split
            drops = dropped.get(split, of_none)
            drops.add(row.reason, row.where)
            if row.split and row.image and row.image not in used.get(split, ()):
                lost[row.split, row.image] = drops
        for (_, image), drops in lost.items():
            drops.add("image: all its rows were left out", image)
        facts = {"rows_of_no_split": of_none.as_dict()} if of_none.counts else {}
        if self.of_another_case:
            names = sorted(self.of_another_case)
            facts["names_of_another_case"] = {"count": len(names), "examples": names[:20]}
        return dropped, facts

    def no_usable_row(self) -> ValueError:
        """The error to raise where there is none, with what is wrong with them."""
        _, facts = self.book({}, drawn=False)
        return ValueError(f"{self.name}: no usable row: {facts.get('rows_of_no_split', {})}")


def find_files(given: Sequence[Path]) -> list[tuple[Path, str]]:
    """The files of --table, each with the split that its folder or name says, or "".

    Raises FileNotFoundError naming what is not there, ValueError as `parquet_splits`.
    """
    files: list[tuple[Path, str]] = []
    for place in given:
        if place.is_dir():
            splits = parquet_splits(place)
            files += [(path, split) for split, paths in splits.items() for path in paths]
            if not splits:
                lacks = "no parquet files such as train-00000-of-00002.parquet in it"
                raise FileNotFoundError(f"{place}: {lacks}; name the table itself")
        elif not place.exists() and glob.has_magic(str(place)):
            files += [(Path(path), "") for path in sorted(glob.glob(str(place)))]
            if not files:
                raise FileNotFoundError(f"{place}: no file has such a name")
        else:
            files.append((need(place, "a table of images and texts"), ""))
    if len(files) == 1:
        return files
    parts = [re.match(r"([a-z]+)-\d{5}-of-\d{5}", path.name) for path, _ in files]
    named = [_SPLIT_OF.get(part[1], "") if part else "" for part in parts]
    return [(path, split or name) for (path, split), name in zip(files, named, strict=True)]


def read_own_table(
    args: argparse.Namespace, needed: Sequence[str], optional: Sequence[str]
) -> OwnTable:
    """The table of `add_table_options`, with columns that are not used named on stderr.

    `args.table` becomes the files that it is. Raises ValueError or FileNotFoundError naming a file.
    """
    need(args.raw, "the folder that image paths start from")
    names = read_column_names(args.columns, (*needed, *optional))
    files = find_files(args.table)
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    table = OwnTable(f"{files[0][0].name}{more}", args.raw, [], Groups(args.group))
    needed = (*needed, *((args.group,) if args.group else ()))
    stems, last = Counter(path.stem for path, _ in files), 0
    for path, split in files:
        prefix = f"{path.parent.name}-" if stems[path.stem] > 1 else ""
        before = last
        rows = read_table(path, needed, table.drops, optional, names, args.text_encoding)
        for number, row in rows:
            if split and not row.get("split"):
                row["split"] = split
            if prefix and isinstance(row.get("image"), InParquet):
                row["image"] = replace(row["image"], prefix=prefix)
            last = before + number
            table.rows.append((f"{path.name}: row {number}", last, row))
    columns = dict.fromkeys(name for *_, row in table.rows for name in row)
    table.unused = [name for name in columns if name not in (*needed, *optional)]
    name_unused(table.name, table.unused, args.group)
    args.table = files[0][0] if len(files) == 1 else [path for path, _ in files]
    return table


def name_unused(file: str, unused: Sequence[str], group: str | None) -> None:
    """Name on stderr the columns of a table that nothing reads, and which look like groups."""
    if unused:
        listed = printable(", ".join(unused))
        print(f"note: columns of {file} not used: {listed}", file=sys.stderr)
    alike = [name for name in unused if _LIKE_GROUPS.match(name)]
    if alike and group is None:
        keeps = f"--group {shlex.quote(alike[0])} keeps what it joins in one split"
        said = printable(f"{', '.join(alike)}: {keeps}")
        print(f"note: {file} has a column {said}", file=sys.stderr)
