"""A file of rows, CSV or JSON lines, written as they come, that goes on where it was broken off."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from m3ae.files import write_json


class RowFile:
    """Rows with `columns` in a .csv or .jsonl file; `done` of them are there already.

    Beside it lies FILE.from.json: `facts`, what the rows follow from. A file that was begun from
    the same facts is cut after its last whole line and goes on; any other is refused.
    Lists and dicts in a CSV cell are JSON.
    """

    def __init__(self, path: Path, columns: Sequence[str], facts: dict[str, Any]) -> None:
        self.path, self.columns, self.csv = path, columns, path.suffix.lower() == ".csv"
        if not self.csv and path.suffix.lower() != ".jsonl":
            raise ValueError(f"{path}: give a name that ends in .csv or .jsonl")
        facts, beside = facts | {"columns": list(columns)}, Path(f"{path}.from.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = path.exists() and path.stat().st_size > 0
        if begun:
            self._check(facts, beside)
        write_json(beside, facts)
        self.file = open(path, "r+b" if begun else "wb")
        self.done = self._go_on() if begun else 0
        if self.csv and not self.file.tell():
            self._append([dict(zip(columns, columns, strict=True))])

    def _check(self, facts: dict[str, Any], beside: Path) -> None:
        hint = "give another --out, or remove it"
        if not beside.is_file():
            raise ValueError(f"{self.path}: there already, and without {beside.name}; {hint}")
        before = json.loads(beside.read_text(encoding="utf-8"))
        if other := sorted(k for k in facts | before if facts.get(k) != before.get(k)):
            wrong = f"begun with another {', '.join(other)}"
            raise ValueError(f"{self.path}: {wrong} (see {beside.name}); {hint}")

    def _go_on(self) -> int:
        """Cut what follows the last whole line, and count the rows before; no cell has a break."""
        end = lines = 0
        for line in self.file:
            if line.endswith(b"\n"):
                end, lines = end + len(line), lines + 1
        self.file.truncate(end)
        self.file.seek(end)
        return max(lines - self.csv, 0)

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows, and hand them to the system, so that a killed process loses none of them.

        Raises ValueError for a row with a line break in a cell of a CSV file.
        """
        self._append(rows)
        self.file.flush()

    def _append(self, rows: Iterable[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        for row in rows:
            if not self.csv:
                text.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
                continue
            cells = {key: _cell(value) for key, value in row.items()}
            if broken := [key for key, cell in cells.items() if set("\r\n") & set(cell)]:
                wrong = f"a line break in {broken[0]}, {cells[broken[0]]!r}"
                raise ValueError(f"{self.path}: {wrong}; write .jsonl instead")
            writer.writerow(cells)
        self.file.write(text.getvalue().encode("utf-8"))

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


def _cell(value: Any) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)
