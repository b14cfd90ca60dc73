"""Whatever a corpus's files hold, the parsers of captions end in items, counted drops or an error
in one line; nothing is lost without a count, and no path leads out of the corpus."""

import gzip
import io
import itertools
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import medicat, pairs, roco, roco_retrieval, rocov2
from m3ae.corpora.items import Drops, Item
from m3ae.corpora.own_table import OwnTable
from m3ae.corpora.papers import medicat_dois, papers_by_doi, roco_papers
from m3ae.corpora.roco_files import parquet_pairs
from m3ae.corpora.stored import InParquet, InZip
from m3ae.corpora.tables import Row, read_table
from tests.data_prep.test_corpora import save_image

MANY = settings(max_examples=2000, database=None)
SOME = settings(max_examples=60, database=None)
COUNTER = itertools.count(1)

# ------------------------------------------------------------------ what files may hold

# Ways out of raw/SPLIT/radiology/images/, raw/figures/ and raw/ to secret.jpg beside raw.
WAYS_OUT = ["../" * depth + "secret" for depth in (1, 2, 3, 4)]
WAYS_OUT += ["@", "a/../../../../../secret", "..", ".", "/", "C:\\secret", "..\\secret", "a\0b", ""]
KEYS = ["ROCO_00001", "ROCO_00002", "ROCOv2_2023_train_000001", "PMC1_a.jpg", *WAYS_OUT]
CAPTIONS = ["An axial CT.", "one two three four", "two  words", '"quoted, text"', "é ü", "\u2028x"]
STRINGS = [*KEYS, *CAPTIONS, *(f"{key}.jpg" for key in WAYS_OUT), "\ud800", "x\ny", "a" * 300]
VALUES = [
    *STRINGS,
    None,
    True,
    False,
    0,
    -7,
    10**30,
    1.5,
    float("nan"),
    [],
    {},
    ["An axial CT."],
    [None],
    ["one two three", 7],
    [["a b c"]],
    {"doi": "10.1/A"},
    {"doi": 5},
    {"doi_url": ""},
    {"bytes": "x"},
]
CELLS = [text.encode("utf-8", "replace") for text in STRINGS]
CELLS += [b"\xff", b"\xf6\xdf", b"\xef\xbb\xbf", b"\x00", b'"', b'""', b"'", b"\r", b" ", b"\x85"]

# One draw an example, as draws are what costs time: each byte of it chooses a piece of the file.
STREAMS = st.binary(max_size=16)


def lines(stream: bytes, separator: bytes) -> bytes:
    """A file of lines of cells."""
    ends = [separator] * 80 + [b"\n"] * 40 + [b"\r\n"] * 10
    return b"".join(ends[byte] if byte < 130 else CELLS[byte % len(CELLS)] for byte in stream)


def rows(stream: bytes, columns: Sequence[str]) -> list[dict]:
    """Objects: each has some of the columns, with any value."""
    step, found = len(columns), []
    for start in range(0, len(stream), step):
        # The last row may be cut short: such rows are part of what is tried.
        cells = zip(columns, stream[start : start + step], strict=False)
        chosen = {name: byte % (len(VALUES) + 3) for name, byte in cells}
        found.append({name: VALUES[k] for name, k in chosen.items() if k < len(VALUES)})
    return found


def objects(stream: bytes, columns: Sequence[str]) -> bytes:
    """A file of lines of JSON objects; the first byte says which damage the last one has."""
    found = [json.dumps(row).encode() for row in rows(stream[1:], columns)]
    if found:
        kind, last = stream[0] % 6, found[-1]
        damage = [
            last,
            last[:9],
            b"\xff" + last,
            last.replace(b": ", b": \xff", 1),
            b"[" * 9999,
            json.dumps(VALUES[stream[0] % len(VALUES)]).encode(),
        ]
        found[-1] = damage[kind]
    return b"\n".join(found)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with secret.jpg in it; corpora go to base/raw."""
    folder = tmp_path_factory.mktemp("base")
    save_image(folder / "secret.jpg", 1)
    (folder / "secret").write_bytes((folder / "secret.jpg").read_bytes())
    return folder


def write(base: Path, name: str, data: bytes) -> Path:
    """A file of the corpus; @ in a text file becomes the absolute path of the secret image."""
    path = base / "raw" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix not in (".zip", ".parquet"):
        data = data.replace(b"@", str(base / "secret").encode())
    path.write_bytes(data)
    if path.suffix in (".zip", ".parquet"):  # cached, and told apart by time and size alone
        os.utime(path, ns=(0, next(COUNTER)))
    return path


def filled_lines(data: bytes) -> int:
    """Lines that are not blank, as a text file has them."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return sum(bool(line.strip()) for line in text.split("\n"))


def total(drops: Drops) -> int:
    return sum(drops.counts.values())


def assert_inside(items: Iterable[Item], folder: Path) -> None:
    """Every image is below the folder, by its path as the system would follow it."""
    for item in items:
        if isinstance(item.image, Path):
            assert Path(os.path.normpath(item.image)).is_relative_to(folder), item
            assert os.path.normpath(item.image) != str(folder)


# ------------------------------------------------------------------ ROCO


@MANY
@given(stream=STREAMS, limit=st.integers(0, 3))
def test_roco_captions(base, stream, limit):
    """A line lost without a count, or an id that leads out of images/; roco.py's reader and
    roco_retrieval.py's."""
    data, drops, images = lines(stream, b"\t"), Drops(), base / "raw" / "images"
    path = write(base, "captions.txt", data)
    captions = roco.read_captions(path, drops)
    assert len(captions) + total(drops) == filled_lines(data)
    assert_inside((Item(key, images / f"{key}.jpg", ()) for key in captions), images)

    found, drops = roco_retrieval.caption_lines(path), Drops()
    pairs = roco_retrieval.read_pairs(found, drops, limit or None)
    assert len(pairs) <= (limit or len(found))
    assert limit or len(pairs) + total(drops) == len(found)
    assert_inside((Item(p.key, images / f"{p.key}.jpg", ()) for p in pairs), images)


LINK = b"ROCO_1\twget -r ftp://h/PMC1.tar.gz -P /d\ta.jpg\n"
LINKS = [b"", LINK, LINK.replace(b"_1", b"_2"), b"\t.tar.gz\t\n"]
LICENCES = [b"", b"ROCO_ID,PMC_ID,CC\n", b"ROCO_1,PMC1_a.jpg,CC BY\n", b"a\n"]


@MANY
@given(stream=STREAMS, kind=st.integers(0, 15))
def test_roco_figures_and_papers(base, stream, kind):
    """IndexError, KeyError... for a line with fewer columns or no archive."""
    link, licence = LINKS[kind % 4], LICENCES[kind // 4]
    write(base, "test/radiology/licences.txt", licence + lines(stream[::2], b","))
    path = write(base, "test/radiology/dlinks.txt", link + lines(stream[1::2], b"\t"))
    names = roco.figure_names(path.parent, Drops())
    assert all(isinstance(key, str) for pair in names.items() for key in pair)
    assert link != LINK or names["PMC1_a.jpg"] == "ROCO_1"
    papers = roco_papers(path.parent, Drops())
    assert all(paper[3:].isdigit() for paper in papers.values())
    assert link != LINK or papers["ROCO_1"] == "PMC1"


@MANY
@given(stream=STREAMS)
def test_roco_references(base, stream):
    """TypeError for an unhashable name, or the letters of a string as texts."""
    data = objects(stream, ["roco_image_id", "gorc_references"])
    path, drops = write(base, "references.jsonl", data), Drops()
    names = {"PMC1_a.jpg": "ROCO_1", "..": "ROCO_2", "ROCO_00001": "ROCO_3"}
    references = roco.read_references(path, names, drops)
    assert set(references) <= set(names.values())
    assert all(isinstance(text, str) for texts in references.values() for text in texts)


@MANY
@given(stream=STREAMS, kind=st.integers(0, 5))
def test_retrieval_join_with_medicat(base, stream, kind):
    """A traceback for a damaged table, or a list that a figure's name breaks in two."""
    ids = [b"", b"DOI,PMCID\n10.1/a,PMC1\n"][kind % 2] + lines(stream[::2], b",")
    if kind >= 2:
        packed = bytearray(gzip.compress(ids, mtime=0))
        packed[sum(stream) % len(packed)] ^= kind - 2
        ids = bytes(packed)
    path, facts = write(base, "ids.csv.gz" if kind >= 2 else "ids.csv", ids), Counter()
    try:
        by_doi = papers_by_doi(path, facts, {"PMC1", "An axial CT."})
    except (ValueError, OSError) as error:
        assert path.name in str(error)
        by_doi = {"10.1/a": "PMC1"}
    line = b'{"pdf_hash": "h", "fig_uri": "f\\n.png", "oa_info": {"doi": "10.1/A"}}\n'
    data = objects(stream[1::2], ["pdf_hash", "fig_uri", "oa_info"])
    found = medicat_dois(write(base, "m.jsonl", line + data), facts)
    figures = {name: by_doi[doi] for name, doi in found if doi in by_doi}
    listed = roco_retrieval.exclusions(figures, {"test": {"papers": {"x": "PMC1"}}})
    assert all(line.splitlines() == [line] and line.count("\t") == 1 for line in listed)


# ------------------------------------------------------------------ ROCOv2

HEADS = [b"ID,Caption\n", b"\xef\xbb\xbfID,Caption\r\n", b"Caption,x,ID\n", b"ID,ID,Caption\n", b""]


@MANY
@given(stream=STREAMS, head=st.sampled_from(HEADS))
def test_rocov2_captions(base, stream, head):
    """An id that leads out of the images' folder, or csv's own errors."""
    path, drops = write(base, "train_captions.csv", head + lines(stream, b",")), Drops()
    try:
        captions = rocov2.read_captions(path, drops)
    except ValueError as error:
        assert "train_captions.csv" in str(error)
        return
    assert all("/" not in key and caption.strip() for key, caption in captions.items())
    images = base / "raw" / "train"
    assert_inside((Item(key, images / f"{key}.jpg", ()) for key in captions), images)


def zip_of(names: Iterable[str], data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in dict.fromkeys(names):
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


@MANY
@given(stream=st.binary(max_size=5))
def test_zip_member_names(base, stream):
    """A member that names a place elsewhere taken for an image, or written there."""
    names = [STRINGS[byte % len(STRINGS)].replace("\ud800", "é").split("\0")[0] for byte in stream]
    before = sorted(os.listdir(base))
    path, drops = write(base, "train_images.zip", zip_of(names, b"data")), Drops()
    members = rocov2.zip_members(path, drops)
    for name, member in members.items():
        assert ".." not in member.split("/") and not member.startswith("/") and "/" not in name
        assert InZip(path, member).read_bytes() == b"data"
    assert sorted(os.listdir(base)) == before


# ------------------------------------------------------------------ MedICaT

FIGURE = {"pdf_hash": "h", "fig_uri": "1.png", "s2_caption": "A caption here.", "radiology": True}
COLUMNS = [*FIGURE, "s2orc_caption", "s2orc_references"]


def figures(stream: bytes) -> list[dict]:
    """Figures of which one column each, the first byte's choice, is anything."""
    changed = COLUMNS[stream[0] % len(COLUMNS)] if stream else ""
    return [{**FIGURE, **row} for row in rows(stream[1:], [changed])]


@MANY
@given(
    stream=STREAMS,
    everything=st.booleans(),
    held_out=st.integers(-1, 3),
    rule=st.sampled_from(sorted(medicat.SPLIT_BY)),
)
def test_medicat_lines(base, stream, everything, held_out, rule):
    """A line lost without a count, a name that leads out of figures/, a reference that is a number
    or a letter, a figure in two splits."""
    good = b"".join(json.dumps(row).encode() + b"\n" for row in figures(stream[::2]))
    data, drops = good + objects(stream[1::2], COLUMNS), Drops()
    path = write(base, "figures.jsonl", data)
    kept = medicat.kept_figures(path, everything, drops)
    assert len(kept) + total(drops) == sum(bool(line.strip()) for line in data.split(b"\n"))
    items = list(medicat.Figures(path, [offset for offset, _ in kept]))
    assert_inside(items, base / "raw" / "figures")
    assert all(isinstance(text, str) and text for item in items for text in item.texts)
    try:
        parts = medicat.split_kept(rule, kept, held_out)
    except ValueError as error:
        assert "--held-out" in str(error)
        return
    assert sorted(figure for part in parts.values() for figure in part) == sorted(kept)
    assert rule == "figure" or medicat.split_facts(parts)["papers_in_two_splits"] == 0


# ------------------------------------------------------------------ a user's table


def own_table(path: Path, rows: Iterable[Row], drops: Drops) -> OwnTable:
    """Rows of a table in the folder --raw."""
    placed = [(f"{path.name}: row {number}", number, row) for number, row in rows]
    return OwnTable(path.name, path.parent, placed, drops=drops)


def check_items(items: dict[str, list[Item]], rows: int, table: OwnTable, raw: Path) -> None:
    """Every row is a text of an item, or counted; images and splits stay where they belong."""
    texts = [item.texts for found in items.values() for item in found]
    assert sum(map(len, texts)) + total(table.drops) + len(table.left_out) == rows
    assert all(isinstance(text, str) for some in texts for text in some)
    assert all("/" not in split and split not in ("..", "tokenizer") for split in items)
    for found in items.values():
        assert_inside([item for item in found if item.image != raw], raw)


TABLES = [
    ["image", "text"],
    ["text", "split", "id", "image"],
    ["image", "image", "text"],
    ["x"],
    ['"'],
]


@MANY
@given(stream=STREAMS, header=st.sampled_from(TABLES), separator=st.sampled_from(",\t"))
def test_csv_and_tsv_of_pairs(base, stream, header, separator):
    """csv's own errors, a row lost without a count, a path out of --raw."""
    data = separator.join(header).encode() + b"\n" + lines(stream, separator.encode())
    name = "pairs.csv" if separator == "," else "pairs.tsv"
    path, drops, no_rows = write(base, name, data), Drops(), Drops()
    try:
        found = list(read_table(path, ("image", "text"), no_rows, ("split", "id")))
        table = own_table(path, found, drops)
        items = pairs.read_items(table)
    except ValueError as error:
        assert name in str(error)
        return
    check_items(items, len(found), table, base / "raw")
    assert total(no_rows) + len(found) >= max((number for number, _ in found), default=0)


@MANY
@given(stream=STREAMS)
def test_jsonl_of_pairs(base, stream):
    """A list or number as an image, a text or a split."""
    data = objects(stream, ["image", "text", "split", "id"])
    path, drops = write(base, "pairs.jsonl", data), Drops()
    rows = read_table(path, ("image", "text"), drops, ("split", "id"))
    try:
        table = own_table(path, rows, drops)
        items = pairs.read_items(table)
    except ValueError as error:
        assert "pairs.jsonl: no column '" in str(error)
        return
    check_items(items, filled_lines(data), table, base / "raw")


CELLS_OF_A_TYPE = [
    ["a.png", None],
    ["../../secret.jpg", "An axial CT."],
    [None, b"\xff"],
    [1, None],
    ["\0", " "],
    [{"bytes": b"x"}, None],
    [{"bytes": None}, {"bytes": b"y"}],
    [{"path": "x"}, None],
    [["a"], []],
    [None, None],
    [b"An axial CT.", b"a"],
]


@MANY
@given(stream=st.binary(min_size=6, max_size=6))
def test_parquet_of_pairs_and_of_the_hub(base, stream):
    """A null or a number as image, caption or id; pyarrow's own errors."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    names = ["image", "text", "caption", "image_id", "split", "id"]
    kinds = [byte % (len(CELLS_OF_A_TYPE) + 1) for byte in stream]
    columns = {
        name: CELLS_OF_A_TYPE[kind]
        for name, kind in zip(names, kinds, strict=True)
        if kind < len(CELLS_OF_A_TYPE)
    }
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    path = write(base, "pairs.parquet", out.getvalue())
    try:
        drops = Drops()
        rows = read_table(path, ("image", "text"), drops, ("split", "id"))
        table = own_table(path, rows, drops)
        items = pairs.read_items(table)
        check_items(items, 2, table, base / "raw")
    except ValueError as error:
        assert "pairs.parquet" in str(error)
    try:
        drops = Drops()
        hub = parquet_pairs([path], drops)
        assert len(hub) + total(drops) == 2
    except ValueError as error:
        assert "pairs.parquet" in str(error)
        return
    for item in hub:
        assert isinstance(item.image, InParquet) and isinstance(item.image.read_bytes(), bytes)
        assert item.key.strip() and item.texts[0].strip()


# ------------------------------------------------------------------ from end to end


def nothing_gets_out(base: Path, main: Callable[[Sequence[str]], int], *arguments: object) -> None:
    """`main` ends with exit code 1, as the only image is outside --raw, and writes only to OUT."""
    out = base / "out" / str(next(COUNTER))
    before = {path: path.stat().st_mtime_ns for path in base.iterdir() if path.name != "out"}
    more = ["--out", out, "--px", "16", "--workers", "0", *arguments]
    assert main([str(word) for word in more]) == 1
    assert not list(out.glob("*/manifest.json"))
    after = {path: path.stat().st_mtime_ns for path in base.iterdir() if path.name != "out"}
    assert after == before


GOOD = "An axial CT."
FEW = st.binary(max_size=4).map(lambda some: [WAYS_OUT[byte % len(WAYS_OUT)] for byte in some])


@SOME
@given(stream=STREAMS, keys=FEW)
def test_no_image_of_roco_from_elsewhere(base, stream, keys):
    """A picture outside the corpus in the shards; an exception that is no message."""
    data = "".join(f"{key}\t{GOOD}\n" for key in keys).encode() + lines(stream, b"\t")
    for split in ("train", "validation", "test"):
        path = write(base, f"r/{split}/radiology/captions.txt", data)
        (path.parent / "images").mkdir(exist_ok=True)
    nothing_gets_out(base, roco.main, "--raw", base / "raw" / "r")
    nothing_gets_out(base, roco_retrieval.main, "--raw", base / "raw" / "r")


@SOME
@given(stream=STREAMS, keys=FEW, zipped=st.booleans())
def test_no_image_of_rocov2_from_elsewhere(base, stream, keys, zipped):
    """A picture outside the corpus in the shards; an exception that is no message."""
    text = "ID,Caption\n" + "".join(f"{key},{GOOD}\n" for key in keys)
    path = write(base, f"v{zipped}/train_captions.csv", text.encode() + lines(stream, b","))
    if zipped:
        names = [f"{key}.jpg" for key in keys if key != "."]
        images = zip_of(names, (base / "secret").read_bytes())
        write(base, f"v{zipped}/train_images.zip", images)
    else:
        (path.parent / "train").mkdir(exist_ok=True)
    nothing_gets_out(base, rocov2.main, "--raw", path.parent)


@SOME
@given(stream=STREAMS, names=FEW)
def test_no_image_of_medicat_from_elsewhere(base, stream, names):
    """A picture outside the corpus in the shards; an exception that is no message."""
    found = [{**FIGURE, "pdf_hash": name, "fig_uri": f"../{name}.jpg"} for name in names]
    found += figures(stream)
    path = write(base, "m/figures.jsonl", "\n".join(map(json.dumps, found)).encode())
    (path.parent / "figures").mkdir(exist_ok=True)
    nothing_gets_out(base, medicat.main, "--raw", path.parent, "--held-out", 0)


@SOME
@given(stream=STREAMS, names=FEW)
def test_no_image_of_pairs_from_elsewhere(base, stream, names):
    """A picture outside the corpus in the shards; an exception that is no message."""
    text = "image,text\n" + "".join(f"{n}.jpg,{GOOD}\n{n},{GOOD}\n" for n in names)
    path = write(base, "p/pairs.csv", text.encode() + lines(stream, b","))
    nothing_gets_out(base, pairs.main, "--table", path, "--raw", path.parent)
