"""The one reader of tables, whatever kind of file they are."""

import gzip
import json
import subprocess
import sys

import pytest

from m3ae.corpora.items import Drops
from m3ae.corpora.tables import read_table, shared_images
from m3ae.files import replacing, write_text

ROWS = [
    {"id": "a", "text": 'a "quoted", text\nin two lines', "more": "x"},
    {"id": "b", "text": " as it stands ", "more": "y"},
]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "parquet"])
def test_a_row_is_the_same_in_every_kind_of_table(tmp_path, kind):
    """Cells, numbers of rows or column names that depend on the kind of file."""
    path, drops = tmp_path / f"rows.{kind}", Drops()
    if kind == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, ROWS)))
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        mark = "\t" if kind == "tsv" else ","
        cells = [["id", " text", "more"], *([f'"{c}"' for c in doubled(row)] for row in ROWS)]
        data = "\n\n".join(mark.join(row) for row in cells).encode("utf-8-sig")
        path.write_bytes(gzip.compress(data) if kind == "csv.gz" else data)
    found = list(read_table(path, ("id", "text"), drops, ("absent",)))
    rows = [(number, {"id": row["id"], "text": row["text"]}) for number, row in found]
    assert rows == [(k, {"id": r["id"], "text": r["text"]}) for k, r in enumerate(ROWS, start=1)]
    assert all(list(row) == ["id", "text", "more"] for _, row in found) and not drops.counts


def doubled(row: dict[str, str]) -> list[str]:
    return [cell.replace('"', '""') for cell in row.values()]


def test_a_short_row_is_counted_and_not_filled(tmp_path):
    """A row that lost a cell in the middle, whose other cells are read one column too early."""
    (tmp_path / "x.csv").write_text("image,text,split\na.png,b,test\na.png,test\n")
    drops = Drops()
    rows = list(read_table(tmp_path / "x.csv", ("image", "text"), drops, ("split",)))
    assert rows == [(1, {"image": "a.png", "text": "b", "split": "test"})]
    assert drops.counts == {"row: more or fewer cells than the header has": 1}


def test_images_of_two_splits(capsys):
    """An image of two splits that is not counted, or a split that has none named."""
    assert shared_images({"train": "abc", "valid": "d", "test": "cb"}) == {"b", "c"}
    error = capsys.readouterr().err
    assert error.count("2 images of split") == 2 and "e.g. b" in error and "valid" not in error


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    """A half-written file in the place of a good one."""
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(OSError), replacing(path) as temporary:
        temporary.write_text("ha")
        raise OSError
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


KILLED = """
import os, sys
from pathlib import Path
from m3ae.files import replacing, write_text
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_left_goes(tmp_path):
    """Half a file beside the whole one for ever; the half file of a process that lives removed."""
    path = tmp_path / "x[1].txt"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    with replacing(path) as mine:
        mine.write_text("mine")
        with replacing(tmp_path / "y.txt") as other:
            other.write_text("another file")
        write_text(tmp_path / "x[1].txt.txt", "a longer name")
        assert mine.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"x[1].txt", "y.txt", "x[1].txt.txt"}
