r"""Your own images with questions, or with classes -> shards.

A table FILE (.csv, .tsv, .jsonl or .parquet), one row a question:

    image     path relative to --raw; in a parquet file also the image itself (binary, or a struct
              with `bytes`), and then each row is an image of its own
    question  the words
    answer    the words, or a number
    type      open or closed; without it an answer that is yes or no is closed, any other open
    split     e.g. train, valid, test; without it train, or see --test-share
    id        of the question, unique for its image; without it the row's number, from 1
    question_type   categories of your own, for the table of results

The last four may be absent or empty; columns beyond these are ignored and named in the report. Rows
that cannot be used are left out and counted; so are answers without a word once normalised (lower
case, no articles, no punctuation), such as the letter A.

With --classes COLUMN[,COLUMN] the rows are texts with classes: columns image, text and those; a
row whose cell is empty has no class of that column.

OUT/answers.json has the sorted answers (OUT/classes.json for each column the classes): `paper`, of
all splits, and `train`, of the training rows alone. For pairs without labels, and for retrieval,
see pairs.py.

--test-share and --valid-share draw splits by image, so that no image is in two. Where a patient or
a case has several images, give a column `split` that keeps them together.

example: python data_prep/table.py --table questions.csv --raw images --out data/mine --px 384 \
             --tokenizer roberta-base --valid-share 0.1 --test-share 0.2
"""

import argparse
import csv
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from m3ae.command import exit_status
from m3ae.corpora.items import Drops, Stored, is_inside
from m3ae.corpora.prepare import add_arguments
from m3ae.corpora.questions import (
    ANSWER_TYPES,
    Question,
    count_types,
    coverage,
    labels,
    prepare_fields,
    share,
    task_fields,
    to_items,
)
from m3ae.corpora.stored import InParquet, holds_images, parquet_rows
from m3ae.corpora.tables import read_lines
from m3ae.data.sampler import SUBSET, keyed
from m3ae.files import is_unicode, need

Row = tuple[int, dict[str, Any]]  # number from 1, cells by column

OPTIONAL = ("split", "id")
OPTIONAL_FOR_QUESTIONS = ("type", "question_type")
ORDER = ("train", "valid", "test")  # first in the report, others as they come


# ------------------------------------------------------------------ read


class Table:
    """The rows of a table; `ignored`: its columns that are not asked for, known once it is read.

    `drops` counts lines that are no rows. Raises ValueError naming the file where it is damaged
    or lacks a column of `needed`.
    """

    def __init__(
        self, path: Path, needed: Sequence[str], optional: Sequence[str], drops: Drops
    ) -> None:
        self.path, self.needed, self.optional, self.drops = path, needed, optional, drops
        self.found: dict[str, None] = {}  # every column, in the order of appearance
        readers = {
            ".csv": lambda: self._delimited(","),
            ".tsv": lambda: self._delimited("\t"),
            ".jsonl": self._jsonl,
            ".parquet": self._parquet,
        }
        if path.suffix not in readers:
            raise ValueError(f"{path}: a table ends in {', '.join(readers)}")
        self._read = readers[path.suffix]

    def __iter__(self) -> Iterator[Row]:
        return self._read()

    @property
    def ignored(self) -> list[str]:
        """Columns that nothing is made of."""
        return [name for name in self.found if name not in (*self.needed, *self.optional)]

    def _check(self, names: Sequence[str]) -> None:
        for name in (*self.needed, *self.optional):
            count = names.count(name)
            if count > 1 or (name in self.needed and not count):
                has = ", ".join(names) or "none"
                raise ValueError(
                    f"{self.path}: {'more than one' if count else 'no'} column "
                    f"{name!r}; it has {has}"
                )

    def _delimited(self, delimiter: str) -> Iterator[Row]:
        line = 0
        # Bytes that are not UTF-8 become lone surrogates, which cost their row alone.
        with open(self.path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            try:
                # strict: else a quote that is never closed swallows rows without a word.
                reader = csv.reader(file, delimiter=delimiter, strict=True)
                header = [name.strip() for name in next(reader, [])]
                self._check(header)
                self.found |= dict.fromkeys(header)
                for number, cells in enumerate((cells for cells in reader if cells), start=1):
                    line = reader.line_num
                    if len(cells) == len(header):
                        yield number, dict(zip(header, cells, strict=True))
                    else:
                        self.drops.add(
                            "row: more or fewer cells than the header has",
                            f"{self.path.name}: row {number}, line {line}",
                        )
            except csv.Error as error:
                raise ValueError(
                    f"{self.path}: after line {line}: {error}; repair the table"
                ) from error

    def _jsonl(self) -> Iterator[Row]:
        for number, (line, text) in enumerate(read_lines(self.path), start=1):
            where = f"{self.path.name}: row {number}, line {line}"
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                self.drops.add("row: not JSON", f"{where}: {error}")
                continue
            if isinstance(row, dict):
                self.found |= dict.fromkeys(row)
                yield number, row
            else:
                self.drops.add("row: not an object", where)

    def _parquet(self) -> Iterator[Row]:
        stored = holds_images(self.path, "image")
        columns = [name for name in self.needed if not (stored and name == "image")]
        rows = parquet_rows([self.path], columns, self.optional, image="image" if stored else "")
        for number, row in enumerate(rows, start=1):
            if stored:
                row.values["image"] = InParquet(row.file, row.row_group, row.row, "image")
            yield number, row.values
        from pyarrow.parquet import read_schema  # an extra; `parquet_rows` says so where it lacks

        self.found |= dict.fromkeys(read_schema(self.path).names)


def cell(row: dict[str, Any], name: str) -> str:
    """A cell without outer white space, "" where it is empty, null or not there.

    Numbers as strings. Raises ValueError, whose message is a reason to leave the row out.
    """
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} is neither text nor a number")
    text = str(value).strip()
    if not is_unicode(text):
        raise ValueError(f"{name} not UTF-8")
    return text


def read_image(row: dict[str, Any]) -> tuple[str, Stored | None]:
    """Name of a row's image, and the image where the table itself holds it.

    Raises ValueError where there is none or it leads out of --raw.
    """
    if isinstance(row.get("image"), InParquet):
        return row["image"].name, row["image"]
    name = cell(row, "image")
    if not name:
        raise ValueError("no image")
    if not is_inside(name):
        raise ValueError("image leads outside --raw")
    return str(PurePosixPath(name)), None


def read_row(
    row: dict[str, Any], number: int, classes: Sequence[str]
) -> tuple[str, Question, Stored | None]:
    """Split, question (or text with `classes`) and stored image of a row; raises as above."""
    image, stored = read_image(row)
    split = cell(row, "split") or "train"
    if not re.fullmatch(r"\w[\w-]*", split) or split == "tokenizer":
        raise ValueError("a split is named by letters, digits, _ and -")
    name = cell(row, "id") or str(number)
    if classes:
        text, given = cell(row, "text"), {column: cell(row, column) or None for column in classes}
        if not text:
            raise ValueError("no text")
        return split, Question(image, text, {"question_id": name, **given}), stored
    text, answer = cell(row, "question"), cell(row, "answer")
    if not text or not answer:
        raise ValueError("no answer" if text else "no question")
    fields = task_fields(name, answer, cell(row, "type").lower(), cell(row, "question_type"))
    if not fields["label"]:
        raise ValueError("no word is left of the answer, normalised")
    if not fields["answer_type"]:
        fields["answer_type"] = "closed" if fields["label"] in ("yes", "no") else "open"
    if fields["answer_type"] not in ANSWER_TYPES:
        raise ValueError("unknown type, neither open nor closed")
    return split, Question(image, text, fields), stored


def read_questions(
    table: Iterable[Row], name: str, classes: Sequence[str], drops: Drops
) -> tuple[dict[str, list[Question]], dict[str, Stored]]:
    """Questions by split, in order, and stored images by name; `name`: the file's, for the report.

    Rows that cannot be used are counted, and so are those whose key IMAGE/ID occurred before in
    their split.
    """
    splits: dict[str, list[Question]] = {}
    stored: dict[str, Stored] = {}
    known: set[tuple[str, str]] = set()
    for number, row in table:
        where = f"{name}: row {number}"
        try:
            split, question, image = read_row(row, number, classes)
        except ValueError as error:
            drops.add(f"row: {error}", where)
            continue
        key = (split, f"{question.image}/{question.fields['question_id']}")
        if key in known:
            drops.add("row: id occurs twice for its image, first one kept", f"{where}: {key[1]}")
            continue
        known.add(key)
        if image is not None:
            stored[question.image] = image
        splits.setdefault(split, []).append(question)
    order = [*(split for split in ORDER if split in splits), *splits]
    return {split: splits[split] for split in dict.fromkeys(order)}, stored


# ------------------------------------------------------------------ splits, lists


def draw_splits(
    questions: Sequence[Question], shares: dict[str, float], seed: int
) -> dict[str, list[Question]]:
    """Questions split by image: for each of `shares` the rounded share of them, at least one.

    Depends on the images' names and the seed, not on the order of rows. Raises ValueError where
    nothing is left to train on.
    """
    images = sorted({question.image for question in questions})
    drawn = [images[k] for k in keyed(seed, SUBSET).permutation(len(images))]
    split_of: dict[str, str] = {}
    for split, part in shares.items():
        count = max(1, round(part * len(images)))
        split_of |= dict.fromkeys(drawn[:count], split)
        drawn = drawn[count:]
    if not drawn:
        raise ValueError(
            f"--test-share, --valid-share: nothing is left to train on of {len(images)} images"
        )
    parts: dict[str, list[Question]] = {split: [] for split in ("train", *shares)}
    for question in questions:
        parts[split_of.get(question.image, "train")].append(question)
    return {split: parts[split] for split in ORDER if split in parts}


def shared_images(splits: dict[str, list[Question]]) -> dict[str, list[str]]:
    """For each split its images that are in another one too, sorted."""
    images = {split: {question.image for question in some} for split, some in splits.items()}
    others = {
        split: set().union(*(images[other] for other in images if other != split))
        for split in images
    }
    return {split: sorted(images[split] & others[split]) for split in images}


def class_lists(splits: dict[str, list[Question]], column: str) -> dict[str, list[str]]:
    """The sorted classes of a column: of all splits, and of train."""

    def found(*names: str) -> list[str]:
        given = {q.fields[column] for name in names for q in splits.get(name, ())}
        return sorted(given - {None})

    return {"paper": found(*splits), "train": found("train")}


def class_coverage(
    lists: dict[str, list[str]], test: Sequence[Question], column: str
) -> dict[str, Any]:
    """Numbers of classes, and the share of test rows with a class whose class is a training one."""
    given = [q.fields[column] for q in test if q.fields[column] is not None]
    counts = {name: len(some) for name, some in lists.items()}
    return {**counts, "test_coverage": share([name in lists["train"] for name in given])}


def count_splits(splits: dict[str, list[Question]], classes: Sequence[str]) -> dict[str, Any]:
    """Of each split: images; questions by type, or texts and those without a class by column."""
    counts: dict[str, Any] = {}
    for split, some in splits.items():
        images = {"images": len({question.image for question in some})}
        if classes:
            without = {name: sum(q.fields[name] is None for q in some) for name in classes}
            counts[split] = {**images, "texts": len(some), "without_class": without}
        else:
            counts[split] = {**images, **count_types(some)}
    return counts


# ------------------------------------------------------------------ command line


def read_shares(args: argparse.Namespace) -> dict[str, float]:
    """The shares asked for, by split; raises ValueError where they are none."""
    given = {"test": args.test_share, "valid": args.valid_share}
    shares = {split: part for split, part in given.items() if part is not None}
    if any(not 0 < part < 1 for part in shares.values()) or sum(shares.values()) >= 1:
        raise ValueError("--test-share, --valid-share: between 0 and 1, together below 1")
    return shares


def read_classes(names: str | None, optional: Sequence[str]) -> list[str]:
    """The class columns asked for; raises ValueError where a name cannot be one."""
    if names is None:
        return []
    classes = [name.strip() for name in names.split(",")]
    taken = ("image", "text", "question_id", *optional)
    for name in classes:
        if not name or name in taken or classes.count(name) > 1:
            raise ValueError(
                f"--classes {names}: {name!r} cannot be a column of classes, or is there twice"
            )
    return classes


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    add = parser.add_argument
    add("--table", required=True, metavar="FILE", help=".csv, .tsv, .jsonl or .parquet")
    add("--classes", metavar="COLUMN[,COLUMN]", help="columns of classes, instead of answers")
    add(
        "--test-share",
        type=float,
        metavar="X",
        help="share of the images that become the test split, where the table has no splits",
    )
    add("--valid-share", type=float, metavar="X", help="the same for the valid split")
    add("--seed", type=int, default=0, help="of that draw (default: %(default)s)")
    args = parser.parse_args(argv)

    def body() -> None:
        path = need(Path(args.table), "a table of images and questions")
        need(args.raw, "the folder that image paths start from")
        classes, shares, drops = read_classes(args.classes, OPTIONAL), read_shares(args), Drops()
        needed = ("image", "text", *classes) if classes else ("image", "question", "answer")
        optional = OPTIONAL if classes else (*OPTIONAL, *OPTIONAL_FOR_QUESTIONS)
        table = Table(path, needed, optional, drops)
        splits, stored = read_questions(table, path.name, classes, drops)
        if not splits:
            raise ValueError(f"{path}: no usable row: {drops.as_dict()}")
        if shares:
            if list(splits) != ["train"]:
                raise ValueError(
                    f"{path}: has a column split ({', '.join(splits)}); give no "
                    "--test-share or --valid-share"
                )
            splits = draw_splits(splits["train"], shares, args.seed)
        _warn(path, splits, table.ignored)
        test = splits.get("test", [])
        if classes:
            lists: dict[str, Any] = {name: class_lists(splits, name) for name in classes}
            for name in classes:
                if not lists[name]["paper"]:
                    raise ValueError(f"{path}: column {name!r} is empty in every usable row")
            known = {"classes": {name: class_coverage(lists[name], test, name) for name in classes}}
        else:
            found = {"paper": labels(*splits.values()), "train": labels(splits.get("train", []))}
            lists = {name: sorted(some) for name, some in found.items()}
            known = {"answers": coverage(found, test)}
        facts = {
            "corpus": count_splits(splits, classes),
            "ignored_columns": table.ignored,
            "images_in_two_splits": len(set().union(*shared_images(splits).values())),
            **known,
        }
        # By its content, not its place: the options decide whether a split is up to date.
        args.table = f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"

        def place(name: str) -> Path | Stored:
            return stored.get(name) or args.raw / name

        items = {split: to_items(some, place, str) for split, some in splits.items()}
        dropped = {next(iter(splits)): drops}
        file = "classes.json" if classes else "answers.json"
        prepare_fields(items, dropped, args, path.stem, facts, file, lists)

    return exit_status(body)


def _warn(path: Path, splits: dict[str, list[Question]], ignored: Sequence[str]) -> None:
    """What a user should know before the table of the report, on stderr."""
    if ignored:
        print(
            f"note: columns of {path.name} that are not used: {', '.join(ignored)}", file=sys.stderr
        )
    if "train" not in splits:
        print(f"warning: {path.name} has no split train, only {', '.join(splits)}", file=sys.stderr)
    for split, images in shared_images(splits).items():
        if images:
            print(
                f"warning: {len(images)} images of split {split} are in another split too, "
                f"e.g. {images[0]}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    sys.exit(main())
