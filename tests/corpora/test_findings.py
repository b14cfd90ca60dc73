"""Findings of a user's own table: one column of several names, or columns of 0 and 1."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import table
from m3ae.corpora.findings import Findings
from m3ae.data.shards import Shards
from tests.data_prep.test_corpora import SMALL, save_image

JOINED = Findings(("f",), "|", "No Finding", "labels", "Which?")
COLUMNS = Findings(("a", "b"), "|", "No Finding", "labels", "Which?")


@pytest.fixture
def raw(tmp_path) -> Path:
    for k in range(6):
        save_image(tmp_path / "raw" / f"{k}.png", k)
    return tmp_path / "raw"


def run(raw: Path, lines: list[str], *more: str, name: str = "x.csv") -> int:
    (raw.parent / name).write_text("\n".join(lines) + "\n")
    where = ["--raw", str(raw), "--table", str(raw.parent / name), "--out", str(raw.parent / "out")]
    return table.main([*where, *SMALL, *more])


def rows_of(raw: Path, split: str = "train") -> dict[str, dict]:
    shards = Shards(raw.parent / "out" / split)
    return {
        shards.text_key(i): {"text": shards.text(i), **shards.fields(i)} for i in range(len(shards))
    }


NAMES = st.lists(st.sampled_from(["Effusion", "Mass", "Hernia  b", "é"]), unique=True)


@given(NAMES, st.sampled_from(["|", ";", "||", ", "]), st.booleans())
def test_names_come_back(names, separator, spaces):
    """A name cut by another separator, twice, with its white space, or a list's taken for text."""
    joined = (" " * spaces + separator + " " * spaces).join([*names, *names[:1]])
    findings = Findings(("f",), separator.strip(), "None", "labels", "x")
    wanted = [" ".join(name.split()) for name in names]
    assert findings.read({"f": joined}) == (wanted, [])
    assert findings.read({"f": names}) == (wanted, [])


def test_no_finding():
    """`No Finding` as a class of its own; an empty cell as an unknown one; both at once."""
    for cell in ("No Finding", " no finding ", "", None, float("nan"), "|"):
        assert JOINED.read({"f": cell}) == ([], [])
    with pytest.raises(ValueError, match="'No Finding' beside findings"):
        JOINED.read({"f": "Mass|No finding"})
    with pytest.raises(ValueError, match="f holds more than names"):
        JOINED.read({"f": ["Mass", 3]})


@given(
    st.sampled_from(["1", 1, 1.0, True, "1.0", "yes", "TRUE"]),
    st.sampled_from(["0", 0, 0.0, False, "no", "false"]),
)
def test_zeros_and_ones(yes, no):
    """A spelling of 0 or 1 that is the other one, or not read; an uncertain cell as a no."""
    assert COLUMNS.read({"a": yes, "b": no}) == (["a"], [])
    assert COLUMNS.read({"a": no, "b": yes}) == (["b"], [])
    for unknown in ("", None, -1, "-1.0", float("nan")):
        assert COLUMNS.read({"a": yes, "b": unknown}) == (["a"], ["b"])
        with pytest.raises(ValueError, match="no finding is said to be there or not"):
            COLUMNS.read({"a": unknown, "b": unknown})
    with pytest.raises(ValueError, match="b is neither 0 nor 1"):
        COLUMNS.read({"a": 1, "b": 2})


LINES = [
    "image;Finding Labels;patient;split",
    "0.png;Effusion|Mass;1;train",
    "1.png;No Finding;2;train",
    "2.png; Mass ;3;train",
    "3.png;;4;train",
    "4.png;Hernia;5;test",
    "5.png;Mass|No Finding;6;test",
]


def test_labels_of_a_joined_column(raw, capsys):
    """A class that training lacks in `train`; a row of none that is lost; Excel's first line."""
    text = [f"\ufeffsep=;\n{LINES[0]}", *LINES[1:]]
    assert run(raw, text, "--findings", "Finding Labels", "--group", "patient") == 0
    wanted = {"text": "Which findings are there?"}
    assert rows_of(raw) == {
        f"{k}.png/{k + 1}": {**wanted, "question_id": str(k + 1), "labels": labels}
        for k, labels in enumerate([["Effusion", "Mass"], [], ["Mass"], []])
    }
    lists = {"paper": ["Effusion", "Hernia", "Mass"], "train": ["Effusion", "Mass"]}
    out = raw.parent / "out"
    assert json.loads((out / "classes.json").read_text()) == {"labels": lists}
    report = json.loads((out / "report.json").read_text())
    assert report["corpus"]["train"] == {"images": 4, "texts": 4, "without_finding": 2}
    assert report["findings"]["Mass"]["train"] == {"yes": 2, "not_said": 0}
    assert report["findings"]["Hernia"]["test"] == {"yes": 1, "not_said": 0}
    options = Shards(out / "train").manifest["options"]
    assert options["findings"] == ["Finding Labels"] and "separator" not in options


def test_questions_of_columns(raw):
    """An answer of another finding, or a question where the table says nothing."""
    lines = ["image,Mass,Effusion", "0.png,1,0", "1.png,0,-1", "2.png,,", "3.png,1,x"]
    asked = ["--as", "questions", "--template", "Do you see {}?"]
    assert run(raw, lines, "--findings", "Mass", "Effusion", *asked) == 0
    found = {
        key: (row["text"], row["label"], row["answer_type"], row["question_type"])
        for key, row in rows_of(raw).items()
    }
    assert found == {
        "0.png/1-Mass": ("Do you see Mass?", "yes", "closed", "Mass"),
        "0.png/1-Effusion": ("Do you see Effusion?", "no", "closed", "Effusion"),
        "1.png/2-Mass": ("Do you see Mass?", "no", "closed", "Mass"),
    }
    out = raw.parent / "out"
    assert json.loads((out / "answers.json").read_text())["train"] == ["no", "yes"]
    report = json.loads((out / "report.json").read_text())
    assert report["findings"]["Effusion"]["train"] == {"yes": 0, "not_said": 1}
    dropped = report["splits"]["train"]["report"]["dropped"]
    assert dropped["row: no finding is said to be there or not"]["examples"] == ["x.csv: row 3"]
    assert dropped["row: Effusion is neither 0 nor 1"]["examples"] == ["x.csv: row 4"]


def test_a_text_of_their_own(raw):
    """A column `text` that is passed over."""
    lines = ["image,text,f", "0.png,a chest of mine,Mass", "1.png,,Effusion"]
    assert run(raw, lines, "--findings", "f", "--template", "Findings?") == 0
    assert [row["text"] for row in rows_of(raw).values()] == ["a chest of mine", "Findings?"]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--separator", ";"], "--separator: is for --findings alone"),
        (["--findings", "f", "--classes", "g"], "--classes, --findings: give one of the two"),
        (["--findings", "f", "f"], "--findings f f: not columns of findings, each once"),
        (["--findings", "image"], "--findings image: not columns of findings"),
        (["--findings", "f", "g", "--separator", ";"], "are for one column of several names"),
        (["--findings", "f", "--as", "questions", "--template", "x"], "of questions with {} in it"),
        (["--findings", "f", "--template", "Is {}?"], "of labels without"),
        (["--findings", "zero"], "column 'zero' holds only 0 and 1; one class is for --classes"),
        (["--findings", "absent"], "no column 'absent'"),
        (["--findings", "g"], "column 'g' has no finding"),
    ],
)
def test_mistakes(raw, capsys, more, message):
    """A traceback, or findings that are none."""
    assert run(raw, ["image,text,f,g,zero", "0.png,a,Mass,,1"], *more) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("error: ") == 1


def test_names_that_differ_by_case(raw, capsys):
    """`mass` and `Mass` as two classes without a word."""
    assert run(raw, ["image,f", "0.png,Mass", "1.png,mass|Hernia"], "--findings", "f") == 0
    assert "differ by case alone are classes each: Mass, mass" in capsys.readouterr().err


@given(st.sampled_from([",", ";", "\t", "|", ":"]), st.booleans(), st.booleans())
def test_the_first_line_of_excel(tmp_path_factory, mark, quoted, crlf):
    """A separator that is said and not taken, or a line number that is one off."""
    from m3ae.corpora.items import Drops
    from m3ae.corpora.tables import read_table

    path = tmp_path_factory.mktemp("excel") / "x.csv"
    end, quote = "\r\n" if crlf else "\n", '"' if quoted else ""
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        file.write(f"{quote}sep={mark}{quote}{end}")
        writer = csv.writer(file, delimiter=mark, lineterminator=end)
        writer.writerows([["image", "text"], ["a,;|:\tb", "c"], ["only one"]])
    drops = Drops()
    rows = list(read_table(path, ("image", "text"), drops))
    assert rows == [(1, {"image": "a,;|:\tb", "text": "c"})]
    assert drops.examples["row: more or fewer cells than the header has"] == [
        "x.csv: row 2, line 4: 1"
    ]
