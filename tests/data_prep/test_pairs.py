"""A user's own table of images and texts."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import pairs
from m3ae.data.shards import Shards


def as_bytes(seed: int) -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (18, 20, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        (folder / name).write_bytes(as_bytes(len(name)))
    (tmp_path / "secret.png").write_bytes(as_bytes(9))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


def run(table: Path, raw: Path, *more: str) -> int:
    places = ["--table", str(table), "--raw", str(raw), "--out", str(raw.parent / "out")]
    return pairs.main([*places, "--px", "16", "--workers", "0", *more])


def contents(folder: Path) -> dict[str, str]:
    split = Shards(folder)
    return {split.text_key(i): split.text(i) for i in range(len(split))}


ROWS = [
    {"image": "a.png", "text": "first text of a", "id": "A"},
    {"image": "sub/c.png", "text": 'quoted, with "comma"\nand a new line', "id": "C"},
    {"image": "a.png", "text": "second text of a", "id": ""},
    {"image": "b.png", "text": "held out text here", "id": "B", "split": "valid"},
    {"image": "link.png", "text": "a link inside raw", "id": "L"},
    {"image": "../secret.png", "text": "path out of raw", "id": "X"},
    {"image": "sub/../../secret.png", "text": "path out of raw", "id": "Y"},
    {"image": "", "text": "no image at all", "id": "Z"},
    {"image": "a.png", "text": "bad split name", "split": "../x"},
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table(tmp_path, raw, kind, capsys):
    """Quoting, grouping by image, split or the check of paths differ between kinds of table."""
    table = tmp_path / f"pairs.{kind}"
    rows = [{"image": "", "text": "", "split": "", "id": "", **row} for row in ROWS]
    absolute = str(tmp_path / "secret.png")
    rows.append({"image": absolute, "text": "path out of raw", "split": "", "id": "W"})
    if kind in ("csv", "tsv"):
        import csv

        with open(table, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), table, row_group_size=2)
    assert run(table, raw) == 0
    assert contents(raw.parent / "out" / "train") == {
        "A/0": "first text of a",
        "A/1": "second text of a",
        "L/0": "a link inside raw",
        "C/0": 'quoted, with "comma" and a new line',
    }
    assert contents(raw.parent / "out" / "valid") == {"B/0": "held out text here"}
    report = Shards(raw.parent / "out" / "train").manifest["report"]["dropped"]
    assert {reason: entry["count"] for reason, entry in report.items()} == {
        "row: image leads outside --raw": 3,
        "row: no image": 1,
    }
    found = json.loads((raw.parent / "out" / "report.json").read_text())
    of_none = {why: entry["count"] for why, entry in found["rows_of_no_split"].items()}
    assert of_none == {"row: a split is named by letters, digits, _ and -": 1}
    seen = [found["splits"][split]["report"] for split in ("train", "valid")]
    assert [(each["images_seen"], each["texts_seen"]) for each in seen] == [(3, 8), (1, 1)]
    assert 8 + 1 + 1 == len(rows)


def test_parquet_with_images_inside(tmp_path, raw):
    """Another row's image, or a whole parquet file in memory (image = struct of bytes, path)."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [as_bytes(k) for k in range(5)]
    rows = [
        {
            "image": {"bytes": data, "path": None if k == 3 else "image.png"},
            "text": f"text of number {k}",
        }
        for k, data in enumerate(images)
    ]
    rows[4]["image"]["bytes"] = None
    table = tmp_path / "hub.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), table, row_group_size=2)
    assert run(table, raw, "--encoding", "original") == 0
    split = Shards(raw.parent / "out" / "train")
    assert [split.image_key(j) for j in range(4)] == ["hub-0-0", "hub-0-1", "hub-1-0", "hub-1-1"]
    assert split.shard(0)["image_bytes"].tobytes() == b"".join(images[:4])
    assert split.text(3) == "text of number 3"
    assert split.manifest["report"]["dropped"]["image: zero bytes"]["count"] == 1


def test_bytes_that_are_not_utf8(tmp_path, raw):
    """One Latin-1 cell ends the reading of a table, or gets in as nonsense."""
    table = tmp_path / "pairs.csv"
    table.write_bytes(b"image,text\na.png,sch\xf6ner Text hier\nb.png,a clean text here\n")
    assert run(table, raw) == 0
    assert list(contents(raw.parent / "out" / "train").values()) == ["a clean text here"]


def test_names_that_no_file_can_have(tmp_path, raw, capsys):
    """A long name ends the work, or hides that a picture that was missing has come since."""
    table, long = tmp_path / "pairs.csv", "a" * 300
    names = ["a.png", f"{long}/a.png", f"{long}.png", "late.png"]
    table.write_text("image,text\n" + "".join(f"{name},one two three\n" for name in names))
    for images, lost in ((1, {"missing": 1, "unreadable": 2}), (2, {"unreadable": 2})):
        assert run(table, raw) == 0
        split = Shards(raw.parent / "out" / "train")
        dropped = split.manifest["report"]["dropped"]
        found = {k.removeprefix("image: "): x["count"] for k, x in dropped.items() if "image:" in k}
        assert split.num_images == images and found == lost
        (raw / "late.png").write_bytes(as_bytes(7))


def test_images_in_two_splits_are_named(tmp_path, raw, capsys):
    """A user's own split leaks without a word."""
    table = tmp_path / "pairs.csv"
    table.write_text("image,text,split\na.png,one two three,train\na.png,one two four,test\n")
    assert run(table, raw) == 0
    assert "1 images of split train are in another split too, e.g. a.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("x.csv", "picture,text\na.png,b\n", "no column 'image'; it has picture, text"),
        ("x.csv", "", "no column 'image'; it has none"),
        ("x.csv", "image,text\n", "no usable row"),
        ("x.jsonl", "{broken\n[1]\n", "no usable row: {'row: not JSON'"),
        ("x.xlsx", "", "a table ends in .csv, .tsv, .jsonl, .parquet"),
        ("x.parquet", "not parquet", "x.parquet: not a parquet file"),
    ],
)
def test_wrong_tables(tmp_path, raw, capsys, name, data, message):
    """A traceback where the table is not what it should be."""
    (tmp_path / name).write_text(data)
    assert run(tmp_path / name, raw) == 1
    assert message in capsys.readouterr().err
    assert run(tmp_path / "absent.csv", raw) == 1
    assert "absent.csv: not there" in capsys.readouterr().err


def test_drawn_splits(tmp_path, raw, capsys):
    """A patient, or an image, in two splits; a share of texts; other shards than before."""
    rows = ["image,text,patient"]
    for k in range(12):
        (raw / f"n{k}.png").write_bytes(as_bytes(k))
        rows += [f"n{k}.png,text {word} of {k},p{k // 3}" for word in ("one", "two")]
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(rows))
    shares = ["--test-share", "0.25", "--valid-share", "0.2", "--group", "patient"]
    assert run(table, raw, *shares) == 0
    out = raw.parent / "out"
    found = {}
    for name in ("train", "valid", "test"):
        images = {int(key[1:].split(".")[0]) for key in contents(out / name)}
        found[name] = {k // 3 for k in images}
        assert len(contents(out / name)) == 2 * len(images) == 6 * len(found[name])
    assert [len(groups) for groups in found.values()] == [2, 1, 1]
    assert len(set().union(*found.values())) == 4
    report = json.loads((out / "report.json").read_text())
    assert report["groups"]["splits"] == {"test": 1, "valid": 1, "train": 2}
    table.write_text("image,text,split\na.png,one two three,dev\n")
    assert run(table, raw, "--test-share", "0.5") == 1
    assert "has a column split (dev); give no --test-share" in capsys.readouterr().err


def test_options_of_a_draw_that_was_none(tmp_path, raw, capsys):
    """Shards of a table with splits that are other bytes than before; a patient column unnamed."""
    table = tmp_path / "pairs.csv"
    table.write_text("image,text,Case No\na.png,one two three,1\n")
    assert run(table, raw) == 0
    options = Shards(raw.parent / "out" / "train").manifest["options"]
    assert not {"group", "seed", "test_share", "valid_share"} & set(options)
    assert "has a column Case No: --group 'Case No' keeps" in capsys.readouterr().err


def test_columns_of_other_names(tmp_path, raw):
    """Images in a parquet column of another name taken for paths; texts of another column."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"picture": {"bytes": as_bytes(k)}, "text": "", "notes": f"text of {k}"} for k in (1, 2)
    ]
    table = tmp_path / "hub.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    assert run(table, raw, "--columns", "image=picture", "text=notes") == 0
    assert list(contents(raw.parent / "out" / "train").values()) == [
        "text of 1",
        "text of 2",
    ]


def test_reports_add_up(tmp_path, raw):
    """Rows of test booked on train; an image that vanishes with its rows; rows in no sum."""
    lines = ["image,text,split", "a.png,text number one,train", "a.png,,train", "b.png,,test"]
    lines += ["sub/c.png,text number two,test", "gone.png,text number three,test", "b.png,x,te st"]
    lines += [
        "b.png,,dev",
        "b.png,,dev",
        ",no image at all,train",
        "cut short",
        "../out.png,x,test",
    ]
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(lines))
    assert run(table, raw) == 0
    report = json.loads((raw.parent / "out" / "report.json").read_text())

    def counted(dropped: dict) -> dict[str, int]:
        return {why: entry["count"] for why, entry in dropped.items()}

    train, test = (report["splits"][split] for split in ("train", "test"))
    assert train["counts"] == {"images": 1, "texts": 1}
    assert (train["report"]["images_seen"], train["report"]["texts_seen"]) == (1, 3)
    assert counted(train["report"]["dropped"]) == {"row: no text": 1, "row: no image": 1}
    assert test["counts"] == {"images": 1, "texts": 1}
    assert (test["report"]["images_seen"], test["report"]["texts_seen"]) == (3, 4)
    assert counted(test["report"]["dropped"]) == {
        "row: no text": 1,
        "row: image leads outside --raw": 1,
        "image: all its rows were left out": 1,  # b.png
        "image: missing": 1,
        "text: its image was left out": 1,
    }
    assert counted(report["rows_of_no_split"]) == {
        "row: a split is named by letters, digits, _ and -": 1,
        "row: no text": 2,
        "image: all its rows were left out": 1,
        "row: more or fewer cells than the header has": 1,
    }
    assert 3 + 4 + 1 + 2 + 1 == len(lines) - 1


def test_reports_of_drawn_splits(tmp_path, raw):
    """Rows of test images booked on train, where the splits were drawn."""
    lines = ["image,text"]
    for k in range(10):
        (raw / f"n{k}.png").write_bytes(as_bytes(k))
        lines += [f"n{k}.png,text number {k}", f"n{k}.png,"]
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join([*lines, "b.png,"]))
    assert run(table, raw, "--test-share", "0.3") == 0
    report = json.loads((raw.parent / "out" / "report.json").read_text())
    for split, images in (("train", 7), ("test", 3)):
        found = report["splits"][split]["report"]
        assert (found["images_seen"], found["texts_seen"]) == (images, 2 * images)
        assert found["dropped"]["row: no text"]["count"] == images
    of_none = {why: entry["count"] for why, entry in report["rows_of_no_split"].items()}
    assert of_none == {"row: no text": 1, "image: all its rows were left out": 1}
