"""benchmarks/strict_cost.py on runs written by hand."""

import json

import pytest

from benchmarks import strict_cost
from m3ae.data.questions import read_questions
from m3ae.scoring.predictions import write_predictions

ANSWERS = ["ct", "left", "ct", "yes"]  # of four test questions on four images


def write_run(folder, protocol, epochs, best):
    """A run whose epochs predict the given answers, `best` the number (from 1) selected."""
    (folder / "predictions").mkdir(parents=True)
    for number, predicted in enumerate(epochs, start=1):
        rows = [
            {
                "id": f"i{k}/0",
                "image": f"i{k}",
                "question": "what?",
                "answer": answer,
                "label": answer,
                "prediction": top[0],
                "score": 0.5,
                "type": "open",
                "question_type": "X",
                "top": [[name, 0.5] for name in top],
            }
            for k, (answer, top) in enumerate(zip(ANSWERS, predicted, strict=True))
        ]
        write_predictions(strict_cost.epoch_file(folder, number, protocol), rows)
        if number == best:
            write_predictions(folder / f"predictions-{protocol}.jsonl", rows)
    (folder / "evaluation.json").write_text(json.dumps({"epochs": len(epochs)}))
    return folder


def test_each_line_differs_by_what_it_names(tmp_path, questions, capsys):
    """Selecting on test counted as another cost, or a list that lets an unknown answer pass."""
    right, worse = [["ct"], ["left"], ["ct"], ["yes"]], [["ct"], ["left"], ["ct"], ["no"]]
    unknown = [["ct"], ["pet", "left"], ["pet"], ["no"]]  # "pet" has no training row
    paper = write_run(tmp_path / "paper", "paper", [right, worse], best=1)
    unleaked = write_run(tmp_path / "unleaked", "paper", [right, unknown], best=1)
    strict = write_run(tmp_path / "strict", "strict", [[["left"]] * 4, right], best=1)
    known = read_questions(questions / "train")
    assert {"ct", "left", "yes", "no"} < {row["label"] for row in known if not row["leaked"]}
    arms = ["--paper", paper, "--unleaked", unleaked, "--strict", strict]
    assert strict_cost.main(["--train", str(questions / "train"), *map(str, arms)]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [entry["line"] for entry in table] == [
        "paper",
        "not selected on test",
        "no leaked rows",
        "training answers",
        "held-out selection",
    ]
    assert [entry["overall"]["accuracy"] for entry in table] == [1.0, 0.75, 0.25, 0.5, 0.25]
    costs = [entry["overall"]["cost"] for entry in table[1:]]
    assert costs == pytest.approx([0.25, 0.5, -0.25, 0.25])
    assert [entry["overall"]["cost_interval"] for entry in table[1:]] == [None] * 4  # few images


def test_the_cost_of_a_line_is_what_it_loses():
    """An interval whose ends are swapped, or of the other sign than the cost."""
    compared = {"difference": -0.2, "difference_interval": [-0.3, -0.1]}
    entry = strict_cost.summary({"accuracy": 0.5, "interval": [0.4, 0.6], "against": compared})
    assert (entry["cost"], entry["cost_interval"]) == (0.2, [0.1, 0.3])


def test_a_run_that_is_not_finished(tmp_path, questions, capsys):
    """A traceback for a folder that is mistyped or whose run still goes on."""
    train = ["--train", str(questions / "train")]
    with pytest.raises(SystemExit):
        strict_cost.main([*train, "--strict", str(tmp_path / "nowhere")])
    assert "nowhere: no finished run" in capsys.readouterr().err
