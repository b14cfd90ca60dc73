"""The one reader of tables, whatever kind of file they are."""

import csv
import gzip
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae.corpora.items import Drops
from m3ae.corpora.tables import read_column_names, read_table, shared_images
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


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "CSV", "csv.gz"])
def test_the_separator_is_that_of_the_header(tmp_path, mark, ending):
    """A table of a country with decimal commas refused, or its cells cut at commas."""
    path = tmp_path / f"x.{ending}"
    text = f'\ufeffimage{mark}text\r\na.png{mark}"one, two; three\t"\r\n'
    data = text.encode()
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    rows = [(1, {"image": "a.png", "text": "one, two; three\t"})]
    assert list(read_table(path, ("image", "text"), Drops())) == rows


def test_the_usual_separator_goes_first(tmp_path):
    """A header whose names hold the other separator cut there."""
    (tmp_path / "x.csv").write_text("a,b;c\n1,2\n")
    assert list(read_table(tmp_path / "x.csv", ("a",), Drops())) == [(1, {"a": "1", "b;c": "2"})]
    with pytest.raises(ValueError, match=r"no column 'd'; it has a, b;c$"):
        list(read_table(tmp_path / "x.csv", ("d",), Drops()))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(tmp_path, ending, encoding):
    """A table as a spreadsheet saves "Unicode text", told that it has no column image."""
    path = tmp_path / f"x.{ending}"
    path.write_bytes('{"image": "a"}\n'.encode(encoding))
    with pytest.raises(ValueError, match=rf"x\.{ending}: is UTF-16; save it as UTF-8"):
        list(read_table(path, ("image",), Drops()))


def test_jsonl_without_the_column(tmp_path):
    """A count of rows without text where the column has another name; one row that lacks it."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"image": "a", "caption": "b"}\n{"image": "c", "note": 1}\n')
    with pytest.raises(
        ValueError, match=r"x\.jsonl: no column 'text'; it has image, caption, note$"
    ):
        list(read_table(path, ("image", "text"), Drops()))
    assert len(list(read_table(path, ("image", "caption"), Drops()))) == 2


def test_columns_of_other_names(tmp_path):
    """A column of the usual name read in place of the named one, or lost without a word."""
    path, names = tmp_path / "x.csv", {"image": "file", "id": "file"}
    path.write_text("file,image,text\na.png,7,one\n")
    ((_, row),) = read_table(path, ("image", "text"), Drops(), ("id", "split"), names)
    assert row == {"image": "a.png", "id": "a.png", "text": "one", "image (of the file)": "7"}
    for wrong in ({"split": "part"}, {"text": "said"}):
        with pytest.raises(ValueError, match=r"no column '(part|said)'; .* (split|text)=COLUMN"):
            list(read_table(path, ("image", "text"), Drops(), ("split",), wrong))


def test_a_latin_1_table(tmp_path):
    """A header or a cell of an older spreadsheet that no name of a column fits."""
    path, names = tmp_path / "x.csv", {"text": "Gr\u00f6\u00dfe"}
    path.write_bytes("image;Gr\u00f6\u00dfe\na.png;5 \u00b5m\n".encode("latin-1"))
    ((_, row),) = read_table(path, ("image", "text"), Drops(), names=names, encoding="latin-1")
    assert row == {"image": "a.png", "text": "5 \u00b5m"}
    with pytest.raises(ValueError, match="no column"):
        list(read_table(path, ("image", "text"), Drops(), names=names))


def test_pairs_of_names():
    """A name misspelt, given twice or without a column that is taken for no option at all."""
    known = ("image", "text")
    names = {"image": "a=b", "text": "my notes"}
    assert read_column_names(["image=a=b", " text = my notes "], known) == names
    assert read_column_names(None, known) == {}
    for wrong in (["img=a"], ["image"], ["image="], ["text=a", "text=b"]):
        with pytest.raises(
            ValueError, match=r"--columns .*: should be NAME=COLUMN, each NAME once"
        ):
            read_column_names(wrong, known)


NAMES = ("image", "text", "split", "id")
COLUMN = st.sampled_from([*NAMES, "file", "my notes", "part", "é", "x;y"])
CELL = st.text(st.sampled_from('ab ,;\t"\n'), max_size=4)


@given(
    header=st.lists(COLUMN, min_size=2, max_size=6, unique=True),
    named=st.data(),
    mark=st.sampled_from(",;\t"),
    rows=st.lists(st.lists(CELL, min_size=6, max_size=6), max_size=3),
)
def test_any_columns_by_any_names(tmp_path_factory, header, named, mark, rows):
    """A cell under another name than the one given for its column, or a column that is lost."""
    path = tmp_path_factory.mktemp("named") / "x.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL)
        writer.writerows([header, *(row[: len(header)] for row in rows)])
    names = named.draw(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(header)))
    of = {name: names.get(name, name) for name in NAMES}
    found = read_table(path, ("image", "text"), Drops(), ("split", "id"), names)
    if not {of["image"], of["text"]} <= set(header):
        with pytest.raises(ValueError, match="no column"):
            list(found)
        return
    for (_, row), cells in zip(found, rows, strict=True):
        given = dict(zip(header, cells, strict=False))
        for name, column in of.items():
            assert row.get(name) == given.get(column)
        others = sorted(value for key, value in row.items() if key not in NAMES)
        assert others == sorted(given[key] for key in given if key not in of.values())
