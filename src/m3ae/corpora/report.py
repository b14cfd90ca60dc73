"""What is reported of a prepared corpus: counts, drops, lengths of texts; report.json."""

import json
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

from m3ae.config import TEXT_TOKENS
from m3ae.corpora.items import Drops
from m3ae.corpora.splits import ORDER
from m3ae.corpora.verification import finished_splits
from m3ae.data import shards
from m3ae.files import printable, read_json_object, write_json

# As what a reason counts, by the word that it begins with.
_COUNTED_AS = {"image": "images", "text": "texts", "row": "texts"}


def say_missing(raw: Path, splits: Container[str]) -> None:
    """Name those of train, valid and test that a corpus has not."""
    for split in (name for name in ORDER if name not in splits):
        print(f"{raw}: no split {split} in it, it is left out")


def first_drops(drops: Drops) -> str:
    """Each reason with its count and an example, in one line."""
    found = [f"{why}: {n} (e.g. {drops.examples[why][0]})" for why, n in drops.counts.items()]
    return "; ".join(sorted(found)) or "the corpus is empty"


def summarise(results: list[dict[str, Any]], drops: Drops, left_out: Drops) -> dict[str, Any]:
    """counts, files and report of a split's manifest from the results of its chunks.

    What was seen is what was prepared, what chunks dropped, and what the parser (`drops`) and
    `left_out` left out before them: images, and texts or their rows. `drops` gets all of it.
    """
    notes, lengths = Drops(), Counter()
    drops.merge(left_out.as_dict())
    left: Counter[str] = Counter()
    for reason, count in drops.counts.items():
        if not reason.endswith("(any split)"):  # of which nobody knows whether it is of this one
            left[_COUNTED_AS.get(reason.partition(":")[0], "")] += count
    for result in results:
        drops.merge(result["dropped"])
        notes.merge(result["notes"])
        lengths.update(dict(result["lengths"]))
    files = [file for result in results for file in result["files"]]
    counts = {what: sum(file[what] for file in files) for what in ("images", "texts")}
    report: dict[str, Any] = {
        f"{what}_seen": sum(result[what] for result in results) + left[what] for what in counts
    }
    report |= {"dropped": drops.as_dict(), "notes": notes.as_dict()}
    report["text_lengths"] = length_statistics(lengths, tokens=False)
    return {"counts": counts, "files": files, "report": report}


def length_statistics(lengths: Counter, tokens: bool) -> dict[str, Any]:
    """Mean, percentiles and the fraction that 64 tokens cut; in words without a tokenizer."""
    total = sum(lengths.values())
    result: dict[str, Any] = {"unit": "tokens without specials" if tokens else "words"}
    if not total:
        return result
    result["mean"] = round(sum(length * n for length, n in lengths.items()) / total, 2)
    running, levels = 0, [5, 25, 50, 75, 95, 99, 100]
    for length in sorted(lengths):
        running += lengths[length]
        while levels and running * 100 >= levels[0] * total:
            result[f"p{levels.pop(0)}"] = length
    if tokens:
        cut = sum(n for length, n in lengths.items() if length > TEXT_TOKENS - 2)
        result[f"share_cut_at_{TEXT_TOKENS}"] = round(cut / total, 4)
    return result


def write_report(out: Path, source: str, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """OUT/report.json from the manifests of all finished splits, and a table on the screen.

    `facts` (what a script counted in the raw corpus) go into it; without them, those stay that an
    earlier report holds.
    """
    if facts is None and (out / "report.json").exists():
        facts = read_json_object(out / "report.json")
    report: dict[str, Any] = {**(facts or {}), "source": source, "splits": {}}
    rank = {name: number for number, name in enumerate(ORDER)}
    for split in sorted(finished_splits(out), key=lambda path: rank.get(path.name, len(rank))):
        manifest = shards.read_manifest(split)
        kept = ("counts", "encoding", "px", "tokenizer", "options", "report")
        report["splits"][split.name] = {name: manifest[name] for name in kept}
    write_json(out / "report.json", report)
    print(f"\n{source} -> {out}\n{'split':<12}{'images':>9}{'of':>9}{'texts':>9}{'of':>9}")
    for name, split in report["splits"].items():
        counts, seen = split["counts"], split["report"]
        images = f"{counts['images']:>9}{seen['images_seen']:>9}"
        print(f"{name:<12}{images}{counts['texts']:>9}{seen['texts_seen']:>9}")
        for what in ("dropped", "notes"):
            for reason, entry in seen[what].items():
                example = printable(f"{reason}  (e.g. {entry['examples'][0]})")
                print(f"    {what} {entry['count']:>7}  {example}")
        for text, count in seen.get("repeated_texts", ()):
            print(f"    {count} texts read: {printable(text[:80])}")
        print(f"    text lengths: {seen['text_lengths']}")
    for name, value in (facts or {}).items():
        if name not in ("source", "splits"):
            print(f"{name}: {json.dumps(value)}")
    return report
