"""The scoring command on generated files, through its command line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import melinda
from m3ae.data.questions import read_questions
from m3ae.score import main
from m3ae.scoring.predictions import write_predictions
from tests.data_prep.test_vqa import prepare_with, rad_row, vqa_rad, write_rad
from tests.scoring.test_predictions import write_melinda

# Six test questions on three images; training asks the same of the first three by their frames.
ANSWERS = ["yes", "no", "The liver", "axial", "yes", "left lung"]


def rad_rows() -> list[dict]:
    test = [
        rad_row(
            k,
            f"synpic{k // 2 + 1}",
            f"What about number {'abcdef'[k]}?",
            answer,
            answer_type="CLOSED" if answer in ("yes", "no") else "OPEN",
            phrase_type="test_freeform",
            question_type="PRES" if k % 2 else "POS",
            question_frame=f"What about number {'abcdef'[k]}" if k < 3 else "NULL",
        )
        for k, answer in enumerate(ANSWERS)
    ]
    train = [
        rad_row(10, "synpic1", "Is anything there?", "no", answer_type="CLOSED"),
        rad_row(11, "synpic4", "Where is it?", "axial", question_type="POS"),
    ]
    return test + train


@pytest.fixture(scope="module")
def rad(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rad")
    write_rad(folder / "raw", rad_rows())
    prepare_with(vqa_rad, folder / "raw", folder / "out")
    return folder / "out"


@pytest.fixture()
def predict(rad, tmp_path):
    """Writes a file of the answers given, as a run does; returns its path."""
    test = read_questions(rad / "test")

    def write(name: str, answers: list[str]) -> str:
        rows = [{**row, "prediction": said} for row, said in zip(test, answers, strict=True)]
        write_predictions(tmp_path / name, rows)
        return str(tmp_path / name)

    return write


def score(*arguments: object, out: Path) -> dict:
    """What the command writes with these arguments."""
    assert main([*map(str, arguments), "--json", str(out), "--samples", "200"]) == 0
    return json.loads(out.read_text())


def fails(capsys, *arguments: object) -> str:
    """The one line that the command ends with."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    return error


HALF = ["yes", "no", "liver", "x", "x", "x"]


def test_from_predictions_alone(predict, tmp_path, capsys):
    """A number that needs more than the file, or a table that says other than the JSON."""
    scored = score(predict("p.jsonl", HALF), out=tmp_path / "s.json")
    assert (scored["questions"], scored["images"], scored["missing"]) == (6, 3, None)
    for protocol in ("paper", "strict"):
        result = scored["results"][protocol]
        assert (result["overall"]["accuracy"], result["open"]["questions"]) == (0.5, 3)
        assert result["closed"]["accuracy"] == pytest.approx(2 / 3)
        assert result["overall"]["interval"] == [0, 1]
        assert list(result["question_type"]) == ["POS", "PRES"]
        assert "strata" not in result and "blind" not in result["overall"]
    printed = capsys.readouterr().out
    assert "6 questions on 3 images; ids not checked, no --data" in printed
    assert "50.00 [0.00, 100.00]" in printed and "protocol strict, 1 run(s)" in printed


def test_with_data(rad, predict, tmp_path):
    """Another model's CSV scored by other questions than a full file."""
    full = score(predict("p.jsonl", HALF), "--data", rad / "test", out=tmp_path / "full.json")
    with open(tmp_path / "p.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prediction", "id"])
        rows = zip(HALF, [row["id"] for row in read_questions(rad / "test")], strict=True)
        writer.writerows(sorted(rows))
    foreign = score(tmp_path / "p.csv", "--data", rad / "test", out=tmp_path / "csv.json")
    assert foreign["results"] == full["results"]
    assert foreign["missing"] == {str(tmp_path / "p.csv"): 0}


def test_ids_must_fit(rad, predict, tmp_path, capsys):
    """An easy part of the test set scored as the whole."""
    path = Path(predict("p.jsonl", HALF))
    lines = path.read_text().splitlines(keepends=True)
    data = ("--data", rad / "test")
    path.write_text("".join(lines[:4]))
    assert "no prediction for 2 of 6 questions, e.g. 'synpic3/4'" in fails(capsys, path, *data)
    scored = score(path, *data, "--allow-missing", out=tmp_path / "s.json")
    assert scored["missing"] == {str(path): 2} and scored["questions"] == 6
    assert scored["results"]["paper"]["overall"]["accuracy"] == 0.5
    assert f"2 missing in {path}, counted as wrong" in capsys.readouterr().out
    path.write_text("".join([*lines, lines[0]]))
    assert f"{path}:7: id 'synpic1/0' is on line 1 too" in fails(capsys, path, *data)
    path.write_text("".join(lines).replace("synpic1/0", "synpic1/9"))
    assert "1 of its 6 ids are not in the prepared split" in fails(capsys, path, *data)
    assert fails(capsys, tmp_path / "none.jsonl").count("none.jsonl") == 1
    assert "--samples -1 --seed 0: below 0" in fails(capsys, path, "--samples", "-1")
    path.write_text('{"id": "a", "prediction": "x"}\n')
    assert "give the prepared split with --data" in fails(capsys, path)


def test_training_gives_baselines_and_strata(rad, predict, tmp_path, capsys):
    """A baseline under `strict` that knows the leaked rows, a stratum of the wrong questions."""
    scored = score(
        predict("p.jsonl", HALF),
        "--data",
        rad / "test",
        "--train",
        rad / "train",
        out=tmp_path / "s.json",
    )
    paper, strict = (scored["results"][name] for name in ("paper", "strict"))
    assert paper["strata"]["leaked_twin"]["yes"]["accuracy"] == 1
    assert strict["strata"]["leaked_twin"]["no"] == {
        **strict["strata"]["leaked_twin"]["no"],
        "questions": 3,
        "images": 2,
        "accuracy": 0,
    }
    nearest = [result["overall"]["blind"]["nearest"] for result in (paper, strict)]
    assert nearest[0]["accuracy"] >= 0.5 > nearest[1]["accuracy"]
    assert nearest[1]["difference"] == pytest.approx(0.5 - nearest[1]["accuracy"])
    majority = strict["overall"]["blind"]["majority"]  # PRES: no; POS: axial
    assert majority["accuracy"] == pytest.approx(1 / 6)
    inside = [result["strata"]["answer_in_train"]["yes"]["questions"] for result in (paper, strict)]
    assert inside == [5, 2]
    assert strict["strata"]["image_in_train"]["yes"]["images"] == 1
    assert paper["strata"]["image_in_train"]["yes"]["images"] == 2
    printed = capsys.readouterr().out
    assert "ceiling of a list of training answers: 33.33" in printed
    assert "leaked twin: yes" in printed and scored["notes"] == []
    # Flags that a file carries need no training split.
    rows = [
        {**row, "prediction": "x", "leaked_twin": k < 3}
        for k, row in enumerate(read_questions(rad / "test"))
    ]
    write_predictions(tmp_path / "f.jsonl", rows)
    alone = score(tmp_path / "f.jsonl", out=tmp_path / "f.json")
    assert alone["results"]["paper"]["strata"]["leaked_twin"]["no"]["questions"] == 3


def test_near_duplicates(rad, predict, tmp_path, capsys):
    """A list of other images that passes as `none of the test images is one`."""
    path = predict("p.jsonl", HALF)
    (tmp_path / "list.txt").write_text("# remark\nsynpic1\tsynpic9.jpg\nother\n")
    listed = ("--near-duplicates", tmp_path / "list.txt")
    scored = score(path, *listed, out=tmp_path / "s.json")
    sides = scored["results"]["paper"]["strata"]["near_duplicate"]
    assert (sides["yes"]["questions"], sides["yes"]["accuracy"]) == (2, 1)
    assert scored["notes"] == ["near-duplicates: 1 of 2 listed images are scored"]
    (tmp_path / "list.txt").write_text("synpic77\n")
    assert "none of its 1 ids is an image of the predictions" in fails(capsys, path, *listed)


def test_seeds_and_comparison(predict, tmp_path, capsys):
    """Seeds pooled as if they were more questions, or compared with their neighbours."""
    first, second = predict("1.jsonl", HALF), predict("2.jsonl", ANSWERS)
    both = score(first, second, out=tmp_path / "s.json")["results"]["paper"]["overall"]
    assert (both["questions"], both["accuracies"], both["accuracy"]) == (6, [0.5, 1], 0.75)
    assert both["sd"] == pytest.approx(0.125**0.5)
    scored = score(first, "--against", second, out=tmp_path / "s.json")
    against = scored["results"]["paper"]["overall"]["against"]
    assert (against["accuracy"], against["difference"]) == (1, -0.5)
    assert against["mcnemar"] == {"only_first": 0, "only_second": 3, "p": 0.25}
    assert "0 right here only, 3 there only, p = 0.25" in capsys.readouterr().out
    same = score(first, "--against", first, out=tmp_path / "s.json")
    same = same["results"]["strict"]["overall"]["against"]
    assert (same["difference"], same["difference_interval"]) == (0, [0, 0])
    other = Path(predict("3.jsonl", HALF))
    other.write_text("".join(other.read_text().splitlines(keepends=True)[1:]))
    for arguments in ((first, other), (first, "--against", other)):
        assert "not of the same questions, e.g. 'synpic1/0'" in fails(capsys, *arguments)


def test_classes(tmp_path, capsys):
    """Classes scored as questions, by the wrong column, or with rows that have no class."""
    write_melinda(tmp_path / "raw")
    prepare_with(melinda, tmp_path / "raw", tmp_path / "out")
    test, train = tmp_path / "out" / "test", tmp_path / "out" / "train"
    path = tmp_path / "p.jsonl"
    write_predictions(
        path, [{"id": "b.jpg/1", "prediction": "blot"}, {"id": "b.jpg/2", "prediction": "blot"}]
    )
    field = ("--data", test, "--field", "p_meth")
    scored = score(path, *field, "--train", train, out=tmp_path / "s.json")
    result = scored["results"]["classes"]
    assert result["overall"]["accuracy"] == 0.5 and result["overall"]["images"] == 1
    assert result["overall"]["blind"]["nearest"]["accuracy"] == 1
    assert result["confusion"] == {"classes": ["blot", "scan"], "matrix": [[1, 0], [1, 0]]}
    assert result["macro_f1"]["value"] == pytest.approx(1 / 3)
    printed = capsys.readouterr().out
    assert "macro-F1 33.33" in printed and "2 scan" in printed
    assert "give --field, one of i_meth" in fails(capsys, path, "--data", test)
    many = [{"id": str(k), "prediction": "x", "answer": str(k)} for k in range(30)]
    write_predictions(path, many)
    score(path, out=tmp_path / "s.json")
    assert "confusion of 31 classes: --json has it" in capsys.readouterr().out


def test_questions_and_classes_do_not_mix(rad, tmp_path, capsys):
    """Answers of a file without types compared as names of classes with normalised labels."""
    write_predictions(tmp_path / "p.jsonl", [{"id": "a", "prediction": "x", "answer": "x"}])
    assert "of classes" in fails(capsys, tmp_path / "p.jsonl", "--train", rad / "train")


def test_the_same_numbers_again(predict, tmp_path):
    """Intervals that change from run to run, by the hash seed or the clock."""
    path = predict("p.jsonl", HALF)
    outputs = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "m3ae.score", path, "--samples", "300"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, capture_output=True, env=environment, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1
    first = score(path, out=tmp_path / "s.json")
    assert score(path, "--seed", "0", out=tmp_path / "s.json") == first
