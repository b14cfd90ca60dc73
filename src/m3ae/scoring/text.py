"""Measures as lines of text: percentages with intervals, aligned tables."""

from collections.abc import Iterator
from typing import Any

SHOWN_CLASSES = 20  # a larger confusion matrix is in the JSON only
STRATA = {
    "leaked_twin": "leaked twin",
    "image_in_train": "image in training",
    "answer_in_train": "answer in training",
    "near_duplicate": "near-duplicate",
}
ARMS = {"other": "another's image", "none": "mean image"}
RELAXED = {
    "token_recall": "token recall",
    "token_f1": "token F1",
    "bleu_1": "BLEU-1",
    "yes_no": "yes or no, read from the prediction",
}
WAYS = {"t2i": "text to image", "i2t": "image to text"}
RANKED = {"auroc": "AUROC", "average_precision": "average precision"}
COVERAGES = (1.0, 0.9, 0.75, 0.5, 0.25)
SIGMOIDS = (
    "note: a score of questions is the sigmoid of one answer alone: those of all answers do not "
    "add up to 1, and it is trained to say whether that answer is right"
)


def percent(value: float | None, sign: str = "") -> str:
    """A fraction as a percentage with two digits; "-" for none."""
    return "-" if value is None else f"{100 * value:{sign}.2f}"


def with_interval(entry: dict[str, Any], key: str) -> str:
    """A fraction of an entry as a percentage with its interval; a difference has its sign."""
    sign, name = ("+", "difference_interval") if key == "difference" else ("", "interval")
    ends = [percent(end, sign) for end in entry.get(name) or ()]
    return percent(entry.get(key), sign) + (f" [{', '.join(ends)}]" if ends else "")


def probability(p: float | None) -> str:
    """A p value with three digits; "-" for none."""
    return "-" if p is None else f"{p:.3g}"


def aligned(lines: list[list[str]]) -> list[str]:
    """Cells as columns, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ready = ([name.ljust(widths[0]), *map(str.rjust, rest, widths[1:])] for name, *rest in lines)
    return ["  ".join(cells).rstrip() for cells in ready]


def entries(result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and entry of each part that has questions, in the order of the table."""
    parts = [(name, result[name]) for name in ("overall", "open", "closed") if name in result]
    parts += [(f"type {name}", entry) for name, entry in result.get("question_type", {}).items()]
    for flag, sides in result.get("strata", {}).items():
        parts += [(f"{STRATA[flag]}: {side}", entry) for side, entry in sides.items()]
    yield from ((name, entry) for name, entry in parts if entry["questions"])


def compared(entry: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a part is compared with, by the names that are printed."""
    out = {f"blind {name}": figures for name, figures in entry.get("blind", {}).items()}
    out |= {ARMS.get(name, name): figures for name, figures in entry.get("arms", {}).items()}
    return out | ({"against": entry["against"]} if "against" in entry else {})


def accuracies(result: dict[str, Any]) -> list[str]:
    """The parts, with a column for the accuracy of all that they are compared with."""
    several = result["runs"] > 1
    head = ["", "questions", "images", "accuracy [95 %]", *(["sd"] if several else [])]
    lines, explored = [[*head, *compared(result["overall"])]], False
    for name, entry in entries(result):
        if entry.get("exploratory") and not explored:
            lines.append(["exploratory:"] + [""] * (len(lines[0]) - 1))
            explored = True
        cells = [str(entry["questions"]), str(entry["images"]), with_interval(entry, "accuracy")]
        cells += [percent(entry["sd"])] if several else []
        cells += [percent(figures["accuracy"]) for figures in compared(entry).values()]
        lines.append([name, *cells])
    return aligned(lines)


def differences(result: dict[str, Any]) -> list[str]:
    """Each comparison of all questions, open and closed ones; of `against`, of all with a p."""
    lines = [["difference from", "difference [95 %]", "p", "Holm p"]]
    for other in compared(result["overall"]):
        for name, entry in entries(result):
            figures = compared(entry)[other]
            if entry.get("exploratory") and (other != "against" or figures["p"] is None):
                continue
            cells = [f"{other}: {name}", with_interval(figures, "difference")]
            lines.append([*cells, probability(figures["p"]), probability(figures.get("p_holm"))])
    if len(lines) == 1:
        return []
    out = ["", *aligned(lines), "p: sign flips of whole images; Holm p: among the exploratory ones"]
    if test := result["overall"].get("against", {}).get("mcnemar"):
        told = "{only_first} right here only, {only_second} there only, p = {p:.4g}"
        out.append(f"McNemar, exact, questions as independent: {told.format(**test)}")
    return out


def result_lines(name: str, result: dict[str, Any]) -> list[str]:
    """What is printed of a result of `measures`, and of what `m3ae.score` adds to it."""
    if name in ("ranks", "labels"):
        return rank_lines(result) if name == "ranks" else label_lines(result)
    title = f"classes, protocol {result['protocol']}" if name == "classes" else f"protocol {name}"
    lines = ["", f"{title}, {runs_of(result)}", *accuracies(result), *differences(result)]
    if inside := result.get("strata", {}).get("answer_in_train", {}).get("yes"):
        fraction = inside["questions"] / result["overall"]["questions"]
        lines.append(f"ceiling of a list of training answers: {percent(fraction)}")
    if macro := result.get("macro_f1"):
        sd = f", sd {percent(macro['sd'])}" if "sd" in macro else ""
        lines.append(f"macro-F1 {with_interval(macro, 'value')}{sd}")
        for other, figures in compared(macro).items():
            told = f"{with_interval(figures, 'difference')}, p = {probability(figures['p'])}"
            lines.append(f"macro-F1 less {other}'s: {told}")
    if "confusion" in result:
        lines += confusion_lines(result["confusion"])
    if relaxed := result.get("relaxed"):
        lines += relaxed_lines(relaxed)
    for side, figures in result.get("calibration", {}).items():
        lines += calibration_lines(side, figures)
    if name != "classes" and result.get("calibration"):
        lines.append(SIGMOIDS)
    return lines


def runs_of(result: dict[str, Any]) -> str:
    """How many runs and resamples, and whether the compared runs share their seeds."""
    text = f"{result['runs']} run(s), {result['samples']} resamples"
    if result["runs"] > 1 and result["paired_seeds"] is not None:
        paired = "paired file by file" if result["paired_seeds"] else "taken as drawn apart"
        text += f"; seeds of the two sides {paired}"
    return text


def confusion_lines(confusion: dict[str, Any]) -> list[str]:
    """The matrix as lines, if it is not too large."""
    classes = confusion["classes"]
    if len(classes) > SHOWN_CLASSES:
        return [f"confusion of {len(classes)} classes: --json has it"]
    lines = [["answer \\ prediction", *(str(k) for k in range(1, len(classes) + 1))]]
    for k, (name, row) in enumerate(zip(classes, confusion["matrix"], strict=True), start=1):
        lines.append([f"{k} {name}", *map(str, row)])
    return aligned(lines)


def value_lines(measured: dict[str, dict[str, Any]], *head: str) -> list[str]:
    """A line a value with its interval, and what it is compared with; head: of two columns."""
    lines = [["", *head, "sd", "against", "difference [95 %]", "p"]]
    for name, entry in measured.items():
        other = entry.get("against", {})
        cells = [str(entry["questions"]), with_interval(entry, "value"), percent(entry.get("sd"))]
        cells += [percent(other.get("value")), with_interval(other, "difference")]
        lines.append([name, *cells, probability(other.get("p"))])
    return aligned(lines)


def rank_lines(result: dict[str, Any]) -> list[str]:
    """Recalls of both ways, and median ranks."""
    ways = [way for way in WAYS if way in result]
    measured = {f"{WAYS[way]} R@{k}": result[way][f"r{k}"] for way in ways for k in (1, 5, 10)}
    median = "{}: median rank {median_rank:g} of {pool}"
    pools = [median.format(WAYS[way], **result[way]) for way in ways]
    lines = value_lines(measured, "queries", "recall [95 %]")
    return ["", f"ranks, {runs_of(result)}", *lines, *pools]


def label_lines(result: dict[str, Any]) -> list[str]:
    """Of each measure the mean over classes and each class; what the mean is compared with."""
    lines = ["", f"findings, protocol {result['protocol']}, {runs_of(result)}"]
    for measure, title in RANKED.items():
        macro, by_class = result[measure]["macro"], result[measure]["by_class"]
        shown = {f"{title}: mean of {len(by_class)} classes": {**macro, "questions": ""}}
        shown |= {f"{title}: {name}": entry for name, entry in by_class.items()}
        positives = {name: {**e, "questions": e.get("positives", "")} for name, e in shown.items()}
        lines += value_lines(positives, "positives", "value [95 %]")
        for other, figures in compared(macro).items():
            told = f"{with_interval(figures, 'difference')}, p = {probability(figures['p'])}"
            lines.append(f"mean {title} less {other}'s: {told}")
    left_out = [f"{name} ({why})" for name, why in result["left_out"].items()]
    return lines + ([f"left out, of the mean too: {', '.join(left_out)}"] if left_out else [])


def relaxed_lines(relaxed: dict[str, Any]) -> list[str]:
    """The second table, and what its measures are."""
    measured = {
        f"{RELAXED[name]}: {part}": entry
        for name, parts in relaxed["measures"].items()
        for part, entry in parts.items()
    }
    unparsed = ", ".join(map(str, relaxed["unparsed"]))
    asked = relaxed["measures"]["yes_no"]["overall"]["questions"]
    return [
        "",
        "relaxed measures, for answers in sentences; not exact match, nor to be mixed with it",
        *value_lines(measured, "questions", "value [95 %]"),
        *(f"{RELAXED[name]}: {text}" for name, text in relaxed["definitions"].items()),
        f"neither yes nor no in the prediction of {unparsed} of {asked} such questions: wrong",
    ]


def calibration_lines(side: str, figures: dict[str, Any]) -> list[str]:
    """Calibration error, and accuracy where the least certain answers are withheld."""
    error, bins = with_interval(figures, "error"), len(figures["bins"])
    at = {point["coverage"]: percent(point["accuracy"]) for point in figures["coverage"]}
    kept = ", ".join(f"{at[coverage]} at {100 * coverage:g} %" for coverage in COVERAGES)
    return [
        "",
        f"calibration of {side}: expected calibration error {error}, {bins} bins of equal numbers; "
        f"by chance alone {percent(figures['by_chance'])}",
        f"accuracy where only the most certain answers count: {kept}; "
        f"area {percent(figures['area'])}",
    ]
