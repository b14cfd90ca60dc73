"""The raw layouts of corpora of questions: VQA-RAD, VQA-Med-2019, SLAKE."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_prep import phantoms, slake, vqa_med_2019, vqa_rad
from m3ae.corpora.chunks import chunks_of
from m3ae.corpora.items import Item, is_inside
from m3ae.corpora.questions import Question, task_fields, to_items
from m3ae.corpora.report import write_report
from m3ae.corpora.shard_writer import seal, write_shard
from m3ae.corpora.verification import verify
from m3ae.data.shards import Shards
from m3ae.files import write_json
from tests.data_prep.test_corpora import SMALL, dropped, save_image, texts_of


def rad_row(qid: int | str, image: str, question: str, answer, **changes) -> dict:
    row = {
        "qid": qid,
        "phrase_type": "freeform",
        "image_name": f"{image}.jpg",
        "question": question,
        "question_frame": "NULL",
        "question_type": "PRES",
        "answer": answer,
        "answer_type": "OPEN",
    }
    return {**row, **changes}


RAD_ROWS = [
    rad_row("0", "synpic1", "Is there a mass?", "Yes", answer_type="CLOSED "),
    rad_row(1, "synpic1", "How many?", 2, phrase_type="para", question_frame="What is the count?"),
    rad_row(2, "synpic2", "Where?", "The liver", question_type="POS, PRES"),
    rad_row(
        3,
        "synpic2",
        "In which organ is it?",
        "right lung",
        phrase_type="test_para",
        question_frame="Where is/are the mass?",
    ),
    rad_row(4, "synpic3", "Which plane?", "axial", phrase_type="test_freeform", question_frame=" "),
]


def write_rad(raw: Path, rows: object) -> None:
    raw.mkdir()
    (raw / vqa_rad.OFFICIAL).write_text(json.dumps(rows))
    for k in range(1, 5):  # nothing is asked about image 4
        save_image(raw / vqa_rad.IMAGES / f"synpic{k}.jpg", k)


def prepare_with(script, raw: Path, out: Path, *more: str) -> dict[str, Shards]:
    """Run a script; returns its splits by name."""
    assert script.main(["--raw", str(raw), "--out", str(out), *SMALL, *more]) == 0
    return {path.parent.name: Shards(path.parent) for path in out.glob("*/manifest.json")}


def fields_of(split: Shards) -> dict[str, dict]:
    """Fields by text key, with the text."""
    return {
        split.text_key(i): {**split.fields(i), "text": split.text(i)} for i in range(len(split))
    }


# ------------------------------------------------------------------ VQA-RAD


def test_rad_training_sets_and_flags(tmp_path):
    """A framed test question not marked as leaked, or an answer beside another question."""
    write_rad(tmp_path / "raw", RAD_ROWS)
    splits = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out")
    train, test = fields_of(splits["train"]), fields_of(splits["test"])
    flags = ("text", "answer", "label", "answer_type", "framed", "leaked", "image_in_test")
    assert {key: tuple(row[name] for name in flags) for key, row in train.items()} == {
        "synpic1/0": ("Is there a mass?", "Yes", "yes", "closed", False, False, False),
        "synpic1/1": ("How many?", "2", "2", "open", False, False, False),
        "synpic1/1-frame": ("What is the count?", "2", "2", "open", True, False, False),
        "synpic2/2": ("Where?", "The liver", "liver", "open", False, False, True),
        "synpic2/3-frame": (
            "Where is/are the mass?",
            "right lung",
            "right lung",
            "open",
            True,
            True,
            True,
        ),
    }
    assert list(test) == ["synpic2/3", "synpic3/4"]
    assert train["synpic2/2"]["question_type"] == "POS, PRES"
    assert train["synpic2/3-frame"]["qid"] == test["synpic2/3"]["qid"] == "3"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["corpus"] == {
        "image_files": 4,
        "images_asked_about": {"all": 3, "train": 2, "test": 2},
        "training_sets": {"paper": 5, "strict": 4, "unframed": 3},
        "framed": 2,
        "leaked": 1,
        "test": {"questions": 2, "closed": 0, "open": 2},
    }
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert answers == {
        "paper": ["2", "axial", "liver", "right lung", "yes"],
        "train": ["2", "liver", "yes"],
        "reference_order": ["yes", "2", "liver", "right lung", "axial"],
    }
    assert report["answers"]["train"] == {"answers": 3, "test_coverage": 0.0}
    assert all(verify(split.folder) == [] for split in splits.values())
    listed = (tmp_path / "out" / "leaked_questions.txt").read_text()
    assert listed == "3-frame\tsynpic2\tWhere is/are the mass?\n"
    write_report(tmp_path / "out", "VQA-RAD")  # as a script that knows no questions calls it
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_rad_bad_rows_are_counted(tmp_path):
    """A bad row that ends the run, vanishes uncounted, or reads a file outside the corpus."""
    good = RAD_ROWS[0]
    changes = [
        {"answer": None},
        {"answer": True},
        {"answer": " "},
        {"answer_type": "MAYBE"},
        {"phrase_type": "free"},
        {"image_name": "../x.jpg"},
        {"question": ["Why?"]},
        {"image_name": "synpic9.jpg"},
        {"answer": "\ud800"},
        {"qid": "0"},
    ]
    bad = [{**good, "qid": 100 + k, **change} for k, change in enumerate(changes)]
    missing = {key: value for key, value in good.items() if key != "answer_type"}
    write_rad(tmp_path / "raw", [*RAD_ROWS, *bad, missing, "not a row"])
    splits = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out")
    assert dropped(splits["train"]) == {
        "question: no answer (any split)": 3,
        "question: unknown answer_type (any split)": 1,
        "question: unknown phrase_type (any split)": 1,
        "question: no question (any split)": 1,
        "question: image_name leads elsewhere (any split)": 1,
        "question: answer not UTF-8 (any split)": 1,
        "question: qid occurs twice, first one kept (any split)": 1,
        "question: no answer_type (any split)": 1,
        "question: not an object (any split)": 1,
        "image: missing": 1,
        "text: its image was left out": 1,
    }
    examples = splits["train"].manifest["report"]["dropped"]
    kind = examples["question: unknown answer_type (any split)"]["examples"]
    assert kind == [f"{vqa_rad.OFFICIAL}: row 9, qid 103"]
    assert len(splits["train"]) == 5 and len(fields_of(splits["train"])) == 5


@pytest.mark.parametrize(
    "content, message",
    [
        ("[{", "not JSON"),
        ('{"qid": 1}', "a dict where a list"),
        (None, "no 'VQA_RAD Dataset"),
        ("\xff", "not JSON"),
        ("[" * 9999, "not JSON"),
        ("[]", "no image is left"),
    ],
)
def test_rad_mistakes(tmp_path, capsys, content, message):
    """A traceback, or a message that does not name the file."""
    write_rad(tmp_path / "raw", [])
    path = tmp_path / "raw" / vqa_rad.OFFICIAL
    path.unlink() if content is None else path.write_text(content, encoding="latin-1")
    out = ["--raw", str(path.parent), "--out", str(tmp_path / "out"), *SMALL]
    assert vqa_rad.main(out) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("error: ") == 1


def test_changed_answers_are_not_continued():
    """Chunks of an interrupted run kept although the answers in the file changed since."""
    digests = set()
    for answer in ("yes", "no", "yes"):
        question = Question("a.jpg", "Is it?", task_fields("1", answer, "closed", "PRES"))
        items = to_items([question], Path("images").joinpath, str)
        digests.add(next(chunks_of(items, 8))[2])
    assert len(digests) == 2


def test_rad_mevf_files(tmp_path):
    """Rows of a repeated qid lost, or flags that these files cannot give made up."""
    write_rad(tmp_path / "raw", [])
    (tmp_path / "raw" / vqa_rad.OFFICIAL).unlink()
    train = [RAD_ROWS[0], RAD_ROWS[1], {**RAD_ROWS[1], "question": "What is the count?"}]
    (tmp_path / "raw" / "trainset.json").write_text(json.dumps(train))
    (tmp_path / "raw" / "testset.json").write_text(json.dumps(RAD_ROWS[3:]))
    (tmp_path / "raw" / vqa_rad.IMAGES).rename(tmp_path / "raw" / "images")
    splits = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out")
    rows = fields_of(splits["train"])
    assert list(rows) == ["synpic1/0", "synpic1/1", "synpic1/1-2"]
    assert all(row["framed"] is None and row["leaked"] is None for row in rows.values())
    report = json.loads((tmp_path / "out" / "report.json").read_text())["corpus"]
    assert report["training_sets"] == {"paper": 3} and report["leaked"] is None
    assert len(splits["test"]) == 2
    assert not (tmp_path / "out" / "leaked_questions.txt").exists()  # an empty one says none leak


def test_rad_frames_keep_ids_of_their_own(tmp_path):
    """A row that is called like a frame: two texts of one key, which `verify` refuses."""
    rows = [RAD_ROWS[1], {**RAD_ROWS[0], "qid": "1-frame"}]
    write_rad(tmp_path / "raw", [*rows, RAD_ROWS[3]])
    split = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out")["train"]
    assert verify(split.folder) == [] and len(split) == 3
    reason = "question: qid ends in -frame, as the ids of frames do (any split)"
    assert dropped(split) == {reason: 1}


# ------------------------------------------------------------------ VQA-RAD, the parquet copy


def write_copy(raw: Path, rows: dict[str, list[tuple]]) -> None:
    """The hub's layout; rows are (number of the image or None, question, answer)."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (raw / "data").mkdir(parents=True)
    for split, some in rows.items():
        table: dict[str, list] = {"image": [], "question": [], "answer": []}
        for k, question, answer in some:
            if k is not None:
                save_image(raw / "one.jpg", k)
            data = (raw / "one.jpg").read_bytes() if k is not None else b""
            table["image"].append({"bytes": data, "path": None})
            table["question"].append(question)
            table["answer"].append(answer)
        name = f"{split}-00000-of-00001-abc.parquet"
        parquet.write_table(pyarrow.table(table), raw / "data" / name, row_group_size=2)
    (raw / "one.jpg").unlink()


COPY = {
    "train": [
        (1, "is there a mass?", "yes"),
        (1, "how  many?", "2"),
        (2, "is there a mass?", "yes"),
        (2, "where?", "the liver"),
        (None, "what?", "it"),
        (1, "what is it?", None),
        (2, "where is/are the mass?", "right lung"),
        (3, "who?", "nobody knows"),
    ],
    "test": [
        (2, "in which organ is it?", "right lung"),
        (3, "which plane?", "axial"),
        (3, "is it?", "No"),
    ],
}


def test_rad_parquet(tmp_path):
    """Images of equal bytes kept apart, flags made up, or a row without an image ends the run."""
    write_copy(tmp_path / "raw", COPY)
    splits = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out")
    train, test = splits["train"], splits["test"]
    assert (train.num_images, len(train), test.num_images, len(test)) == (3, 6, 2, 3)
    assert dropped(train) == {
        "question: no image_name (any split)": 1,
        "question: no answer (any split)": 1,
    }
    rows = fields_of(train)
    assert all(key.startswith("sha256-") for key in rows)
    assert sorted(key.split("/")[1] for key in rows) == [f"row-{n}" for n in (0, 1, 2, 3, 6, 7)]
    for row in rows.values():
        names = ("framed", "leaked", "qid", "phrase_type")
        assert [row[name] for name in names] == [None] * 4
        assert row["answer_type"] == ("closed" if row["label"] == "yes" else "open")
    assert sum(row["image_in_test"] for row in rows.values()) == 4
    report = json.loads((tmp_path / "out" / "report.json").read_text())["corpus"]
    assert report["training_sets"] == {"copy": 6} and "joined" not in report
    assert report["test"] == {"questions": 3, "closed": 1, "open": 2}
    assert not (tmp_path / "out" / "leaked_questions.txt").exists()


def test_rad_parquet_joined(tmp_path):
    """A row joined to the same question about another image, or a frame of a test row missed."""
    write_copy(tmp_path / "raw", COPY)
    rows = [
        rad_row(7, "synpic2", "Is there a mass?", "Yes", answer_type="CLOSED"),
        *RAD_ROWS,
        rad_row(5, "synpic3", "Is it?", "no", phrase_type="test_para"),
    ]
    (tmp_path / "rad.json").write_text(json.dumps(rows))
    more = ["--official", str(tmp_path / "rad.json")]
    splits = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out", *more)
    rows = fields_of(splits["train"])
    said = {
        key.split("/")[1]: (row["qid"], row["framed"], row["leaked"], row["answer_type"])
        for key, row in rows.items()
    }
    assert said == {
        "0": ("0", False, False, "closed"),
        "1": ("1", False, False, "open"),
        "7": ("7", False, False, "closed"),
        "2": ("2", False, False, "open"),
        "3-frame": ("3", True, True, "open"),
        "row-7": (None, None, None, "open"),
    }
    by_id = {row["question_id"]: key.split("/")[0] for key, row in rows.items()}
    assert by_id["7"] == by_id["2"] == by_id["3-frame"] != by_id["0"] == by_id["1"]
    test = {row["qid"]: row["answer_type"] for row in fields_of(splits["test"]).values()}
    assert test == {"3": "open", "4": "open", "5": "open"}
    joined = json.loads((tmp_path / "out" / "report.json").read_text())["corpus"]["joined"]
    assert joined["train"] == {"rows": 6, "not_joined": 1, "examples": ["who?"]}
    assert joined["test"] == {"rows": 3, "not_joined": 0, "examples": []}
    out = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), *SMALL]
    assert vqa_rad.main(out) == 1  # without --official: other fields beside the same answers


def test_rad_parquet_mistakes(tmp_path, capsys):
    """A file that is no parquet, a split that is not there, or --official beside other layouts."""
    write_copy(tmp_path / "raw", {"train": COPY["train"]})
    out = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), *SMALL]
    assert vqa_rad.main(out) == 1
    assert "no parquet file of split test" in capsys.readouterr().err
    (tmp_path / "raw" / "data" / "test.parquet").write_bytes(b"PAR1" * 9)
    assert vqa_rad.main(out) == 1
    assert "test.parquet: not a parquet file" in capsys.readouterr().err
    write_rad(tmp_path / "official", RAD_ROWS)
    file = str(tmp_path / "official" / vqa_rad.OFFICIAL)
    out[1] = str(tmp_path / "official")
    assert vqa_rad.main([*out, "--official", file]) == 1
    assert "is for the parquet copy" in capsys.readouterr().err


def test_rad_from_phantoms(tmp_path):
    """The generated layout and the reader disagree."""
    made = ["--out", str(tmp_path / "p"), "--layouts", "vqa_rad", "--vqa", "12", "--px", "32"]
    assert phantoms.main([*made, "--workers", "1"]) == 0
    splits = prepare_with(vqa_rad, tmp_path / "p" / "vqa_rad", tmp_path / "out")
    rows = json.loads((tmp_path / "p" / "vqa_rad" / vqa_rad.OFFICIAL).read_text())
    tests = [row for row in rows if row["phrase_type"].startswith("test")]
    framed = [row for row in rows if row["question_frame"] != "NULL"]
    assert len(splits["test"]) == len(tests) > 0
    assert len(splits["train"]) == len(rows) - len(tests) + len(framed)
    assert not any(dropped(split) for split in splits.values())
    leaked = [row for row in fields_of(splits["train"]).values() if row["leaked"]]
    assert {row["text"] for row in leaked} == {
        row["question_frame"] for row in tests if row["question_frame"] != "NULL"
    }


# ------------------------------------------------------------------ VQA-Med-2019

MED = {  # split: category: lines
    "train": {
        "modality": "synpic1|is this an mri?|no\nsynpic2|what is it?|us - ultrasound\n",
        "plane": "synpic1|which plane?|axial\n",
        "organ": "synpic1|which organ?|spine\n",
        "abnormality": "synpic1|what is wrong?|cyst\n",
    },
    "valid": {
        "modality": "synpic3|is this a ct?|yes\n",
        "plane": "synpic3|plane?|ap\n",
        "organ": "synpic3|organ?|lung\nsynpic3|which?|lung\nbroken|line\n",
        "abnormality": "",
    },
}
MED_TEST = [
    ("synpic4", "organ", "organ?", "lung#spine and contents"),
    ("synpic5", "modality", "how?", "ct (iv)"),
    ("synpic6", "abnormality", "what?", "cyst"),
]


def write_med(raw: Path, official: bool) -> None:
    short = {"train": "train", "valid": "val"}
    names = dict(zip(vqa_med_2019.NAMES, vqa_med_2019.CATEGORIES, strict=True))
    for split, files in MED.items():
        folder, images, ending = vqa_med_2019.OFFICIAL[split]
        base = raw / (folder if official else short[split])
        questions = base / ("QAPairsByCategory" if official else "QA")
        questions.mkdir(parents=True)
        for name, lines in files.items():
            file = f"{names[name]}_{ending}.txt" if official else f"{name.capitalize()}.csv"
            (questions / file).write_text(lines)
        for k in (1, 2) if split == "train" else (3,):
            save_image(base / (images if official else "images") / f"synpic{k}.jpg", k)
    base = raw / (vqa_med_2019.TEST if official else "test")
    images = base / ("VQAMed2019_Test_Images" if official else "images")
    for k in (4, 5, 6):
        save_image(images / f"synpic{k}.jpg", k)
    if official:
        lines = ["|".join(row) for row in MED_TEST] + ["synpic6|taste|what?|sour"]
        broken = b"\nx|organ|\xff|y\n"
        (base / vqa_med_2019.ANSWERED).write_bytes("\n".join(lines).encode() + broken)
        return
    (base / "QA").mkdir()
    for name in vqa_med_2019.NAMES:
        lines = [f"{i}|{q}|{a}\n" for i, category, q, a in MED_TEST if category == name]
        (base / "QA" / f"{name.capitalize()}.csv").write_text("".join(lines))


@pytest.mark.parametrize("official", [True, False])
def test_med_questions(tmp_path, official):
    """A category too many, `#` read as one wrong answer only, a second question of a kind lost."""
    write_med(tmp_path / "raw", official)
    splits = prepare_with(vqa_med_2019, tmp_path / "raw", tmp_path / "out", "--as", "questions")
    assert texts_of(splits["train"]) == {
        "synpic1": ["is this an mri?", "which plane?", "which organ?"],
        "synpic2": ["what is it?"],
    }
    assert list(fields_of(splits["valid"])) == [
        f"synpic3/{name}" for name in ("modality", "plane", "organ", "organ-2")
    ]
    assert dropped(splits["valid"]) == {"line: not `image|question|answer`": 1}
    test = fields_of(splits["test"])
    assert set(test) == {"synpic4/organ", "synpic5/modality"}
    organ = test["synpic4/organ"]
    assert organ["alternatives"] == ["lung", "spine and contents"]
    assert test["synpic5/modality"]["alternatives"] == ["ct", "ct iv"]
    assert (organ["label"], organ["answer_type"]) == ("lung#spine and contents", "open")
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert {name: len(labels) for name, labels in answers.items()} == {
        "paper": 9,
        "train": 4,
        "train_valid": 7,
        "reference_order": 9,
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["answers"]["train_valid"] == {
        "answers": 7,
        "test_coverage": 0.0,
        "test_coverage_any": 0.5,
    }
    assert report["corpus"]["train"] == {
        "image_files": 2,
        "images_asked_about": 2,
        "questions": 4,
        "closed": 1,
        "open": 3,
    }
    if official:
        assert dropped(splits["test"]) == {
            "line: unknown category or image outside": 1,
            "line: not UTF-8": 1,
        }
    more = ["--as", "questions", "--categories", "abnormality", "--split", "test"]
    split = prepare_with(vqa_med_2019, tmp_path / "raw", tmp_path / "other", *more)["test"]
    assert list(fields_of(split)) == ["synpic6/abnormality"]


def test_med_refused_options_leave_the_answers(tmp_path):
    """Answers of other categories written beside shards that keep the old ones."""
    write_med(tmp_path / "raw", official=True)
    more = ["--as", "questions", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    assert vqa_med_2019.main([*more, *SMALL]) == 0
    before = (tmp_path / "out" / "answers.json").read_bytes()
    assert vqa_med_2019.main([*more, *SMALL, "--categories", "organ"]) == 1
    assert (tmp_path / "out" / "answers.json").read_bytes() == before


@pytest.mark.parametrize("state", ["finished", "begun", "other files"])
def test_splits_of_one_out_share_the_answers(tmp_path, capsys, state):
    """answers.json rewritten for a later split's categories: ids of labels that `train` lacks."""
    write_med(tmp_path / "raw", official=True)
    out = tmp_path / "out"
    more = ["--as", "questions", "--raw", str(tmp_path / "raw"), "--out", str(out), *SMALL]
    assert vqa_med_2019.main([*more, "--split", "train"]) == 0
    before = (out / "answers.json").read_bytes()
    other = ["--categories", "organ"]
    if state == "begun":  # stopped in the first chunk: no manifest yet
        options = json.loads((out / "train" / "manifest.json").read_text())["options"]
        (out / "train").rename(out / "train.partial")
        (out / "train.partial" / "manifest.json").unlink()
        begun = {**options, "source": "VQA-Med-2019, questions"}
        (out / "train.partial" / "options.json").write_text(json.dumps(begun))
    elif state == "other files":
        other = []
        path = tmp_path / "raw" / vqa_med_2019.TEST / vqa_med_2019.ANSWERED
        path.write_text("synpic4|organ|organ?|kidney\n")
    capsys.readouterr()
    assert vqa_med_2019.main([*more, "--split", "test", *other]) == 1
    error = capsys.readouterr().err
    wanted = (
        "made from other files"
        if state == "other files"
        else ("categories was ['modality', 'plane', 'organ'], is ['organ']")
    )
    assert wanted in error and "answers.json" in error
    assert (out / "answers.json").read_bytes() == before and not (out / "test").exists()
    if state == "finished":  # options that decide nothing about the answers may differ
        assert vqa_med_2019.main([*more, "--split", "test", "--limit", "1"]) == 0
        assert (out / "answers.json").read_bytes() == before


def test_med_mistakes(tmp_path, capsys):
    """A missing part of the corpus passes as an empty split."""
    write_med(tmp_path / "raw", official=True)
    (tmp_path / "raw" / vqa_med_2019.TEST / vqa_med_2019.ANSWERED).unlink()
    more = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--as", "questions"]
    assert vqa_med_2019.main(more) == 1
    assert vqa_med_2019.ANSWERED in capsys.readouterr().err


# ------------------------------------------------------------------ SLAKE


@pytest.mark.parametrize("valid", ["validate.json", "validation.json"])
def test_slake(tmp_path, valid):
    """Images that share a file name taken for one; the other language's questions kept."""
    raw = tmp_path / "raw"
    for k, name in enumerate(("train.json", valid, "test.json")):
        row = {
            "img_id": k,
            "img_name": f"xmlab{k}/source.jpg",
            "question": "What is it?",
            "answer": "The CT",
            "q_lang": "en",
            "location": "Lung",
            "modality": "CT",
            "answer_type": "OPEN",
            "base_type": "vqa",
            "content_type": "Modality",
            "triple": ["vhead", "_", "_"],
            "qid": 10 * k,
        }
        other = {
            **row,
            "qid": 10 * k + 1,
            "question": "是 CT 吗",
            "answer": "是",
            "q_lang": "zh",
            "answer_type": "CLOSED",
        }
        bad = [
            {**row, "qid": 10 * k + 2, "q_lang": "fr"},
            {**row, "qid": 10 * k + 3, "img_name": "/etc/source.jpg"},
        ]
        save_image(raw / "imgs" / row["img_name"], k)
        (raw / name).write_text(json.dumps([row, other, *bad]), encoding="utf-8")
    for language, questions in (("en", ["0"]), ("zh", ["1"]), ("both", ["0", "1"])):
        out = tmp_path / language
        splits = prepare_with(slake, raw, out, "--language", language)
        keys = [f"xmlab{k}/{k or ''}{q}" for k in range(3) for q in questions]
        names = ("train", "valid", "test")
        assert [key for name in names for key in fields_of(splits[name])] == keys
        assert dropped(splits["test"]) == {
            "question: unknown q_lang": 1,
            "question: img_name leads elsewhere": 1,
        }
    row = fields_of(splits["test"])["xmlab2/21"]
    assert (row["label"], row["answer_type"], row["q_lang"]) == ("是", "closed", "zh")
    answers = json.loads((tmp_path / "both" / "answers.json").read_text())
    assert answers == {name: ["ct", "是"] for name in ("paper", "train", "reference_order")}
    (raw / valid).unlink()
    assert slake.main(["--raw", str(raw), "--out", str(tmp_path / "no"), *SMALL]) == 1


@pytest.mark.parametrize("top", ["imgs/", ""])
def test_slake_images_in_a_zip(tmp_path, capsys, top):
    """The hub's imgs.zip has to be unpacked, or a missing member ends the run."""
    raw = tmp_path / "raw"
    save_image(raw / "one.jpg", 1)
    with zipfile.ZipFile(raw / "imgs.zip", "w") as archive:
        archive.write(raw / "one.jpg", f"{top}xmlab0/source.jpg")
    for k, name in enumerate(("train.json", "validation.json", "test.json")):
        row = {
            "img_name": "xmlab0/source.jpg",
            "question": "What?",
            "answer": "CT",
            "qid": k,
            "q_lang": "en",
            "answer_type": "OPEN",
        }
        gone = {**row, "qid": 10 + k, "img_name": "xmlab1/source.jpg"}
        (raw / name).write_text(json.dumps([row, gone]))
    splits = prepare_with(slake, raw, tmp_path / "out")
    assert {name: list(fields_of(split)) for name, split in splits.items()} == {
        "train": ["xmlab0/0"],
        "valid": ["xmlab0/1"],
        "test": ["xmlab0/2"],
    }
    lost = {"image: missing": 1, "text: its image was left out": 1}
    assert all(dropped(split) == lost for split in splits.values())
    (raw / "imgs.zip").write_bytes(b"<html>")
    assert slake.main(["--raw", str(raw), "--out", str(tmp_path / "no"), *SMALL]) == 1
    assert "imgs.zip: not a readable zip archive" in capsys.readouterr().err


# ------------------------------------------------------------------ shared


def test_pairs_have_no_fields(tmp_path):
    """A training run on captions fails far from its cause: a KeyError on a tensor's name."""
    write_rad(tmp_path / "raw", RAD_ROWS)
    split = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out")["train"]
    split.manifest["kind"] = "pairs"
    with pytest.raises(ValueError, match="out/train: holds pairs, no questions"):
        split.fields(0)


def test_verify_reads_the_fields(tmp_path):
    """Fields that no reader can parse pass as sound, since their bytes and offsets agree."""
    write_rad(tmp_path / "raw", RAD_ROWS)
    split = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out")["test"]
    path = split.folder / split.files[0]["name"]
    tensors = {name: np.array(array) for name, array in split.shard(0).items()}  # not mapped
    tensors["text_fields_bytes"][:] = ord("{")
    split.files[0] |= write_shard(path, tensors)
    split.manifest.pop("chunks")  # which says what the file was
    write_json(split.folder / "manifest.json", seal(split.manifest))
    problems = verify(split.folder)
    assert len(problems) == 2 and "out/test: fields of text 0" in problems[0]


def test_an_item_has_fields_for_each_text():
    """Fields shifted against the texts by a parser's mistake."""
    with pytest.raises(ValueError, match="2 texts, 1 fields"):
        Item("key", Path("image.jpg"), ("one", "two"), fields=({},))


@pytest.mark.parametrize(
    "name", ["../a.jpg", "a/../../b.jpg", "/a.jpg", "..\\a.jpg", "C:a", "", "a\0.jpg", ".", ".."]
)
def test_names_that_lead_elsewhere(name):
    """An image name from a downloaded file that reads any file of the machine."""
    assert not is_inside(name)
    assert is_inside("xmlab1/source.jpg") and is_inside("synpic1.jpg")


# ------------------------------------------------------------------ files in the MEVF form


def write_mevf(raw: Path, train: list[dict], test: list[dict]) -> None:
    write_rad(raw, [])
    (raw / vqa_rad.OFFICIAL).unlink()
    (raw / "trainset.json").write_text(json.dumps(train))
    (raw / "testset.json").write_text(json.dumps(test))


def test_rad_mevf_frames(tmp_path, capsys):
    """Frames that are taken for questions of their own; rows said not to be leaked that may be."""
    frame = rad_row(3, "synpic2", "Where is/are the mass?", "right lung", phrase_type="frame")
    write_mevf(tmp_path / "raw", [*RAD_ROWS[:3], frame], RAD_ROWS[3:])
    splits = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out")
    rows = fields_of(splits["train"])
    flags = {key: (row["framed"], row["leaked"]) for key, row in rows.items()}
    assert flags == {
        "synpic1/0": (False, False),
        "synpic1/1": (False, False),
        "synpic2/2": (False, False),
        "synpic2/3": (True, None),
    }
    assert rows["synpic2/3"]["text"] == "Where is/are the mass?"
    assert not any(row["framed"] for row in fields_of(splits["test"]).values())
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert "right lung" in answers["paper"] and "right lung" not in answers["train"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())["corpus"]
    assert report["training_sets"] == {"paper": 4, "unframed": 3}
    assert report["framed"] == 1 and report["leaked"] is None
    assert not (tmp_path / "out" / "leaked_questions.txt").exists()
    assert splits["train"].manifest["source"] == "VQA-RAD"
    assert report["unlike_published"] == [
        "4 rows in trainset.json, 3064 expected",
        "2 rows in testset.json, 451 expected",
    ]


MED_ROWS = [rad_row(k, f"synpic{k}", "Which?", "ct", question_type="modality") for k in (1, 2, 3)]


@pytest.mark.parametrize(
    "train, message",
    [
        ([RAD_ROWS[0], RAD_ROWS[4]], "1 rows of trainset.json are test rows by their phrase_type"),
        (MED_ROWS, "their question types are those of VQA-Med-2019"),
        ([rad_row(k, f"x{k}", "Is it?", "no") for k in range(316)], "318 images, VQA-RAD has 315"),
    ],
)
def test_rad_mevf_files_of_something_else(tmp_path, capsys, train, message):
    """A random split, or another corpus, reported as a result on VQA-RAD."""
    write_mevf(tmp_path / "raw", train, MED_ROWS[:1] if train is MED_ROWS else RAD_ROWS[3:])
    more = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), *SMALL]
    assert vqa_rad.main([*more, "--split", "test"]) == 0
    error = capsys.readouterr().err
    assert f"warning: {tmp_path / 'raw'}: trainset.json and testset.json are not VQA-RAD's" in error
    assert message in error and "3064 expected" in error
    source = Shards(tmp_path / "out" / "test").manifest["source"]
    assert source == "VQA-RAD, another split or corpus"


def test_rad_mevf_counts_as_published_are_not_remarked(capsys):
    """A warning about the very files that everybody has."""
    row = {"phrase_type": "freeform", "question_type": "PRES"}
    splits = {
        split: [Question(f"{k % 313}.jpg", "Is it?", row) for k in range(count)]
        for split, count in (("train", 3064), ("test", 451))
    }
    assert vqa_rad.unlike_published(splits) == ([], False)
