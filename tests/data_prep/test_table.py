"""A user's own table of images with questions or classes."""

import csv
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import table
from m3ae.corpora.items import Drops
from m3ae.corpora.own_table import OwnTable
from m3ae.corpora.splits import Groups
from m3ae.corpora.tables import image_of, read_table, split_of
from m3ae.corpora.verification import verify
from m3ae.data.shards import Shards
from m3ae.files import is_unicode


def as_bytes(seed: int) -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (18, 20, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    for k, name in enumerate(["a.png", "b.png", "sub/c.png", *(f"n{k}.png" for k in range(10))]):
        (folder / name).write_bytes(as_bytes(k))
    (tmp_path / "secret.png").write_bytes(as_bytes(99))
    return folder


def run(path: Path, raw: Path, *more: str) -> int:
    places = ["--table", str(path), "--raw", str(raw), "--out", str(raw.parent / "out")]
    return table.main([*places, "--px", "16", "--workers", "0", *more])


def rows_of(folder: Path) -> dict[str, dict]:
    split = Shards(folder)
    return {
        split.text_key(i): {"text": split.text(i), **split.fields(i)} for i in range(len(split))
    }


def write(path: Path, rows: list[dict]) -> Path:
    """The rows as a table of the kind that the ending says; absent cells are empty or null."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, columns, delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        full = [{name: row.get(name) for name in columns} for row in rows]
        parquet.write_table(pyarrow.Table.from_pylist(full), path, row_group_size=2)
    return path


ROWS = [
    {"image": "a.png", "question": "Is it there?", "answer": "Yes"},
    {"image": "./a.png", "question": 'Where,\n "roughly"?', "answer": " The left lung. "},
    {
        "image": "sub/c.png",
        "question": "How many?",
        "answer": "two",
        "type": "CLOSED ",
        "id": "q7",
        "question_type": "count",
    },
    {"image": "b.png", "question": "Why?", "answer": "tumour", "split": "test", "note": "mine"},
    {"image": "b.png", "question": "Is it?", "answer": "no", "split": "test", "type": "open"},
    {"image": "../secret.png", "question": "Who?", "answer": "me"},
    {"image": "a.png", "question": "", "answer": "yes"},
    {"image": "a.png", "question": "What?", "answer": " "},
    {"image": "", "question": "What?", "answer": "x"},
    {"image": "a.png", "question": "What?", "answer": "x", "type": "both"},
    {"image": "a.png", "question": "Which letter?", "answer": "A"},
    {"image": "sub/c.png", "question": "Again?", "answer": "x", "id": "q7"},
    {"image": "a.png", "question": "Where?", "answer": "x", "split": "../out"},
    {"image": "gone.png", "question": "Where?", "answer": "x"},
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_questions_of_every_kind_of_table(tmp_path, raw, kind, capsys):
    """Another label, type, key or split than the row's; a bad row that is uncounted or ends it."""
    path = write(tmp_path / f"mine.{kind}", ROWS)
    assert run(path, raw) == 0
    out = raw.parent / "out"
    train, test = rows_of(out / "train"), rows_of(out / "test")
    shown = ("text", "answer", "label", "answer_type", "question_type")
    assert {key: tuple(row[name] for name in shown) for key, row in (train | test).items()} == {
        "a.png/1": ("Is it there?", "Yes", "yes", "closed", ""),
        "a.png/2": ('Where, "roughly"?', "The left lung.", "left lung", "open", ""),
        "sub/c.png/q7": ("How many?", "two", "2", "closed", "count"),
        "a.png/11": ("Which letter?", "A", "a", "open", ""),
        "b.png/4": ("Why?", "tumour", "tumour", "open", ""),
        "b.png/5": ("Is it?", "no", "no", "open", ""),
    }
    assert list(test) == ["b.png/4", "b.png/5"]
    assert json.loads((out / "answers.json").read_text()) == {
        "paper": ["2", "a", "left lung", "no", "tumour", "x", "yes"],
        "train": ["2", "a", "left lung", "x", "yes"],
    }
    dropped = Shards(out / "train").manifest["report"]["dropped"]
    assert {reason: entry["count"] for reason, entry in dropped.items()} == {
        "row: image leads outside --raw": 1,
        "row: no question": 1,
        "row: no answer": 1,
        "row: no image": 1,
        "row: unknown type, neither open nor closed": 1,
        "row: id occurs twice for its image, first one kept": 1,
        "image: missing": 1,
        "text: its image was left out": 1,
    }
    assert dropped["row: no answer"]["examples"] == [f"mine.{kind}: row 8"]
    report = json.loads((out / "report.json").read_text())
    of_none = {why: entry["count"] for why, entry in report["rows_of_no_split"].items()}
    assert of_none == {"row: a split is named by letters, digits, _ and -": 1}
    seen = [report["splits"][split]["report"] for split in ("train", "test")]
    assert [(each["images_seen"], each["texts_seen"]) for each in seen] == [(3, 11), (1, 2)]
    assert 11 + 2 + 1 == len(ROWS)
    assert report["corpus"]["test"] == {"images": 1, "questions": 2, "closed": 0, "open": 2}
    assert report["answers"]["train"] == {"answers": 5, "test_coverage": 0.0}
    assert report["answers_as_written"] == 1
    assert report["ignored_columns"] == ["note"] and report["images_in_two_splits"] == 0
    assert "not used: note" in capsys.readouterr().err
    assert verify(out / "train") == [] and verify(out / "test") == []


def test_classes(tmp_path, raw):
    """An empty cell that becomes a class, or a class list of another column or split."""
    rows = [
        {"image": "a.png", "text": "a caption", "modality": "CT", "organ": "lung"},
        {"image": "a.png", "text": "another one", "modality": "MR", "organ": ""},
        {"image": "b.png", "text": "held out", "modality": "US", "organ": "lung", "split": "test"},
        {"image": "b.png", "text": "", "modality": "US", "organ": "lung"},
    ]
    assert run(write(tmp_path / "mine.csv", rows), raw, "--classes", "modality,organ") == 0
    out = raw.parent / "out"
    assert rows_of(out / "train") == {
        "a.png/1": {"text": "a caption", "question_id": "1", "modality": "CT", "organ": "lung"},
        "a.png/2": {"text": "another one", "question_id": "2", "modality": "MR", "organ": None},
    }
    assert json.loads((out / "classes.json").read_text()) == {
        "modality": {"paper": ["CT", "MR", "US"], "train": ["CT", "MR"]},
        "organ": {"paper": ["lung"], "train": ["lung"]},
    }
    report = json.loads((out / "report.json").read_text())
    assert report["classes"]["modality"] == {"paper": 3, "train": 2, "test_coverage": 0.0}
    assert report["corpus"]["train"]["without_class"] == {"modality": 0, "organ": 1}
    assert not (out / "answers.json").exists()


def test_drawn_splits(tmp_path, raw):
    """An image in two splits, shares of questions instead of images, or a draw that moves."""
    rows = [
        {"image": f"n{k // 3}.png", "question": f"What is {k}?", "answer": f"number {k}"}
        for k in range(30)
    ]
    shares = ["--test-share", "0.3", "--valid-share", "0.1"]
    assert run(write(tmp_path / "mine.csv", rows), raw, *shares) == 0
    found = {
        name: {key.split("/")[0] for key in rows_of(raw.parent / "out" / name)}
        for name in ("train", "valid", "test")
    }
    assert {name: len(images) for name, images in found.items()} == {
        "train": 6,
        "valid": 1,
        "test": 3,
    }
    assert len(set().union(*found.values())) == 10
    fractions = {"test": 0.3, "valid": 0.1}
    again, other = ({}, {})
    for seed, drawn in ((0, again), (1, other)):
        groups = Groups(None)
        for row in rows[::-1]:
            groups.add("train", row["image"], "")
        for image, split in groups.draw(fractions, seed).items():
            drawn.setdefault(split, set()).add(image)
    assert again == found and other["test"] != found["test"]


def test_parquet_with_images_inside(tmp_path, raw):
    """Another row's image, or rows of one image where each has its own."""
    rows = [
        {
            "image": {"bytes": as_bytes(k), "path": "x.png"},
            "question": f"Is it {k}?",
            "answer": "yes",
        }
        for k in range(3)
    ]
    path = write(tmp_path / "hub.parquet", rows)
    assert run(path, raw, "--encoding", "original") == 0
    split = Shards(raw.parent / "out" / "train")
    assert [split.text_key(i) for i in range(3)] == ["hub-0-0/1", "hub-0-1/2", "hub-1-0/3"]
    assert split.shard(0)["image_bytes"].tobytes() == b"".join(as_bytes(k) for k in range(3))


def test_a_changed_table_is_not_mixed_in(tmp_path, raw, capsys):
    """Splits of two states of a table beside one answer list."""
    path = write(tmp_path / "mine.csv", ROWS[:4])
    assert run(path, raw) == 0
    assert run(path, raw) == 0
    assert "already prepared" in capsys.readouterr().out
    write(path, ROWS[:3])
    assert run(path, raw) == 1
    assert "prepared with other options (table was 'mine.csv" in capsys.readouterr().err


def test_leaks_and_a_missing_train_are_named(tmp_path, raw, capsys):
    """A user's own split that shares images, or teaches nothing, without a word."""
    rows = [{**ROWS[0], "split": "valid"}, {**ROWS[1], "split": "test"}]
    assert run(write(tmp_path / "mine.csv", rows), raw) == 0
    error = capsys.readouterr().err
    assert "1 images of split valid are in another split too, e.g. a.png" in error
    assert "has no split train, only valid, test" in error


GOOD = "image,question,answer\na.png,Is it?,yes\n"


@pytest.mark.parametrize(
    "name, data, more, message",
    [
        ("x.csv", "image,text\na.png,b\n", [], "no column 'question'; it has image, text"),
        ("x.csv", "", [], "no column 'image'; it has none"),
        ("x.csv", "image,question,answer,id,id\n", [], "more than one column 'id'"),
        ("x.csv", GOOD.splitlines()[0], [], "no usable row"),
        ("x.csv", GOOD + 'a.png,"never closed', [], "after line 2"),
        ("x.jsonl", "{broken\n[1]\n", [], "no usable row: {'row: not JSON'"),
        ("x.xlsx", "", [], "a table ends in .csv, .tsv, .jsonl, .parquet"),
        ("x.parquet", "not parquet", [], "x.parquet: not a parquet file"),
        ("x.csv", GOOD, ["--test-share", "1.5"], "between 0 and 1"),
        ("x.csv", GOOD, ["--test-share", "0.6", "--valid-share", "0.4"], "together below 1"),
        ("x.csv", GOOD, ["--test-share", "0.5"], "nothing is left to train on of 1 images"),
        ("x.csv", GOOD, ["--classes", "organ"], "no column 'text'"),
        ("x.csv", GOOD, ["--classes", "organ,organ"], "'organ' cannot be a column of classes"),
        ("x.csv", GOOD, ["--classes", "split"], "'split' cannot be a column of classes"),
        ("x.csv", "image,text,organ\na.png,b,\n", ["--classes", "organ"], "'organ' is empty"),
        (
            "x.csv",
            "image,question,answer,split\na.png,Is it?,yes,dev\n",
            ["--test-share", "0.2"],
            "has a column split (dev)",
        ),
    ],
)
def test_mistakes(tmp_path, raw, capsys, name, data, more, message):
    """A traceback, or a message that does not say what is wrong."""
    (tmp_path / name).write_text(data)
    assert run(tmp_path / name, raw, *more) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("error: ") == 1


def test_bytes_that_are_not_utf8(tmp_path, raw):
    """One Latin-1 cell ends the reading of a table, or gets in as nonsense."""
    path = tmp_path / "mine.csv"
    path.write_bytes(GOOD.encode() + b"a.png,sch\xf6n?,yes\nb.png,Is it?,n\xf6\n")
    assert run(path, raw) == 0
    assert list(rows_of(raw.parent / "out" / "train")) == ["a.png/1"]


def test_help(capsys):
    """A per-cent sign or a bracket in a help text that argparse cannot format."""
    with pytest.raises(SystemExit, match="0"):
        table.main(["--help"])
    assert "--valid-share" in capsys.readouterr().out


CELL = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["a.png", "../a", "/a", "train", "tokenizer", "open", "yes", "the", "\ud800"]),
    st.lists(st.integers(), max_size=2),
)
COLUMNS = ("image", "question", "answer", "type", "split", "id", "question_type", "text", "organ")


def check_sums(given: OwnTable, splits: table.Splits, rows: list[dict]) -> None:
    """What is kept and left out of each split, and of none, adds up to the rows and images."""
    images = {split: {question.image for question in some} for split, some in splits.items()}
    dropped, facts = given.book(images, drawn=False)
    named: dict[str, set[str]] = {}
    for row in rows:
        try:
            split = split_of(row)
            named.setdefault(split, set()).add(image_of(row, given.raw)[0])
        except ValueError:
            continue
    of_none = facts.get("rows_of_no_split", {})
    counted = {"row": 0, "image": 0}
    for why, entry in of_none.items():
        counted[why.partition(":")[0]] += entry["count"]
    for split, some in splits.items():
        counts = dropped[split].counts
        lost = counts.get("image: all its rows were left out", 0)
        assert len(images[split]) + lost == len(named[split])
        left = sum(n for why, n in counts.items() if why.startswith("row: "))
        of_split = [row for row in given.left_out if row.split == split]
        assert left == len(of_split) and left + lost == sum(counts.values())
        counted["row"] += left + len(some)
    assert counted["row"] == len(rows)
    assert counted["image"] == sum(
        len(some) for split, some in named.items() if split not in splits
    )


@settings(max_examples=2000)
@given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), CELL), max_size=6), st.booleans())
def test_any_rows_are_used_or_counted(rows, with_classes):
    """A row that ends the run, is lost uncounted, leads outside, or comes twice by its key."""
    classes, drops = (["organ"], Drops()) if with_classes else ([], Drops())
    placed = [("x.jsonl", number, row) for number, row in enumerate(rows, start=1)]
    given = OwnTable("x.jsonl", Path("raw"), placed, drops=drops)
    splits, stored = table.read_questions(given, classes)
    kept = [(split, question) for split, some in splits.items() for question in some]
    assert len(kept) + len(given.left_out) == len(rows) and not stored
    check_sums(given, splits, rows)
    keys = [(split, question.image, question.fields["question_id"]) for split, question in kept]
    assert len(set(keys)) == len(keys)
    for split, question in kept:
        assert split != "tokenizer" and "/" not in split and ".." not in question.image.split("/")
        assert not question.image.startswith("/") and question.text.strip()
        assert is_unicode(question.image + question.text + json.dumps(question.fields))
        if not classes:
            assert question.fields["label"] and question.fields["answer_type"] in ("open", "closed")
    assert splits == {} or next(iter(splits)) == "train" or "train" not in splits


@settings(max_examples=2000)
@given(st.binary(max_size=120), st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_any_bytes_are_a_table_or_an_error(data, ending):
    """A traceback, instead of one line, from a file that is no table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x" + ending)
        head = {".csv": b"image,question,answer\n", ".tsv": b"image\tquestion\tanswer\n"}
        path.write_bytes(head.get(ending, b"") + data)
        drops = Drops()
        try:
            found = read_table(path, ("image", "question", "answer"), drops, ("id",))
            rows = [(path.name, number, row) for number, row in found]
            splits, _ = table.read_questions(
                OwnTable(path.name, Path("raw"), rows, drops=drops), []
            )
        except ValueError as error:
            assert str(path) in str(error)
            return
    assert all(splits.values())


def test_groups(tmp_path, raw, capsys):
    """A patient in train and test; a column of patients in shards; a column that is not there."""
    rows = [
        {"image": f"n{k}.png", "question": "Is it?", "answer": "yes", "patientid": f"p{k // 2}"}
        for k in range(10)
    ]
    path = write(tmp_path / "mine.parquet", rows)
    assert run(path, raw, "--test-share", "0.3", "--group", "patientid") == 0
    out = raw.parent / "out"
    found = [{int(key[1]) // 2 for key in rows_of(out / name)} for name in ("train", "test")]
    assert not found[0] & found[1] and [len(each) for each in found] == [3, 2]
    report = json.loads((out / "report.json").read_text())
    assert report["groups"]["splits"] == {"test": 2, "train": 3}
    assert report["ignored_columns"] == [] and "patientid" not in str(rows_of(out / "train"))
    assert run(path, raw, "--test-share", "0.3", "--group", "patient") == 1
    error = capsys.readouterr().err
    assert "--group" not in error and "no column 'patient'; it has image, question" in error


def test_a_column_of_patients_is_named(tmp_path, raw, capsys):
    """Splits drawn by image where a patient has several, without a word; shards that change."""
    rows = [{**ROWS[0], "patientid": 7}, {**ROWS[3], "patientid": 7}]
    assert run(write(tmp_path / "mine.csv", rows), raw) == 0
    assert "--group patientid keeps what it joins in one split" in capsys.readouterr().err
    assert "group" not in Shards(raw.parent / "out" / "train").manifest["options"]
    shutil.rmtree(raw.parent / "out")
    assert run(tmp_path / "mine.csv", raw, "--group", "patientid") == 0
    error = capsys.readouterr().err
    assert "1 groups (patientid) of split test are in another split too, e.g. 7" in error
    report = json.loads((raw.parent / "out" / "report.json").read_text())
    assert report["groups"]["in_two_splits"] == 1


def test_a_table_from_a_spreadsheet(tmp_path, raw, capsys):
    """Semicolons, a mark of byte order, other names of columns: refused, or read under others."""
    path = tmp_path / "mine.csv"
    text = "\ufefffilename;q;Final answer;id;patient\r\na.png;Is it?;yes;x1;7\r\n"
    path.write_bytes(text.encode())
    named = ["--columns", "image=filename", "question=q", "answer=Final answer"]
    assert run(path, raw, *named, "--group", "patient") == 0
    assert list(rows_of(raw.parent / "out" / "train")) == ["a.png/x1"]
    assert Shards(raw.parent / "out" / "train").manifest["options"]["columns"] == named[1:]
    assert "not used" not in capsys.readouterr().err
    assert run(path, raw, "--columns", "image=filename") == 1
    said = "no column 'question'; it has filename, q, Final answer, id, patient; say which one"
    assert f"{said} to take with --columns question=COLUMN" in capsys.readouterr().err
    assert run(path, raw, "--columns", "picture=filename") == 1
    assert "NAME once, of image, question, answer, split, id, type" in capsys.readouterr().err
