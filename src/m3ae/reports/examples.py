"""Parts of the fine-tuning report that rest on single predictions: questions, confusion, scores."""

import hashlib
import html
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from m3ae.data.shards import Shards
from m3ae.reports import parts
from m3ae.reports.differences import images_of
from m3ae.reports.parts import Series, paragraph, section
from m3ae.reports.pretraining import Run, measured
from m3ae.scoring.answers import normalise_answer
from m3ae.scoring.calibration import measure_calibration, why_not
from m3ae.scoring.predictions import (
    Row,
    Rows,
    complete,
    is_right,
    kind_of,
    read_predictions,
    reference,
)
from m3ae.scoring.text import SIGMOIDS, WAYS

KINDS = {"right": 7, "wrong": 7, "confident": 6}  # how many of each are shown
MOST_ANSWERS = 12  # of the confusion matrix
OTHER = "(any other)"
GRID = "grid-template-columns: repeat(auto-fill, minmax(min(100%, 11rem), 1fr))"
RULES = {
    "answers": "{right} that are right, {wrong} that are wrong, and the {confident} wrong ones "
    "with the highest score",
    "labels": "{right} whose likeliest class is one of theirs, {wrong} where it is not, and the "
    "{confident} of these with the highest score",
    "ranks": "{right} captions whose image comes first, {wrong} whose image does not, and the "
    "{confident} with the lowest places",
}
TITLES = {
    "answers": ("Right", "Wrong", "Most confident and wrong"),
    "labels": ("Right", "Wrong", "Most confident and wrong"),
    "ranks": ("Found at once", "Not found at once", "Furthest from found"),
}
NAMES = {"answers": "questions", "classes": "texts", "labels": "texts", "ranks": "captions"}
ORDER = "Among equals the first in the order of the SHA-256 of their ids, which no figure moves."


def predictions_of(run: Run, protocol: str) -> list[Row]:
    """The test predictions, or ranks, of a protocol, complete; [] where the run has no file."""
    for name in (f"predictions-{protocol}.jsonl", f"ranks-{protocol}.jsonl"):
        for path in (run.folder / name, run.folder / f"{name}.gz"):
            if path.is_file():
                return complete(read_predictions(path), str(path))
    return []


# ------------------------------------------------------------------------------ questions


def choose(rows: Rows, protocol: str) -> dict[str, list[Row]]:
    """Rows to show by kind of `KINDS`, as `RULES` and `ORDER` say it; none twice.

    Each row has `said`, `truth` and `sure`, by which the most confident ones are found.
    """
    shown = [_judged(row, protocol) for row in rows if row.get("way", "t2i") == "t2i"]
    shown.sort(key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    right = [row for row in shown if row["hit"]]
    wrong = [row for row in shown if not row["hit"]]
    sure = sorted((row for row in wrong if row["sure"] is not None), key=lambda row: -row["sure"])
    confident = sure[: KINDS["confident"]]
    taken = {row["id"] for row in confident}
    rest = [row for row in wrong if row["id"] not in taken]
    return {
        "right": right[: KINDS["right"]],
        "wrong": rest[: KINDS["wrong"]],
        "confident": confident,
    }


def _judged(row: Row, protocol: str) -> Row:
    kind = kind_of(row)
    if kind == "ranks":
        said, hit = f"place {row['rank']:,} of {row['pool']:,}", row["rank"] == 1
        return {**row, "said": said, "truth": "", "hit": hit, "sure": row["rank"]}
    if kind == "labels":
        told = {k: x for k, x in row["scores"].items() if k not in row.get("unlabelled", ())}
        first = max(told, key=told.__getitem__) if told else None
        truth = ", ".join(row["labels"]) or "none of them"
        score, hit = told.get(first), first in row["labels"]
        return {**row, "said": first or "nothing", "truth": truth, "hit": hit, "sure": score}
    truth = row.get("answer", reference(row)) or ""
    said, hit = row.get("prediction") or "no answer", is_right(row, protocol)
    return {**row, "said": said, "truth": truth, "hit": hit, "sure": row.get("score")}


def best_scores(row: Row) -> list[tuple[str, float]]:
    """What a row gives the most to: answers or classes with their scores, five at most."""
    if "scores" in row:
        return sorted(row["scores"].items(), key=lambda item: -item[1])[:5]
    return [(name, score) for name, score in row.get("top", ())][:5]


def questions(run: Run, rows: Rows, protocol: str, entry: dict[str, Any], where: str) -> str:
    """Twenty questions with their pictures, chosen by a stated rule."""
    if not rows:
        return ""
    name = NAMES[kind_of(rows[0])]
    kind = kind_of(rows[0]) if kind_of(rows[0]) in RULES else "answers"
    chosen = choose(rows, protocol)
    split = "valid" if entry.get("pool") == "valid" else "test"
    wanted = [row for some in chosen.values() for row in some]
    pictures, texts, lacking = _from_split(run, split, wanted)
    body = [paragraph(f"Of each kind, as far as there are: {RULES[kind].format(**KINDS)}. {ORDER}")]
    body += [paragraph(lacking, note=True)] if lacking else []
    for title, some in zip(TITLES[kind], chosen.values(), strict=True):
        cards = "".join(_card(row, pictures.get(row["image"]), name[:-1], texts) for row in some)
        head = f"<h3>{title} ({len(some)})</h3>"
        body.append(f'{head}<div class="pictures" style="{GRID}">{cards}</div>')
    number = {7 + 7 + 6: "Twenty"}.get(len(wanted), str(len(wanted)))
    return section(f"{number} {name}{where}", *body, long=True)


def _card(row: Row, source: str | None, name: str, texts: dict[str, str]) -> str:
    """One question (or what `name` says): its image, if any, what was asked, true and said."""
    key = html.escape(row["image"])
    picture = f'<img alt="{key}" src="{source}">' if source else ""
    told = {name: row.get("question") or texts.get(row["id"], "")}
    told |= {"truth": row["truth"], "said": row["said"]}
    if "top" in row or "scores" in row:
        told["scores"] = ", ".join(f"{name} {score:.2f}" for name, score in best_scores(row))
    facts = parts.facts({name: text for name, text in told.items() if text})
    return f"<figure><figcaption>{html.escape(row['id'])}</figcaption>{picture}{facts}</figure>"


def _from_split(
    run: Run, split: str, rows: Rows
) -> tuple[dict[str, str], dict[str, str], str | None]:
    """Pictures by image key and, of ranks, texts by id; what is not to be had, in words."""
    folder = (run.config.get("data") or {}).get(split)
    if not folder or not (Path(folder) / "manifest.json").is_file():
        return {}, {}, f"No pictures: the prepared split (data.{split}: {folder}) is not here."
    shards, wanted = Shards(folder), {row["image"] for row in rows}
    pictures, texts = images_of(shards, wanted), {}
    if any("rank" in row for row in rows):
        ids = {row["id"] for row in rows}
        keys = ((k, shards.text_key(k)) for k in range(len(shards)))
        texts = {key: shards.text(k) for k, key in keys if key in ids}
    lacking = wanted - pictures.keys()
    told = f"{len(lacking)} of {len(wanted)} images are not in {folder}, e.g. "
    return pictures, texts, told + min(lacking) + "." if lacking else None


# ------------------------------------------------------------------------------ confusion


def confusion(rows: Rows, protocol: str, where: str) -> str:
    """Which of the most frequent answers are given in place of which."""
    if not rows or kind_of(rows[0]) not in ("answers", "classes"):
        return ""
    pairs = [_pair(row, protocol) for row in rows]
    if any(true is None for true, _ in pairs):
        return ""
    names = [name for name, _ in Counter(true for true, _ in pairs).most_common(MOST_ANSWERS)]
    more = any(true not in names or said not in names for true, said in pairs)
    shown = [*names, *([OTHER] if more else [])]
    counts = Counter(
        tuple(name if name in names else OTHER for name in (true, said)) for true, said in pairs
    )
    # A true answer that is rare, got right, stands with the others of its kind.
    numbers = [str(k) for k in range(1, len(names) + 1)] + (["other"] if more else [])
    lines = "".join(
        _line(
            f"{number} {name}" if name != OTHER else name, [counts[name, other] for other in shown]
        )
        for number, name in zip(numbers, shown, strict=True)
    )
    heads = "".join(
        f'<th scope="col">{number}</th>' for number in ("true \\ said", *numbers, "all")
    )
    table = f'<table class="matrix"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>'
    text = (
        f"Rows are the {len(names)} most frequent true answers of the test set, columns what was "
        "said; a right one is on the diagonal. Shaded by its share of the row."
    )
    title = f"Most frequent answers and what is taken for them{where}"
    return section(title, paragraph(text), f'<div class="wide">{table}</div>', long=True)


def _pair(row: Row, protocol: str) -> tuple[str | None, str]:
    """The true answer and the one given, which is the true one where it counts as right."""
    true, said = reference(row), row.get("prediction") or "no answer"
    said = normalise_answer(said) if "type" in row else said
    return true, true if true is not None and is_right(row, protocol) else said


def _line(name: str, counts: list[int]) -> str:
    total = sum(counts)
    cells = "".join(
        f'<td class="cell" style="--share: {count / max(1, total):.2f}">{count or ""}</td>'
        for count in counts
    )
    return f'<tr><th scope="row">{html.escape(name)}</th>{cells}<td>{total}</td></tr>'


# ------------------------------------------------------------------------------ scores


def calibration(run: Run, rows: Rows, protocol: str, where: str) -> str:
    """Whether the scores are probabilities of being right, and what they tell apart."""
    if not rows or kind_of(rows[0]) == "ranks":
        return ""
    several = kind_of(rows[0]) == "labels"
    scored = [each for row in rows for each in by_class(row)] if several else rows
    if (why := why_not([scored])) is not None:
        return paragraph(f"Calibration{where}: not measured, for {why or 'there are no scores'}.")
    samples = (run.config.get("eval") or {}).get("samples", 0)
    found = measure_calibration([scored], protocol, samples=min(samples, 2000))
    bins, kept = found["bins"], found["coverage"]
    x, y = ([some[key] for some in bins] for key in ("score", "accuracy"))
    lines = [Series("scores that are right", [0, 1], [0, 1], "c"), Series("found", x, y, "a", True)]
    title, over = f"Reliability{where}", "mean score of a bin"
    body = parts.chart(title, lines, as_percent=True, from_zero=True, over=over)
    if not several:
        x, y = ([point[key] for point in kept] for key in ("coverage", "accuracy"))
        title, over = f"Accuracy of the most certain{where}", "fraction answered"
        body += parts.chart(title, [Series("", x, y, "a")], True, over=over)
    text = (
        f"Expected calibration error {{}} in {len(bins)} bins of equal numbers; scores right by "
        f"themselves would give about {parts.percentage(found['by_chance'])}."
    )
    error = measured({"error": found["error"], "interval": found["interval"]}, "error")
    about = "whether a class is there as often as its probability says, over all classes and images"
    note = about if several else "whether an answer is right as often as its score says"
    head = f"<p>{html.escape(text).format(error)}</p>"
    charts = f'<div class="charts">{body}</div>'
    text = f"Shown: {note}."
    if (run.config.get("head") or {}).get("loss") == "binary" and "type" in rows[0]:
        text += f" {SIGMOIDS.removeprefix('note: ').capitalize()}."
    return section(f"Calibration{where}", head, paragraph(text, True), charts)


def by_class(row: Row) -> list[Row]:
    """A row of several classes as one of each that it says something of, with its score."""
    return [
        {"id": name, "image": row["image"], "score": score, "right": name in row["labels"]}
        for name, score in row["scores"].items()
        if name not in row.get("unlabelled", ())
    ]


def ranked(rows: Rows, where: str) -> str:
    """Retrieval: how many queries are found among the first k."""
    if not rows or kind_of(rows[0]) != "ranks":
        return ""
    charts = ""
    for way, title in WAYS.items():
        places = np.array([row["rank"] for row in rows if row["way"] == way])
        if len(places):
            ends = [*range(1, min(100, max(row["pool"] for row in rows)) + 1)]
            line = Series("", ends, [float((places <= k).mean()) for k in ends], "a")
            name = f"{title[0].upper()}{title[1:]}: found among the first k{where}"
            charts += parts.chart(name, [line], as_percent=True, from_zero=True, over="k")
    return section(f"Recall by place{where}", f'<div class="charts">{charts}</div>')
