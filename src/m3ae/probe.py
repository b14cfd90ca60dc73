r"""Probe frozen features: how well a linear model, or the nearest neighbours, tell a label.

    python -m m3ae.features --model RUN --data data/mine/train --what image \
        --out a_train.safetensors
    python -m m3ae.features --model RUN --data data/mine/test --what image \
        --out a_test.safetensors
    python -m m3ae.probe --train a_train.safetensors --test a_test.safetensors --field organ
    python -m m3ae.probe --train a_train.safetensors --test a_test.safetensors --field organ \
        --against-train b_train.safetensors --against-test b_test.safetensors

Labels are the task field of the prepared splits that the features were made from: one class a row,
a list of findings, or answers, which count as classes. Features are standardised by training; the
penalty of the logistic regression, or the number of neighbours (by cosine), is chosen by
cross-validation over training images; the test set is predicted once. Printed are accuracy and
macro F1 (of one class a row) and AUROC and average precision by class, with 95 %
intervals over images, and, of two models, their differences, paired by image.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3ae.command import exit_status, parser_for
from m3ae.files import write_json

if TYPE_CHECKING:
    from m3ae.downstream.probes import Labelled

PROBES = ("linear", "nearest")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = parser_for(__doc__)
    parser.prog = "python -m m3ae.probe"
    add = parser.add_argument
    file = {"type": Path, "metavar": "FILE"}
    folder = {"type": Path, "metavar": "SPLIT"}
    add("--train", **file, required=True, help="features of the training split")
    add("--test", **file, required=True, help="features of the test split")
    add("--against-train", **file, help="another model's, to compare")
    add("--against-test", **file, help="another model's, to compare")
    add("--field", default="label", help="task field of the label (default: %(default)s)")
    add("--train-data", **folder, help="the training split, where it has moved since")
    add("--test-data", **folder, help="the test split, where it has moved since")
    add("--probe", choices=(*PROBES, "both"), default="both", help="default: %(default)s")
    number = {"type": int, "metavar": "N"}
    add("--samples", **number, default=10_000, help="resamples (default: %(default)s)")
    add("--seed", **number, default=0, help="of the resamples (default: %(default)s)")
    add("--json", **file, help="write the results")
    add("--out", **folder, help="write the predictions to PROBE.jsonl in this folder")
    args = parser.parse_args(argv)
    return exit_status(lambda: _probe(args), mistake=2)


def _probe(args: argparse.Namespace) -> None:
    from m3ae.downstream.probes import read_labelled

    if (args.against_train is None) != (args.against_test is None):
        raise ValueError("--against-train and --against-test belong together")
    if args.samples < 0 or args.seed < 0:
        raise ValueError("--samples and --seed are 0 or above")
    files = [(args.train, args.test)]
    files += [(args.against_train, args.against_test)] if args.against_train else []
    models = [
        tuple(
            read_labelled(path, args.field, data)
            for path, data in zip(pair, (args.train_data, args.test_data), strict=True)
        )
        for pair in files
    ]
    results = {}
    for kind in PROBES if args.probe == "both" else (args.probe,):
        results[kind] = measure(kind, models, args)
    if args.json:
        named = [[str(path) for path in pair] for pair in files]
        write_json(args.json, {"files": named, "field": args.field, "results": results})


def measure(
    kind: str, models: list[tuple["Labelled", "Labelled"]], args: argparse.Namespace
) -> dict[str, Any]:
    """Fit a probe on each model's features, measure, compare and print."""
    from m3ae.downstream.probes import probe
    from m3ae.scoring.baselines import blind_baselines
    from m3ae.scoring.measures import measure_classes
    from m3ae.scoring.multilabel import measure_labels
    from m3ae.scoring.predictions import write_predictions
    from m3ae.scoring.text import result_lines

    (own, chosen), *others = [probe(kind, *pair) for pair in models]
    against = [rows for rows, _ in others]
    result: dict[str, Any] = {"chosen": [chosen, *(facts for _, facts in others)]}
    options = {"samples": args.samples, "seed": args.seed}
    lines = ["", f"{kind} probe: " + "; ".join(map(_said, result["chosen"]))]
    if not models[0][1].several:
        blind, _ = blind_baselines(models[0][0].rows, own)
        plain = [[_without(row, "scores") for row in rows] for rows in (own, *against)]
        baselines = {
            name: [_without(row, "scores") for row in rows] for name, rows in blind.items()
        }
        found = measure_classes(plain[:1], None, blind=baselines, against=plain[1:], **options)
        result["classes"] = found
        lines += result_lines("classes", found)[2:]
    one, *more = ([_as_labels(row) for row in rows] for rows in (own, *against))
    result["labels"] = measure_labels([one], None, against=more, **options)
    lines += result_lines("labels", result["labels"])[2:]
    print("\n".join(lines))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_predictions(args.out / f"{kind}.jsonl", own)
    return result


def _said(chosen: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in chosen.items() if key != "probe"
    )


def _without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


def _as_labels(row: dict[str, Any]) -> dict[str, Any]:
    """A row of one class as one of several, of which it has that one."""
    return row if "labels" in row else {**row, "labels": [row["answer"]]}


if __name__ == "__main__":
    sys.exit(main())
