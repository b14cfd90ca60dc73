"""Prediction files: what is read, what is refused, and what counts as right."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import melinda
from m3ae.data.questions import read_questions
from m3ae.scoring.predictions import (
    annotate,
    check_row,
    complete,
    is_right,
    join,
    read_predictions,
    read_trained_on,
    right_answers,
    rows_trained_on,
    training_rows,
    write_predictions,
    write_trained_on,
)
from tests.data_prep.test_corpora import save_image
from tests.data_prep.test_vqa import RAD_ROWS, prepare_with, vqa_rad, write_rad

GOOD = {"id": "a/1", "prediction": "yes"}
RANK = {"id": "a", "image": "i", "way": "t2i", "rank": 2, "pool": 9}
MELINDA = """figure_file,caption,i_meth,p_meth,i_meth_label,p_meth_label
b.jpg,A western blot of cells,fish,blot,1,2
b.jpg,A scan of other cells,,scan,1,2
"""


def write_melinda(raw: Path) -> None:
    """The same two captions in each split; one has no i_meth."""
    save_image(raw / "melinda_images" / "b.jpg", 1)
    for name in ("train", "dev", "test"):
        (raw / f"{name}.csv").write_text(MELINDA)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# ------------------------------------------------------------------ read and write


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.jsonl", lines(GOOD, {"id": "a/2"}), ":2: no prediction"),
        ("p.jsonl", lines({"prediction": "yes"}), ":1: no id"),
        ("p.jsonl", lines({**GOOD, "prediction": None}), ":1: no prediction"),
        ("p.jsonl", lines({**GOOD, "id": ""}), ":1: an empty id"),
        ("p.jsonl", lines({**GOOD, "id": ["a"]}), ":1: id is a list"),
        ("p.jsonl", lines({**GOOD, "prediction": True}), ":1: prediction is a bool"),
        ("p.jsonl", lines({**GOOD, "label": 1}), ":1: label is a int"),
        ("p.jsonl", lines({**GOOD, "type": "yes/no"}), ":1: type is 'yes/no'"),
        ("p.jsonl", lines({**GOOD, "leaked_twin": "no"}), ":1: leaked_twin is 'no'"),
        ("p.jsonl", lines({**GOOD, "score": "high"}), ":1: score is 'high'"),
        ("p.jsonl", lines({**GOOD, "right": "yes"}), ":1: right is 'yes'"),
        ("p.jsonl", lines({"id": "a", "right": {}}), ":1: right is {}"),
        ("p.jsonl", lines({"id": "a", "right": {"mine": True}}), ":1: right is {'mine': True}"),
        ("p.jsonl", lines({**RANK, "way": "up"}), ":1: way is 'up'"),
        ("p.jsonl", lines({**RANK, "rank": 0}), ":1: rank is 0 of pool 9"),
        ("p.jsonl", lines({**RANK, "rank": 10}), ":1: rank is 10 of pool 9"),
        ("p.jsonl", lines({**RANK, "rank": 1.5}), ":1: rank is 1.5 of pool 9"),
        ("p.jsonl", lines({**RANK, "pool": None}), ":1: rank is 2 of pool None"),
        ("p.jsonl", lines(RANK, {**RANK, "way": "i2t"}, RANK), ":3: id 'a' is on line 1 too"),
        ("p.jsonl.gz", lines(GOOD), ": not a whole gzip file"),
        ("p.csv.gz", "", ":1: no column id"),
        ("p.jsonl", lines({**GOOD, "question": "\ud800"}), ":1: question has half of"),
        ("p.jsonl", lines(GOOD) + "\n" + lines(GOOD), ":3: id 'a/1' is on line 1 too"),
        ("p.jsonl", lines(GOOD) + "{", ":2: not JSON"),
        ("p.jsonl", "[" * 99999, ":1: not JSON"),
        ("p.jsonl", lines(GOOD) + '{"id": 1, "prediction": NaN}', ":2: not JSON"),
        ("p.jsonl", lines([GOOD]), ":1: a list where an object"),
        ("p.jsonl", lines(GOOD) + "\xff", ":2: not JSON"),
        ("p.jsonl", "\n \n", ": no prediction in it"),
        ("p.csv", "id,prediction\n", ": no prediction in it"),
        ("p.csv", "", ":1: no column id; it has none"),
        ("p.csv", "id,answer\na,b\n", ":1: no column prediction; it has id, answer"),
        ("p.csv", "id,prediction,id\na,b,c\n", ":1: a column occurs twice"),
        ("p.csv", "id,prediction\na,b\nc\n", ":3: 1 cells, the header has 2"),
        ("p.csv", "id,prediction\na,b\na,c\n", ":3: id 'a' is on line 2 too"),
        ("p.csv", 'id,prediction\na,"b"c\n', ":2: not CSV"),
        ("p.csv", "id,prediction\na,\xff\n", "not UTF-8"),
        ("p.csv", "id,prediction,leaked_twin\na,b,maybe\n", ":2: leaked_twin is 'maybe'"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    """A traceback, a message that does not name file and line, or a bad row that is scored."""
    path = tmp_path / name
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError) as error:
        read_predictions(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_csv_is_read_as_jsonl_is(tmp_path):
    """A flag or a number of a CSV kept as text, an empty cell taken for an answer."""
    rows = [
        {
            "id": "7",
            "prediction": "2",
            "type": "CLOSED ",
            "leaked_twin": False,
            "score": 0.5,
            "model": "x",
        },
        {"id": "b", "prediction": "", "type": "open", "leaked_twin": True},
    ]
    (tmp_path / "p.jsonl").write_text(
        "\ufeff" + lines({**rows[0], "id": 7, "prediction": 2}) + lines(rows[1]), encoding="utf-8"
    )
    with open(tmp_path / "p.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    read = read_predictions(tmp_path / "p.csv")
    assert read == read_predictions(tmp_path / "p.jsonl")
    assert read == [{**rows[0], "type": "closed"}, rows[1]]
    (tmp_path / "r.csv").write_text("id,right\na,True\nb,false\n")
    assert [row["right"] for row in read_predictions(tmp_path / "r.csv")] == [True, False]
    (tmp_path / "k.csv").write_text("id,way,rank,pool\na,t2i,2,9\n")
    assert read_predictions(tmp_path / "k.csv") == [{k: x for k, x in RANK.items() if k != "image"}]


def test_compressed_files_are_read_and_written(tmp_path):
    """A .gz taken for text, or other bytes for the same rows: a file that changes by itself."""
    rows = [GOOD, {"id": "é/2", "prediction": "ja", "right": {"paper": True, "strict": False}}]
    write_predictions(tmp_path / "p.jsonl", rows)
    write_predictions(tmp_path / "p.jsonl.gz", rows)
    packed = (tmp_path / "p.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "p.jsonl").read_bytes()
    assert packed[4:8] == bytes(4)  # the time of writing
    assert read_predictions(tmp_path / "p.jsonl.gz") == rows
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"id,prediction\na/1,yes\n"))
    assert read_predictions(tmp_path / "c.csv.gz") == [GOOD]
    for damaged in (packed[:-9], b"", packed[:20] + b"x" + packed[21:]):
        (tmp_path / "d.jsonl.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"d\.jsonl\.gz: (not a whole gzip|no prediction)"):
            read_predictions(tmp_path / "d.jsonl.gz")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
COLUMNS = "id prediction answer label image type score leaked top right rank way pool".split()
ROWS = st.lists(st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=4), max_size=3)


def read_or_refuse(path: Path) -> list[dict]:
    try:
        rows = read_predictions(path)
    except ValueError as error:
        assert str(error).startswith(str(path))
        return []
    assert rows and len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["id"].encode() and row.keys() & {"prediction", "right", "rank"}
        assert isinstance(row.get("prediction", ""), str)
        assert check_row(row) == row
    return rows


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, ids=st.lists(TEXT, min_size=3, max_size=3), cut=st.integers(0, 400))
def test_any_json_is_read_or_refused(tmp_path, rows, ids, cut):
    """A damaged or foreign file ends in another exception, or a wrong type reaches the scores."""
    path = tmp_path / "p.jsonl"
    # As many as the shorter list has.
    whole = [{"id": key, "prediction": "x", **row} for key, row in zip(ids, rows, strict=False)]
    path.write_bytes(lines(*whole).encode()[: cut or None])
    kept = read_or_refuse(path)
    if kept:
        write_predictions(path, kept)
        assert read_predictions(path) == kept


CELLS = st.sampled_from(
    [
        b"id",
        b"prediction",
        b"type",
        b"a",
        b"",
        b'"',
        b",",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"score",
        b"open",
        b"leaked",
        b" ",
    ]
)


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(CELLS, max_size=25), headed=st.booleans())
def test_any_csv_is_read_or_refused(tmp_path, parts, headed):
    """The same of a CSV: ragged rows, open quotes, bytes that are no text."""
    path = tmp_path / "p.csv"
    path.write_bytes((b"id,prediction,type\n" if headed else b"") + b"".join(parts))
    read_or_refuse(path)


def test_writing_is_whole_or_nothing(tmp_path):
    """A file that a crash or a bad row leaves half written."""
    path = tmp_path / "p.jsonl"
    rows = [{"id": "é/1", "prediction": "ja", "top": [["ja", 0.5]], "leaked": None}, GOOD]
    write_predictions(path, rows)
    before = path.read_bytes()
    assert before.count(b"\n") == 2 and "é/1".encode() in before
    assert read_predictions(path)[0] == {key: rows[0][key] for key in ("id", "prediction", "top")}
    for bad, message in (
        ({"id": "c"}, "no prediction"),
        (GOOD, "'a/1' twice"),
        ({**GOOD, "id": "d", "x": float("nan")}, "row 3"),
    ):
        with pytest.raises(ValueError, match=message):
            write_predictions(path, [*rows, bad])
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------ prepared splits


@pytest.fixture(scope="module")
def rad(tmp_path_factory):
    """A prepared VQA-RAD: 2 test questions, 5 training rows, one of them leaked."""
    folder = tmp_path_factory.mktemp("rad")
    write_rad(folder / "raw", RAD_ROWS)
    prepare_with(vqa_rad, folder / "raw", folder / "out")
    return folder / "out"


def test_join(rad):
    """Predictions beside other questions, ids that vanish uncounted, answers of another test."""
    test = read_questions(rad / "test")
    assert [row["id"] for row in test] == ["synpic2/3", "synpic3/4"]
    assert [test[0][key] for key in ("image", "type", "label")] == ["synpic2", "open", "right lung"]
    second, first = ({"id": row["id"], "prediction": row["answer"], "score": 0.5} for row in test)
    joined, missing = join([first, second], test, "file")
    assert missing == 0 and [row["prediction"] for row in joined] == ["right lung", "axial"]
    assert joined[0]["question"] == test[0]["question"] and joined[0]["score"] == 0.5
    with pytest.raises(ValueError, match=r"file: 1 of its 3 ids .* 'synpic9/9'"):
        join([first, second, {"id": "synpic9/9", "prediction": "x"}], test, "file")
    with pytest.raises(ValueError, match=r"no prediction for 1 of 2 questions, e.g. 'synpic2/3'"):
        join([first], test, "file")
    joined, missing = join([first], test, "file", allow_missing=True)
    assert missing == 1 and joined[0]["prediction"] is None
    assert [is_right(row, "paper") for row in joined] == [False, True]
    join([{**first, "answer": "Axial."}, second], test, "file")  # the same once normalised
    for key in ("answer", "label"):
        with pytest.raises(ValueError, match=f"synpic3/4: {key} 'sagittal' where"):
            join([{**first, key: "sagittal"}, second], test, "file")


def test_flags_of_training(rad):
    """A twin found by its image, or training images and answers of rows that are not trained on."""
    test, train = read_questions(rad / "test"), read_questions(rad / "train")
    assert [len(training_rows(train, name)) for name in ("paper", "strict", "image_disjoint")] == [
        5,
        4,
        3,
    ]
    flags = ("leaked_twin", "image_in_train", "answer_in_train")

    def told(rows: list, protocol: str) -> list[tuple]:
        done, notes = annotate(rows, training_rows(train, protocol), train, protocol)
        assert notes == []
        return [tuple(row[flag] for flag in flags) for row in done]

    assert told(test, "paper") == [(True, True, True), (False, False, False)]
    assert told(test, "strict") == [(True, True, False), (False, False, False)]
    assert told(test, "image_disjoint")[0] == (True, False, False)
    train[0]["qid"] = test[1]["qid"]  # of a row that is not leaked
    assert not told(test, "paper")[1][0]
    either = [{**test[1], "answer": "axial#the liver", "label": "axial#liver"}]
    assert told(either, "strict")[0][2] and not told(either, "paper")[0][2]


def test_strata_rest_on_the_rows_trained_on(rad, tmp_path):
    """Held-out training rows that count as trained on: an image in training that was never seen."""
    test, train = read_questions(rad / "test"), read_questions(rad / "train")
    allowed = training_rows(train, "strict")
    assert annotate(test, allowed, train, "strict")[0][0]["image_in_train"]
    ids = [row["id"] for row in allowed if row["image"] != "synpic2"]
    assert 0 < len(ids) < len(allowed)
    own = rows_trained_on(train, ids, "file")
    assert [row["id"] for row in own] == ids
    row = annotate(test, own, train, "strict")[0][0]
    assert (row["leaked_twin"], row["image_in_train"]) == (True, False)
    with pytest.raises(ValueError, match=r"file: 1 of its 1 ids .* 'synpic9/9'; is --train what"):
        rows_trained_on(train, ["synpic9/9"], "file")


def test_rows_trained_on_are_kept_whole(tmp_path):
    """A list that was cut short, or that is of something else, taken for the rows trained on."""
    for name in ("trained_on.txt", "trained_on.txt.gz"):
        write_trained_on(tmp_path / name, "data/x: y/train", ["a/1", "b é/2"], 5)
        assert read_trained_on(tmp_path / name) == ["a/1", "b é/2"]
    path = tmp_path / "trained_on.txt"
    whole = path.read_text()
    assert whole == "# data/x: y/train: 2 of 5 rows\na/1\nb é/2\n"
    for text, message in (
        (whole.replace("b é/2\n", ""), "1 ids where its first line says 2"),
        (whole.replace("b é/2", "a/1"), "1 ids where its first line says 2"),
        (whole.split("\n", 1)[1], r"begins with 'a/1', not with `# SPLIT: N of M rows`"),
        ("", "begins with ''"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_trained_on(path)


def test_unknown_flags_are_said(rad):
    """Rows that do not tell whether they are leaked count as not leaked."""
    test, train = read_questions(rad / "test"), read_questions(rad / "train")
    unknown = [{**row, "leaked": None} for row in train]
    rows, notes = annotate(test, unknown, unknown, "strict")
    assert len(notes) == 1 and not any("leaked_twin" in row for row in rows)
    rows, notes = annotate([{**GOOD, "image": "a", "label": "yes"}], train, train, "paper")
    assert "qid" in notes[0] and "leaked_twin" not in rows[0] and "image_in_train" in rows[0]
    rows, notes = annotate([{"id": "a", "image": "a", "right": True}], train, train, "strict")
    assert len(notes) == 2 and "answer_in_train" not in rows[0] and "image_in_train" in rows[0]
    with pytest.raises(ValueError, match="leaked"):
        training_rows(unknown, "strict")


def test_splits_of_classes(tmp_path):
    """A field of the split that is not there, or null, becomes a class."""
    write_melinda(tmp_path / "raw")
    split = prepare_with(melinda, tmp_path / "raw", tmp_path / "out")["test"].folder
    rows = read_questions(split, "p_meth")
    assert [(row["id"], row["answer"], "type" in row) for row in rows] == [
        ("b.jpg/1", "blot", False),
        ("b.jpg/2", "scan", False),
    ]
    assert [row["answer"] for row in read_questions(split, "i_meth")] == ["fish"]
    with pytest.raises(ValueError, match=r"no task field 'label'; give --field, one of i_meth, "):
        read_questions(split)


# ------------------------------------------------------------------ right or wrong


def test_complete():
    """A file that mixes rows with and without a column, or answers that are of another label."""
    row = {**GOOD, "answer": "The X-Ray", "type": "open"}
    done = complete([row, {**row, "id": "b", "label": "x ray"}], "file")
    assert [(r["image"], r["label"]) for r in done] == [("a", "x ray"), ("b", "x ray")]
    assert complete([{**GOOD, "label": "The yes", "type": "open"}], "f")[0]["label"] == "yes"
    for rows, message in (
        ([row, {**row, "id": "b", "image": "i"}], "no image on 1 of 2 rows, e.g. 'a/1'"),
        ([row, {**GOOD, "id": "b", "answer": "x"}], "no type on 1 of 2 rows, e.g. 'b'"),
        ([GOOD], "'a/1' has no answer and no label"),
        ([{**row, "label": "X-Ray"}], "label 'X-Ray' is not the answer normalised, 'x ray'"),
    ):
        with pytest.raises(ValueError, match=f"file: .*{message}"):
            complete(rows, "file")


@pytest.mark.parametrize(
    "prediction, answer, paper, strict",
    [
        ("The Lung.", "lung", True, True),
        ("lung", "lung#spine", False, True),
        ("spine", "lung#spine", False, True),
        ("lung#spine", "lung#spine", True, False),
        ("ct", "ct (iv)", False, True),
        ("ct iv", "ct (iv)", True, True),
        ("mr", "ct (iv)", False, False),
        ("", "no", False, False),
        (None, "no", False, False),
    ],
)
def test_right_or_wrong(prediction, answer, paper, strict):
    """Alternatives accepted where the paper's rule has one string, or refused where they count."""
    row = {"id": "a", "prediction": prediction, "answer": answer, "type": "open"}
    row = complete([row], "file")[0]
    assert [is_right(row, name) for name in ("paper", "strict", "image_disjoint")] == [
        paper,
        strict,
        strict,
    ]


def test_right_or_wrong_of_classes_and_labels():
    """Names of classes normalised, so that two of them become one; strict without the answer."""
    row = complete([{"id": "a", "prediction": "a b", "answer": "A-B"}], "file")[0]
    assert not is_right(row, "paper") and is_right({**row, "prediction": "A-B"}, "strict")
    row = complete([{**GOOD, "label": "yes", "type": "closed"}], "file")[0]
    assert is_right(row, "paper")
    with pytest.raises(ValueError, match="'a/1' has a label and no answer"):
        is_right(row, "strict")


def test_right_without_answers(rad):
    """Kept files that hold no corpus text: not to be scored, or against the wrong protocol."""
    right = {"paper": False, "strict": True}
    rows = complete([{"id": "synpic2/3", "prediction": "x", "type": "open", "right": right}], "f")
    assert rows[0]["image"] == "synpic2" and "label" not in rows[0]
    assert [is_right(rows[0], name) for name in ("paper", "strict", "image_disjoint")] == [
        False,
        True,
        True,
    ]
    assert is_right({**rows[0], "right": True}, "paper")
    with pytest.raises(ValueError, match="'synpic2/3': its `right` does not say what strict"):
        is_right({**rows[0], "right": {"paper": True}}, "strict")
    # An answer counts more than what a file says of itself, if there is a prediction to compare.
    test = read_questions(rad / "test")
    said = [{"id": row["id"], "prediction": "x", "right": True} for row in test]
    assert not any(is_right(row, "strict") for row in complete(join(said, test, "f")[0], "f"))
    bare = [{"id": row["id"], "right": True} for row in test]
    assert all(is_right(row, "strict") for row in complete(join(bare, test, "f")[0], "f"))


def test_ranks_need_no_answer(tmp_path):
    """Ranks of one item both ways taken for a row twice, or refused for having no prediction."""
    rows = [RANK, {**RANK, "way": "i2t", "rank": 1}, {**RANK, "id": "b/1", "image": "b"}]
    write_predictions(tmp_path / "ranks.jsonl", rows)
    assert complete(read_predictions(tmp_path / "ranks.jsonl"), "f") == rows
    with pytest.raises(ValueError, match="no rank on 1 of 2 rows"):
        complete([RANK, {**GOOD, "image": "x", "right": True}], "f")
    with pytest.raises(ValueError, match="id 'a' twice"):
        write_predictions(tmp_path / "ranks.jsonl", [RANK, RANK])


def test_right_answers_are_those_that_count():
    """A ceiling that takes the label of `lung#spine` for an answer, which strict does not count."""
    row = {"id": "a/1", "type": "open", "answer": "lung#spine", "label": "lung spine"}
    assert right_answers(row, "paper") == {"lung spine"}
    assert right_answers(row, "strict") == {"lung", "spine"}
    for said in ("lung", "spine", "lung spine"):
        right = is_right({**row, "prediction": said}, "strict")
        assert right == (said in right_answers(row, "strict"))


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_letters_of_a_multiple_choice(protocol):
    """The letter A never right, or as right as any article; a label of before refused."""
    row = {"id": "x/1", "type": "open", "answer": "A", "label": "a"}
    rows = complete([{**row, "prediction": said} for said in ("a", "A", "the", "b", "")], "x")
    assert [is_right(row, protocol) for row in rows] == [True, True, False, False, False]
    assert {row["label"] for row in rows} == {"a"}
    assert right_answers(rows[0], protocol) == {"a"}
    (before,) = complete([{**row, "label": "", "prediction": ""}], "x")
    assert is_right(before, protocol) and before["label"] == ""
    with pytest.raises(ValueError, match="is not the answer normalised"):
        complete([{**row, "label": "the"}], "x")
