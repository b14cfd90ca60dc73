"""Items on which two models differ, as text and as a page with images (the paper's Figure 3)."""

import html
from pathlib import Path
from typing import Any

from PIL import Image

from m3ae.data.shards import Shards
from m3ae.reports import parts
from m3ae.scoring.predictions import Rows, is_right, reference

KINDS = {
    "here": "right here, wrong there",
    "there": "wrong here, right there",
    "neither": "wrong in both, with other answers",
}
SHOWN = ("question", "truth", "here", "there")
GRID = "grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr))"


def differing(ours: Rows, theirs: Rows, protocol: str, most: int) -> dict[str, Any]:
    """The first `most` items of each kind, in the order of ours, and how many there are.

    {"protocol", "counts": {kind: n}, "items": {kind: [{id, image, question, truth, here,
    here_score, there, there_score}]}}, without what the rows do not hold; kinds as in `KINDS`.
    """
    by_id = {row["id"]: row for row in theirs}
    counts, items = dict.fromkeys(KINDS, 0), {kind: [] for kind in KINDS}
    for row in ours:
        other = by_id[row["id"]]
        pair = row, other
        right = [is_right(one, protocol) for one in pair]
        said = [one["prediction"] or "no answer" if "prediction" in one else None for one in pair]
        if all(right) or (not any(right) and said[0] == said[1]):
            continue
        kind = "here" if right[0] else "there" if right[1] else "neither"
        counts[kind] += 1
        if counts[kind] <= most:
            item = {"id": row["id"], "image": row["image"], "question": row.get("question")}
            item |= {"truth": row.get("answer", reference(row)), "here": said[0], "there": said[1]}
            item |= {"here_score": row.get("score"), "there_score": other.get("score")}
            items[kind].append({key: value for key, value in item.items() if value is not None})
    return {"protocol": protocol, "counts": counts, "items": items}


def answer(item: dict[str, Any], key: str) -> str:
    """A text of an item; an answer with its score, where it has one."""
    score = f" ({item[f'{key}_score']:.2f})" if f"{key}_score" in item else ""
    return item[key] + score


def as_lines(differences: dict[str, Any]) -> list[str]:
    """The items as lines of text."""
    lines = []
    for kind, items in differences["items"].items():
        lines += ["", f"{KINDS[kind]}: {differences['counts'][kind]} items, {len(items)} shown"]
        for item in items:
            lines.append(f"  {item['id']}")
            lines += [f"    {key:9} {answer(item, key)}" for key in SHOWN if key in item]
    return lines


def sheet(differences: dict[str, Any], data: Path | None, names: tuple[str, str]) -> str:
    """The items as a self-contained HTML page, with the images of a prepared split.

    names: of the files here and there. Without `data` the page has no pictures, and says so.
    """
    wanted = {item["image"] for items in differences["items"].values() for item in items}
    pictures = images_of(Shards(data), wanted) if data is not None else {}
    sections = []
    for kind, items in differences["items"].items():
        count = f"{differences['counts'][kind]} items, {len(items)} shown."
        cards = "".join(card(item, pictures.get(item["image"])) for item in items)
        body = f'<div class="pictures" style="{GRID}">{cards}</div>'
        title = KINDS[kind][0].upper() + KINDS[kind][1:]
        sections.append(parts.section(title, parts.paragraph(count, note=True), body, long=True))
    facts = {"here": names[0], "there": names[1], "protocol": differences["protocol"]}
    head = "<h1>Where two models differ</h1>" + parts.facts(facts)
    if data is None:
        head += parts.paragraph("No pictures: the prepared split was not given (--data).", True)
    return parts.page("Where two models differ", head + "".join(sections))


def card(item: dict[str, Any], source: str | None) -> str:
    """One item: its image, if any, and what was asked, true and said."""
    name = html.escape(item["id"])
    picture = f'<img alt="{html.escape(item["image"])}" src="{source}">' if source else ""
    told = {key: answer(item, key) for key in SHOWN if key in item}
    return f"<figure><figcaption>{name}</figcaption>{picture}{parts.facts(told)}</figure>"


def images_of(shards: Shards, keys: set[str]) -> dict[str, str]:
    """Images of a prepared split by key, as data: addresses of JPEGs in the split's size."""
    found = {}
    for number in range(shards.num_images):
        if (key := shards.image_key(number)) in keys:
            pixels = shards.image(number, shards.manifest["px"])  # (C, px, px)
            picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
            found[key] = parts.jpeg(picture)
    return found
