r"""The tables of docs/results that rest on predictions, from the kept files: `make results`.

    python benchmarks/results.py            write them into the pages again
    python benchmarks/results.py --check    only say which would change, and fail if any would

A page has each table between `<!-- table NAME -->` and `<!-- end -->`. Kept rows hold no text of a
corpus: what was predicted, and whether it is right (docs/scoring.md). Percent; 95 % intervals over
images, over several seeds with a t quantile (docs/results/coverage.md).
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from m3ae.scoring.measures import measure_answers, measure_classes, measure_ranks
from m3ae.scoring.predictions import Row, complete, read_predictions

PAGES = Path(__file__).parent.parent / "docs/results"
SEEDS = (0, 1, 2)
PARTS = {"overall": ("overall",), "open": ("open",), "closed": ("closed",)}
MED_PARTS = PARTS | {name: ("question_type", name) for name in ("modality", "organ", "plane")}


@cache
def kept(name: str) -> list[Row]:
    """Rows of a kept file, e.g. vqa_vits/vqa_rad_paper_s0."""
    path = PAGES / f"{name}.jsonl.gz"
    return complete(read_predictions(path), str(path))


def runs(name: str, seeds: Sequence[int] = SEEDS) -> list[list[Row]]:
    """Rows of each seed of an arm."""
    return [kept(f"vqa_vits/{name}_s{seed}") for seed in seeds]


def part_of(measured: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """An entry of what `measure_answers` gives."""
    for step in path:
        measured = measured[step]
    return measured


def shown(value: float | None, ends: Sequence[float] | None, sign: str = "") -> str:
    """A percentage with one digit, and its interval."""
    if value is None:
        return ""
    text = f"{100 * value:{sign}.1f}"
    return text if ends is None else f"{text} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def line(label: str, cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f"| {label} | {' | '.join(cells)} |"


def accuracy_line(
    label: str, arm: list[list[Row]], protocol: str, parts: dict[str, tuple[str, ...]]
) -> str:
    """Accuracy by part, and overall by seed."""
    measured = measure_answers(arm, protocol)
    entries = [part_of(measured, path) for path in parts.values()]
    cells = [shown(entry["accuracy"], entry["interval"]) for entry in entries]
    by_seed = ", ".join(f"{100 * value:.1f}" for value in measured["overall"].get("accuracies", ()))
    return line(label, [*cells, by_seed])


def difference_line(
    label: str,
    arm: list[list[Row]],
    other: list[list[Row]],
    protocol: str,
    parts: dict[str, tuple[str, ...]],
) -> str:
    """The first arm's accuracy less the other's, by part."""
    measured = measure_answers(arm, protocol, against=other)
    compared = [part_of(measured, path)["against"] for path in parts.values()]
    cells = [shown(c["difference"], c["difference_interval"], "+") for c in compared]
    return line(label, [*cells, ""])


def head(label: str, names: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [line(label, names), "|---" * (1 + len(names)) + "|"]


# ------------------------------------------------------------------ vqa_vits.md


def rad(protocol: str) -> list[str]:
    """VQA-RAD: blind baselines, initial weights, pre-trained, and the gain."""
    pre, initial = runs(f"vqa_rad_{protocol}"), runs(f"vqa_rad_init_{protocol}")
    lines = head(f"`{protocol}`", [*PARTS, "overall by seed"])
    for name, title in (("majority", "majority of a type"), ("nearest", "nearest question")):
        blind = [kept(f"vqa_vits/vqa_rad_blind_{name}_{protocol}")]
        lines.append(accuracy_line(f"blind: {title}", blind, protocol, PARTS))
    lines.append(accuracy_line("initial weights", initial, protocol, PARTS))
    lines.append(accuracy_line("pre-trained", pre, protocol, PARTS))
    lines.append(difference_line("pre-trained over initial", pre, initial, protocol, PARTS))
    if protocol == "paper":
        lines += [
            "| published BAN | 58.30 | 37.40 | 72.10 | |",
            "| published M3AE without pre-training | 58.48 | 24.67 | 80.78 | |",
            "| published M3AE | 77.01 | 67.23 | 83.46 | |",
        ]
    return lines


def med(protocol: str) -> list[str]:
    """VQA-Med-2019: the same, with the control of equal fine-tuning steps and the modality's."""

    def arm(name: str, seeds: Sequence[int] = SEEDS) -> list[list[Row]]:
        return runs(f"vqa_med_{name}_{protocol}", seeds)

    pre, initial, shorter = arm("pretrained"), arm("initial"), arm("initial_6_epochs", (0, 1))
    rate, without = arm("pretrained_5e-4", (0,)), arm("no_modality_5e-4", (0,))
    blind = [kept("vqa_vits/vqa_med_blind_nearest_paper")]
    lines = head(f"`{protocol}`", [*MED_PARTS, "overall by seed"])
    for label, some in (
        ("blind: nearest question", blind),
        ("initial weights, 9 epochs", initial),
        ("initial weights, 6 epochs (2 seeds)", shorter),
        ("pre-trained, 6 epochs", pre),
    ):
        lines.append(accuracy_line(label, some, protocol, MED_PARTS))
    for label, some, other in (
        ("pre-trained over initial, 9 epochs", pre, initial),
        ("pre-trained over initial, 6 epochs (2 seeds)", pre[:2], shorter),
    ):
        lines.append(difference_line(label, some, other, protocol, MED_PARTS))
    label = "the same rate: pre-trained, 5e-4, one seed"
    lines.append(accuracy_line(label, rate, protocol, MED_PARTS))
    label = "captions without the modality, 5e-4, one seed"
    lines.append(accuracy_line(label, without, protocol, MED_PARTS))
    lines.append(difference_line("with it over without it", rate, without, protocol, MED_PARTS))
    if protocol == "paper":
        lines += [
            "| published MEVF-SAN | 68.90 | | | | | | |",
            "| published M3AE | 79.87 | | | | | | |",
        ]
    return lines


def far_rows() -> list[str]:
    """Without VQA-Med's near-duplicate test images."""

    def far(arm: list[list[Row]]) -> list[list[Row]]:
        return [[row for row in rows if not row["near_duplicate"]] for rows in arm]

    lines = head("`paper`, without near-duplicates", [*PARTS, "overall by seed"])
    for label, name in (("pre-trained", "pretrained"), ("initial weights, 9 epochs", "initial")):
        lines.append(accuracy_line(label, far(runs(f"vqa_med_{name}_paper")), "paper", PARTS))
    return lines


def first_look() -> list[str]:
    """One seed, all parameters trained."""
    lines = head("`paper`", ["without pre-training", "pre-trained", "gain"])
    for label, name, other in (
        ("VQA-Med, 2 epochs", "med_84px", "med_84px_scratch"),
        ("VQA-Med, 112 px, 4 epochs", "med_112px", None),
        ("VQA-RAD, 12 epochs", "rad_84px", None),
    ):
        against = [] if other is None else [kept(f"vqa_vits/first_look_{other}")]
        entry = measure_answers([kept(f"vqa_vits/first_look_{name}")], "paper", against=against)
        own, compared = entry["overall"], entry["overall"].get("against")
        cells = ["", shown(own["accuracy"], own["interval"]), ""]
        if compared:
            cells[0] = shown(compared["accuracy"], compared["interval"])
            cells[2] = shown(compared["difference"], compared["difference_interval"], "+")
        lines.append(line(label, cells))
    return lines


# ------------------------------------------------------------------ small_real.md


def small_real(corpus: str, protocol: str) -> list[str]:
    """Frozen encoders under a small head: what it is shown, and what its own image gives it."""
    parts = MED_PARTS if corpus == "med" else PARTS

    def arm(name: str) -> list[list[Row]]:
        return [kept(f"small_real/{corpus}_{protocol}_{name}_s{seed}") for seed in SEEDS]

    own = arm("own")
    others = {
        "another's image": "other",
        "the mean image": "none",
        "question-only": "question_only",
    }
    lines = head(f"`{protocol}`", [*parts, "overall by seed"])
    lines.append(accuracy_line("own image", own, protocol, parts))
    lines += [accuracy_line(label, arm(name), protocol, parts) for label, name in others.items()]
    label = "own image over question-only"
    lines.append(difference_line(label, own, arm("question_only"), protocol, parts))
    if corpus == "med" and protocol == "paper":
        lines.append("| published MEVF-BAN | 77.86 | | | | | | |")
    return lines


# ------------------------------------------------------------------ strict_cost.md


def strict_cost() -> list[str]:
    """Each line against the one before, all at the epoch that its run selected."""
    names = [name for part in PARTS for name in (part, "cost")]
    lines, before = head("", names), None
    for label, name in (
        ("paper", "paper"),
        ("no leaked rows", "unleaked"),
        ("held-out selection, training answers", "strict"),
        ("no shared images", "disjoint"),
    ):
        arm = runs(f"vqa_rad_{name}")
        measured = measure_answers(arm, "paper", against=before or [])
        cells = []
        for part in PARTS:
            entry = measured[part]
            cells.append(shown(entry["accuracy"], entry["interval"]))
            compared = entry.get("against")
            ends = compared and compared["difference_interval"]
            cost = None if compared is None else -compared["difference"]
            cells.append(shown(cost, ends and [-ends[1], -ends[0]]))
        lines.append(line(label, cells))
        before = arm
    return lines


def twins() -> list[str]:
    """Test questions that have a leaked twin in training, and those that have none."""
    lines = head("", ["with a leaked twin", "without one"])
    for label, name in (("trained on the leaked rows", "paper"), ("without them", "unleaked")):
        strata = measure_answers(runs(f"vqa_rad_{name}"), "paper")["strata"]["leaked_twin"]
        entries = [strata[side] for side in ("yes", "no")]
        cells = [f"{shown(e['accuracy'], e['interval'])} of {e['questions']}" for e in entries]
        lines.append(line(label, cells))
    return lines


# ------------------------------------------------------------------ quickstart.md


def quickstart() -> list[str]:
    """Accuracy of each, and the pre-trained model's gain over it."""
    own = [kept("quickstart/pretrained")]
    lines = head("", [name for part in PARTS for name in (part, "gain over it")])
    for label, name in (
        ("with pre-training", ""),
        ("without, as many fine-tuning steps", "scratch"),
        ("without, as many steps in all", "scratch_longer"),
        ("with pre-training, another's image", "pretrained_other"),
        ("with pre-training, the mean image", "pretrained_none"),
        ("blind: majority", "blind_majority"),
        ("blind: nearest question", "blind_nearest"),
    ):
        other = [kept(f"quickstart/{name}")] if name else []
        measured = measure_answers(own, "image_disjoint", against=other)
        cells = []
        for part in PARTS:
            entry = measured[part].get("against", measured[part])
            cells.append(shown(entry["accuracy"], entry["interval"]))
            cells.append(shown(entry.get("difference"), entry.get("difference_interval"), "+"))
        lines.append(line(label, cells))
    return lines


def zero_shot() -> list[str]:
    """Recalls both ways of the ITM head, without fine-tuning."""
    columns = {"text to image": "t2i", "image to text": "i2t"}
    names = [f"{title} R@{k}" for title in columns for k in (1, 5, 10)]
    lines = head("", names)
    for protocol in ("strict", "paper"):
        rows = read_predictions(PAGES / f"quickstart/ranks_{protocol}.jsonl.gz")
        measured = measure_ranks([rows])
        entries = [measured[way][f"r{k}"] for way in columns.values() for k in (1, 5, 10)]
        cells = [shown(entry["value"], entry["interval"]) for entry in entries]
        lines.append(line(f"`{protocol}`", cells))
    return lines


# ------------------------------------------------------------------ few_labels.md


def few_labels() -> list[str]:
    """Classes from 20 labelled images, settings fixed beforehand: accuracy, by seed, and gain."""
    lines = head("", ["pre-trained", "by seed", "scratch", "by seed", "gain", "p"])
    for task in ("plane", "kind", "modality"):
        pre, scratch = (
            [kept(f"few_labels/{task}_{arm}_s{seed}") for seed in SEEDS]
            for arm in ("pretrained", "scratch")
        )
        entry = measure_classes(pre, "strict", against=scratch)["overall"]
        cells = []
        for side in (entry, entry["against"]):
            by_seed = ", ".join(f"{100 * value:.1f}" for value in side["accuracies"])
            cells += [shown(side["accuracy"], side["interval"]), by_seed]
        compared = entry["against"]
        cells.append(shown(compared["difference"], compared["difference_interval"], "+"))
        cells.append(f"{compared['p']:.4f}")
        lines.append(line(f"{task}, {entry['questions']} images", cells))
    return lines


# ------------------------------------------------------------------ pages

TABLES: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "vqa_rad_paper": ("vqa_vits.md", lambda: rad("paper")),
    "vqa_rad_strict": ("vqa_vits.md", lambda: rad("strict")),
    "vqa_med_paper": ("vqa_vits.md", lambda: med("paper")),
    "vqa_med_strict": ("vqa_vits.md", lambda: med("strict")),
    "near_duplicates": ("vqa_vits.md", far_rows),
    "first_look": ("vqa_vits.md", first_look),
    **{
        f"small_real_{corpus}_{protocol}": (
            "small_real.md",
            functools.partial(small_real, corpus, protocol),
        )
        for corpus in ("med", "rad")
        for protocol in ("paper", "strict")
    },
    "quickstart": ("quickstart.md", quickstart),
    "zero_shot": ("quickstart.md", zero_shot),
    "few_labels": ("few_labels.md", few_labels),
    "strict_cost": ("strict_cost.md", strict_cost),
    "leaked_twins": ("strict_cost.md", twins),
}


def replaced(text: str, name: str, table: Sequence[str]) -> str:
    """A page with the table of that name; ValueError where it has no place for it."""
    begin, end = f"<!-- table {name} -->\n", "<!-- end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"no `{begin.strip()}` ... `{end}` in the page")
    return "\n".join([f"{before}{begin.rstrip()}", *table, f"{end}{after}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check every table; 1 where one would change."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(argv).check
    changed = []
    for name, (page, make) in TABLES.items():
        path = PAGES / page
        old = path.read_text(encoding="utf-8")
        new = replaced(old, name, make())
        if new != old:
            changed.append(name)
            if not check:
                path.write_text(new, encoding="utf-8")
    print(f"{len(TABLES)} tables, changed: {', '.join(changed) or 'none'}")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
