"""`Predictor`, and tables and folders of questions: the same answers however they are asked for."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from m3ae import predict
from m3ae.predictor import Predictor
from m3ae.scoring.predictions import read_predictions
from tests.test_predict import ANSWERS, QUESTIONS, corpus, models  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def predictor(models):  # noqa: F811
    return Predictor.from_pretrained(models / "vqa", device="cpu", batch=4)


def same(found, wanted):
    """All but the last digit of a probability, which the size of a batch may change."""
    assert found["question"] == wanted["question"] and found["prediction"] == wanted["prediction"]
    assert [text for text, _ in found["top"]] == [text for text, _ in wanted["top"]]
    for (_, one), (_, other) in zip(found["top"], wanted["top"], strict=True):
        assert one == pytest.approx(other, abs=2e-6)


def test_files_pictures_and_arrays_are_one(corpus, predictor):  # noqa: F811
    """Channels swapped, a grey picture read as colour, a path that is not resized as others are."""
    for name in ("2.png", "3.png"):
        path = corpus / "raw" / name
        with Image.open(path) as picture:
            array = np.asarray(picture)
            forms = [path, str(path), path.read_bytes(), array, picture]
            found = [predictor(form, QUESTIONS[0]) for form in forms]
        assert all(answer == found[0] for answer in found), name
        if array.ndim == 3:
            assert predictor(array[..., ::-1].copy(), QUESTIONS[0]) != found[0]


def test_lists_and_one(corpus, predictor):  # noqa: F811
    """Answers out of step with images or questions; a dict where a list is due."""
    images = [corpus / "raw" / f"{k}.png" for k in range(4)]
    alone = {(i, q): predictor(images[i], q) for i in range(4) for q in QUESTIONS}
    for answer, q in zip(predictor(images[0], QUESTIONS), QUESTIONS, strict=True):
        same(answer, alone[0, q])
    for i, answer in enumerate(predictor(images, QUESTIONS[1])):
        same(answer, alone[i, QUESTIONS[1]])
    asked = [QUESTIONS[k % 3] for k in range(4)]
    for i, answer in enumerate(predictor(images, asked)):
        same(answer, alone[i, asked[i]])
    assert len(predictor([images[0]], QUESTIONS[0])) == 1 and predictor([], QUESTIONS[0]) == []
    with pytest.raises(ValueError, match="4 images and 3 questions"):
        predictor(images, QUESTIONS)


def test_strict_list_or_the_whole(corpus, predictor):  # noqa: F811
    """Answers that the protocol does not know among the strict ones; a head of which some fail."""
    image = corpus / "raw" / "2.png"
    strict = predictor(image, QUESTIONS[0], top=9)
    whole = predictor(image, QUESTIONS[0], top=9, strict=False)
    assert {text for text, _ in strict["top"]} == set(ANSWERS[:2])
    assert {text for text, _ in whole["top"]} == set(ANSWERS)
    assert dict(strict["top"]).items() <= dict(whole["top"]).items()
    assert len(predictor(image, QUESTIONS[0], top=1)["top"]) == 1


def test_ranking(corpus, models):  # noqa: F811
    """A column of scores taken for a row; ranked by anything but the ITM head; worst first."""
    pretrained = Predictor.from_pretrained(models / "pre", device="cpu")
    images = [corpus / "raw" / f"{k}.png" for k in range(3)]
    captions = ["a mass", "no mass", "two left lung", "is there"]
    scores = pretrained.match_scores(images, captions)
    assert scores.shape == (3, 4) and len(np.unique(scores.round(7))) > 6
    texts = pretrained.rank_captions(images[1], captions)
    shown = pretrained.rank_images(captions[2], images)
    assert [x["text"] for x in texts] == [captions[k] for k in np.argsort(-scores[1])]
    assert [x["number"] for x in shown] == np.argsort(-scores[:, 2]).tolist()
    retrieval = Predictor.from_pretrained(models / "retrieval", device="cpu")
    found = retrieval([images[0]] * 4, captions)
    by_pool = retrieval.match_scores(images[:1], captions)[0]
    assert [x["score"] for x in found] == pytest.approx(by_pool.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="without an answer head"):
        pretrained(images[0], "a mass")
    with pytest.raises(ValueError, match="it cannot rank"):
        Predictor.from_pretrained(models / "vqa").rank_images("a mass", images)


@pytest.mark.parametrize(
    "image, says",
    [
        ("gone.png", "gone.png: no such image"),
        (np.zeros((4, 4), np.float32), "float32"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\)"),
        (np.zeros((8, 8), np.uint16), "window"),
        (np.zeros((0, 8), np.uint8), r"\(0, 8\)"),
        (Image.new("F", (8, 8)), "floats"),
        (b"no picture", "not a known image format"),
    ],
)
def test_what_is_no_image(predictor, image, says):
    """A traceback of another library, or a picture read as something that it is not."""
    with pytest.raises((ValueError, OSError), match=says):
        predictor(image, QUESTIONS[0])


def test_a_stream_holds_one_batch(corpus, predictor):  # noqa: F811
    """All pictures read before the first answer."""
    taken = []

    def pairs():
        for k in range(40):
            taken.append(k)
            yield corpus / "raw" / "2.png", QUESTIONS[0]

    answers = predictor.stream(pairs())
    next(answers)
    assert len(taken) == predictor.batch


# ------------------------------------------------------------------ tables and folders


@pytest.fixture()
def asked(corpus, tmp_path):  # noqa: F811
    """A table without answers: 12 rows, of which one has no image and one no question."""
    lines = ["nr,image,question"]
    for k in range(12):
        image = "gone.png" if k == 4 else f"{k % 4}.png"
        lines.append(f"q{k},{image},{'' if k == 7 else QUESTIONS[k % 3]}")
    (tmp_path / "asked.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "asked.csv"


def ask(models, *args):  # noqa: F811
    words = ["--model", models / "vqa", "--device", "cpu", "--batch", 4, *args]
    return predict.main([str(word) for word in words])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_goes_on(corpus, models, predictor, asked, suffix, capsys):  # noqa: F811
    """A row lost, doubled or cut where it was broken off; a wrong row that moves those after it."""
    out = asked.with_name(f"answers.{suffix}")
    table = ["--table", asked, "--raw", corpus / "raw", "--columns", "id=nr", "--out"]
    assert ask(models, *table, out) == 0
    assert (
        "12 rows" in (said := capsys.readouterr()).out
        and "2 of those written now without" in said.out
    )
    whole, rows = out.read_bytes(), read_predictions(out)
    assert [row["id"] for row in rows] == [f"q{k}" for k in range(12)]
    for k, row in enumerate(rows):
        if k in (4, 7):
            assert row["prediction"] == "" and row["error"]
            continue
        wanted = predictor(corpus / "raw" / f"{k % 4}.png", QUESTIONS[k % 3])
        assert row["prediction"] == wanted["prediction"]
        assert row["score"] == pytest.approx(wanted["score"], abs=2e-6)
    ends = [k + 1 for k, byte in enumerate(whole) if byte == 10]
    for cut in (0, 3, ends[0], ends[4], ends[5] + 7, ends[9] - 1):
        out.write_bytes(whole[:cut] + b"\0" * 5000)  # as after a power cut
        assert ask(models, *table, out) == 0
        again = read_predictions(out)
        assert [row["id"] for row in again] == [row["id"] for row in rows], cut
        assert [row["prediction"] for row in again] == [row["prediction"] for row in rows]
    assert out.read_bytes().count(b"\n") == whole.count(b"\n")


def test_another_table_or_model_is_refused(corpus, models, asked, capsys):  # noqa: F811
    """Answers of two models, or to two tables, in one file."""
    out = asked.with_name("answers.jsonl")
    table = ["--table", asked, "--raw", corpus / "raw", "--columns", "id=nr", "--out", out]
    assert ask(models, *table) == 0
    before = out.read_bytes()
    assert ask(models, *table, "--protocol", "paper") == 2
    assert "another model, protocol" in capsys.readouterr().err
    assert ask(models, *table, "--top", 1) == 2 and "another top" in capsys.readouterr().err
    asked.write_text(asked.read_text().replace("q3,", "q33,"))
    assert ask(models, *table) == 2 and "another rows" in capsys.readouterr().err
    out.with_name("answers.jsonl.from.json").unlink()
    assert ask(models, *table) == 2 and "there already" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_folder_with_one_question(corpus, models, predictor, tmp_path):  # noqa: F811
    """Files out of order, one that is no picture taken for one, an output that is no CSV."""
    out = tmp_path / "answers.csv"
    assert ask(models, "--folder", corpus / "raw", "--question", QUESTIONS[0], "--out", out) == 0
    with open(out, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [f"{k}.png" for k in range(4)]
    for row in rows:
        wanted = predictor(corpus / "raw" / row["image"], QUESTIONS[0])
        assert row["prediction"] == wanted["prediction"] and not row["error"]
        assert [text for text, _ in json.loads(row["top"])] == [x for x, _ in wanted["top"]]


def test_tables_that_cannot_be(corpus, models, asked, capsys):  # noqa: F811
    """An id for two rows, an output of an unknown kind, a path that leads out of the folder."""
    raw, out = ["--raw", corpus / "raw"], ["--out", asked.with_name("x.csv")]
    assert ask(models, "--table", asked, *raw, "--out", asked.with_name("x.txt")) == 2
    assert ".csv or .jsonl" in capsys.readouterr().err
    asked.write_text("id,image,question\n1,0.png,a\n1,1.png,b\n")
    assert ask(models, "--table", asked, *raw, *out) == 2
    assert "id '1' twice" in capsys.readouterr().err
    asked.write_text("id,image,question\n1,../raw/../vqa.csv,a\n")
    assert ask(models, "--table", asked, *raw, *out) == 0
    assert "leads outside" in capsys.readouterr().err
    assert ask(models, "--folder", asked.parent, "--question", "a", *out) == 2
    assert "no image file" in capsys.readouterr().err
