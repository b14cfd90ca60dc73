"""The report of a fine-tuning run: one HTML page from its folder and the split it was tested on.

python -m m3ae.reports.finetuning RUN writes it again. Test figures are shown there, nothing more.
"""

import html
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from m3ae.reports import parts
from m3ae.reports.examples import calibration, confusion, predictions_of, questions, ranked
from m3ae.reports.parts import Series, absent, is_number, paragraph, section
from m3ae.reports.pretraining import (
    Run,
    compared,
    cost,
    kept_files,
    learning_rates,
    measured,
    notes,
)
from m3ae.scoring.predictions import PROTOCOLS
from m3ae.scoring.text import STRATA, WAYS

TASKS = {
    "vqa": "answering questions",
    "classification": "one class an image",
    "multilabel": "several findings an image",
    "retrieval": "finding the image of a text and the text of an image",
}
ARMS = {
    "other": "with another's image",
    "none": "with the mean image",
    "question-only": "a model trained without images",
}
BARS = {"other": "another's", "none": "none", "question-only": "no images"}
BLIND = {
    "majority": "blind: the commonest answer",
    "nearest": "blind: the answer to the nearest question",
}
# Titles of the measures of a test entry, where they stand in it, and the key of their value.
MEASURES = {
    "accuracy": (("overall",), "accuracy"),
    "open questions": (("open",), "accuracy"),
    "closed questions": (("closed",), "accuracy"),
    "macro F1": (("macro_f1",), "value"),
    "mean AUROC": (("auroc", "macro"), "value"),
    "mean average precision": (("average_precision", "macro"), "value"),
}
CURVES = {
    "overall": "Accuracy",
    "accuracy": "Accuracy",
    "open": "Accuracy, open questions",
    "closed": "Accuracy, closed questions",
    "macro_f1": "Macro F1",
    "auroc": "Mean AUROC",
    "average_precision": "Mean average precision",
}
Entry = dict[str, Any]


def measures_of(test: Entry) -> dict[str, tuple[Entry, str]]:
    """Title -> entry and key of its value, of the measures that a test entry has."""
    found = {}
    for title, (path, key) in MEASURES.items():
        entry = test
        for step in path:
            entry = entry.get(step) or {}
        if is_number(entry.get(key)):
            found[title] = entry, key
    return found


def protocols_in(run: Run) -> dict[str, Entry]:
    """The results by protocol, the strict ones first."""
    order = sorted(PROTOCOLS, key=lambda name: name == "paper")
    return {name: run.evaluation[name] for name in order if name in run.evaluation}


def head(run: Run) -> str:
    """Title, what was run in two sentences, the headline figures, what it cost."""
    task = str(run.config.get("task") or run.evaluation.get("task") or "")
    text = f"Fine-tuning for {TASKS.get(task, task)}" if task else "Fine-tuning"
    if source := run.environment.get("source"):
        text += f", on {source}"
    if run.config.get("eval_only"):
        text += ": evaluated only, nothing was trained"
    elif run.train:
        text += f": {parts.count(run.train[-1]['step'])} steps"
    if start := run.environment.get("init"):
        text += f", from {start}"
    if run.environment.get("device"):
        text += f", on {run.environment['device']}"
    body = f"<h1>{html.escape(run.name)}</h1>{paragraph(text + '.')}"
    if (run.config.get("data") or {}).get("image") == "none":
        note = "A question-only model: trained and evaluated on the mean image."
        body += paragraph(note)
    for name, entry in protocols_in(run).items():
        body += parts.tiles(headline(name, entry))
    if not run.evaluation:
        body += paragraph("Not finished: there is no evaluation.json yet.")
    return body + cost(run)


def headline(protocol: str, entry: Entry) -> dict[str, str | None]:
    """Title -> figure of a protocol's results, for the tiles."""
    figures = {
        f"{title}, {protocol}": parts.percentage(each[key])
        for title, (each, key) in measures_of(entry.get("test") or {}).items()
    }
    for way, title in WAYS.items():
        if found := (entry.get("recalls") or {}).get(way):
            figures[f"{title} R@10, {protocol}"] = parts.percentage(found["r10"]["value"])
    if entry.get("epoch"):
        chosen = str(entry.get("selected_on")).replace("_", " ")
        figures[f"epoch, selected on {chosen}"] = parts.count(entry["epoch"])
    return figures


def results(run: Run) -> Iterator[str]:
    """The sections of each protocol's results."""
    for name, entry in protocols_in(run).items():
        where = f" ({name})"
        test = entry.get("test") or {}
        yield accuracy(test, entry, where)
        yield recalls(entry, where)
        yield arms(test, where)
        yield strata(test, where)
        yield classes(test, where)
        rows = predictions_of(run, name)
        yield calibration(run, rows, name, where)
        yield confusion(rows, name, where)
        yield ranked(rows, where)
        yield questions(run, rows, name, entry, where)


def accuracy(test: Entry, entry: Entry, where: str) -> str:
    """The measures of the test set with intervals, and those of blind baselines."""
    found = measures_of(test)
    if not found:
        return ""
    rows = [["this model", *(measured(each, key) for each, key in found.values())]]
    names = dict.fromkeys(name for each, _ in found.values() for name in each.get("blind", {}))
    for name in names:
        cells = (against(each, name, key) for each, key in found.values())
        rows.append([html.escape(BLIND.get(name, f"blind: {name}")), *cells])
    text = (
        f"The test set with {weights(entry)}. Brackets are 95 % intervals over images, their "
        "questions together (bootstrap; of AUROC and average precision linearised); below 20 "
        "images there is none."
    )
    if names:
        text += " Blind baselines know what was trained on and never see an image."
    columns = [f"{title} ({size(each)})" for title, (each, _) in found.items()]
    body = [paragraph(text), parts.table(["", *columns], rows)]
    if "best_on_test" in entry:
        last, best = (parts.percentage(entry.get(key)) for key in ("last_epoch", "best_on_test"))
        note = f"Selecting the epoch on the test set: last epoch {last}, best on test {best}."
        body.append(paragraph(note, note=True))
    return section(f"Test results{where}", *body)


def weights(entry: Entry) -> str:
    """Which weights were tested, and what selected them."""
    if not entry.get("epoch"):
        return "the weights that were given"
    chosen = str(entry.get("selected_on")).replace("_", " ")
    return f"the weights of epoch {parts.count(entry['epoch'])}, selected on {chosen}"


def size(entry: Entry) -> str:
    """How much a measure rests on."""
    if is_number(entry.get("classes")):
        return f"{parts.count(entry['classes'])} classes"
    asked, images = (parts.count(entry.get(key)) for key in ("questions", "images"))
    return f"{asked} rows, {images} images"


def against(entry: Entry, name: str, key: str) -> str:
    """What else scored as an arm or a baseline, and the gain over it; "" where it did not."""
    other = compared(entry).get(name)
    if other is None:
        return ""
    value = absent(parts.percentage(other.get(key)))
    return f"{value}<br><small>gain over it</small> {measured(other, 'difference')}"


def recalls(entry: Entry, where: str) -> str:
    """Retrieval: recall at 1, 5, 10 and the median rank, both ways."""
    found = entry.get("recalls") or {}
    rows = []
    for way, title in WAYS.items():
        if not (ranks := found.get(way)):
            continue
        pool, median = parts.count(ranks.get("pool")), f"{ranks.get('median_rank', 0):g}"
        name = f"{html.escape(title)}<br><small>{pool} ranked</small>"
        rows.append([name, *(measured(ranks[f"r{k}"], "value") for k in (1, 5, 10)), median])
    if not rows:
        return ""
    text = (
        f"The {entry.get('pool')} pool with {weights(entry)}; a hit has the same "
        f"{entry.get('same')}. "
        "Brackets are 95 % intervals over images (bootstrap)."
    )
    table = parts.table(["", "R@1", "R@5", "R@10", "median rank"], rows)
    return section(f"Test results{where}", paragraph(text), table)


def arms(test: Entry, where: str) -> str:
    """The same questions with the own image, another's and none."""
    found = measures_of(test)
    names = list(dict.fromkeys(name for each, _ in found.values() for name in each.get("arms", {})))
    if not names:
        return ""
    rows, verdicts = [], []
    for title, (each, key) in found.items():
        others = each.get("arms", {})
        values = {BARS.get(name, name): others.get(name, {}).get(key) for name in names}
        bars = parts.arm_bars({"own": each[key]} | values, None)
        gains = [
            measured(others[name], "difference") if name in others else absent() for name in names
        ]
        rows.append([f"{html.escape(title)}<br><small>{size(each)}</small>", bars, *gains])
        if "none" in others:
            low, high = others["none"].get("difference_interval") or (None, None)
            verdicts.append(f"{title}: {parts.verdict({'low': low, 'high': high}, 'image')}")
    text = "The same test questions with the own image, and " + ", and ".join(
        ARMS.get(name, name) for name in names
    )
    text += "."
    if "other" in names:
        text += " Another's image misleads, so the gain over the mean image is the one to go by."
    columns = ["", "by image shown", *(f"gain over: {ARMS.get(name, name)}" for name in names)]
    body = [paragraph(text), parts.bullets(verdicts), parts.table(columns, rows)]
    return section(f"Is the image used?{where}", *body)


def strata(test: Entry, where: str) -> str:
    """Accuracy by type of question and by what training had, beside the blind baselines."""
    rows = [(f"type {kind}", each) for kind, each in (test.get("question_type") or {}).items()]
    for flag, sides in (test.get("strata") or {}).items():
        rows += [(f"{STRATA.get(flag, flag)}: {side}", each) for side, each in sides.items()]
    rows = [(title, each) for title, each in rows if each.get("questions")]
    if not rows:
        return ""
    names = list(dict.fromkeys(name for _, each in rows for name in each.get("blind", {})))
    cells = [
        [
            f"{html.escape(title)}<br><small>{size(each)}</small>",
            measured(each, "accuracy"),
            *(absent(parts.percentage(each["blind"][name]["accuracy"])) for name in names),
        ]
        for title, each in rows
    ]
    columns = ["", "accuracy", *(BLIND.get(name, name) for name in names)]
    text = "Exploratory: many parts, few questions each. Strata say what training had of a question"
    text += ": its other wording (a leaked twin), its image, its answer."
    table = parts.table(columns, cells)
    return section(f"Types of question and strata{where}", paragraph(text), table, long=True)


def classes(test: Entry, where: str) -> str:
    """Several findings an image: each class."""
    found = {
        key: (test.get(key) or {}).get("by_class", {}) for key in ("auroc", "average_precision")
    }
    rows = []
    for name, entry in found["auroc"].items():
        few = f"{parts.count(entry['positives'])} of {parts.count(entry['questions'])}"
        cells = (measured(some[name], "value") for some in found.values())
        rows.append([f"{html.escape(name)}<br><small>{few} have it</small>", *cells])
    left = [f"{name} ({why})" for name, why in (test.get("left_out") or {}).items()]
    if not rows and not left:
        return ""
    body = [parts.table(["", "AUROC", "average precision"], rows)]
    if left:
        body.append(paragraph(f"Left out, of the means too: {', '.join(left)}.", note=True))
    return section(f"Classes{where}", *body, long=True)


def curves(run: Run) -> str:
    """Training loss, what selects the epoch, and learning rates, over pairs seen."""

    def series(lines: list[Entry], key: str, label: str, colour: str) -> Series:
        y = [line[key] if is_number(line.get(key)) else float("nan") for line in lines]
        x = [run.seen(line) for line in lines]
        return Series(label, x, y, colour, marked=lines is run.held_out)

    kept: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for line in run.held_out for key in line if "/" in key):
        kept.setdefault(key.rpartition("/")[2], []).append(key)
    losses = [series(run.train, "loss", "training", "c")]
    for key in kept.pop("loss", []):
        losses.append(series(run.held_out, key, key.removesuffix("/loss"), "a"))
    body = parts.chart("Loss", losses)
    for name, keys in kept.items():
        lines = [
            series(run.held_out, key, key.rpartition("/")[0].replace("/", ", "), "abc"[number % 3])
            for number, key in enumerate(keys)
        ]
        body += parts.chart(CURVES.get(name, name), lines, as_percent=True)
    body += parts.chart("Learning rate", learning_rates(run))
    if not body:
        return ""
    note = "After each epoch, on the split that selects it; on the test split only under paper."
    inside = f'<div class="charts">{body}</div>'
    return section("Curves", paragraph(note, note=True), inside, long=True)


def sources(run: Run) -> str:
    """Run, data, commit and seeds that the numbers come from, then environment and config."""
    data, known = run.config.get("data") or {}, run.environment
    about = {"run": run.name, "began with": known.get("init"), "source": known.get("source")}
    contents = known.get("contents") or {}
    for name in ("train", "valid", "test"):
        if data.get(name):
            digest = "".join(key[:12] for key in contents.get(f"data.{name}", []))
            about[f"{name} split"] = f"{data[name]}{f' (sha256 {digest}...)' if digest else ''}"
    trained = run.evaluation.get("trained_on")
    about["trained on"] = "{rows} of {of} rows".format(**trained) if trained else None
    about |= {key: known.get(key) for key in ("commit", "command", "device", "started")}
    about["seed"] = run.config.get("seed", known.get("seed"))
    for name, entry in protocols_in(run).items():
        test = entry.get("test") or entry.get("recalls") or {}
        about[f"intervals, {name}"] = test.get("samples") and (
            f"{parts.count(test['samples'])} resamples of images, seed {test.get('seed')}"
        )
    shown = {name: str(value) for name, value in about.items() if value not in (None, "")}
    body = parts.facts(shown) + kept_files(run)
    return section("Where the numbers come from", body, long=True)


# Each gives HTML, empty where its file is missing.
SECTIONS: list[Callable[[Run], str]] = [head, lambda run: "".join(results(run)), curves]
SECTIONS += [notes, sources]


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder from what lies there, and return its path.

    Pictures come from the prepared split that the config names. ValueError names the file, and of
    a log the line, that is corrupt; FileNotFoundError the folder.
    """
    contents = Run(Path(run))
    return parts.write_page(contents, SECTIONS)


def main(arguments: list[str] | None = None) -> int:
    """Write the report of a run folder again; 2 if it cannot be read."""
    return parts.command(__doc__, write_report, arguments)


if __name__ == "__main__":
    sys.exit(main())
