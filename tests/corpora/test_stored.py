"""Images inside zip archives and parquet files."""

import io
import itertools
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.corpora import stored
from m3ae.corpora.stored import (
    InParquet,
    InZip,
    holds_images,
    parquet_rows,
    parquet_splits,
    zip_names,
)

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_rows(path: Path, rows: list[dict], group: int = 2, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, **options), path, row_group_size=group)
    return path


def same_stamp(path: Path, data: bytes) -> None:
    """Write the file; hypothesis's examples follow each other faster than the clock ticks."""
    path.write_bytes(data)
    os.utime(path, ns=(0, next(CLOCK)))


CLOCK = itertools.count(1)

# ------------------------------------------------------------------ zip


def test_a_member_is_read_without_extracting(tmp_path):
    """Another member's bytes, files on disk, a folder taken for an image, or a lost pickle."""
    path = write_zip(tmp_path / "a.zip", {"x/": b"", "x/1.jpg": b"one", "y/1.jpg": b"two"})
    assert zip_names(path) == ["x/1.jpg", "y/1.jpg"]
    image = pickle.loads(pickle.dumps(InZip(path, "y/1.jpg")))  # as it goes to a worker
    assert (image.name, image.read_bytes()) == ("1.jpg", b"two")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_a_replaced_archive_is_read_anew(tmp_path):
    """The cached archive of an earlier run gives bytes from wrong offsets."""
    path = write_zip(tmp_path / "a.zip", {"1.jpg": b"one"})
    assert InZip(path, "1.jpg").read_bytes() == b"one"
    write_zip(path, {"0.jpg": b"0000", "1.jpg": b"another"})
    assert InZip(path, "1.jpg").read_bytes() == b"another"


def test_missing_and_damaged_members(tmp_path, monkeypatch):
    """A KeyError or BadZipFile that ends the preparation, where one image should be counted."""
    path = write_zip(tmp_path / "a.zip", {"1.jpg": b"one" * 99})
    with pytest.raises(FileNotFoundError, match=r"a\.zip: has no 2\.jpg"):
        InZip(path, "2.jpg").read_bytes()
    with pytest.raises(FileNotFoundError):
        InZip(tmp_path / "b.zip", "1.jpg").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(stored, "IMAGE_BYTES", 100)
        with pytest.raises(OSError, match="claims 297 bytes"):
            InZip(path, "1.jpg").read_bytes()
    data = path.read_bytes()
    same_stamp(path, data.replace(b"oneone", b"onexxx", 1))
    with pytest.raises(OSError, match="CRC"):
        InZip(path, "1.jpg").read_bytes()
    same_stamp(path, data[:50])
    with pytest.raises(OSError, match="not a readable zip"):
        InZip(path, "1.jpg").read_bytes()
    with pytest.raises(ValueError, match=r"a\.zip: not a readable zip"):
        zip_names(path)


def zip_bytes(compression: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("images/ü.jpg", b"some bytes " * 9)
        archive.writestr("../b.jpg", b"more")
    return out.getvalue()


KINDS = [
    zip_bytes(c)
    for c in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
]
PLACES = st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=2000)
@given(kind=st.sampled_from(KINDS), places=PLACES, cut=st.none() | st.integers(0, 399))
def test_no_damage_to_a_zip_raises_anything_else(tmp_path_factory, kind, places, cut):
    """zlib.error, EOFError, NotImplementedError... for a bad bit end the preparation."""
    data = bytearray(kind)
    for place, value in places:
        data[place % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    same_stamp(path, bytes(data[:cut]))
    try:
        names = zip_names(path)
    except ValueError:
        return
    for name in [*names, "images/ü.jpg"]:
        try:
            InZip(path, name).read_bytes()
        except OSError:
            pass


# ------------------------------------------------------------------ parquet


def test_rows_and_images_of_parquet(tmp_path):
    """Rows numbered through a file instead of a row group; images loaded with the texts."""
    rows = [
        {"image": {"bytes": b"%d" % k, "path": "same.png"}, "id": k, "caption": f"c{k}"}
        for k in range(5)
    ]
    rows[4] |= {"caption": None, "image": None}
    rows[3]["image"]["bytes"] = None
    files = [write_rows(tmp_path / "a.parquet", rows), write_rows(tmp_path / "b.parquet", rows[:1])]
    found = list(parquet_rows(files, ["caption", "id"], ["cui"], image="image"))
    assert [(place.file.name, place.row_group, place.row) for place, _ in found] == [
        ("a.parquet", 0, 0),
        ("a.parquet", 0, 1),
        ("a.parquet", 1, 0),
        ("a.parquet", 1, 1),
        ("a.parquet", 2, 0),
        ("b.parquet", 0, 0),
    ]
    assert found[4][1] == {"caption": None, "id": 4} and found[3][1]["caption"] == "c3"
    assert found[4][0].where == "a.parquet row group 2 row 0"
    # As they go to a worker.
    images = [pickle.loads(pickle.dumps(place)) for place, _ in found]  # as they go to a worker
    assert [image.read_bytes() for image in images] == [b"0", b"1", b"2", b"", b"", b"0"]
    assert [image.name for image in images[2:4]] == ["a-1-0", "a-1-1"]


def test_few_rows_are_in_memory(tmp_path, monkeypatch):
    """A whole file of images in memory, a whole row group, or a group read anew for every image."""
    rows = [{"image": b"%d" % k} for k in range(120)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=60)
    read, original = [], parquet.ParquetFile.iter_batches

    def spy(self, size, **more):
        read.append((size, more["row_groups"], more["columns"]))
        return original(self, size, **more)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", spy)
    stored._image_column.cache_clear()
    order = [*range(60), 59, 3, 40, *range(60, 120)]  # forward; back once
    found = [InParquet(path, k // 60, k % 60, "image").read_bytes() for k in order]
    assert found == [b"%d" % k for k in order]
    assert read == [(16, [0], ["image"])] * 2 + [(16, [1], ["image"])]
    assert stored._image_column.cache_info().currsize == 1
    with pytest.raises(OSError, match="ends before row 60"):
        InParquet(path, 1, 60, "image").read_bytes()


def test_binary_and_text_columns(tmp_path):
    """A plain binary column taken for paths; one Latin-1 byte ends the reading of all rows."""
    table = pyarrow.table(
        {
            "image": pyarrow.array([b"1", None, b"3"], pyarrow.large_binary()),
            "path": ["a", "b", "c"],
            "caption": pyarrow.array([b"gr\xf6\xdfe", b"ok", None]).view(pyarrow.string()),
            "word": pyarrow.array(["x", None, "x"]).dictionary_encode(),
        }
    )
    path = tmp_path / "a.parquet"
    parquet.write_table(table, path)
    assert holds_images(path, "image") and not holds_images(path, "path")
    values = [row for _, row in parquet_rows([path], ["caption", "word"], image="image")]
    assert values == [
        {"caption": "gr\udcf6\udcdfe", "word": "x"},
        {"caption": "ok", "word": None},
        {"caption": None, "word": "x"},
    ]
    assert InParquet(path, 0, 2, "image").read_bytes() == b"3"
    with pytest.raises(ValueError, match=r"a\.parquet: column 'path' is string; it should hold im"):
        list(parquet_rows([path], ["caption"], image="path"))


def test_wrong_columns_and_files(tmp_path):
    """An error that names neither the file nor the columns that are there."""
    path = write_rows(tmp_path / "a.parquet", [{"image": b"1", "text": "x"}])
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'caption'; it has image, text"):
        list(parquet_rows([path], ["caption"], image="image"))
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["x", "x"])
    parquet.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: more than one column 'x'"):
        list(parquet_rows([tmp_path / "b.parquet"], ["x"]))
    with pytest.raises(OSError, match=r"a\.parquet row group 0 row 5"):
        InParquet(path, 0, 5, "image").read_bytes()
    with pytest.raises(FileNotFoundError):
        InParquet(tmp_path / "c.parquet", 0, 0, "image").read_bytes()
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet: not a parquet file"):
        list(parquet_rows([path], ["text"]))
    with pytest.raises(OSError, match=r"a\.parquet"):
        InParquet(path, 0, 0, "image").read_bytes()


def test_pyarrow_missing(tmp_path, monkeypatch):
    """A bare ModuleNotFoundError, which does not say what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'm3ae\[parquet\]'"):
        list(parquet_rows([tmp_path / "a.parquet"], ["text"]))


@pytest.mark.parametrize(
    "layout",
    [
        {
            "train": [
                "data/train-00000-of-00002-ab.parquet",
                "data/train-00001-of-00002-cd.parquet",
            ],
            "valid": ["data/validation-00000-of-00001.parquet"],
            "test": ["data/test.parquet"],
        },
        {"train": ["train-00000-of-00001.parquet"], "valid": ["val-x.parquet"]},
        {"train": ["train/0000.parquet", "train/0001.parquet"], "valid": ["valid/0000.parquet"]},
        {"test": ["data/test/a.parquet"], "train": ["training-0.parquet"]},
    ],
)
def test_layouts_of_the_hub(tmp_path, layout):
    """A layout not found, its parts out of order, or a file of another name taken for a split."""
    for path in [path for paths in layout.values() for path in paths]:
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).touch()
    wanted = {
        name: [tmp_path / path for path in layout[name]]
        for name in layout
        if not layout[name][0].startswith("training")
    }
    assert parquet_splits(tmp_path) == wanted


@pytest.mark.parametrize(
    "names, message",
    [
        (["val-0.parquet", "validation-0.parquet"], "split valid in two places"),
        (["data/train-0.parquet", "train/0.parquet"], "split train in two places"),
        (
            ["data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"],
            "split train should be 3 parquet files",
        ),
        (
            ["test-00000-of-00001-aa.parquet", "test-00000-of-00001-bb.parquet"],
            "should be 1 parquet",
        ),
    ],
)
def test_incomplete_and_doubled_downloads(tmp_path, names, message):
    """Half a corpus, or one twice, is prepared without a word."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        parquet_splits(tmp_path)


def parquet_bytes() -> bytes:
    out = io.BytesIO()
    rows = [{"image": {"bytes": b"%d" % k, "path": "p"}, "caption": f"é {k}"} for k in range(4)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), out, row_group_size=2)
    return out.getvalue()


WHOLE = parquet_bytes()
CELLS = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4) | st.binary(max_size=4)


@settings(max_examples=2000)
@given(
    values=st.dictionaries(
        st.sampled_from(["image", "caption", "id", ""]),
        st.lists(CELLS, min_size=2, max_size=2),
        max_size=3,
    ),
    as_struct=st.booleans(),
)
def test_any_table_gives_rows_or_a_value_error(tmp_path_factory, values, as_struct):
    """An ArrowException, a TypeError, ... for a column of an unforeseen type."""
    columns = {}
    for name, cells in values.items():
        try:
            columns[name] = pyarrow.array(cells)
        except (pyarrow.ArrowException, OverflowError):  # the cells do not make a column
            continue
        if as_struct and name == "image":
            columns[name] = pyarrow.StructArray.from_arrays([columns[name]], ["bytes"])
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    same_stamp(path, out.getvalue())
    try:
        rows = list(parquet_rows([path], ["caption"], ["id"], image="image"))
    except ValueError as error:
        assert "any.parquet" in str(error)
        return
    for place, _ in rows:
        assert isinstance(place.read_bytes(), bytes)


@settings(max_examples=500)
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_a_cut_parquet_file(tmp_path_factory, cut):
    """A download that broke off ends in a traceback."""
    path = tmp_path_factory.getbasetemp() / "cut.parquet"
    same_stamp(path, WHOLE[:cut])
    with pytest.raises(ValueError, match=r"cut\.parquet"):
        list(parquet_rows([path], ["caption"], image="image"))
