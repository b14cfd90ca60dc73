"""What the page says and refuses, without Gradio; tests/page has the page itself in a browser."""

import base64
import io
import json
import re
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae import predict, serve
from m3ae.data.questions import read_questions
from m3ae.downstream.asking import (
    MOST_CAPTIONS,
    Asker,
    Ranker,
    RefusedError,
    check_size,
    read_picture,
    rows_of_training,
)
from m3ae.downstream.trained import load_trained
from m3ae.reports import ask_page, asked
from m3ae.scoring.baselines import majority_answers, nearest_answers
from m3ae.scoring.predictions import write_trained_on
from tests.test_predict import corpus, models  # noqa: F401  (fixtures)

QUESTION = "Is there a mass?"


@pytest.fixture
def page(models, corpus) -> ask_page.Page:  # noqa: F811
    asker = Asker(load_trained(models / "vqa"))
    ranker = Ranker(load_trained(models / "pre"))
    return ask_page.Page(asker, ranker, ask_page.pictures_of(corpus / "raw"))


def address(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its few bytes do not hold."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_answers_are_those_of_predict(page, models, corpus, capsys):  # noqa: F811
    """Another transform, other answers or probabilities on the page than from the command."""
    file = corpus / "raw/3.png"  # a coloured one
    picture, shown = page.upload(address(file), file.stat().st_size)
    assert 'class="m3ae-shown"' in shown and "32 x 32" in shown
    said = page.asker.ask(picture, f"  {QUESTION} ")
    words = ["--model", str(models / "vqa"), "--image", str(file), "--question", QUESTION]
    assert predict.main([*words, "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)
    assert [[name, score] for name, score in said.top] == wanted["top"]
    assert said.question == QUESTION
    text = page.ask(picture, QUESTION)
    assert text.index(wanted["top"][0][0]) < text.index(wanted["top"][1][0])
    (source,) = re.findall(r'class="m3ae-attention"[^>]*src="data:image/png;base64,([^"]*)"', text)
    with Image.open(io.BytesIO(base64.b64decode(source))) as image:
        assert image.width > 200 and np.ptp(np.asarray(image)) > 0


def test_captions_are_ranked_by_the_matching_head(page, corpus):  # noqa: F811
    """Scores of another caption or picture, the worst first, or the odds of no match."""
    captions = ["a mass in the left lung", "two", "the right lung <b>", "two"]
    picture, _ = page.pick("1.png")
    ranked, _ = page.ranker.rank(picture, "\n".join(captions) + "\n \n")
    trained, wanted = page.ranker.trained, {}
    tokenizer, model = trained.tokenizer, trained.model
    for caption in captions:
        ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
        with torch.no_grad():
            pixels = torch.from_numpy(picture.pixels[32])[None]
            pair = model.encode_pair(pixels, ids, torch.ones_like(ids).bool())
            logits = model.itm_head(pair.pooled)[0]
        wanted[caption] = float(logits[1] - logits[0])
    assert [name for name, _ in ranked] == sorted(wanted, key=lambda name: -wanted[name])
    assert dict(ranked) == pytest.approx(wanted, abs=1e-5)
    text = page.rank(picture, "\n".join(captions))
    assert text.count("<li>") == 3 and "<b>" not in text and "&lt;b&gt;" in text


def test_large_pictures_are_refused_by_their_header(page, tmp_path):
    """A file of a few bytes that fills the memory."""
    for width, height in ((20_000, 20_000), (9_000, 9_000)):
        with pytest.raises(RefusedError, match="50 million pixels that this page takes"):
            check_size(png_of(width, height))
    check_size(png_of(7_000, 7_000))
    with pytest.raises(RefusedError, match="8 x 8"):
        read_picture(png_of(8, 8), [32], most_pixels=63)
    with pytest.raises(RefusedError, match="more than the 0 MB"):
        check_size(b"x" * 10, most_bytes=9)
    (tmp_path / "huge.png").write_bytes(png_of(20_000, 20_000))
    picture, text = page.upload(address(tmp_path / "huge.png"), 1)
    assert picture is None and 'role="alert"' in text and "make it smaller" in text
    assert "60 MB, more than the 50 MB" in page.upload("", 60_000_000)[1]


def test_bad_files_are_refused_in_a_sentence(page, tmp_path):
    """A traceback, an empty page, or a picture made of something else."""
    grey = Image.fromarray(np.full((40, 40), 1000, dtype=np.uint16))
    grey.save(tmp_path / "grey.png")
    (tmp_path / "text.txt").write_text("words <i>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(png_of(50, 50))
    for name, told in {
        "text.txt": "not a known image format",
        "empty.png": "zero bytes",
        "cut.png": "cannot be used as a picture",
        "grey.png": "start the page with --window LOW HIGH",
    }.items():
        picture, text = page.upload(address(tmp_path / name), 1)
        assert picture is None and told in text and text.startswith('<p role="alert"'), name
    assert "did not arrive whole" in page.upload("data:x;base64,a", 1)[1]
    page.window = (0, 2000)
    assert page.upload(address(tmp_path / "grey.png"), 1)[0].pixels[32].max() == 128


def test_texts_are_refused_in_a_sentence(page, caplog):
    """A question about no picture, without words, or without end; one that is kept in a log."""
    caplog.set_level("INFO", logger="m3ae")
    picture, _ = page.pick("0.png")
    assert "Choose a picture first" in page.ask(None, QUESTION)
    assert "Choose a picture first" in page.pick("../../secret")[1] == page.pick(None)[1]
    assert "Type a question first" in page.ask(picture, "  \n")
    assert "Type captions first" in page.rank(picture, "\n \n")
    assert "more than the 2,000" in page.ask(picture, "a" * 2001)
    assert f"more than the {MOST_CAPTIONS}" in page.rank(picture, "a\n" * (MOST_CAPTIONS + 1))
    assert "no word in it" in page.ask(picture, "???")  # but for the attention, an answer
    text = page.ask(picture, "<script>alert(1)</script>")
    assert "<script>" not in text and "&lt;script&gt;" in text
    for say in (page.ask, page.rank):
        assert "cut to the first" in say(picture, "mass " * 30)
    assert "mass" not in caplog.text


def test_blind_baselines_are_of_the_rows_trained_on(models, corpus, tmp_path):  # noqa: F811
    """Answers of rows that were held out; a page that fails where the data are gone."""
    trained = load_trained(models / "vqa")
    rows, why = rows_of_training(trained)
    assert not rows and "no trained_on.txt" in why
    trained.folder = tmp_path / "run/best-strict"
    trained.folder.mkdir(parents=True)
    train = read_questions(corpus / "vqa/train")
    used = train[:4]
    write_trained_on(tmp_path / "run/trained_on.txt", "x", [row["id"] for row in used], len(train))
    (tmp_path / "run/config.yaml").write_text(f"data: {{train: {corpus}/vqa/train, field: label}}")
    rows, why = rows_of_training(trained)
    assert rows == used and not why
    asker = Asker(trained, blind_rows=rows)
    for row in train:
        said = asker.blind(row["question"])
        assert said["nearest"] == nearest_answers(used, [row])[0]
        untyped = [{k: x for k, x in each.items() if k != "question_type"} for each in used]
        assert said["majority"] == majority_answers(untyped, [row])[0]
    assert "the answer to the nearest question in training" in asked.blind(said)
    assert said["nearest"] in asked.blind(said) and asked.blind({}) == ""
    (tmp_path / "run/config.yaml").write_text("data: {train: elsewhere}")
    rows, why = rows_of_training(trained)
    assert not rows and "elsewhere" in why


def test_two_users_at_once(page):
    """One user's answer for another, or an error where two ask at the same time."""
    pictures = [page.pick(f"{k}.png")[0] for k in range(4)]
    questions = [QUESTION, "Where is it?", "How many are there?", "two"]
    wanted = [page.ask(*pair) for pair in zip(pictures, questions, strict=True)]
    found: dict[int, list[str]] = {}

    def user(k: int) -> None:
        found[k] = [page.ask(page.pick(f"{k}.png")[0], questions[k]) for _ in range(3)]

    users = [threading.Thread(target=user, args=(k,)) for k in range(4)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert [found[k] for k in range(4)] == [[text] * 3 for text in wanted]
    assert len(set(wanted)) == 4


def test_models_that_cannot(models):  # noqa: F811
    """A page that fails at the first question rather than at its start."""
    with pytest.raises(ValueError, match="answers no questions"):
        Asker(load_trained(models / "pre"))
    with pytest.raises(ValueError, match="fine-tuned for vqa, so it cannot rank"):
        Ranker(load_trained(models / "vqa"))
    Ranker(load_trained(models / "retrieval"))


def test_command(models, corpus, capsys, monkeypatch):  # noqa: F811
    """Mistakes told after the models are loaded, or by a traceback; options that are not read."""
    monkeypatch.setattr(ask_page, "import_gradio", lambda: None)
    opened = []
    monkeypatch.setattr(ask_page, "launch", lambda *args: opened.append(args))
    base = ["--model", str(models / "vqa"), "--device", "cpu"]
    more = ["--rank-with", str(models / "pre"), "--images", str(corpus / "raw"), "--port", "7999"]
    assert serve.main([*base, *more, "--window", "0", "4095", "--max-pixels", "1000"]) == 0
    page, host, port, inbrowser = opened.pop()
    assert (host, port, inbrowser) == ("127.0.0.1", 7999, False)
    assert page.window == (0, 4095) and page.most_pixels == 1000
    assert page.asker and page.ranker and list(page.images) == [f"{k}.png" for k in range(4)]
    assert "2,000 pixels" not in (told := page.pick("0.png")[1]) and 'role="alert"' in told
    assert serve.main(["--model", str(models / "pre")]) == 0
    assert opened.pop()[0].asker is None
    for words, told in (
        ([*base, "--images", str(models)], "no image in it"),
        ([*base, "--images", str(corpus / "none")], "no such folder"),
        ([*base, "--rank-with", str(models / "vqa")], "cannot rank"),
        (["--model", str(models / "pre"), "--rank-with", "x"], "leave it out"),
        ([*base, "--max-pixels", "0"], "--max-pixels 0: below 1"),
    ):
        assert serve.main(words) == 2 and told in capsys.readouterr().err and not opened


def test_without_gradio(models, capsys, monkeypatch):  # noqa: F811
    """A traceback where the extra is not installed."""
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert serve.main(["--model", str(models / "vqa")]) == 2
    assert "pip install -e .[page]" in capsys.readouterr().err
