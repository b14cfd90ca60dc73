"""Questions to be answered: the rows of a table, or one question about every image of a folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3ae.corpora.items import Drops, Stored
from m3ae.corpora.tables import cell, image_of, read_column_names, read_table
from m3ae.data.exclusions import IMAGE_SUFFIXES, image_files
from m3ae.files import need


@dataclass
class Unanswered:
    """A row: `cells` id, image, question and, where it is known, answer; `wrong`: why it is none.

    The image is a file, or lies in the table itself.
    """

    cells: dict[str, str]
    file: Path
    stored: Stored | None = None
    wrong: str = ""

    def image(self) -> Path | bytes:
        """What `Predictor` reads: the path, or the bytes of the image that a table holds."""
        return self.file if self.stored is None else self.stored.read_bytes()


def table_rows(path: Path, raw: Path, columns: Sequence[str] | None = None) -> list[Unanswered]:
    """Rows of a table with columns image and question; ValueError naming what is wrong with it.

    Rows without an id take their number, from 1; without an image or a question they are `wrong`.
    """
    needed, optional = ("image", "question"), ("id", "answer")
    names = read_column_names(columns, (*needed, *optional))
    need(path, "a table of images and questions")
    rows, drops, seen = [], Drops(), set()
    for number, row in read_table(path, needed, drops, optional, names):
        found = Unanswered({"id": str(number), "image": "", "question": ""}, raw)
        try:
            found.cells["id"] = cell(row, "id") or str(number)
            found.cells["question"] = cell(row, "question")
            if answer := cell(row, "answer"):
                found.cells["answer"] = answer
            found.cells["image"], found.stored = image_of(row, raw)
            found.file = raw / found.cells["image"]
        except ValueError as error:
            found.wrong = str(error)
        if found.cells["id"] in seen:
            raise ValueError(f"{path}: id {found.cells['id']!r} twice; answers are known by it")
        seen.add(found.cells["id"])
        rows.append(found)
    if drops.counts:  # a line that is no row has no place in the answers
        wrong = "; ".join(f"{count} x {reason}" for reason, count in drops.counts.items())
        raise ValueError(f"{path}: {wrong}; mend these lines")
    if not rows:
        raise ValueError(f"{path}: no row in it")
    if any("answer" in row.cells for row in rows):
        rows = [_with_answer(row) for row in rows]
    return rows


def _with_answer(row: Unanswered) -> Unanswered:
    row.cells.setdefault("answer", "")
    return row


def folder_rows(folder: Path, question: str) -> list[Unanswered]:
    """A row for each image file below a folder, by path; ValueError where there is none."""
    need(folder, "a folder of images")
    names = [path.relative_to(folder).as_posix() for path in image_files(folder) if path.is_file()]
    if not names:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ValueError(f"{folder}: no image file in it ({suffixes})")
    cells = [{"id": name, "image": name, "question": question} for name in names]
    return [Unanswered(some, folder / some["image"]) for some in cells]


def digest_of(rows: Sequence[Unanswered]) -> str:
    """Of all cells, in order: what a file of answers was begun with."""
    lines = (json.dumps(row.cells, sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()
