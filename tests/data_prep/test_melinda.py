"""MELINDA: captions with class labels."""

import csv
import json
import os
from pathlib import Path

import pytest
from hypothesis import given

from data_prep import melinda
from m3ae.corpora.items import Drops
from m3ae.corpora.questions import class_coverage, class_lists, to_items
from m3ae.corpora.verification import verify
from m3ae.data.shards import Shards
from tests.data_prep.test_corpora import SMALL, dropped, save_image, texts_of
from tests.data_prep.test_question_parsers import (
    ALLOWED,
    CUTS,
    MANY,
    as_csv,
    check_items,
    damage,
    table,
)

HEADER = ["figure_file", "caption", "i_meth", "p_meth", "i_meth_label", "p_meth_label", "more"]
ROWS = {
    "train": [
        ["f1.png", 'A, "gel"\nin two lines', "MI:0001", "p a", "01", "2", ""],
        ["f2.png", "B", "MI:0002", "p b", "1", "1.0", ""],
        ["f1.png", "Part (b)", "MI:0001", "", "1", "1", "x"],
    ],
    "dev": [["f3.png", "C", " MI:0001", "p a", "1", "2", ""]],
    "test": [["f4.png", "D", "MI:0003", "p a", " ", "2", ""]],
}


def write(raw: Path, rows: dict[str, list[list[str]]], header: list[str] = HEADER) -> None:
    for name, some in rows.items():
        raw.mkdir(exist_ok=True)
        with open(raw / f"{name}.csv", "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([header, *some])
    for k in (1, 2, 3, 4):
        save_image(raw / "melinda_images" / f"f{k}.png", k)


def arguments(raw: Path, *more: str) -> list[str]:
    return ["--raw", str(raw), "--out", str(raw.parent / "out"), *SMALL, *more]


def test_texts_fields_and_classes(tmp_path):
    """Rows of a figure taken for one, labels read as numbers, or a blank one made a class."""
    write(tmp_path / "raw", ROWS)
    assert melinda.main(arguments(tmp_path / "raw")) == 0
    out = tmp_path / "out"
    splits = {name: Shards(out / name) for name in ("train", "valid", "test")}
    train = splits["train"]
    assert texts_of(train) == {"f1.png": ['A, "gel" in two lines', "Part (b)"], "f2.png": ["B"]}
    fields = {train.text_key(i): train.fields(i) for i in range(len(train))}
    assert fields == {
        "f1.png/1": {
            "question_id": "1",
            "i_meth": "MI:0001",
            "p_meth": "p a",
            "i_meth_label": "01",
            "p_meth_label": "2",
        },
        "f1.png/3": {
            "question_id": "3",
            "i_meth": "MI:0001",
            "p_meth": None,
            "i_meth_label": "1",
            "p_meth_label": "1",
        },
        "f2.png/2": {
            "question_id": "2",
            "i_meth": "MI:0002",
            "p_meth": "p b",
            "i_meth_label": "1",
            "p_meth_label": "1.0",
        },
    }
    assert json.loads((out / "classes.json").read_text()) == {
        "i_meth": {
            "paper": [" MI:0001", "MI:0001", "MI:0002", "MI:0003"],
            "train": ["MI:0001", "MI:0002"],
        },
        "p_meth": {"paper": ["p a", "p b"], "train": ["p a", "p b"]},
        "i_meth_label": {"paper": ["01", "1"], "train": ["01", "1"]},
        "p_meth_label": {"paper": ["1", "1.0", "2"], "train": ["1", "1.0", "2"]},
    }
    report = json.loads((out / "report.json").read_text())
    assert report["corpus"]["train"] == {
        "rows": 3,
        "figures": 2,
        "without_label": {"i_meth": 0, "p_meth": 1, "i_meth_label": 0, "p_meth_label": 0},
    }
    assert report["corpus"]["test"]["without_label"]["i_meth_label"] == 1
    assert report["classes"]["i_meth"] == {"paper": 4, "train": 2, "test_coverage": 0.0}
    assert report["classes"]["i_meth_label"]["test_coverage"] is None
    assert not any(dropped(split) or verify(split.folder) for split in splits.values())


def test_bad_rows_are_counted(tmp_path):
    """A row that vanishes uncounted, ends the run, or reads a file outside the folder."""
    labels = ["m", "p", "i", "p", ""]
    bad = [
        ["", "caption", *labels],
        ["f1.png", " ", *labels],
        ["../one.png", "x", *labels],
        ["/etc/x.png", "x", *labels],
        ["..\\one.png", "x", *labels],
        ["C:one.png", "x", *labels],
        ["f1.png\0", "x", *labels],
        ["f1.png", "short"],
        ["f1.png", "x", *labels, "long"],
        ["f9.png", "no such image", *labels],
    ]
    write(tmp_path / "raw", {**ROWS, "train": [*ROWS["train"], *bad]})
    save_image(tmp_path / "one.png", 1)
    with open(tmp_path / "raw" / "train.csv", "ab") as file:
        file.write(b"\nf1.png,\xff\xfe,m,p,i,p,\n")
    assert melinda.main(arguments(tmp_path / "raw")) == 0
    train = Shards(tmp_path / "out" / "train")
    assert dropped(train) == {
        "row: no figure_file or no caption": 2,
        "row: figure_file leads elsewhere": 5,
        "row: more or fewer cells than the header has": 2,
        "row: not UTF-8": 1,
        "image: missing": 1,
        "text: its image was left out": 1,
    }
    assert len(train) == 3
    classes = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert classes["i_meth"]["train"] == ["MI:0001", "MI:0002", "m"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: write(raw, ROWS, [*HEADER[:3], "other", *HEADER[4:]]), "no column 'p_meth'"),
        (lambda raw: write(raw, ROWS, [*HEADER[:6], "caption"]), "more than one column 'caption'"),
        (lambda raw: (raw / "dev.csv").unlink(), "dev.csv: not there"),
        (lambda raw: (raw / "dev.csv").write_text(""), "no column 'figure_file'; it has none"),
        (
            lambda raw: (raw / "dev.csv").write_text(",".join(HEADER) + '\na,"b'),
            "repair or download",
        ),
        (lambda raw: (raw / "dev.csv").write_text("PK\3\4\0\0\n"), "dev.csv: no column"),
    ],
)
def test_mistakes(tmp_path, capsys, change, message):
    """A damaged or foreign table ends in a traceback, or passes as an empty split."""
    raw = tmp_path / "raw"
    write(raw, ROWS)
    change(raw)
    assert melinda.main(arguments(raw)) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("error: ") == 1
    assert not (tmp_path / "out" / "classes.json").exists()


def test_a_later_split_of_other_tables_is_refused(tmp_path, capsys):
    """classes.json rewritten by another table, so that the class ids of `train` change."""
    raw = tmp_path / "raw"
    write(raw, ROWS)
    assert melinda.main(arguments(raw, "--split", "train")) == 0
    before = (tmp_path / "out" / "classes.json").read_bytes()
    write(raw, {"test": [["f4.png", "D", "AA", "p a", "1", "2", ""]]})
    assert melinda.main(arguments(raw, "--split", "test")) == 1
    assert "classes.json: made from other files" in capsys.readouterr().err
    assert (tmp_path / "out" / "classes.json").read_bytes() == before
    write(raw, ROWS)
    assert melinda.main(arguments(raw, "--split", "test")) == 0


def test_melinda_tables(tmp_path):
    """A damaged table ends in a traceback, a row vanishes, or a figure is read from elsewhere."""
    raw = Path(os.path.normpath(tmp_path))
    header = ["figure_file", "caption", *melinda.COLUMNS]

    @MANY
    @given(content=table(header), cut=CUTS)
    def check(content, cut):
        head, rows = content
        data, drops = as_csv([head, *rows]), Drops()
        (raw / "train.csv").write_bytes(damage(data, cut) if cut else data)
        try:
            captions = melinda.read_split(raw / "train.csv", drops)
        except ALLOWED:
            assert cut or head != header
            return
        check_items(to_items(captions, raw.joinpath, str), raw)
        found = class_lists({"train": captions}, melinda.COLUMNS)
        json.dumps(found, ensure_ascii=False).encode()
        class_coverage(found, captions)
        if not cut:
            assert len(captions) + drops.counts.total() == len([row for row in rows if row])

    check()
