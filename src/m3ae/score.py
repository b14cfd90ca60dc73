r"""Score prediction files: accuracy with intervals, blind baselines, strata, comparisons.

    python -m m3ae.score PREDICTIONS.jsonl [MORE_SEEDS.jsonl ...]

scores any model's answers: a JSON object a line with id and prediction (or a CSV with these
columns; either may be .gz), and the questions' answers in it or in the prepared split --data.
Several files are the seeds of one model. Accuracies and differences are percentages, intervals of
95 %, over images. A run's own files are taken with its predictions: trained_on.txt, the rows that
strata and blind baselines rest on, and the predictions with another's image and with the mean
image. docs/scoring.md has the columns, and what is counted how.

examples:
  a run of this package, with strata, blind baselines and what the image gives it
    python -m m3ae.score RUN/predictions-strict.jsonl --data data/vqa_rad/test \
        --train data/vqa_rad/train --json score.json
  another system, which answers in sentences; how well its scores tell right from wrong
    python -m m3ae.score mine.csv --data data/vqa_rad/test --relaxed --pictures pictures
  two models of three seeds each, and 5 questions of each kind on which they differ, with images
    python -m m3ae.score A/s[012].jsonl --against B/s[012].jsonl --data data/vqa_rad/test \
        --show-differences 5 --sheet differences.html
  recall of two retrievals
    python -m m3ae.score RUN/ranks-strict.jsonl --against OTHER/ranks-strict.jsonl
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3ae.command import parser_for, run
from m3ae.data.exclusions import find_listed, read_exclusions
from m3ae.data.questions import read_questions
from m3ae.files import printable, write_json, write_text
from m3ae.scoring.baselines import blind_baselines
from m3ae.scoring.calibration import measure_calibration, why_not
from m3ae.scoring.measures import (
    measure_answers,
    measure_classes,
    measure_ranks,
)
from m3ae.scoring.multilabel import measure_labels
from m3ae.scoring.predictions import (
    PROTOCOLS,
    Row,
    Rows,
    Runs,
    annotate,
    complete,
    join,
    kind_of,
    read_predictions,
    read_trained_on,
    rows_trained_on,
    training_rows,
)
from m3ae.scoring.relaxed import measure_relaxed
from m3ae.scoring.text import ARMS, result_lines

ARM = "the same model otherwise shown, or another one: a column and a difference; a file a seed"
PROTOCOL = "what is right, and the training rows where the run's are not known (%(default)s)"
ALONE = "each counts as an image, which narrows intervals; give --data, or a column image"
UNKNOWN = "the run's own training rows are not known (no trained_on.txt, no --trained-on)"
OPTIONS = ("samples", "seed", "paired_seeds")  # of all measures with comparisons
OF_ANSWERS = ("train", "near_duplicates", "relaxed", "show_differences", "pictures")
NOT_OF_ANSWERS = {"ranks": (*OF_ANSWERS, "arm"), "labels": OF_ANSWERS}  # options that are refused
_OF_A_RUN = re.compile(rf"predictions-({'|'.join(PROTOCOLS)})\.jsonl(\.gz)?")


def load(
    paths: Sequence[Path], questions: list[Row] | None, allow_missing: bool, notes: list[str]
) -> tuple[list[list[Row]], dict[str, int]]:
    """Rows of each file, joined with the questions of --data, and its missing predictions."""
    runs, missing = [], {}
    for path in paths:
        rows, name = read_predictions(path), str(path)
        if questions is not None:
            if "rank" in rows[0]:
                raise ValueError(f"{name}: ranks are measured without --data")
            rows, missing[name] = join(rows, questions, name, allow_missing)
        alone = [row["id"] for row in rows if "image" not in row and "/" not in row["id"]]
        if alone:
            what = f"{len(alone)} rows, e.g. {alone[0]!r}, have no image and no / in the id"
            notes.append(f"{name}: {what}: {ALONE}")
        runs.append(complete(rows, name))
    return runs, missing


def beside(folder: Path, name: str) -> Path | None:
    """The file of that name in a folder, as it is or with .gz behind it."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def arm_files(args: argparse.Namespace, notes: list[str]) -> dict[str, list[Path]]:
    """Files of each arm, one a seed: those of --arm, and those that runs leave beside theirs."""
    arms = {}
    for text in args.arm:
        name, equals, paths = text.partition("=")
        if not (name and equals and paths) or name in (*arms, "against"):
            raise ValueError(f"--arm {text}: give NAME=FILE[,FILE per seed], another NAME for each")
        arms[name] = [Path(path) for path in paths.split(",")]
    matches = [_OF_A_RUN.fullmatch(path.name) for path in args.predictions]
    for name in ARMS if all(matches) else ():
        found = [
            beside(path.parent, f"predictions-{match[1]}-{name}.jsonl")
            for path, match in zip(args.predictions, matches, strict=True)
        ]
        if all(found) and name not in arms:
            arms[name] = found
            notes.append(f"{ARMS[name]}: {', '.join(map(str, found))}")
    return arms


def trained_on(args: argparse.Namespace, notes: list[str]) -> tuple[list[str], str] | None:
    """The ids of the rows that the run trained on and the file with them, if there is one."""
    if given := args.trained_on:
        found = [beside(given, "trained_on.txt") if given.is_dir() else given]
        if None in found:
            raise ValueError(f"{given}: no trained_on.txt or trained_on.txt.gz in it")
    else:
        found = [beside(path.parent, "trained_on.txt") for path in args.predictions]
        if None in found:
            return None
        notes.append(f"rows trained on: {found[0]}")
    ids = [read_trained_on(path) for path in dict.fromkeys(found)]
    if any(set(other) != set(ids[0]) for other in ids):
        notes.append(f"the runs trained on other rows; strata and baselines rest on {found[0]}")
    return ids[0], str(found[0])


def near_duplicates(path: Path, runs: list[list[Row]]) -> str:
    """Mark the rows on images of the list; returns what was found. ValueError if none was."""
    listed, images = read_exclusions(path), sorted({row["image"] for row in runs[0]})
    named = find_listed([(image,) for image in images], listed, path)
    marked = {images[number] for numbers in named.values() for number in numbers}
    if not marked:
        what = f"none of its {len(listed)} ids is an image of the predictions"
        raise ValueError(f"{path}: {what}, e.g. {min(images)!r}")
    for row in (row for rows in runs for row in rows):
        row["near_duplicate"] = row["image"] in marked
    return f"near-duplicates: {len(named)} of {len(listed)} listed images are scored"


def with_training(
    rows: Rows, train: Rows, known: tuple[list[str], str] | None, protocol: str, notes: list[str]
) -> tuple[Rows, dict[str, list[Row]]]:
    """Rows with the flags of a training split, and blind baselines from the rows trained on."""
    what = f"strata and blind baselines of {protocol}"
    if known is not None:
        own = rows_trained_on(train, *known)
    else:
        try:
            own = training_rows(train, protocol)
        except ValueError as error:
            notes.append(f"{what}: not computed, for {error}")
            return rows, {}
        notes.append(f"{UNKNOWN}: {what} rest on all {len(own)} that it allows")
    rows, untold = annotate(rows, own, train, protocol)
    blind, lacking = blind_baselines(own, rows)
    notes += untold + lacking
    return rows, blind


def measure_all(
    args: argparse.Namespace, runs: Runs, against: Runs, arms: dict[str, Runs], notes: list[str]
) -> dict[str, Any]:
    """The results by protocol (of classes: `classes`), with what was asked for besides."""
    of_classes = "type" not in runs[0][0]
    options = {key: getattr(args, key) for key in OPTIONS}
    train = read_questions(args.train, args.field) if args.train else None
    if train is not None and (not train or ("type" in train[0]) == of_classes):
        what = "one of --train and the predictions is of classes (no type), the other of questions"
        raise ValueError(f"{args.train}: {what}; give --data, or another --train")
    known = trained_on(args, notes) if train is not None else None
    results: dict[str, Any] = {}
    wanted = list(PROTOCOLS[:2]) if args.protocol == "both" else [args.protocol]
    if of_classes:  # alike under every protocol, but for the training rows: the run's own
        named = _OF_A_RUN.fullmatch(args.predictions[0].name)
        wanted = [named[1] if named else wanted[-1]]
    for protocol in wanted:
        first, blind = runs[0], {}
        if train is not None:
            first, blind = with_training(runs[0], train, known, protocol, notes)
        own = [first, *runs[1:]]
        counting = measure_classes if of_classes else measure_answers
        result = counting(own, protocol, blind=blind, arms=arms, against=against, **options)
        if args.relaxed:
            result["relaxed"] = measure_relaxed(own, protocol, against, **options)
        for side, some in (("these", own), ("against", against)):
            if (why := why_not(some)) is None:
                calibrated = measure_calibration(some, protocol, args.samples, args.seed)
                result.setdefault("calibration", {})[side] = calibrated
            elif why:
                notes.append(f"calibration of {side}: not measured, for {why}")
        results["classes" if of_classes else protocol] = result
    return results


def check(args: argparse.Namespace) -> None:
    """Raise ValueError for options that do not go together."""
    if args.samples < 0 or args.seed < 0 or args.show_differences < 0:
        raise ValueError("--samples, --seed and --show-differences are 0 or above")
    for option, needed in (("trained_on", "train"), ("show_differences", "against")):
        if getattr(args, option) and not getattr(args, needed):
            raise ValueError(f"--{option.replace('_', '-')} needs --{needed}")
    if args.sheet and not args.show_differences:
        raise ValueError("--sheet needs --show-differences N, how many of each kind to show")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that the options ask for, as JSON has it; accuracies are 0-1."""
    check(args)
    notes: list[str] = []
    questions = read_questions(args.data, args.field) if args.data else None
    files = {"": args.predictions, "against": args.against} | arm_files(args, notes)
    missing: dict[str, int] = {}
    for name, paths in files.items():
        files[name], absent = load(paths, questions, args.allow_missing, notes)
        missing |= absent
    runs, against = files.pop(""), files.pop("against")
    if args.near_duplicates:
        notes.append(near_duplicates(args.near_duplicates, runs))
    kind = kind_of(runs[0][0])
    others = {kind_of(run[0]) for run in runs + against} - {kind}
    if (kind in NOT_OF_ANSWERS and others) or others & set(NOT_OF_ANSWERS):
        some = f"some files are of {kind}, others of {min(others)}"
        raise ValueError(f"{some}; they cannot be compared")
    for option in NOT_OF_ANSWERS.get(kind, ()):
        if getattr(args, option):
            raise ValueError(f"--{option.replace('_', '-')} is for answers, not for {kind}")
    options = {key: getattr(args, key) for key in OPTIONS}
    if kind == "ranks":
        results = {"ranks": measure_ranks(runs, against, **options)}
    elif kind == "labels":
        named = _OF_A_RUN.fullmatch(args.predictions[0].name)
        more = {"arms": files, "against": against, **options}
        results = {"labels": measure_labels(runs, named[1] if named else None, **more)}
    else:
        results = measure_all(args, runs, against, files, notes)
    own, other = ([str(path) for path in paths] for paths in (args.predictions, args.against))
    images = len({row["image"] for row in runs[0]})
    out = {"files": own, "against": other, "questions": len(runs[0]), "images": images}
    out["missing"] = missing if args.data else None
    out |= {"notes": list(dict.fromkeys(notes)), "results": results}
    if args.show_differences:
        from m3ae.reports.differences import differing

        protocol = next(iter(results.values()))["protocol"]
        out["differences"] = differing(runs[0], against[0], protocol, args.show_differences)
    return out


def report(measured: dict[str, Any]) -> list[str]:
    """What is printed."""
    kind = "queries" if "ranks" in measured["results"] else "questions"
    known = "ids not checked, no --data"
    if (missing := measured["missing"]) is not None:
        some = [f"{n} missing in {name}, counted as wrong" for name, n in missing.items() if n]
        known = "; ".join(some) or "no id missing or unknown"
    lines = measured["files"] + [f"against {name}" for name in measured["against"]]
    lines.append(f"{measured['questions']} {kind} on {measured['images']} images; {known}")
    lines += [f"note: {note}" for note in measured["notes"]]
    for name, result in measured["results"].items():
        lines += result_lines(name, result)
    if "differences" in measured:
        from m3ae.reports.differences import as_lines

        lines += as_lines(measured["differences"])
    return lines


def measure_and_tell(args: argparse.Namespace) -> None:
    """Measure, print, and write the files that were asked for."""
    measured = measure(args)
    print("\n".join(printable(line) for line in report(measured)))
    if args.json:
        write_json(args.json, measured)
    if args.sheet:
        from m3ae.reports.differences import sheet

        names = str(args.predictions[0]), str(args.against[0])
        write_text(args.sheet, sheet(measured["differences"], args.data, names))
    if args.pictures:
        from m3ae.reports.calibration import draw

        calibration = next(iter(measured["results"].values())).get("calibration")
        if not calibration:
            raise ValueError("--pictures show calibration, and the predictions have no scores")
        draw(calibration, args.pictures)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = parser_for(__doc__)
    parser.prog = "python -m m3ae.score"
    add = parser.add_argument
    many = {"nargs": "+", "type": Path}
    folder, file = {"type": Path, "metavar": "DIR"}, {"type": Path, "metavar": "FILE"}
    number = {"type": int, "metavar": "N"}
    add("predictions", **many, metavar="PREDICTIONS", help="a file, or one a seed")
    add("--data", **folder, help="the prepared split; each of its questions must be predicted")
    add("--train", **folder, help="the prepared training split: strata and blind baselines")
    add("--trained-on", **file, help="ids of the training rows that the run used, or its folder")
    add("--against", **many, default=[], metavar="FILE", help="another model's files, to compare")
    add("--arm", action="append", default=[], metavar="NAME=FILE[,FILE]", help=ARM)
    add("--protocol", choices=[*PROTOCOLS, "both"], default="strict", help=PROTOCOL)
    add("--near-duplicates", **file, help="ids of test images nearly in training: a stratum")
    add("--field", default="label", metavar="NAME", help="classes: the task field (%(default)s)")
    add("--allow-missing", action="store_true", help="count missing predictions as wrong")
    apart = {"dest": "paired_seeds", "action": "store_const", "const": False}
    add("--unpaired-seeds", **apart, help="the two sides' seeds have nothing in common")
    add("--relaxed", action="store_true", help="a second table for answers in sentences")
    add("--show-differences", **number, default=0, help="items that only one side has right")
    add("--sheet", **file, help="these as an HTML page, with images where --data is given")
    add("--pictures", **folder, help="reliability.png and coverage.png, from the scores")
    add("--json", **file, help="write everything there, as fractions")
    add("--samples", **number, default=10_000, help="resamples (%(default)s); 0: no intervals")
    add("--seed", **number, default=0, help="of the resamples (%(default)s)")
    return run(measure_and_tell, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
