r"""What the strict protocol costs on VQA-RAD, step by step, from kept predictions.

    python benchmarks/strict_cost.py --train data/vqa_rad/train --paper PAPER_0 PAPER_1 \
        --unleaked UNLEAKED_0 UNLEAKED_1 --strict STRICT_0 STRICT_1 --disjoint DISJOINT_0 DISJOINT_1

Each option takes the run folders of `run_finetune.py`, one a seed. `--paper`: protocol=paper.
`--unleaked`: protocol=paper on a copy of the corpus whose test rows have no question_frame, so
that no test question's third wording is trained on. `--strict`, `--disjoint`: protocol strict and
image_disjoint on the corpus itself. All arms are counted alike, exact string, so only what is
named differs between a line and the next:

    paper                 the epoch that is best on test, as published
    not selected on test  the last epoch
    no leaked rows        2,780 training rows instead of 3,064
    training answers      the best of the five kept answers that a training row has; else none
    held-out selection    a tenth of the training images is kept back and selects the epoch
    no shared images      nor is there a training question on a test image (and fewer rows)

`cost` is by how much a line's accuracy is below that of the line before, 0-1, with a 95 % interval
over images and seeds (`m3ae.scoring.measures`). Prints JSON, and leaves out an arm that is not
given.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3ae.data.questions import read_questions
from m3ae.scoring.measures import measure_answers
from m3ae.scoring.predictions import Row, complete, read_predictions, reference, training_rows


def epoch_file(run: Path, epoch: int, protocol: str) -> Path:
    """The test predictions of an epoch."""
    return run / "predictions" / f"epoch-{epoch:04d}-test-{protocol}.jsonl"


def last_epoch(run: Path, protocol: str) -> list[Row]:
    """Test predictions of a finished run's last epoch."""
    epochs = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["epochs"]
    return read(epoch_file(run, epochs, protocol))


def selected(run: Path, protocol: str) -> list[Row]:
    """Test predictions of the epoch that the protocol selects."""
    return read(run / f"predictions-{protocol}.jsonl")


def read(path: Path) -> list[Row]:
    """Rows ready to be scored."""
    return complete(read_predictions(path), str(path))


def limited(rows: list[Row], answers: set[str]) -> list[Row]:
    """The same predictions, the best kept answer that is in `answers`; none where there is none."""
    return [
        {**row, "prediction": next((a for a, _ in row["top"] if a in answers), None)}
        for row in rows
    ]


def ladder(args: argparse.Namespace) -> list[tuple[str, list[list[Row]]]]:
    """The lines of the table in order, each with a list of rows a seed."""
    known = {reference(row) for row in training_rows(read_questions(args.train), "strict")}
    unleaked = [last_epoch(run, "paper") for run in args.unleaked]
    lines = [
        ("paper", [selected(run, "paper") for run in args.paper]),
        ("not selected on test", [last_epoch(run, "paper") for run in args.paper]),
        ("no leaked rows", unleaked),
        ("training answers", [limited(rows, known) for rows in unleaked]),
        ("held-out selection", [selected(run, "strict") for run in args.strict]),
        ("no shared images", [selected(run, "image_disjoint") for run in args.disjoint]),
    ]
    return [line for line in lines if line[1]]


def summary(scored: dict[str, Any]) -> dict[str, Any]:
    """Accuracy of a part of the questions, and its cost where there is a line before."""
    entry = {key: scored.get(key) for key in ("accuracy", "interval", "sd")}
    if compared := scored.get("against"):
        difference, ends = compared["difference"], compared["difference_interval"]
        entry["cost"] = None if difference is None else -difference
        entry["cost_interval"] = None if ends is None else [-ends[1], -ends[0]]
    return entry


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--train",
        type=Path,
        required=True,
        metavar="DIR",
        help="the corpus's prepared training split",
    )
    for name in ("paper", "unleaked", "strict", "disjoint"):
        parser.add_argument(f"--{name}", type=Path, nargs="+", default=[], metavar="RUN")
    args = parser.parse_args(argv)
    for run in [*args.paper, *args.unleaked, *args.strict, *args.disjoint]:
        if not (run / "evaluation.json").is_file():
            parser.error(f"{run}: no finished run (it has no evaluation.json)")
    table: list[dict[str, Any]] = []
    before: list[list[Row]] = []
    for name, runs in ladder(args):
        scored = measure_answers(runs, "paper", against=before)
        entry = {part: summary(scored[part]) for part in ("overall", "open", "closed")}
        table.append({"line": name, "runs": len(runs), **entry})
        before = runs
    print(json.dumps(table, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
