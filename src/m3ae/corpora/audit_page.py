"""Pairs of images that match, as an exclusion list, JSON and a page (data_prep/audit.py)."""

import base64
import html
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from tqdm import tqdm

from m3ae.corpora.audit import Entry, Matches
from m3ae.corpora.match_kinds import KINDS


@dataclass(frozen=True)
class Pair:
    """An image to leave out, the one it matches, and by which kinds: score and remark of each."""

    left: Entry
    kept: Entry
    by: dict[str, tuple[float, str]]

    @property
    def kind(self) -> str:
        """The surest kind."""
        return next(kind for kind in KINDS if kind in self.by)

    @property
    def reason(self) -> str:
        """For the exclusion list and the page."""
        remarks = [(kind, self.by[kind][1]) for kind in KINDS if kind in self.by]
        said = ", ".join(kind + (f" ({remark})" if remark else "") for kind, remark in remarks)
        # On one line: a tab or a line end would break the list.
        return " ".join(f"{self.kept.id}: {said}".split())

    def plain(self) -> dict[str, Any]:
        """For the JSON report."""
        facts: dict[str, Any] = {"id": self.left.id, "in": str(self.left.folder)}
        facts |= {"matches": self.kept.id, "matches_in": str(self.kept.folder)}
        facts["by"] = {kind: round(score, 4) for kind, (score, _) in self.by.items()}
        return facts | {"remarks": [remark for _, remark in self.by.values() if remark]}


def collect(found: Matches, entries: Sequence[Entry]) -> list[Pair]:
    """Matches of all kinds by pair of images."""
    by: dict[tuple[int, int], dict[str, tuple[float, str]]] = defaultdict(dict)
    for kind, matches in found.items():
        for left, kept, score, remark in matches:
            by[left, kept][kind] = (score, remark)
    return [Pair(entries[left], entries[kept], by[left, kept]) for left, kept in sorted(by)]


def exclusions(pairs: Sequence[Pair]) -> list[str]:
    """Lines `id<TAB>reason`, an id once, with its surest match."""
    best: dict[str, Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (KINDS.index(pair.kind), -pair.by[pair.kind][0])):
        best.setdefault(pair.left.id, pair)
    return [f"{name}\t{best[name].reason}\n" for name in sorted(best)]


def _cell(entry: Entry) -> str:
    """The image, its id and the last folders of where it lies."""
    image = entry.image().convert("RGB")
    image.thumbnail((220, 220), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75)
    data = base64.b64encode(out.getvalue()).decode()
    source = "/".join((entry.folder.parent if entry.at is None else entry.folder).parts[-2:])
    picture = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    return f"<td>{picture}{html.escape(entry.id)}<br>{html.escape(source)}"


STYLE = """body{font:14px/1.4 sans-serif;margin:24px;max-width:1000px}
img{max-width:220px;max-height:220px;display:block;margin-bottom:4px}
table{border-collapse:collapse;width:100%}
td,th{padding:8px 12px;border-top:1px solid #ccc;vertical-align:top;text-align:left}
td{overflow-wrap:anywhere;font-size:12px}th{background:#f3f3f3}"""
LEGEND = {
    "bytes": "the same file or the same stored pixels",
    "id": "the same id; the pictures may differ",
    "image": "near-duplicate pictures; score = correlation of fine structure after alignment",
    "text": "the same text; the pictures may differ",
    "near-text": "nearly the same text; score = cosine similarity of words and word pairs",
    "id-window": "neighbouring MedPix numbers: often one case, often not",
}


def page(pairs: Sequence[Pair], most: int) -> Iterator[str]:
    """Lines of an HTML page: pairs by kind, the least certain ones first, `most` at the most."""
    of_kind = {kind: [pair for pair in pairs if pair.kind == kind] for kind in KINDS}
    of_kind = {kind: some for kind, some in of_kind.items() if some}
    yield "<!doctype html><html lang=en><meta charset=utf-8><title>Shared images and texts</title>"
    yield f"<style>{STYLE}</style><h1>{len(pairs)} pairs</h1>"
    yield "<p>Left: leave out. Right: what it matches. A pair stands once, under its surest kind."
    yield "<ul>"
    for kind, some in of_kind.items():
        yield f'<li><a href="#{kind}">{kind}</a>: {len(some)} pairs, {LEGEND[kind]}'
    yield "</ul>"
    # Kinds with few pairs are shown whole, the others have equal parts of what is left.
    left, shown = most, {}
    for number, kind in enumerate(sorted(of_kind, key=lambda kind: len(of_kind[kind]))):
        shown[kind] = min(len(of_kind[kind]), left // (len(of_kind) - number))
        left -= shown[kind]
    for kind, some in of_kind.items():
        more = len(some) - shown[kind]
        yield f'<h2 id="{kind}">{kind}: {len(some)} pairs</h2>'
        rest = f" <b>{more} more are not shown</b> (--page-pairs)." if more else ""
        yield f"<p>{LEGEND[kind]}.{rest}"
        yield "<table><tr><th>leave out<th>matches<th>by"
        ordered = sorted(some, key=lambda pair: (pair.by[pair.kind][0], pair.left.id))
        for pair in tqdm(ordered[: shown[kind]], f"page: {kind}"):
            yield f"<tr>{_cell(pair.left)}{_cell(pair.kept)}<td>{html.escape(pair.reason)}"
        yield "</table>"


def count_pairs(pairs: Sequence[Pair], kinds: Sequence[str]) -> dict[str, Any]:
    """Counts of pairs and of images to leave out, in all and by kind."""
    images = {kind: {pair.left.number for pair in pairs if kind in pair.by} for kind in kinds}
    by = Counter(kind for pair in pairs for kind in pair.by)
    counts = {kind: {"pairs": by[kind], "images": len(images[kind])} for kind in kinds}
    every = {pair.left.number for pair in pairs}
    return {"pairs": len(pairs), "images": len(every), "by_kind": counts}
