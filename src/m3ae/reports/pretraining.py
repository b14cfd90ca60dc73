"""The report of a pre-training run: one HTML page from what lies in its folder.

python -m m3ae.reports.pretraining RUN writes it again.
"""

import html
import json
import re
import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from statistics import median

from m3ae import strict_yaml
from m3ae.files import read_text
from m3ae.reports import parts
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


class Run:
    """What a run folder holds, log lines by step; a missing file leaves its part empty."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such run folder")
        self.folder, config = folder, folder / "config.yaml"
        self.config_text = read_text(config) if config.exists() else ""
        self.config = strict_yaml.read_file(config) if config.exists() else {}
        self.environment = parts.read_json(folder / "environment.json")
        self.evaluation = parts.read_json(folder / "evaluation.json")
        lines = parts.read_lines(folder / "log.jsonl")
        self.train, self.held_out = (parts.by_step(lines, kind) for kind in ("train", "eval"))
        self.notes = [line for line in lines if line["kind"] == "note"]
        self.pictures = sorted((folder / "pictures").glob("*.png"))

    @property
    def name(self) -> str:
        """Path below `runs`, else the folder's name."""
        places = self.folder.resolve().parts
        start = len(places) - places[::-1].index("runs") if "runs" in places[:-1] else -1
        return "/".join(places[start:])

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
    return f"<h1>{html.escape(run.name)}</h1>{paragraph(text + '.')}{cost(run)}"


def cost(run: Run) -> str:
    """Figures of speed and size; medians over the log lines."""

    def values(key: str) -> list[float]:
        return [line[key] for line in run.train if is_number(line.get(key))]

    figures = {}
    if run.train:
        spent, waited = sum(values("seconds")), sum(values("data_wait_s"))
        rates, used, memory = map(values, ("samples_per_s", "mfu", "peak_memory_gib"))
        figures = {
            "time in training steps": parts.duration(spent or None),
            "speed, median": f"{parts.short_count(median(rates))} pairs/s" if rates else None,
            "of that time, waiting for data": parts.percentage(waited / spent if spent else None),
            "model FLOP utilisation": parts.percentage(median(used) if used else None),
            "peak memory a process": f"{max(memory):.1f} GiB" if memory else None,
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
        show = parts.loss if key.endswith("loss") else parts.percentage
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
    body = [paragraph(text), parts.bullets(answers), parts.table(columns, rows)]
    body += [paragraph(note, note=True), protocol(run)]
    return section("Are both modalities used?", *body)


def protocol(run: Run) -> str:
    """How the final evaluation was made."""
    step, samples, seconds = (run.evaluation.get(key) for key in ("step", "samples", "seconds"))
    facts = [f"after step {parts.count(step)}"] if is_number(step) else []
    facts += [f"{parts.count(samples)} pairs"] if is_number(samples) else []
    facts += [f"took {parts.duration(seconds)}"] if is_number(seconds) else []
    text = f"Final evaluation: {', '.join(facts)}. " if facts else ""
    text += str(run.evaluation.get("protocol", ""))
    return paragraph(text, note=True) if text else ""


def attributes(run: Run) -> str:
    """Accuracy on the words that state each attribute, by arm."""
    entries = run.evaluation.get("attributes")
    if not entries:
        return ""
    rows = []
    for name, entry in entries.items():
        tag = f' <span class="tag">{html.escape(entry["tag"])}</span>' if entry.get("tag") else ""
        words, majority = parts.count(entry.get("n")), entry.get("majority")
        bars = parts.arm_bars({ARMS[arm]: entry.get(arm) for arm in ARMS}, majority)
        gain = parts.with_interval(entry.get("gain"), gain=True)
        title = f"{html.escape(name)}{tag}<br><small>{words} words</small>"
        rows.append([title, bars, absent(parts.percentage(majority)), gain])
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
        rows.append([title, parts.with_interval(entry), absent(parts.count(entry.get("n")))])
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
    names = ("overall", "open", "closed")
    rows = [["with pre-training", *(measured(result[name], "accuracy") for name in names)]]
    for other in compared(result["overall"]):
        cells = [html.escape(COMPARED.get(other, f"blind: {other}"))]
        for name in names:
            entry = compared(result[name])[other]
            accuracy, over = (
                absent(parts.percentage(entry["accuracy"])),
                measured(entry, "difference"),
            )
            cells.append(f"{accuracy}<br><small>gain over it</small> {over}")
        rows.append(cells)
    text = (
        "Accuracy of questions on images, fine-tuned from this run, and from the weights that it "
        f"began with. Protocol {protocol}; brackets are 95 % intervals over images. Blind "
        "baselines never see an image."
    )
    columns = [f"{name} ({result[name]['questions']} questions)" for name in names]
    return section("Fine-tuning", paragraph(text), parts.table(["", *columns], rows))


def compared(entry: dict) -> dict[str, dict]:
    """Everything that a part of the questions is compared with, by name."""
    against = {"against": entry["against"]} if "against" in entry else {}
    return against | entry.get("arms", {}) | entry.get("blind", {})


def measured(entry: dict, key: str) -> str:
    """An accuracy, or the difference of two, with its interval."""
    gain = key == "difference"
    low, high = entry["difference_interval" if gain else "interval"] or (None, None)
    return parts.with_interval({"value": entry[key], "low": low, "high": high}, gain=gain)


def curves(run: Run) -> str:
    """Losses and accuracies, learning rates, speed and gradient norm over pairs seen."""

    def series(lines: list[dict], key: str, label: str = "", colour: str = "a") -> Series:
        y = [line[key] if is_number(line.get(key)) else float("nan") for line in lines]
        x = [run.seen(line) for line in lines]
        return Series(label, x, y, colour, marked=lines is run.held_out)

    body = ""
    for key, title in run.measures().items():
        train = series(run.train, key, "training", "c")
        held_out = series(run.held_out, key, "held out")
        body += parts.chart(title, [train, held_out], as_percent=key.endswith("accuracy"))
    body += parts.chart("Learning rate", learning_rates(run))
    body += parts.chart("Speed, pairs/s", [series(run.train, "samples_per_s")], from_zero=True)
    body += parts.chart("Gradient norm", [series(run.train, "grad_norm")], from_zero=True)
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
    lines = [f"Step {parts.count(note['step'])}: {note.get('message', '')}" for note in run.notes]
    return section("Notes", parts.bullets(lines), long=True)


def origin(run: Run) -> str:
    """The section of config and environment."""
    body = kept_files(run)
    return section("Where the numbers come from", body, long=True) if body else ""


def kept_files(run: Run) -> str:
    """Config and environment, to open on demand."""

    def shown(value: object) -> str:
        if isinstance(value, str):
            return value
        large = isinstance(value, int) and abs(value) >= 10_000
        return f"{value:,}" if large else json.dumps(value)

    body = ""
    if run.environment:
        facts = {name.replace("_", " "): shown(value) for name, value in run.environment.items()}
        body += parts.details("Environment", parts.facts(facts))
    if run.config_text:
        body += parts.details("Config", f"<pre>{html.escape(run.config_text)}</pre>")
    return body


# Each gives HTML, empty where its file is missing.
SECTIONS: list[Callable[[Run], str]] = [head, key_numbers, modalities, attributes, matching]
SECTIONS += [fine_tuning, curves, pictures, notes, origin]


def write_report(run: Path) -> Path:
    """Write `report.html` into a run folder from what lies there, and return its path.

    ValueError names the file, and of a log the line, that is corrupt; FileNotFoundError the folder.
    """
    contents = Run(Path(run))
    return parts.write_page(contents, SECTIONS)


def main(arguments: list[str] | None = None) -> int:
    """Write the report of a run folder again; 2 if it cannot be read."""
    return parts.command(__doc__, write_report, arguments)


if __name__ == "__main__":
    sys.exit(main())
