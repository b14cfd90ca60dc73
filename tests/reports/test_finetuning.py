"""The report of a fine-tuning run, from files as a run writes them."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from m3ae.data.questions import read_questions
from m3ae.data.shards import Shards
from m3ae.files import write_json
from m3ae.reports import examples
from m3ae.reports.examples import KINDS, choose, confusion
from m3ae.reports.finetuning import main, write_report
from m3ae.scoring.baselines import blind_baselines
from m3ae.scoring.measures import measure_answers, measure_classes, measure_ranks
from m3ae.scoring.multilabel import measure_labels
from m3ae.scoring.predictions import annotate, complete, write_predictions
from tests.reports.test_pretraining import Page, quick_charts, train_line, write_log

__all__ = ["quick_charts"]
EVIL = "<b>bold</b> & <script>"


def answered(questions) -> tuple[list, list]:
    """Test rows with right and wrong answers, and training rows."""
    rows, train = (read_questions(questions / split) for split in ("test", "train"))
    said = []
    for number, row in enumerate(rows):
        answer = row["label"] if number % 3 else EVIL
        score = (number % 10) / 10
        more = {"prediction": answer, "score": score, "top": [[answer, score], ["x", 0.01]]}
        said.append({**row, **more})
    return complete(said, "own"), train


def fill(folder, data, task: str, entry: dict, rows: list, **more) -> None:
    """A run folder with what a report is made of."""
    folder.mkdir(parents=True)
    name = "ranks" if task == "retrieval" else "predictions"
    write_predictions(folder / f"{name}-strict.jsonl", rows)
    config = {"task": task, "seed": 7, "data": {"test": str(data)}, "eval": {"samples": 50}}
    config |= {"head": {"loss": "binary"}}
    (folder / "config.yaml").write_text(json.dumps(config))
    facts = {"commit": "abc<123>", "init": "runs/<start>", "source": "phantoms", "seed": 7}
    facts["contents"] = {"data.test": ["0123456789abcdef"]}
    (folder / "environment.json").write_text(json.dumps(facts))
    lines = [train_line(step) for step in (50, 100)]
    lines.append({"kind": "eval", "step": 100, "epoch": 2, "held_out/strict/overall": 0.625})
    write_log(folder, lines)
    result = {"task": task, "epochs": 2, "image": "own", "trained_on": {"rows": 31, "of": 40}}
    result["strict"] = {"epoch": 2, "selected_on": "held_out"} | entry
    write_json(folder / "evaluation.json", result | more)


@pytest.fixture
def run(questions, tmp_path):
    own, train = answered(questions)
    own, _ = annotate(own, train, train, "strict")
    blind, _ = blind_baselines(train, own)
    arms = {
        name: [[{**row, "prediction": said} for row in own]]
        for name, said in (("other", "no"), ("none", "yes"))
    }
    test = measure_answers([own], "strict", blind=blind, arms=arms, samples=100)
    folder = tmp_path / "runs/finetune/demo"
    fill(folder, questions / "test", "vqa", {"test": test}, own)
    return folder


def test_whole_report(run, questions):
    """A figure beside another's name, or a part that the report lacks."""
    page = Page(write_report(run))
    result = json.loads((run / "evaluation.json").read_text())["strict"]["test"]
    overall = result["overall"]
    own, *shown = (
        f"{100 * each['accuracy']:.1f} %" for each in (overall, *overall["arms"].values())
    )
    shown = dict(zip(overall["arms"], shown, strict=True))
    ends = ", ".join(f"{100 * end:.1f}" for end in overall["interval"])
    for expected in (
        "finetune/demo",
        "Fine-tuning for answering questions, on phantoms: 100 steps, from runs/<start>",
        f"this model {100 * overall['accuracy']:.1f} % [{ends}]",
        f"blind: the commonest answer {100 * overall['blind']['majority']['accuracy']:.1f} %",
        f"own {own} another's {shown['other']} none {shown['none']}",
        "leaked twin: no",
        "Expected calibration error",
        "true \\ said 1 2",
        "Most confident and wrong (6)",
        "selected on held out",
        "trained on 31 of 40 rows",
        "abc<123>",
        "sha256 0123456789ab...",
        "100 resamples of images, seed 0",
        "seed 7",
        EVIL,
    ):
        assert expected.lower() in page.text.lower(), expected
    titles = "test results", "is the image used?", "types of question", "curves", "twenty questions"
    assert all(title in page.text.lower() for title in titles)
    assert "not measured" in page.text  # closed and open ones have no interval of the gain


def test_page_needs_no_other_file_and_escapes(run):
    """Markup of a corpus or of an answer in the page, links, scripts, ids that two charts share."""
    path = write_report(run)
    page, text = Page(path), path.read_text()
    assert "<b>bold" not in text and "&lt;b&gt;bold" in text
    assert not {"script", "link", "iframe", "b>bold"} & {name for name, _ in page.tags}
    for _, values in page.tags:
        for key in ("src", "href", "xlink:href"):
            assert values.get(key, "#").startswith(("#", "data:image/jpeg;base64,"))
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))


def test_questions_and_their_pictures(run, questions, quick_charts):
    """Another question's picture; questions that are not what their heading says."""
    text = write_report(run).read_text()
    pictures = re.findall(r'alt="([^"]*)" src="data:image/jpeg;base64,([^"]*)"', text)
    assert len(pictures) == sum(KINDS.values())
    shards = Shards(questions / "test")
    keys = [shards.image_key(k) for k in range(shards.num_images)]
    for key, data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            shown = np.asarray(image.convert("L"), dtype=float)
        kept = shards.image(keys.index(key), shards.manifest["px"]).mean(axis=0)
        assert np.abs(shown - kept).mean() < 8
    names = re.findall("<figcaption>([^<]*)</figcaption>", text)
    own, _ = answered(questions)
    chosen = choose(own, "strict")
    wanted = [row["id"] for some in chosen.values() for row in some]
    assert [name for name in names if name in wanted] == wanted


def test_the_rule_of_the_questions():
    """A question shown twice, chosen by its place in the file, or less confident than others."""
    rows = [
        {"id": f"i/{k}", "prediction": "yes" if k % 2 else "no", "answer": "yes", "type": "closed"}
        | {"score": k / 100}
        for k in range(60)
    ]
    rows = complete(rows, "file")
    chosen = choose(rows, "strict")
    assert {kind: len(some) for kind, some in chosen.items()} == KINDS
    ids = [row["id"] for some in chosen.values() for row in some]
    assert len(set(ids)) == 20 and chosen == choose(rows[::-1], "strict")
    assert [row["id"] for row in chosen["confident"]] == [f"i/{k}" for k in range(58, 46, -2)]
    assert all(row["prediction"] == "yes" for row in chosen["right"])
    assert all(row["prediction"] == "no" for row in chosen["wrong"])
    few = choose(rows[:3], "strict")
    assert [len(some) for some in few.values()] == [1, 0, 2]
    assert (
        choose([{k: x for k, x in row.items() if k != "score"} for row in rows], "strict")[
            "confident"
        ]
        == []
    )


def test_confusion_counts():
    """Counts in another's row, right alternatives counted as mistakes, rare answers lost."""
    pairs = [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("left#right", "right"), ("no", EVIL)]
    rows = [
        {"id": f"i/{k}", "answer": true, "prediction": said, "type": "open", "question_type": "a"}
        for k, (true, said) in enumerate(pairs)
    ]
    text = confusion(complete(rows, "x"), "strict", "")
    lines = {
        re.sub("<.*?>", "", head): re.findall(r"<td[^>]*>(\d*)</td>", rest)
        for head, rest in re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text)
    }
    assert lines["1 yes"] == ["1", "1", "", "", "2"] and lines["2 no"] == ["1", "", "", "1", "2"]
    (other,) = (cells for name, cells in lines.items() if name.startswith("3 "))
    assert other == ["", "", "1", "", "1"]
    assert "any other" in text and "<b>" not in text


def test_no_pictures_is_said(run, quick_charts):
    """A report that fails, or is silent, where the prepared split has been moved."""
    config = json.loads((run / "config.yaml").read_text())
    config["data"]["test"] = "elsewhere/<test>"
    (run / "config.yaml").write_text(json.dumps(config))
    text = Page(write_report(run)).text
    assert "No pictures: the prepared split (data.test: elsewhere/<test>) is not here" in text


def test_classes_labels_and_ranks(questions, tmp_path, quick_charts):
    """Tasks other than questions without their measures, or one that ends the report."""
    test = read_questions(questions / "test")
    named = [{"id": row["id"], "image": row["image"], "question": row["question"]} for row in test]
    rows = [
        {**row, "answer": "ct" if k % 2 else EVIL, "prediction": "ct", "score": 0.5}
        for k, row in enumerate(named)
    ]
    rows = complete(rows, "x")
    arms = {"none": [rows]}
    entry = {"test": measure_classes([rows], "strict", arms=arms, samples=50)}
    fill(tmp_path / "a", questions / "test", "classification", entry, rows)
    text = Page(write_report(tmp_path / "a")).text
    assert "macro F1 (2 classes)" in text and EVIL in text and "Twenty" in text

    rows = [
        {**row, "labels": ["mass"] if k % 2 else [], "scores": {"mass": 0.4, "<i>": 0.1 * (k % 5)}}
        for k, row in enumerate(named)
    ]
    rows = complete(rows, "x")
    entry = {"test": measure_labels([rows], "strict", arms={"none": [rows]}, samples=50)}
    fill(tmp_path / "b", questions / "test", "multilabel", entry, rows)
    text = Page(write_report(tmp_path / "b")).text
    assert "mean AUROC" in text and "Left out, of the means too: <i> (no row is of it)" in text
    assert "Calibration" in text and "Wrong (7)" in text

    ranks = [
        {"id": row["id"], "image": row["image"], "way": way, "rank": 1 + k % 4, "pool": len(named)}
        for way in ("t2i", "i2t")
        for k, row in enumerate(named)
    ]
    entry = {"pool": "test", "same": "text", "recalls": measure_ranks([ranks], samples=50)}
    fill(tmp_path / "c", questions / "test", "retrieval", entry, ranks)
    text = Page(write_report(tmp_path / "c")).text
    assert "text to image" in text and "R@10" in text and "Furthest from found" in text
    first = choose(complete(ranks, "x"), "strict")["right"][0]
    question = next(row["question"] for row in test if row["id"] == first["id"])
    assert question in text and f"place 1 of {len(named)}" in text


@pytest.mark.parametrize(
    "missing", ["config.yaml", "environment.json", "log.jsonl", "evaluation.json"]
)
def test_a_missing_file_is_a_missing_section(run, missing, quick_charts):
    """A report that cannot be had of an unfinished or trimmed run."""
    (run / missing).unlink()
    text = Page(write_report(run)).text
    assert ("Test results" in text) == (missing != "evaluation.json")
    assert ("Not finished" in text) == (missing == "evaluation.json")
    (run / "predictions-strict.jsonl").unlink()
    assert "Twenty" not in Page(write_report(run)).text


def test_command(run, capsys, quick_charts):
    """A command that leaves the old page; an error that does not name the file."""
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    (run / "evaluation.json").write_text("{")
    assert main([str(run)]) == 2 and "evaluation.json is not valid JSON" in capsys.readouterr().err
    assert main([str(run / "none")]) == 2


def test_scores_by_class():
    """Calibration of a class that the row does not speak of, or of the wrong sign."""
    row = {"image": "i", "labels": ["a"], "unlabelled": ["c"], "scores": {"a": 1, "b": 0, "c": 0}}
    made = examples.by_class(row)
    assert [(each["id"], each["score"], each["right"]) for each in made] == [
        ("a", 1, True),
        ("b", 0, False),
    ]
