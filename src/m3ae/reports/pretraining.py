"""The report of a pre-training run: one HTML page from what lies in its folder.

    python -m m3ae.reports.pretraining RUN

writes it again. A section is a function from the run to HTML, empty where its file is missing; a
new one joins `SECTIONS`.
"""

import argparse
import html
import json
import re
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from m3ae.files import write_text
from m3ae.reports import parts as parts
from m3ae.reports.parts import Series, absent, is_number, paragraph, section

OBJECTIVES = {
    "mlm": "masked language modelling",
    "mim": "masked image modelling",
    "itm": "image-text matching",
}
# Rows of the key numbers and titles of the curves; an objective's are left out where it is off.
MEASURES = {
    "loss": "Total loss",
    "mlm_loss": "Masked words: loss",
    "mlm_accuracy": "Masked words: accuracy",
    "mim_loss": "Masked patches: loss",
    "itm_loss": "Matching: loss",
    "itm_accuracy": "Matching: accuracy",
}
ARM_MEASURES = {
    "mlm_accuracy": ("Masked words: accuracy", "image"),
    "mlm_attribute_accuracy": ("Masked words that state an attribute: accuracy", "image"),
    "mim_loss": ("Masked patches: loss, lower is better", "text"),
}
ARMS = {"own": "own", "other": "another's", "none": "none"}


@dataclass
class Run:
    """What a run folder holds; a missing file leaves its part empty.

    Log lines come by step, the last of a step standing for it.
    """

    folder: Path
    config_text: str
    environment: dict
    train: list[dict]
    held_out: list[dict]
    notes: list[dict]
    evaluation: dict
    pictures: list[Path]

    @property
    def name(self) -> str:
        """Path below `runs`, else the folder's name."""
        places = self.folder.resolve().parts
        start = len(places) - places[::-1].index("runs") if "runs" in places[:-1] else -1
        return "/".join(places[start:])

    @cached_property
    def config(self) -> dict:
        """The resolved config as plain dictionaries."""
        return yaml.safe_load(self.config_text) or {}

    @cached_property
    def objectives(self) -> list[str]:
        """Active objectives: those with a weight, or without a config those that are logged."""
        if self.config.get("model"):
            weights = {name: self.config["model"].get(name) or {} for name in OBJECTIVES}
            return [name for name, entry in weights.items() if entry.get("weight")]
        keys = {key for line in self.train + self.held_out for key in line}
        return [name for name in OBJECTIVES if f"{name}_loss" in keys]

    def measures(self) -> dict[str, str]:
        """`MEASURES` of the active objectives."""
        active = ("loss", *(f"{name}_" for name in self.objectives))
        return {key: title for key, title in MEASURES.items() if key.startswith(active)}

    def seen(self, line: dict) -> float:
        """Training pairs seen at a log line; a held-out line's `samples` counts held-out pairs."""
        if line["kind"] == "train":
            return line["samples"]
        last = self.train[-1] if self.train else {}
        if last.get("step"):
            return line["step"] * last["samples"] / last["step"]
        return line["step"] * self.config.get("train", {}).get("batch_global", 1)


# ------------------------------------------------------------------------------ reading


def read_run(folder: Path) -> Run:
    """Everything the report needs. Raises ValueError naming the file (and line) that is corrupt."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such run folder")
    config = folder / "config.yaml"
    lines = parts.read_lines(folder / "log.jsonl")
    return Run(
        folder=folder,
        config_text=config.read_text(encoding="utf-8") if config.exists() else "",
        environment=parts.read_json(folder / "environment.json"),
        train=parts.by_step(lines, "train"),
        held_out=parts.by_step(lines, "eval"),
        notes=[line for line in lines if line["kind"] == "note"],
        evaluation=parts.read_json(folder / "evaluation.json"),
        pictures=sorted((folder / "pictures").glob("*.png")),
    )


# ------------------------------------------------------------------------------ sections


def head(run: Run) -> str:
    """Title, what was run in a sentence, what it cost."""
    names = [OBJECTIVES[name] for name in run.objectives]
    listed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    text = f"Pre-training with {listed}" if listed else "Pre-training"
    if run.train:
        step, samples = (parts.count(run.train[-1][key]) for key in ("step", "samples"))
        steps = run.config.get("train", {}).get("steps", "")
        steps = f" of {parts.count(steps)}" if steps else ""
        text += f": {step}{steps} steps, {samples} pairs seen"
    else:
        text += ": no training step is logged"
    if run.environment.get("device"):
        processes = run.environment.get("processes", 1)
        text += f", on {f'{processes} x ' if processes != 1 else ''}{run.environment['device']}"
    title = f"<h1>{html.escape(run.name)}</h1>{paragraph(text + '.')}"
    return title + cost(run)


def cost(run: Run) -> str:
    """Figures of speed and size; medians over the log lines."""

    def values(key: str) -> list[float]:
        return [line[key] for line in run.train if is_number(line.get(key))]

    def middle(key: str) -> float | None:
        return statistics.median(values(key)) if values(key) else None

    figures = {}
    if run.train:
        spent, waited = sum(values("seconds")), sum(values("data_wait_s"))
        rate, memory = middle("samples_per_s"), max(values("peak_memory_gib"), default=None)
        missing = parts.NOT_MEASURED
        figures = {
            "time in training steps": parts.duration(spent or None),
            "speed, median": missing if rate is None else f"{parts.short_count(rate)} pairs/s",
            "of that time, waiting for data": parts.percent(waited / spent if spent else None),
            "model FLOP utilisation": parts.percent(middle("mfu")),
            "peak memory a process": missing if memory is None else f"{memory:.1f} GiB",
        }
    if is_number(parameters := run.environment.get("parameters")):
        figures["parameters"] = parts.short_count(parameters)
    if is_number(flops := run.environment.get("gflop_per_sample")):
        figures["a training pair, both passes"] = f"{parts.short_count(flops)} GFLOP"
    return parts.tiles(figures) if figures else ""


def key_numbers(run: Run) -> str:
    """Held-out losses and accuracies at the start and the end, training ones at the end."""
    ends = [run.held_out[0], run.held_out[-1]] if len(run.held_out) > 1 else run.held_out
    lines = [(f"held out, step {parts.count(line['step'])}", line) for line in ends]
    lines += [(f"training, step {parts.count(line['step'])}", line) for line in run.train[-1:]]
    if not lines:
        return ""
    rows = []
    for key, title in run.measures().items():
        show = parts.loss if key.endswith("loss") else parts.percent
        rows.append([html.escape(title), *(absent(show(line.get(key))) for _, line in lines)])
    note = "Training numbers are those of the last log line, with dropout on."
    if run.held_out and is_number(run.held_out[-1].get("samples")):
        pairs = parts.count(run.held_out[-1]["samples"])
        note = f"Held out: {pairs} pairs, the same masks and pairings every time. {note}"
    body = parts.table(["", *(name for name, _ in lines)], rows)
    return section("Key numbers", body, paragraph(note, note=True))


def modalities(run: Run) -> str:
    """Own, another's and no image (or text): whether the model uses the other modality."""
    measures = run.evaluation.get("measures")
    if not measures:
        return ""
    rows, answers = [], []
    for key, arms in measures.items():
        title, other = ARM_MEASURES.get(key, (key.replace("_", " "), "other modality"))
        is_loss = key.endswith("loss")
        cells = [parts.with_interval(arms.get(arm), is_loss) for arm in ARMS]
        # A gain is own - other's, or for a loss the other way round: above 0 is always better.
        gains = [arms.get(f"own - {arm}", arms.get(f"{arm} - own")) for arm in ("none", "other")]
        cells += [parts.with_interval(gain, is_loss, gain=True) for gain in gains]
        scored = arms.get("own", {}).get("n")
        size = f"; {parts.count(scored)} scored" if is_number(scored) else ""
        rows.append([f"{html.escape(title)}<br><small>arms: the {other}{size}</small>", *cells])
        answers.append(f"{title.partition(':')[0]}: {parts.verdict(gains[0], other)}")
    columns = ["", *ARMS.values(), "gain over none", "gain over another's"]
    text = (
        "Each measure is taken with the pair's own image (or text), with another pair's, and with "
        "none (the mean image, the empty text); brackets are 95 % bootstrap intervals over images."
    )
    note = "Another pair's misleads the model, so the gain over none is the one to go by. A gain "
    note += "above 0 is in favour of the pair's own."
    body = [paragraph(text), "<ul>", *(f"<li>{html.escape(answer)}</li>" for answer in answers)]
    body += ["</ul>", parts.table(columns, rows), paragraph(note, note=True), protocol(run)]
    return section("Are both modalities used?", *body)


def protocol(run: Run) -> str:
    """How the final evaluation was made."""
    evaluation, facts = run.evaluation, []
    if is_number(evaluation.get("step")):
        facts.append(f"after step {parts.count(evaluation['step'])}")
    if is_number(evaluation.get("samples")):
        facts.append(f"{parts.count(evaluation['samples'])} pairs")
    if is_number(evaluation.get("seconds")):
        facts.append(f"took {parts.duration(evaluation['seconds'])}")
    text = f"Final evaluation: {', '.join(facts)}. " if facts else ""
    text += str(evaluation.get("protocol", ""))
    return paragraph(text, note=True) if text else ""


def attributes(run: Run) -> str:
    """Accuracy on the words that state each attribute, by arm."""
    entries = run.evaluation.get("attributes")
    if not entries:
        return ""
    rows = []
    for name, entry in entries.items():
        tag = f' <span class="tag">{html.escape(entry["tag"])}</span>' if entry.get("tag") else ""
        rows.append(
            [
                f"{html.escape(name)}{tag}<br><small>{parts.count(entry.get('n'))} words</small>",
                parts.arm_bars(
                    {label: entry.get(arm) for arm, label in ARMS.items()}, entry.get("majority")
                ),
                absent(parts.percent(entry.get("majority"))),
                parts.with_interval(entry.get("gain"), is_loss=False, gain=True),
            ]
        )
    text = (
        "How often a masked word that states the attribute is predicted, with the pair's own "
        "image, another pair's, and none. The dashed line is the majority rate: what always "
        "giving the most frequent word would score."
    )
    notes = {
        "fine": "fine: can be told only by a close look at the image.",
        "text only": "text only: no image shows it, so it is a control and in no average; what it "
        "gains over the mean image is the price of an unusual image.",
    }
    tags = {entry.get("tag") for entry in entries.values()}
    columns = ["attribute", "accuracy by image shown", "majority rate", "gain over none"]
    body = [paragraph(text), parts.table(columns, rows)]
    body += [paragraph(note, note=True) for tag, note in notes.items() if tag in tags]
    return section("Words that state an attribute", *body, long=True)


def matching(run: Run) -> str:
    """Image-text matching with random and with hard false images."""
    results = run.evaluation.get("itm")
    if not results:
        return ""
    rows = []
    for key, title in {"random": "Random false images", "hard": "Hard false images"}.items():
        entry = results.get(key) or {}
        pairs = absent(parts.count(entry.get("n")))
        rows.append([title, parts.with_interval(entry, is_loss=False), pairs])
    text = "About half of the pairs shown are true ones, so guessing is right about half the time."
    if results.get("hard_rule"):
        text += f" Hard: {str(results['hard_rule']).rstrip('.')}."
    body = parts.table(["", "accuracy", "pairs"], rows)
    return section("Image-text matching", body, paragraph(text, note=True))


# Rows of the fine-tuning table: who is compared with it, by the names that `m3ae.score` was given.
COMPARED = {
    "against": "without pre-training, as many fine-tuning steps",
    "steps": "without pre-training, as many steps in all",
    "other": "with pre-training, shown another's image",
    "none": "with pre-training, shown the mean image",
}


def fine_tuning(run: Run) -> str:
    """What `m3ae.score --json` left in fine_tuning.json: from this run, beside what else."""
    scored = parts.read_json(run.folder / "fine_tuning.json")
    if not scored:
        return ""
    protocol, result = next(iter(scored["results"].items()))
    entries = [result[name] for name in ("overall", "open", "closed")]
    cells = [
        parts.with_interval(_measure(e, "accuracy", "interval"), is_loss=False) for e in entries
    ]
    rows = [["with pre-training", *cells]]
    for name in _compared(entries[0]):
        title = COMPARED.get(name, f"blind: {name}")
        cells = []
        for entry in map(_compared, entries):
            gain = _measure(entry[name], "difference", "difference_interval")
            accuracy = absent(parts.percent(entry[name]["accuracy"]))
            over = parts.with_interval(gain, is_loss=False, gain=True)
            cells.append(f"{accuracy}<br><small>gain over it</small> {over}")
        rows.append([html.escape(title), *cells])
    text = (
        "Accuracy of questions on images, fine-tuned from this run, and from the weights that it "
        f"began with. Protocol {protocol}; brackets are 95 % intervals over images. Blind "
        "baselines never see an image."
    )
    columns = [
        "",
        *(f"{n} ({result[n]['questions']} questions)" for n in ("overall", "open", "closed")),
    ]
    return section("Fine-tuning", paragraph(text), parts.table(columns, rows))


def _compared(entry: dict) -> dict[str, dict]:
    """Everything that a part of the questions is compared with, by name."""
    against = {"against": entry["against"]} if "against" in entry else {}
    return against | entry.get("arms", {}) | entry.get("blind", {})


def _measure(entry: dict, value: str, interval: str) -> dict:
    """A value and its interval as `parts.with_interval` takes them."""
    low, high = entry[interval] or (None, None)
    return {"value": entry[value], "low": low, "high": high}


def curves(run: Run) -> str:
    """Losses and accuracies, learning rates, speed and gradient norm over pairs seen."""

    def series(lines: list[dict], key: str, label: str, colour: str, marked: bool) -> Series:
        y = [line[key] if is_number(line.get(key)) else float("nan") for line in lines]
        return Series(label, [run.seen(line) for line in lines], y, colour, marked)

    charts = [
        parts.chart(
            title,
            [
                series(run.train, key, "training", "c", False),
                series(run.held_out, key, "held out", "a", True),
            ],
            as_percent=key.endswith("accuracy"),
        )
        for key, title in run.measures().items()
    ]
    charts.append(parts.chart("Learning rate", learning_rates(run)))
    for key, title, unit in (
        ("samples_per_s", "Speed", "pairs/s"),
        ("grad_norm", "Gradient norm", ""),
    ):
        charts.append(
            parts.chart(title, [series(run.train, key, "", "a", False)], unit, from_zero=True)
        )
    body = "".join(charts)
    return section("Curves", f'<div class="charts">{body}</div>', long=True) if body else ""


def learning_rates(run: Run) -> list[Series]:
    """One line for each set of parameter groups that share a learning rate."""
    lines = [line for line in run.train if isinstance(line.get("lr"), dict)]
    names = list(dict.fromkeys(name for line in lines for name in line["lr"]))
    shared: dict[tuple, list[str]] = {}
    for name in names:
        rates = tuple(line["lr"].get(name, float("nan")) for line in lines)
        part = name.partition(",")[0]  # "fusion, no decay" -> fusion
        labels = shared.setdefault(rates, [])
        labels += [] if part in labels else [part]
    x = [run.seen(line) for line in lines]
    return [
        Series(" and ".join(labels), x, list(rates), "abc"[number % 3])
        for number, (rates, labels) in enumerate(shared.items())
    ]


def pictures(run: Run) -> str:
    """The first and the last reconstructions."""
    chosen = list(dict.fromkeys(run.pictures[:1] + run.pictures[-1:]))
    if not chosen:
        return ""

    def caption(path: Path) -> str:
        step = re.fullmatch(r"step-(\d+)", path.stem)
        return f"After {parts.count(int(step[1]))} steps" if step else path.stem

    shown = "".join(parts.picture(path, caption(path)) for path in chosen)
    return section("Reconstructions", f'<div class="pictures">{shown}</div>', long=True)


def notes(run: Run) -> str:
    """Messages in the log."""
    if not run.notes:
        return ""
    lines = (
        f"<li>Step {parts.count(note['step'])}: {html.escape(str(note.get('message', '')))}</li>"
        for note in run.notes
    )
    return section("Notes", f"<ul>{''.join(lines)}</ul>", long=True)


def origin(run: Run) -> str:
    """Config and environment, to open on demand."""
    body = ""
    if run.environment:
        shown = {
            name.replace("_", " "): value
            if isinstance(value, str)
            else f"{value:,}"
            if isinstance(value, int) and abs(value) >= 10_000
            else json.dumps(value)
            for name, value in run.environment.items()
        }
        body += parts.details("Environment", parts.facts(shown))
    if run.config_text:
        body += parts.details("Config", f"<pre>{html.escape(run.config_text)}</pre>")
    return section("Where the numbers come from", body, long=True) if body else ""


SECTIONS: tuple[Callable[[Run], str], ...] = (
    head,
    key_numbers,
    modalities,
    attributes,
    matching,
    fine_tuning,
    curves,
    pictures,
    notes,
    origin,
)


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder from what lies there, and return its path.

    A missing file leaves its sections out. Raises ValueError naming the file, and of a log the
    line, that is corrupt; FileNotFoundError without a run folder.
    """
    contents = read_run(Path(run))
    path = contents.folder / "report.html"
    text = parts.page(contents.name, "".join(part(contents) for part in SECTIONS))
    write_text(path, text)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Write the report of a run folder again; 2 if it cannot be read."""
    parser = argparse.ArgumentParser(description="write a run's report.html again")
    parser.add_argument("run", type=Path, help="run folder")
    try:
        print(write_report(parser.parse_args(arguments).run))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
