"""The raw layouts of corpora of questions: VQA-RAD, VQA-Med-2019, SLAKE."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import phantoms, slake, vqa_med_2019, vqa_rad
from m3ae.data.chunks import Drops, Item, _chunks, clean
from m3ae.data.prepare import read_lines, write_report
from m3ae.data.questions import Question, check_row, is_inside, task_fields, to_items
from m3ae.data.shards import Shards, verify, write_json, write_shard
from tests.data_prep.test_corpora import SMALL, dropped, save_image, texts_of


def rad_row(qid: int | str, image: str, question: str, answer, **changes) -> dict:
    row = {"qid": qid, "phrase_type": "freeform", "image_name": f"{image}.jpg",
           "question": question, "question_frame": "NULL", "question_type": "PRES",
           "answer": answer, "answer_type": "OPEN"}  # fmt: skip
    return {**row, **changes}


RAD_ROWS = [
    rad_row("0", "synpic1", "Is there a mass?", "Yes", answer_type="CLOSED "),
    rad_row(1, "synpic1", "How many?", 2, phrase_type="para", question_frame="What is the count?"),
    rad_row(2, "synpic2", "Where?", "The liver", question_type="POS, PRES"),
    rad_row(3, "synpic2", "In which organ is it?", "right lung", phrase_type="test_para",
            question_frame="Where is/are the mass?"),
    rad_row(4, "synpic3", "Which plane?", "axial", phrase_type="test_freeform",
            question_frame=" "),
]  # fmt: skip


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
    return {split.text_key(i): {**split.fields(i), "text": split.text(i)}
            for i in range(len(split))}  # fmt: skip


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
        "synpic2/3-frame": ("Where is/are the mass?", "right lung", "right lung", "open",
                            True, True, True),
    }  # fmt: skip
    assert list(test) == ["synpic2/3", "synpic3/4"]
    assert train["synpic2/2"]["question_type"] == "POS, PRES"
    assert train["synpic2/3-frame"]["qid"] == test["synpic2/3"]["qid"] == "3"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["corpus"] == {
        "image_files": 4, "images_asked_about": {"all": 3, "train": 2, "test": 2},
        "training_sets": {"paper": 5, "strict": 4, "unframed": 3},
        "framed": 2, "leaked": 1,
        "test": {"questions": 2, "closed": 0, "open": 2},
    }  # fmt: skip
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert answers == {"paper": ["2", "axial", "liver", "right lung", "yes"],
                       "train": ["2", "liver", "yes"]}  # fmt: skip
    assert report["answers"]["train"] == {"answers": 3, "test_coverage": 0.0}
    assert all(verify(split.folder) == [] for split in splits.values())
    write_report(tmp_path / "out", "VQA-RAD")  # as a script that knows no questions calls it
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_rad_bad_rows_are_counted(tmp_path):
    """A bad row that ends the run, vanishes uncounted, or reads a file outside the corpus."""
    good = RAD_ROWS[0]
    changes = [{"answer": None}, {"answer": True}, {"answer": " "}, {"answer_type": "MAYBE"},
               {"phrase_type": "free"}, {"image_name": "../x.jpg"}, {"question": ["Why?"]},
               {"image_name": "synpic9.jpg"}, {"answer": "\ud800"}, {"qid": "0"}]  # fmt: skip
    bad = [{**good, "qid": 100 + k, **change} for k, change in enumerate(changes)]
    missing = {key: value for key, value in good.items() if key != "answer_type"}
    write_rad(tmp_path / "raw", [*RAD_ROWS, *bad, missing, "not a row"])
    splits = prepare_with(vqa_rad, tmp_path / "raw", tmp_path / "out")
    assert dropped(splits["train"]) == {
        "question: no answer (any split)": 3, "question: unknown answer_type (any split)": 1,
        "question: unknown phrase_type (any split)": 1, "question: no question (any split)": 1,
        "question: image_name leads elsewhere (any split)": 1,
        "question: answer not UTF-8 (any split)": 1,
        "question: qid occurs twice, first one kept (any split)": 1,
        "question: no answer_type (any split)": 1, "question: not an object (any split)": 1,
        "image: missing": 1, "text: its image was left out": 1,
    }  # fmt: skip
    examples = splits["train"].manifest["report"]["dropped"]
    kind = examples["question: unknown answer_type (any split)"]["examples"]
    assert kind == [f"{vqa_rad.OFFICIAL}: row 9, qid 103"]
    assert len(splits["train"]) == 5 and len(fields_of(splits["train"])) == 5


@pytest.mark.parametrize(
    "content, message",
    [("[{", "not JSON"), ('{"qid": 1}', "a dict where a list"), (None, "no 'VQA_RAD Dataset"),
     ("\xff", "not JSON"), ("[" * 9999, "not JSON"), ("[]", "no image is left")],
)  # fmt: skip
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
        items = to_items([question], Path("images"), str)
        digests.add(next(_chunks(items, 9))[2])
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
    "train": {"modality": "synpic1|is this an mri?|no\nsynpic2|what is it?|us - ultrasound\n",
              "plane": "synpic1|which plane?|axial\n", "organ": "synpic1|which organ?|spine\n",
              "abnormality": "synpic1|what is wrong?|cyst\n"},
    "valid": {"modality": "synpic3|is this a ct?|yes\n", "plane": "synpic3|plane?|ap\n",
              "organ": "synpic3|organ?|lung\nsynpic3|which?|lung\nbroken|line\n",
              "abnormality": ""},
}  # fmt: skip
MED_TEST = [("synpic4", "organ", "organ?", "lung#spine and contents"),
            ("synpic5", "modality", "how?", "ct (iv)"),
            ("synpic6", "abnormality", "what?", "cyst")]  # fmt: skip


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
    assert (organ["label"], organ["answer_type"]) == ("lung#spine and contents", "open")
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert {name: len(labels) for name, labels in answers.items()} == {
        "paper": 9, "train": 4, "train_valid": 7}  # fmt: skip
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["answers"]["train_valid"] == {
        "answers": 7, "test_coverage": 0.0, "test_coverage_any": 0.5}  # fmt: skip
    assert report["corpus"]["train"] == {
        "image_files": 2, "images_asked_about": 2, "questions": 4, "closed": 1, "open": 3}
    if official:
        assert dropped(splits["test"]) == {"line: unknown category or image outside": 1,
                                           "line: not UTF-8": 1}  # fmt: skip
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
        row = {"img_id": k, "img_name": f"xmlab{k}/source.jpg", "question": "What is it?",
               "answer": "The CT", "q_lang": "en", "location": "Lung", "modality": "CT",
               "answer_type": "OPEN", "base_type": "vqa", "content_type": "Modality",
               "triple": ["vhead", "_", "_"], "qid": 10 * k}  # fmt: skip
        other = {**row, "qid": 10 * k + 1, "question": "是 CT 吗", "answer": "是", "q_lang": "zh",
                 "answer_type": "CLOSED"}  # fmt: skip
        bad = [{**row, "qid": 10 * k + 2, "q_lang": "fr"}, {**row, "qid": 10 * k + 3,
               "img_name": "/etc/source.jpg"}]  # fmt: skip
        save_image(raw / "imgs" / row["img_name"], k)
        (raw / name).write_text(json.dumps([row, other, *bad]), encoding="utf-8")
    for language, questions in (("en", ["0"]), ("zh", ["1"]), ("both", ["0", "1"])):
        out = tmp_path / language
        splits = prepare_with(slake, raw, out, "--language", language)
        keys = [f"xmlab{k}/{k or ''}{q}" for k in range(3) for q in questions]
        names = ("train", "valid", "test")
        assert [key for name in names for key in fields_of(splits[name])] == keys
        assert dropped(splits["test"]) == {"question: unknown q_lang": 1,
                                           "question: img_name leads elsewhere": 1}  # fmt: skip
    row = fields_of(splits["test"])["xmlab2/21"]
    assert (row["label"], row["answer_type"], row["q_lang"]) == ("是", "closed", "zh")
    answers = json.loads((tmp_path / "both" / "answers.json").read_text())
    assert answers == {"paper": ["ct", "是"], "train": ["ct", "是"]}
    (raw / valid).unlink()
    assert slake.main(["--raw", str(raw), "--out", str(tmp_path / "no"), *SMALL]) == 1


# ------------------------------------------------------------------ shared

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
CHANGES = st.dictionaries(st.sampled_from([*RAD_ROWS[0], "img_name", "q_lang"]), JSON, max_size=3)


@settings(max_examples=2000, deadline=None)
@given(CHANGES, st.sets(st.sampled_from(list(RAD_ROWS[0])), max_size=1), JSON)
def test_any_row_is_read_or_refused(changes, removed, other):
    """A row of a damaged file that ends the run by another exception than the documented one."""
    row = {key: value for key, value in RAD_ROWS[1].items() if key not in removed}
    slake_row = {**row, "img_name": "xmlab1/source.jpg", "q_lang": "en"}
    for raw, keys, make, key_of in (
        ({**row, **changes}, vqa_rad.KEYS, make_rad, vqa_rad.image_key),
        ({**slake_row, **changes}, slake.KEYS, slake.make_question, slake.image_key),
        (other, vqa_rad.KEYS, make_rad, vqa_rad.image_key),
    ):
        try:
            question = make(check_row(raw, keys, keys[0]))
        except ValueError as error:
            assert str(error).split()[0] in ("no", "not", "unknown", *keys, "answer", "qid")
            continue
        item = to_items([question], Path("images"), key_of)[0]
        assert Path(os.path.normpath(item.image)).is_relative_to("images")
        clean(item, 1, Drops())
        question.fields["label"].encode()


def make_rad(row: dict) -> Question:
    return vqa_rad.make_question(row, bool(vqa_rad.frame_of(row)), False)


@settings(max_examples=2000, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(lines=st.lists(st.lists(st.sampled_from(
    [b"synpic1", b"organ", b"what?", b"a#b", b"", b" ", b"\xff", b"../x", b"#", b"\0", b"\n"]),
    max_size=5), max_size=4), category=st.sampled_from(["", "organ"]))  # fmt: skip
def test_any_lines_are_read_or_counted(tmp_path, lines, category):
    """A line that ends the run, or that is neither a question nor counted."""
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\n".join(b"|".join(columns) for columns in lines))
    drops = Drops()
    source = vqa_med_2019.Source(tmp_path, ((path, category),))
    questions = vqa_med_2019.read_questions(source, ["organ"], drops)
    assert len(questions) + drops.counts.total() == len(list(read_lines(path)))
    ids = [(question.image, question.fields["question_id"]) for question in questions]
    assert len(set(ids)) == len(ids)


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
    write_json(split.folder / "manifest.json", split.manifest)
    problems = verify(split.folder)
    assert len(problems) == 2 and "out/test: fields of text 0" in problems[0]


def test_an_item_has_fields_for_each_text():
    """Fields shifted against the texts by a parser's mistake."""
    with pytest.raises(ValueError, match="2 texts, 1 fields"):
        Item("key", Path("image.jpg"), ("one", "two"), fields=({},))


@pytest.mark.parametrize("name", ["../a.jpg", "a/../../b.jpg", "/a.jpg", "..\\a.jpg", "C:a", "",
                                  "a\0.jpg", ".", ".."])  # fmt: skip
def test_names_that_lead_elsewhere(name):
    """An image name from a downloaded file that reads any file of the machine."""
    assert not is_inside(name)
    assert is_inside("xmlab1/source.jpg") and is_inside("synpic1.jpg")
