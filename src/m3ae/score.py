r"""Score prediction files: accuracy with intervals, blind baselines, strata, comparisons.

    python -m m3ae.score PREDICTIONS.jsonl [MORE_SEEDS.jsonl ...]

scores any model's answers: a JSON object a line with id and prediction (or a CSV with these
columns), and the questions' answers in it or in the prepared split --data. Several files are the
seeds of one model: mean, standard deviation, and an interval that draws seeds too. Accuracies and
differences are percentages; intervals are 95 % percentile bootstrap over images, all questions of
an image together. Files whose rows have no `type` are of classes, compared by name.

example: python -m m3ae.score predictions-strict.jsonl --data data/vqa_rad/test \
             --train data/vqa_rad/train --protocol strict --json score.json
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m3ae.command import exit_status
from m3ae.data.exclusions import read_exclusions
from m3ae.data.questions import read_questions
from m3ae.files import write_json
from m3ae.scoring.baselines import blind_baselines
from m3ae.scoring.predictions import (
    PROTOCOLS,
    Row,
    annotate,
    complete,
    join,
    read_predictions,
    training_rows,
)
from m3ae.scoring.statistics import evaluate, evaluate_classes

SHOWN_CLASSES = 20  # a larger confusion matrix is in the JSON only
STRATA = {
    "leaked_twin": "leaked twin",
    "image_in_train": "image in training",
    "answer_in_train": "answer in training",
    "near_duplicate": "near-duplicate",
}


# ------------------------------------------------------------------ read


def load(
    paths: Sequence[Path], questions: list[Row] | None, allow_missing: bool
) -> tuple[list[list[Row]], dict[str, int]]:
    """Rows of each file, ready to be scored, and the number of missing predictions by file."""
    runs, missing = [], {}
    for path in paths:
        rows = read_predictions(path)
        if questions is not None:
            rows, missing[str(path)] = join(rows, questions, str(path), allow_missing)
        runs.append(complete(rows, str(path)))
    return runs, missing


def near_duplicates(path: Path, runs: list[list[Row]]) -> str:
    """Mark the rows on images of the list; returns what was found. ValueError if none was."""
    listed, images = read_exclusions(path), {row["image"] for row in runs[0]}
    if not listed & images:
        raise ValueError(
            f"{path}: none of its {len(listed)} ids is an image of the predictions, "
            f"e.g. {min(images)!r}"
        )
    for row in (row for rows in runs for row in rows):
        row["near_duplicate"] = row["image"] in listed
    return f"near-duplicates: {len(listed & images)} of {len(listed)} listed images are scored"


def score(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that the options ask for, as JSON has it; accuracies are 0-1."""
    if args.samples < 0 or args.seed < 0:
        raise ValueError(f"--samples {args.samples} --seed {args.seed}: below 0")
    questions = read_questions(args.data, args.field) if args.data else None
    runs, missing = load(args.predictions, questions, args.allow_missing)
    against, missing_too = load(args.against, questions, args.allow_missing)
    rows, notes = runs[0], []
    of_classes = "type" not in rows[0]
    train = read_questions(args.train, args.field) if args.train else None
    if train is not None:
        if not train or ("type" in train[0]) == of_classes:
            raise ValueError(
                f"{args.train}: one of --train and the predictions is of classes (no "
                "type), the other of questions; give --data, or another --train"
            )
    if args.near_duplicates:
        notes.append(near_duplicates(args.near_duplicates, runs))
    wanted = PROTOCOLS[:2] if args.protocol == "both" else [args.protocol]
    results: dict[str, Any] = {}
    for protocol in wanted[:1] if of_classes else wanted:
        blind = {}
        if train is not None:
            rows, more = annotate(runs[0], train, protocol)
            notes += [note for note in more if note not in notes]
            try:
                blind, more = blind_baselines(training_rows(train, protocol), rows)
            except ValueError as error:
                more = [f"blind baselines of {protocol}: not computed, for {error}"]
            notes += [note for note in more if note not in notes]
        options = {"blind": blind, "against": against, "samples": args.samples, "seed": args.seed}
        results["classes" if of_classes else protocol] = (
            evaluate_classes([rows, *runs[1:]], **options)
            if of_classes
            else evaluate([rows, *runs[1:]], protocol, **options)
        )
    return {
        "files": [str(path) for path in args.predictions],
        "against": [str(path) for path in args.against],
        "questions": len(rows),
        "images": len({row["image"] for row in rows}),
        "missing": {**missing, **missing_too} if questions is not None else None,
        "notes": notes,
        "results": results,
    }


# ------------------------------------------------------------------ print


def entries(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and entry of each part that has questions, in the order of the table."""
    for name in ("overall", "open", "closed"):
        if name in result:
            yield name, result[name]
    for name, entry in result.get("question_type", {}).items():
        yield f"type {name}", entry
    for flag, sides in result.get("strata", {}).items():
        for side, entry in sides.items():
            yield f"{STRATA[flag]}: {side}", entry


def percent(value: float | None, sign: str = "") -> str:
    """A fraction as a percentage with two digits; "-" for none."""
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def with_interval(value: float | None, interval: list[float] | None, sign: str = "") -> str:
    """A percentage and its interval, where it has one."""
    ends = "" if interval is None else " [" + ", ".join(percent(x, sign) for x in interval) + "]"
    return percent(value, sign) + ends


def table(result: dict[str, Any]) -> list[str]:
    """The parts as lines, a column for each comparison."""
    head = ["", "questions", "images", "accuracy [95 %]"]
    if result["runs"] > 1:
        head.append("sd")
    first = result["overall"]
    others = [*first.get("blind", {}), *(["against"] if "against" in first else [])]
    for name in others:
        head += [name, "difference [95 %]"]
    lines = [head]
    for name, entry in entries(result):
        if not entry["questions"]:
            continue
        cells = [
            name,
            str(entry["questions"]),
            str(entry["images"]),
            with_interval(entry["accuracy"], entry["interval"]),
        ]
        if result["runs"] > 1:
            cells.append(percent(entry["sd"]))
        for other in others:
            compared = entry["against"] if other == "against" else entry["blind"][other]
            difference = compared["difference"], compared["difference_interval"]
            cells += [percent(compared["accuracy"]), with_interval(*difference, "+")]
        lines.append(cells)
    return aligned(lines)


def aligned(lines: list[list[str]]) -> list[str]:
    """Cells as columns, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip()
        for cells in lines
    ]


def report(scored: dict[str, Any]) -> list[str]:
    """What is printed."""
    missing = scored["missing"]
    known = "ids not checked, no --data"
    if missing is not None:
        some = [
            f"{count} missing in {name}, counted as wrong"
            for name, count in missing.items()
            if count
        ]
        known = "; ".join(some) or "no id missing or unknown"
    lines = [
        *scored["files"],
        *(f"against {name}" for name in scored["against"]),
        f"{scored['questions']} questions on {scored['images']} images; {known}",
    ]
    lines += [f"note: {note}" for note in scored["notes"]]
    for name, result in scored["results"].items():
        title = "classes" if name == "classes" else f"protocol {name}"
        lines += [
            "",
            f"{title}, {result['runs']} run(s), {result['samples']} resamples",
            *table(result),
        ]
        inside = result.get("strata", {}).get("answer_in_train", {}).get("yes")
        if inside:
            share = inside["questions"] / result["overall"]["questions"]
            lines.append(f"ceiling of a list of training answers: {percent(share)}")
        test = result["overall"].get("against", {}).get("mcnemar")
        if test:
            lines.append(
                f"McNemar, exact, questions as independent: {test['only_first']} right "
                f"here only, {test['only_second']} there only, p = {test['p']:.4g}"
            )
        if "macro_f1" in result:
            f1 = result["macro_f1"]
            sd = f", sd {percent(f1['sd'])}" if "sd" in f1 else ""
            lines.append(f"macro-F1 {with_interval(f1['value'], f1['interval'])}{sd}")
            lines += confusion_lines(result["confusion"])
    return lines


def confusion_lines(confusion: dict[str, Any]) -> list[str]:
    """The matrix as lines, if it is not too large."""
    classes = confusion["classes"]
    if len(classes) > SHOWN_CLASSES:
        return [f"confusion of {len(classes)} classes: --json has it"]
    head = ["answer \\ prediction", *(str(k) for k in range(1, len(classes) + 1))]
    rows = [
        [f"{k} {name}", *map(str, row)]
        for k, (name, row) in enumerate(zip(classes, confusion["matrix"], strict=True), start=1)
    ]
    return aligned([head, *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m m3ae.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("predictions", nargs="+", type=Path, metavar="PREDICTIONS", help="a file, or one a seed")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="the prepared split that was predicted on; every "
        "question of it must have a prediction",
    )
    add(
        "--train",
        type=Path,
        metavar="DIR",
        help="the prepared training split: gives the blind baselines and the strata",
    )
    add(
        "--against",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="files of another model to compare with, question by question",
    )
    add(
        "--protocol",
        choices=[*PROTOCOLS, "both"],
        default="both",
        help="what counts as right, and which training rows the baselines know (%(default)s)",
    )
    add(
        "--near-duplicates",
        type=Path,
        metavar="FILE",
        help="test images that training nearly "
        "holds too, an id a line (anything after a tab is a remark): a stratum",
    )
    add(
        "--field",
        default="label",
        metavar="NAME",
        help="classes: the task field of the splits to compare with (default: %(default)s)",
    )
    add("--allow-missing", action="store_true", help="count missing predictions as wrong")
    add("--json", type=Path, metavar="FILE", help="write everything there, as fractions")
    add("--samples", type=int, default=10_000, metavar="N", help="resamples (%(default)s); 0: none")
    add("--seed", type=int, default=0, help="of the resamples (%(default)s)")
    args = parser.parse_args(argv)

    def body() -> None:
        scored = score(args)
        print("\n".join(report(scored)))
        if args.json:
            write_json(args.json, scored)

    return exit_status(body)


if __name__ == "__main__":
    sys.exit(main())
