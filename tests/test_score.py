"""The scoring command on generated files, through its command line."""

import csv
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import melinda
from m3ae import scoring
from m3ae.data.questions import read_questions
from m3ae.score import main
from m3ae.scoring.predictions import write_predictions, write_trained_on
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


def score(*arguments: object, out: Path, protocol: str = "both") -> dict:
    """What the command writes with these arguments."""
    more = ("--json", str(out), "--samples", "200", "--protocol", protocol)
    assert main([*map(str, arguments), *more]) == 0
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
        assert result["overall"]["interval"] is None  # of 3 images
        assert list(result["question_type"]) == ["POS", "PRES"]
        assert "strata" not in result and "blind" not in result["overall"]
    printed = capsys.readouterr().out
    assert "6 questions on 3 images; ids not checked, no --data" in printed
    assert "protocol strict, 1 run(s)" in printed and "exploratory:\ntype POS" in printed
    assert main([predict("p.jsonl", HALF)]) == 0
    assert "protocol paper" not in capsys.readouterr().out  # strict is the default


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
    assert "--samples, --seed and --show-diff" in fails(capsys, path, "--samples", "-1")
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
    assert "leaked twin: yes" in printed
    rest = "strata and blind baselines of {} rest on all {} that it allows"
    for note, told in zip(scored["notes"], (("paper", 5), ("strict", 2)), strict=True):
        assert note.endswith(rest.format(*told)) and "are not known" in note
    # Flags that a file carries need no training split.
    rows = [
        {**row, "prediction": "x", "leaked_twin": k < 3}
        for k, row in enumerate(read_questions(rad / "test"))
    ]
    write_predictions(tmp_path / "f.jsonl", rows)
    alone = score(tmp_path / "f.jsonl", out=tmp_path / "f.json")
    assert alone["results"]["paper"]["strata"]["leaked_twin"]["no"]["questions"] == 3


def test_strata_and_baselines_of_the_rows_trained_on(rad, predict, tmp_path, capsys):
    """Held-out rows counted as trained on: `image in training: no` loses its questions."""
    train = read_questions(rad / "train")
    path = Path(predict("predictions-strict.jsonl", HALF))
    options = (path, "--data", rad / "test", "--train", rad / "train")

    def told(*more: object) -> tuple[dict, list[str]]:
        scored = score(*options, *more, out=tmp_path / "s.json", protocol="strict")
        return scored["results"]["strict"], scored["notes"]

    result, _ = told()
    assert result["strata"]["image_in_train"]["yes"]["images"] == 1
    ids = [row["id"] for row in train if row["image"] == "synpic4"]
    write_trained_on(tmp_path / "trained_on.txt.gz", rad / "train", ids, len(train))
    result, notes = told()
    assert notes == [f"rows trained on: {tmp_path / 'trained_on.txt.gz'}"]
    assert result["strata"]["image_in_train"]["yes"]["images"] == 0
    assert result["strata"]["answer_in_train"]["yes"]["questions"] == 1  # axial
    # "axial" is all that the baseline can say.
    assert result["overall"]["blind"]["nearest"]["accuracy"] == pytest.approx(1 / 6)
    assert result["strata"]["leaked_twin"]["yes"]["questions"] == 3  # trained on or not
    (tmp_path / "run").mkdir()
    everything = [row["id"] for row in train]
    write_trained_on(tmp_path / "run/trained_on.txt", rad / "train", everything, len(train))
    for given in (tmp_path / "run", tmp_path / "run/trained_on.txt"):
        result, notes = told("--trained-on", given)
        assert result["strata"]["image_in_train"]["yes"]["images"] == 2 and notes == []
    # Seeds of other rows.
    other = Path(predict("run/predictions-strict.jsonl", HALF))
    scored = score(other, *options, out=tmp_path / "s.json")
    assert f"strata and baselines rest on {other.parent}" in " ".join(scored["notes"])
    write_trained_on(tmp_path / "run/trained_on.txt", rad / "train", ["synpic9/9"], 1)
    unknown = (*options, "--trained-on", tmp_path / "run")
    assert "its 1 ids are not in the training split, e.g. 'synpic9/9'" in fails(capsys, *unknown)
    assert "no trained_on.txt" in fails(capsys, *options, "--trained-on", rad)
    assert "--trained-on needs --train" in fails(capsys, path, "--trained-on", tmp_path)


def test_arms_beside_the_predictions(predict, tmp_path, capsys):
    """The model shown another's image left out, or taken for one seed of two."""
    (tmp_path / "b").mkdir()
    first = predict("predictions-strict.jsonl", ANSWERS)
    second = predict("b/predictions-strict.jsonl", ANSWERS)
    predict("predictions-strict-other.jsonl.gz", HALF)
    predict("predictions-strict-none.jsonl", HALF)
    predict("b/predictions-strict-none.jsonl", ["x"] * 6)
    scored = score(first, "--samples", 0, out=tmp_path / "s.json", protocol="strict")
    arms = scored["results"]["strict"]["overall"]["arms"]
    assert {name: arm["difference"] for name, arm in arms.items()} == {"other": 0.5, "none": 0.5}
    assert [note.split(":")[0] for note in scored["notes"]] == ["another's image", "mean image"]
    printed = capsys.readouterr().out
    assert "another's image: overall" in printed and "mean image" in printed.splitlines()[6]
    both = score(first, second, out=tmp_path / "s.json", protocol="strict")
    arms = both["results"]["strict"]["overall"]["arms"]
    assert list(arms) == ["none"] and arms["none"]["accuracies"] == [0.5, 0]
    given = ("--arm", f"none={first}", "--arm", f"question={first},{second}")
    scored = score(first, *given, out=tmp_path / "s.json", protocol="strict")
    arms = scored["results"]["strict"]["overall"]["arms"]
    assert arms["none"]["difference"] == 0 and len(arms["question"]["accuracies"]) == 2
    for bad in ("none", "=x", "none=", "against=x"):
        assert f"--arm {bad}: give NAME=FILE" in fails(capsys, first, "--arm", bad)


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
    scored = score(path, *field, "--train", train, out=tmp_path / "s.json", protocol="strict")
    result = scored["results"]["classes"]
    assert result["overall"]["accuracy"] == 0.5 and result["overall"]["images"] == 1
    assert result["overall"]["blind"]["nearest"]["accuracy"] == 1
    assert result["confusion"] == {"classes": ["blot", "scan"], "matrix": [[1, 0], [1, 0]]}
    assert result["macro_f1"]["value"] == pytest.approx(1 / 3)
    printed = capsys.readouterr().out
    assert "macro-F1 33.33" in printed and "2 scan" in printed
    assert "classes, protocol strict" in printed and result["protocol"] == "strict"
    run = tmp_path / "predictions-image_disjoint.jsonl"
    run.write_bytes(path.read_bytes())
    named = score(run, *field, out=tmp_path / "s.json")["results"]["classes"]
    assert named["protocol"] == "image_disjoint"
    assert "give --field, one of i_meth" in fails(capsys, path, "--data", test)
    many = [{"id": str(k), "prediction": "x", "answer": str(k)} for k in range(30)]
    write_predictions(path, many)
    score(path, out=tmp_path / "s.json")
    assert "confusion of 31 classes: --json has it" in capsys.readouterr().out


def many(path: Path, right: list[bool], **more: object) -> Path:
    """Predictions on 30 images, two questions each; `more`: columns by name, of all or each."""
    rows = [
        {"id": f"i{k // 2}/{k}", "type": "open", "answer": "lung", "prediction": "lung"}
        for k in range(60)
    ]
    for k, (row, hit) in enumerate(zip(rows, right, strict=True)):
        row |= {} if hit else {"prediction": "heart"}
        row |= {name: x[k] if isinstance(x, list) else x for name, x in more.items()}
    write_predictions(path, rows)
    return path


def test_comparison_has_an_interval_and_p_values(tmp_path, capsys):
    """A file against itself with a width, p of questions alone, seeds that are drawn apart."""
    first = many(tmp_path / "1.jsonl", [k % 3 > 0 for k in range(60)])
    second = many(tmp_path / "2.jsonl", [k % 3 == 0 for k in range(60)])
    options = {"out": tmp_path / "s.json", "protocol": "strict"}
    scored = score(first, "--against", second, **options)
    against = scored["results"]["strict"]["overall"]["against"]
    assert against["difference"] == pytest.approx(1 / 3)
    assert against["mcnemar"]["only_first"] == 40 and 0 < against["p"] < 1
    printed = capsys.readouterr().out
    assert "p: sign flips of whole images; Holm p" in printed
    assert "40 right here only, 20 there only" in printed
    for more in ((), (second,)):
        same = score(first, *more, "--against", first, *more, **options)
        same = same["results"]["strict"]["overall"]["against"]
        assert (same["difference"], same["difference_interval"]) == (0, [0, 0])
    apart = score(first, second, "--against", first, second, "--unpaired-seeds", **options)
    low, high = apart["results"]["strict"]["overall"]["against"]["difference_interval"]
    assert low < -0.1 and high > 0.1
    assert "taken as drawn apart" in capsys.readouterr().out


def test_questions_that_cannot_be_clustered(tmp_path, capsys):
    """Questions of one image counted as independent without a word."""
    path = tmp_path / "p.csv"
    path.write_text("id,prediction,answer,type\nq1,yes,yes,closed\nq2,no,yes,closed\n")
    assert main([str(path)]) == 0
    note = "2 rows, e.g. 'q1', have no image and no / in the id"
    assert note in (told := capsys.readouterr().out) and "give --data, or a column image" in told
    path.write_text("id,image,prediction,answer,type\nq1,a,yes,yes,closed\n")
    assert main([str(path)]) == 0 and "note" not in capsys.readouterr().out


def test_kept_files_without_answers(predict, rad, tmp_path):
    """A compressed file that says itself what is right, not to be scored without the corpus."""
    full = score(predict("p.jsonl", HALF), out=tmp_path / "s.json")["results"]
    rows = []
    for line in Path(predict("p.jsonl", HALF)).read_text().splitlines():
        row = json.loads(line)
        right = {"paper": row["prediction"] in ("yes", "no", "liver"), "strict": False}
        rows.append({key: row[key] for key in ("id", "image", "type", "question_type")})
        rows[-1]["right"] = right
    write_predictions(tmp_path / "kept.jsonl.gz", rows)
    assert gzip.decompress((tmp_path / "kept.jsonl.gz").read_bytes()).count(b"\n") == 6
    kept = score(tmp_path / "kept.jsonl.gz", out=tmp_path / "s.json")["results"]
    assert kept["paper"] == full["paper"] and kept["strict"]["overall"]["accuracy"] == 0


def test_ranks(rad, tmp_path, capsys):
    """Ranks read as predictions without an answer, both ways as one, options left out unsaid."""
    rows = [
        {"id": f"c{k}", "image": f"i{k}", "way": way, "rank": 1 + k % 4, "pool": 40}
        for way in ("t2i", "i2t")
        for k in range(40)
    ]
    write_predictions(tmp_path / "ranks.jsonl", rows)
    better = [{**row, "rank": 1} for row in rows]
    write_predictions(tmp_path / "better.jsonl", better)
    paths = (tmp_path / "ranks.jsonl", "--against", tmp_path / "better.jsonl")
    result = score(*paths, out=tmp_path / "s.json")["results"]["ranks"]
    assert result["t2i"]["r1"]["value"] == 0.25 and result["i2t"]["r5"]["value"] == 1
    assert result["t2i"]["r1"]["against"]["difference"] == -0.75
    printed = capsys.readouterr().out
    assert "text to image R@1" in printed and "image to text: median rank 2.5 of 40" in printed
    assert "80 queries on 40 images" in printed
    assert "ranks are measured without --data" in fails(capsys, *paths, "--data", rad / "test")
    answers = many(tmp_path / "p.jsonl", [True] * 60)
    assert "some files are of ranks" in fails(capsys, paths[0], "--against", answers)
    others = (("--show-differences", 1), ("--train", rad / "train"), ("--arm", f"x={paths[2]}"))
    for option, value in others:
        assert f"{option} is for answers, not for" in fails(capsys, *paths, option, value)


def test_relaxed_and_calibration(tmp_path, capsys):
    """Relaxed measures in the place of exact match, scores that are no probabilities measured."""
    right, scores = [k % 4 > 0 for k in range(60)], [k % 10 / 10 for k in range(60)]
    path = many(tmp_path / "p.jsonl", right, score=scores)
    pictures = ("--relaxed", "--pictures", tmp_path / "pictures")
    result = score(path, *pictures, out=tmp_path / "s.json", protocol="strict")["results"]["strict"]
    assert result["overall"]["accuracy"] == 0.75
    assert result["relaxed"]["measures"]["token_recall"]["open"]["value"] == 0.75
    calibrated = result["calibration"]["these"]
    assert len(calibrated["bins"]) == 10 and calibrated["interval"][0] > 0
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        "coverage.png",
        "reliability.png",
    ]
    printed = capsys.readouterr().out
    assert "not exact match, nor to be mixed with it" in printed
    assert "token recall: the part of the answer's words" in printed
    assert "expected calibration error" in printed and "sigmoid of one answer" in printed
    path = many(tmp_path / "p.jsonl", right, score=[2.5] * 60)
    result = score(path, out=tmp_path / "s.json", protocol="strict")
    assert "calibration" not in result["results"]["strict"]
    assert "scores are not within 0 and 1, e.g. 2.5" in result["notes"][0]
    assert "have no scores" in fails(capsys, path, "--pictures", tmp_path)


def test_differences(rad, predict, tmp_path, capsys):
    """Differences of another file than the first two, or a sheet without the corpus's images."""
    first, second = predict("1.jsonl", HALF), predict("2.jsonl", ANSWERS)
    sheet = ("--data", rad / "test", "--show-differences", 2, "--sheet", tmp_path / "s.html")
    score(first, "--against", second, first, *sheet, out=tmp_path / "s.json", protocol="strict")
    printed = capsys.readouterr().out
    assert "right here, wrong there: 0 items" in printed
    assert "wrong here, right there: 3 items, 2 shown" in printed
    assert "    question  What about number d?" in printed
    assert (tmp_path / "s.html").read_text().count("<img") == 2
    assert "--show-differences needs --against" in fails(capsys, first, "--show-differences", 1)
    assert "--sheet needs --show-differences" in fails(capsys, first, "--sheet", tmp_path / "x")


def test_scoring_is_light():
    """`--help` that waits for torch, or scoring that cannot be used without it."""
    modules = [f"m3ae.scoring.{path.stem}" for path in Path(scoring.__path__[0]).glob("[a-z]*.py")]
    code = f"import sys, {', '.join(modules)}, m3ae.score; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    loaded = set(done.stdout.split())
    assert "m3ae.scoring.measures" in loaded and len(modules) > 8
    assert not loaded & {"torch", "transformers", "sklearn", "matplotlib", "scipy.stats"}


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
