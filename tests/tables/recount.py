"""Numbers of runs from their files alone: shares no code with the report or with `m3ae.scoring`."""

import json
import math
import random
import re
import statistics
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path


def rows_of(folder: Path, protocol: str, arm: str = "") -> list[dict]:
    """Lines of a run's file of predictions or ranks."""
    names = [f"{stem}-{protocol}{arm}.jsonl" for stem in ("predictions", "ranks")]
    path = next(path for name in names for path in folder.rglob(name))
    return [json.loads(line) for line in path.read_text().splitlines()]


def truth(row: dict) -> str:
    return row["label"] if "type" in row else row["answer"]


def score(rows: list[dict], part: str) -> float:
    """Accuracy, macro-F1 or recall."""
    if part == "macro_f1":
        names = {truth(row) for row in rows} | {row["prediction"] for row in rows}
        scores = []
        for name in names:
            both = sum(row["prediction"] == truth(row) == name for row in rows)
            either = sum((row["prediction"] == name) + (truth(row) == name) for row in rows)
            scores.append(2 * both / either)
        return sum(scores) / len(scores)
    if "_r" in part:
        way, k = part.split("_r")
        hits = [row["rank"] <= int(k) for row in rows if row["way"] == way]
    else:
        chosen = [row for row in rows if part in ("overall", "accuracy", row.get("type"))]
        hits = [row["prediction"] == truth(row) for row in chosen]
    return sum(hits) / len(hits)


def counted(rows: list[dict], part: str) -> tuple[int, int]:
    """Questions and images of a part."""
    if "_r" in part:
        rows = [row for row in rows if row["way"] == part.split("_r")[0]]
    elif part in ("open", "closed"):
        rows = [row for row in rows if row["type"] == part]
    return len(rows), len({row["image"] for row in rows})


def first_of_commonest(answers: list[str]) -> str:
    counts = Counter(answers)
    return max(counts, key=lambda answer: (counts[answer], -answers.index(answer)))


def majority(train: list[dict], rows: list[dict]) -> list[dict]:
    """The commonest training answer of a question's type."""
    out = []
    for row in rows:
        kind = row.get("question_type")
        same = [truth(one) for one in train if one.get("question_type") == kind]
        answer = first_of_commonest(same or [truth(one) for one in train])
        out.append({**row, "prediction": answer})
    return out


def nearest(train: list[dict], rows: list[dict]) -> list[dict]:
    """The answer to the training question nearest by TF-IDF of words and pairs."""

    def words(text: str) -> Counter:
        found = re.findall(r"\w+", text.lower())
        return Counter([*found, *(f"{a} {b}" for a, b in pairwise(found))])

    asked = [words(row["question"]) for row in train]
    having = Counter(word for one in asked for word in one)
    weight = {word: math.log((1 + len(asked)) / (1 + n)) + 1 for word, n in having.items()}

    def vector(one: Counter) -> dict[str, float]:
        found = {word: n * weight[word] for word, n in one.items() if word in weight}
        length = math.sqrt(sum(value * value for value in found.values())) or 1.0
        return {word: value / length for word, value in found.items()}

    known, out = [vector(one) for one in asked], []
    for row in rows:
        own = vector(words(row["question"]))
        cosines = [sum(v * one.get(w, 0.0) for w, v in own.items()) for one in known]
        best = [truth(t) for t, c in zip(train, cosines, strict=True) if c > max(cosines) - 1e-8]
        out.append({**row, "prediction": first_of_commonest(best)})
    return out


def mean_sd(values: list[float]) -> tuple[float, float | None]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None


def bootstrap(runs: list[list[dict]], part: str, samples: int = 2000) -> tuple[float, float]:
    """Middle 95 % of the mean run's accuracy over resampled images."""
    rng = random.Random(0)
    by_image = defaultdict(lambda: [0.0, 0])
    for rows in runs:
        for row in rows:
            if part in ("overall", "accuracy", row.get("type")):
                by_image[row["image"]][0] += row["prediction"] == truth(row)
                by_image[row["image"]][1] += 1
    images, found = list(by_image.values()), []
    for _ in range(samples):
        drawn = rng.choices(images, k=len(images))
        found.append(sum(hits for hits, _ in drawn) / sum(n for _, n in drawn))
    found.sort()
    return found[round(0.025 * samples)], found[round(0.975 * samples) - 1]
