"""Generate phantoms: a radiology-like corpus in the raw layouts of ROCO, MedICaT and VQA-RAD.

    python data_prep/phantoms.py --out data/phantoms
    python data_prep/roco.py --raw data/phantoms/roco --out shards/phantoms_roco ...

The pictures are drawn by this script and show nobody; every caption contains the word "phantom".
An image has independent facts: modality, plane, region, and (in 80 %) a finding with kind, side,
level, size and number. Texts add age and sex, which no image shows, and leave out some facts
that the image shows, so each side carries something that the other lacks. A fact has exactly one
word and a word belongs to exactly one fact: a synonym would cap the accuracy on masked words, so
variety comes from the function words alone. "left" is the left of the *image* (a phantom
convention; in radiology it would be the patient's left).

Written under OUT (the layouts asked for, then the description):

    roco/{train,validation,test}/radiology/{captions,...}.txt, images/ROCO_00001.jpg
    roco_references/roco_{train,val,test}_references.jsonl    a second sentence for some images
    medicat/release/*.jsonl, medicat/release/figures/*.png
    vqa_rad/VQA_RAD Dataset Public.json, vqa_rad/VQA_RAD Image Folder/
    attributes.json   {fact: [its words]}, plus fine, coarse and text_only: lists of facts
    records.jsonl     the facts of every image, stated or not, by layout, split and file
    phantoms.json     options of the run, and whether it is complete

Every image and text comes from a generator keyed by (seed, layout, index): the same options give
the same bytes whatever the number of workers. An interrupted run is continued by the same command.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

VERSION = 1
LAYOUTS = ("roco", "medicat", "vqa_rad")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "modality": ("ct", "mr", "radiograph", "ultrasound"),
    "plane": ("axial", "coronal", "sagittal"),
    "region": ("head", "chest", "abdomen", "pelvis", "knee"),
    "kind": ("nodule", "cyst", "calcification", "consolidation"),
    "side": ("left", "right"),
    "level": ("upper", "middle", "lower"),
    "size": ("small", "large"),
    "number": ("single", "paired"),
    "presence": ("normal",),  # said only where there is no finding
    "sex": ("woman", "man"),
    "age": tuple(str(age) for age in range(20, 90)),
}
COARSE = ("modality", "plane", "region")
FINE = ("kind", "side", "level", "size", "number")
TEXT_ONLY = ("sex", "age")
PRESENT = 0.8  # share of images with a finding
NOISE = 0.006  # standard deviation of the pixel noise, of a range of 1

Facts = dict[str, str]

NOTICE = """PHANTOMS: generated pictures and texts, not patients.

Everything in this folder was drawn and written by data_prep/phantoms.py from random numbers.
No image shows a person, no text describes one, no identifier names a real article or case.
It exists to exercise software. It must not be used for, or mistaken for, medical evidence.
"""

# ---------------------------------------------------------------- facts and texts

# The facts keep one order, the words between them vary: a small model then soon reads which fact
# a masked word held, and is left with the question that matters, what the image says about it.
HEADS = (
    "Phantom {modality}, {plane} {region}",
    "This phantom {modality}, {plane}, {region}",
    "A phantom {modality} with {plane} {region}",
    "The phantom {modality}: {plane} {region}",
    "Phantom by {modality}, {plane} {region}",
    "Phantom {modality}, {plane} view, {region}",
    "One phantom {modality} of {plane} {region}",
)
FINDINGS = (
    "with a {number} {size} {kind} at {level} {side}",
    "showing {number} {size} {kind}, {level} {side}",
    "and {number} {size} {kind} on {level} {side}",
    "has some {number} {size} {kind}, {level} {side}",
    "where {number} {size} {kind} lies {level} {side}",
    "plus the {number} {size} {kind} to {level} {side}",
    "containing {number} {size} {kind} in {level} {side}",
)
NORMALS = (
    "which looks normal",
    "that is normal",
    "with a normal appearance",
    "and it was judged to be normal",
    "reported as normal",
    "where all is normal",
)
PATIENTS = {
    ("sex", "age"): ("in {sex} aged {age}", "of a {sex}, {age}", "for {sex} at {age}"),
    ("sex",): ("in a {sex}", "of one {sex}", "for {sex}"),
    ("age",): ("aged {age}", "at age {age}", "at {age} years"),
    (): ("",),
}
REFERENCES = (
    "In Figure {figure}, the phantom {region} was imaged by {modality} along its {plane} plane",
    "We made {plane} images of this phantom {region} by means of {modality} (Figure {figure})",
    "Figure {figure} was taken from the phantom {region}: it is {modality}, and it is {plane}",
)
REFERENCE_FINDINGS = (
    ", and there was {number} {size} {kind} found towards the {level} {side} part.",
    "; the {number} {size} {kind} occupies the {level} {side} area.",
    ". Note its {number} {size} {kind} near the {level} {side} border.",
)
REFERENCE_NORMALS = (", and this was normal.", "; we consider it normal.", ". Nothing but normal.")


def generator(seed: int, layout: str, index: int, stream: int) -> np.random.Generator:
    """Return the generator of one purpose (`stream`) of image `index` (from 0) of a layout."""
    return np.random.default_rng([seed, LAYOUTS.index(layout), index, stream])


def draw_facts(rng: np.random.Generator) -> Facts:
    """Draw independent, uniform facts; those of FINE are absent where there is no finding."""
    facts = {name: words[rng.integers(len(words))] for name, words in ATTRIBUTES.items()}
    absent = ("presence",) if rng.random() < PRESENT else FINE
    return {name: word for name, word in facts.items() if name not in absent}


def fill(template: str, facts: Facts, **extra: str) -> str:
    """Fill a template; a fact that is not in `facts` leaves no trace."""
    slots = dict.fromkeys(ATTRIBUTES, "") | facts | extra
    return " ".join(template.format(**slots).split()).replace(" ,", ",")


def pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    """Return one of the choices."""
    return choices[rng.integers(len(choices))]


def state(facts: Facts, rng: np.random.Generator) -> Facts:
    """Choose which facts a text states: the others are for the image alone to tell."""
    # Of each pair (number, size) and (level, side) only the first is left out, so that no sentence
    # is hollow and a masked word that stands alone can only be the second.
    chances = {"number": 0.2, "level": 0.2, "sex": 0.3, "age": 0.3}
    dropped = {name for name, chance in chances.items() if rng.random() < chance}
    stated = {name: word for name, word in facts.items() if name not in dropped}
    return stated


def write_caption(facts: Facts, rng: np.random.Generator) -> tuple[str, Facts]:
    """Return a caption of 9 to 16 words and the facts that it states."""
    while True:  # a length outside the range is drawn again: about every third
        stated = state(facts, rng)
        patient = tuple(name for name in TEXT_ONLY if name in stated)
        ending = pick(rng, FINDINGS if "kind" in facts else NORMALS)
        parts = (pick(rng, HEADS), ending, pick(rng, PATIENTS[patient]))
        caption = fill(" ".join(parts), stated) + "."
        if 9 <= len(caption.split()) <= 16:
            return caption, stated


def write_reference(stated: Facts, rng: np.random.Generator, figure: int) -> str:
    """Say the stated facts again in other words, as a sentence of an article would."""
    patient = tuple(name for name in TEXT_ONLY if name in stated)
    ending = pick(rng, REFERENCE_FINDINGS if "kind" in stated else REFERENCE_NORMALS)
    patient_words = " " + pick(rng, PATIENTS[patient]) if patient else ""
    return fill(pick(rng, REFERENCES) + patient_words + ending, stated, figure=str(figure))


# ---------------------------------------------------------------- pictures


@functools.lru_cache(maxsize=2)
def grid(px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (1, px) and y (px, 1) in [-1, 1], float32; y grows downwards."""
    axis = (np.arange(px, dtype=np.float32) + 0.5) * (2 / px) - 1
    return axis[None, :], axis[:, None]


def body(region: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth below the skin and the organs' brightness, (px, px); inside, depth > 0."""
    if region == "head":
        depth = 1 - np.hypot(u / 0.76, v / 0.94)
        organs = -0.14 * np.exp(-((u / 0.16) ** 2) - (v / 0.34) ** 2)
    elif region == "chest":
        depth = 1 - ((u / 0.97) ** 4 + (v / 0.90) ** 4) ** 0.25
        organs = -0.16 * np.clip(6 * (1 - np.hypot((np.abs(u) - 0.48) / 0.34, v / 0.70)), 0, 1)
    elif region == "abdomen":
        depth = 1 - np.hypot(u / 0.98, v / 0.70)
        organs = 0.12 * np.clip(6 * (1 - np.hypot((np.abs(u) - 0.45) / 0.3, v / 0.26)), 0, 1)
    elif region == "pelvis":
        depth = 1 - ((u / (0.66 - 0.32 * v)) ** 6 + (v / 0.92) ** 6) ** (1 / 6)
        organs = 0.14 * np.exp(-(((np.hypot(np.abs(u) - 0.45, v + 0.2) - 0.3) / 0.06) ** 2))
    else:
        depth = 1 - np.abs(u) / (0.42 + 0.28 * np.exp(-((v / 0.4) ** 2)))
        organs = 0.14 - 0.34 * np.exp(-((v / 0.06) ** 2))
    return depth, organs


def structure(plane: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the brightness (px, px) that tells the plane: layers all over, and a spine."""
    if plane == "axial":
        radius = np.hypot(u, v)
        layers, spine = radius, np.exp(-(((radius - 0.16) / 0.05) ** 2))
    elif plane == "coronal":
        layers, spine = u, np.exp(-((u / 0.07) ** 2)) * (0.6 + 0.4 * np.cos(25 * v))
    else:
        bent = u + 0.35 * v * v - 0.15
        layers, spine = v + 0.5 * u, np.exp(-((bent / 0.07) ** 2)) * (0.6 + 0.4 * np.cos(25 * v))
    return 0.09 * np.cos(15 * layers) + 0.18 * spine


def render_body(facts: Facts, px: int, rng: np.random.Generator) -> np.ndarray:
    """Return the picture without finding, float32 (px, px), about 0 to 1."""
    x, y = grid(px)
    angle, scale = rng.uniform(-0.07, 0.07), rng.uniform(0.95, 1.04)
    dx, dy = rng.uniform(-0.03, 0.03, 2)
    cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    x0, y0 = x - np.float32(dx), y - np.float32(dy)
    u, v = cos * x0 + sin * y0, cos * y0 - sin * x0
    depth, organs = body(facts["region"], u, v)
    tissue = 0.45 + organs + structure(facts["plane"], u, v)
    # Slopes, not flat black: a flat patch normalised by its deviation is a target of pure noise.
    backdrop = 0.03 + 0.05 * (x * x + y * y)
    modality = facts["modality"]
    edge = 8 if modality == "radiograph" else 40
    inside = np.clip(edge * depth, 0, 1)
    if modality == "ct":  # a bone-white rim
        picture = backdrop + inside * (tissue - backdrop)
        picture += 0.35 * np.exp(-(((depth - 0.05) / 0.035) ** 2))
    elif modality == "mr":  # a coil's gradient, a fine weave, a dark rim
        lean = rng.uniform(0, 2 * np.pi)
        coil = 1 + 0.2 * np.float32(np.cos(lean)) * x + 0.2 * np.float32(np.sin(lean)) * y
        weave = 0.05 * np.cos(60 * x) * np.cos(60 * y)
        picture = backdrop + inside * (tissue * coil + weave - backdrop)
        picture -= 0.3 * np.exp(-(((depth - 0.08) / 0.05) ** 2))
    elif modality == "radiograph":  # thickness, ribs, an exposed film around
        ribs = 0.05 * np.cos(24 * (y + 0.4 * x * x))
        backdrop = 0.30 - 0.10 * y
        thick = 0.15 + 0.85 * np.sqrt(np.clip(depth, 0, 1))
        picture = backdrop + inside * (0.14 + tissue * thick + ribs - backdrop)
    else:  # a fan below a curved probe, echoes, weaker with depth
        radius, turn = np.hypot(x, y + 1.9), np.arctan2(x, y + 1.9)
        fan = np.clip(40 * (0.57 - np.abs(turn)), 0, 1) * np.clip(30 * (radius - 0.95), 0, 1)
        fan *= np.clip(30 * (2.88 - radius), 0, 1)
        echoes = 0.07 * np.cos(70 * radius) * np.cos(44 * turn + 3 * radius)
        picture = 0.16 + inside * (tissue - 0.16) + echoes
        picture = 0.4 * backdrop * (1 - fan) + fan * picture * (1.45 - 0.22 * radius)
    return picture


def render_finding(picture: np.ndarray, facts: Facts, rng: np.random.Generator) -> np.ndarray:
    """Lay the finding over a picture (px, px): its place, extent, count and texture."""
    px = len(picture)
    x, y = grid(px)
    jitter = rng.uniform(-0.03, 0.03, 2)
    cx = {"left": -0.45, "right": 0.45}[facts["side"]] + jitter[0]
    cy = {"upper": -0.60, "middle": 0.0, "lower": 0.60}[facts["level"]] + jitter[1]
    large = facts["size"] == "large"
    if facts["number"] == "single":
        radius, shift = (0.38 if large else 0.22), (0.0, 0.0)
    else:  # side by side on a slant, about the area of a single one
        radius, shift = (0.25, (0.29, 0.10)) if large else (0.15, (0.24, 0.10))
    radius *= rng.uniform(0.94, 1.06)
    first = np.hypot(x - np.float32(cx - shift[0]), y - np.float32(cy - shift[1]))
    second = np.hypot(x - np.float32(cx + shift[0]), y - np.float32(cy + shift[1]))
    inside = np.float32(radius) - np.minimum(first, second)  # depth below the finding's edge
    # Textures in steps of the image, not of a patch: 12 and 8 px a period at 192 px.
    if facts["kind"] == "nodule":  # bright and smooth
        fabric = 0.84 + 0.4 * inside
    elif facts["kind"] == "cyst":  # dark, a bright rim
        fabric = np.where(inside < 0.05, 1.0, 0.10 - 0.2 * inside)
    elif facts["kind"] == "calcification":  # bright checks
        fabric = np.where(np.sin(16 * np.pi * x) * np.sin(16 * np.pi * y) > 0, 1.0, 0.25)
    else:  # consolidation: dark stripes
        fabric = np.where(np.sin(24 * np.pi * y) > 0, 0.70, 0.0) + 0 * x
    cover = np.clip(inside * (px / 3) + 0.5, 0, 1)
    # A glow around the finding: a cue for its place that all kinds share and many patches see.
    glow = np.exp(-((np.maximum(-inside, 0) / 0.3) ** 2))
    picture = 0.78 * picture + 0.30 * glow
    return picture + cover * (fabric - picture)


def draw_image(facts: Facts, px: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the image of the facts: uint8 (px, px), grey."""
    picture = render_body(facts, px, rng)
    if "kind" in facts:
        picture = render_finding(picture, facts, rng)
    picture = picture + rng.standard_normal(picture.shape, dtype=np.float32) * NOISE
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


# ---------------------------------------------------------------- files


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that it is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write text lines, each ended by a newline."""
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def write_json(path: Path, content: object) -> None:
    """Write indented JSON."""
    write_lines(path, [json.dumps(content, indent=1)])


def make_image(task: tuple[int, str, int, int, str]) -> Facts:
    """Draw and save one image of (seed, layout, index, px, path) if absent; return its facts."""
    seed, layout, index, px, path = task
    facts = draw_facts(generator(seed, layout, index, 0))
    if not os.path.exists(path):
        pixels = draw_image(facts, px, generator(seed, layout, index, 1))
        encoded = io.BytesIO()
        kind = "PNG" if path.endswith(".png") else "JPEG"
        Image.fromarray(pixels).save(encoded, kind, quality=92, comment="phantom, not a patient")
        write_whole(Path(path), encoded.getvalue())
    return facts


def make_images(layout: str, paths: list[Path], options: dict, workers: int) -> list[Facts]:
    """Make the images of a layout, path i from index i, and return their facts in order."""
    tasks = [(options["seed"], layout, i, options["px"], str(p)) for i, p in enumerate(paths)]
    bar = functools.partial(tqdm, total=len(tasks), desc=layout, unit="image")
    if workers < 2:
        return list(bar(map(make_image, tasks)))
    # Spawned, not forked: a caller may hold threads (torch), which do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return list(bar(pool.imap(make_image, tasks, chunksize=32)))


def group_papers(count: int, seed: int, layout: str) -> list[tuple[int, int]]:
    """Deal `count` figures to papers of 1 to 4: (paper from 1, figure from 1) of each."""
    sizes = generator(seed, layout, 0, 3).integers(1, 5, count)
    return [(p + 1, f + 1) for p, size in enumerate(sizes) for f in range(size)][:count]


def write_roco(out: Path, options: dict, workers: int) -> list[dict]:
    """Write ROCO's layout and the references file beside it; return the records."""
    counts = {split: options[split] for split in ("train", "validation", "test")}
    splits = [split for split, count in counts.items() for _ in range(count)]
    names = [f"ROCO_{i + 1:05d}" for i in range(len(splits))]
    folders = {split: out / "roco" / split / "radiology" for split in counts}
    paths = [folders[s] / "images" / f"{n}.jpg" for s, n in zip(splits, names, strict=True)]
    all_facts = make_images("roco", paths, options, workers)
    papers = group_papers(len(paths), options["seed"], "roco")
    files = ("captions", "dlinks", "licences", "keywords", "cuis", "semtypes")
    lines: dict[str, dict[str, list[str]]] = {s: {f: [] for f in files} for s in counts}
    references: dict[str, list[str]] = {split: [] for split in counts}
    records = []
    for index, (split, name, facts) in enumerate(zip(splits, names, all_facts, strict=True)):
        rng = generator(options["seed"], "roco", index, 2)
        caption, stated = write_caption(facts, rng)
        paper, figure = f"PMC99{papers[index][0]:07d}", papers[index][1]
        file_name = f"phantom-g{figure:02d}.jpg"
        link = f"wget -r ftp://phantom.invalid/{paper}.tar.gz -P /path/to/Dir"
        words = "\t".join(stated.values())
        rows = (
            f"{name}\t {caption}", f"{name}\t{link}\t{file_name}",
            f"{name},{paper}_{file_name},PHANTOM", f"{name}\t\t{words}",
            "\t".join([name, *(f"PHANTOM_{word}" for word in stated.values())]),
            "\t".join([name, *(f"PHANTOM_{fact}" for fact in stated)]),
        )  # fmt: skip
        for file, row in zip(files, rows, strict=True):
            lines[split][file].append(row)
        draw = rng.random()
        if draw < 0.2:  # some images have references, some an empty entry, most no entry at all
            said = [write_reference(stated, rng, figure)] if draw < 0.15 else None
            entry = {"roco_image_id": f"{paper}_{file_name}", "gorc_references": said}
            references[split].append(json.dumps(entry))
        records.append(record("roco", split, f"{name}.jpg", facts, stated))
    for split, folder in folders.items():
        lines[split]["licences"].insert(0, "ROCO_ID,PMC_ID,CC")
        for file in files:
            write_lines(folder / f"{file}.txt", lines[split][file])
    beside = out / "roco_references"
    write_whole(beside / "NOTICE", NOTICE.encode())
    for split, entries in references.items():
        short = "val" if split == "validation" else split
        write_lines(beside / f"roco_{short}_references.jsonl", entries)
    return records


def record(layout: str, split: str, file: str, facts: Facts, stated: Facts) -> dict:
    """Return the line of records.jsonl for an image."""
    hidden = {name: word for name, word in facts.items() if name in TEXT_ONLY}
    shown = {name: word for name, word in facts.items() if name not in TEXT_ONLY}
    return {
        "layout": layout, "split": split, "file": file,
        "shown": shown, "text_only": hidden, "stated": sorted(stated),
    }  # fmt: skip


def write_medicat(out: Path, options: dict, workers: int) -> list[dict]:
    """Write MedICaT's layout; return the records."""
    seed, count = options["seed"], options["medicat"]
    papers = group_papers(count, seed, "medicat")
    hashes = [hashlib.sha1(f"phantom {seed} {paper}".encode()).hexdigest() for paper, _ in papers]
    uris = [f"{figure + 1}-Figure{figure}-1.png" for _, figure in papers]
    release = out / "medicat" / "release"
    names = [f"{digest}_{uri}" for digest, uri in zip(hashes, uris, strict=True)]
    paths = [release / "figures" / name for name in names]
    lines, records = [], []
    for index, facts in enumerate(make_images("medicat", paths, options, workers)):
        rng = generator(seed, "medicat", index, 2)
        caption, stated = write_caption(facts, rng)
        figure = papers[index][1]
        full = f"Figure {figure}. {caption}"
        said = [write_reference(stated, rng, figure) for _ in range(rng.integers(1, 3))]
        entry = {
            "pdf_hash": hashes[index],
            "fig_key": f"Figure{figure}",
            "fig_uri": uris[index],
            "s2_caption": full,
            "s2orc_caption": full if rng.random() < 0.8 else None,
            "s2orc_references": said if rng.random() < 0.7 else None,
            "radiology": bool(rng.random() < 0.95),
            "scope": False,
            "predicted_type": "Medical images",
            "oa_info": {"doi": None, "doi_url": None, "oa": {"is_oa": True, "license": "PHANTOM"}},
        }
        lines.append(json.dumps(entry))
        records.append(record("medicat", "", names[index], facts, stated))
    write_lines(release / "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl", lines)
    return records


# Of each fact: VQA-RAD's question type, then a question, its re-phrasing and its frame, where
# {} is the value asked for. OPEN questions are answered by the word, CLOSED ones by yes or no.
OPEN = {
    "modality": ("MODALITY", "What modality made this phantom image?",
                 "How was this image taken?", "What is the modality?"),
    "plane": ("PLANE", "In what plane is this image?",
              "How is this slice oriented?", "What is the plane?"),
    "region": ("ORGAN", "Which region of the body is shown?",
               "What part of the phantom do we see?", "What is the region?"),
    "kind": ("ABN", "What kind of finding is seen?",
             "What is the lesion?", "What is the finding?"),
    "side": ("POS", "On which side is the finding?",
             "Which half of the image holds the lesion?", "What is the side of the finding?"),
    "level": ("POS", "At what level is the finding?",
              "How high does the lesion lie?", "What is the level of the finding?"),
    "size": ("SIZE", "What is the size of the lesion?",
             "How big is the finding?", "What is the size of the finding?"),
    "number": ("COUNT", "Is the finding single or paired?",
               "What is the number of lesions?", "What is the count of the finding?"),
    "place": ("POS", "Where is the finding?",
              "Where does the lesion lie?", "What is the place of the finding?"),
}  # fmt: skip
CLOSED = {
    "modality": ("MODALITY", "Was {} used here?", "Is this image made by {}?", "Is it {}?"),
    "plane": ("PLANE", "Is the plane {}?", "Is this a slice that is {}?", "Is it {}?"),
    "region": ("ORGAN", "Is the {} shown?", "Do we see the {}?", "Is it the {}?"),
    "kind": ("PRES", "Is there a {}?", "Does the image show a {}?", "Is/Are there {}?"),
    "side": ("POS", "Is the finding on the {}?", "Does the lesion lie {}?", "Is the side {}?"),
    "level": ("POS", "Is the finding in the {} part?", "Is the lesion {}?", "Is the level {}?"),
    "size": ("SIZE", "Is the finding {}?", "Is this a {} lesion?", "Is the size {}?"),
    "number": ("COUNT", "Is the lesion {}?", "Is the finding {} here?", "Is the count {}?"),
    "presence": ("ABN", "Is this image {}?", "Does it look {}?", "Is/Are the image {}?"),
}
ORGANS = {"head": "HEAD", "chest": "CHEST", "abdomen": "ABD", "pelvis": "PELVIS", "knee": "KNEE"}


def ask(facts: Facts, rng: np.random.Generator) -> list[dict]:
    """Return five questions on an image: question, para, frame, question_type, answer, ..."""
    known = dict(facts)
    if "kind" in facts:
        known["place"] = f"{facts['level']} {facts['side']}"
    pool = [("OPEN", name) for name in OPEN if name in known]
    # Only "is it there" may be asked of a finding that is not there.
    pool += [("CLOSED", n) for n in CLOSED if n in known or n in ("kind", "presence")]
    asked = []
    for choice in rng.permutation(len(pool))[:5]:
        answer_type, name = pool[choice]
        if answer_type == "OPEN":
            question_type, *wordings = OPEN[name]
            answer = known[name]
        else:
            words = ATTRIBUTES[name]
            # Half of the answers are yes; a kind makes up for images that have no finding.
            if name in known and rng.random() < (0.7 if name == "kind" else 0.5):
                words = (known[name],)
            others = tuple(word for word in words if word != known.get(name)) or words
            value = pick(rng, others)
            answer = "Yes" if value == known.get(name) else "No"
            question_type, *wordings = (text.format(value) for text in CLOSED[name])
        asked.append(
            dict(zip(("question", "para", "frame"), wordings, strict=True))
            | {"question_type": question_type, "answer": answer, "answer_type": answer_type}
        )
    return asked


def write_vqa_rad(out: Path, options: dict, workers: int) -> list[dict]:
    """Write VQA-RAD's official layout; return the records.

    As in the original, a question and its re-phrasing share `qid_linked_id`, a frame is given to
    a part of them, and the test part is drawn by question: test images occur in training too.
    """
    folder = out / "vqa_rad" / "VQA_RAD Image Folder"
    names = [f"synpic{900001 + index}.jpg" for index in range(options["vqa"])]
    rows: list[dict] = []
    records = []
    made = make_images("vqa_rad", [folder / name for name in names], options, workers)
    for index, (name, facts) in enumerate(zip(names, made, strict=True)):
        rng = generator(options["seed"], "vqa_rad", index, 2)
        for number, item in enumerate(ask(facts, rng)):
            wordings = {"freeform": item.pop("question"), "para": item.pop("para")}
            frame = item.pop("frame") if rng.random() < 0.6 else "NULL"
            prefix = "test_" if rng.random() < 0.2 else ""
            twin = rng.random() < 0.4
            if not twin:
                del wordings["para"]
            for style, question in wordings.items():
                other = {"freeform": "para", "para": "freeform"}[style]
                rows.append({
                    "qid": len(rows),
                    "phrase_type": prefix + style,
                    "qid_linked_id": f"phantom-{index:05d}-{number}",
                    "image_case_url": f"https://phantom.invalid/case?id={index}",
                    "image_name": name,
                    "image_organ": ORGANS[facts["region"]],
                    "evaluation": "evaluated" if twin else "not evaluated",
                    "question": question,
                    "question_rephrase": wordings.get(other, "NULL"),
                    "question_relation": "strict agreement" if twin else "NULL",
                    "question_frame": frame,
                } | item)  # fmt: skip
        records.append(record("vqa_rad", "", name, facts, {}))
    write_json(out / "vqa_rad" / "VQA_RAD Dataset Public.json", rows)
    return records


# ---------------------------------------------------------------- command

WRITERS = {"roco": write_roco, "medicat": write_medicat, "vqa_rad": write_vqa_rad}


def claim(out: Path, options: dict) -> bool:
    """Reserve OUT for these options; return True if it already holds the complete corpus.

    Raises ValueError if OUT holds phantoms of other options, or a corpus that is not known to be
    phantoms, which must never be mixed with them.
    """
    state_file = out / "phantoms.json"
    if state_file.exists():
        found = json.loads(state_file.read_text())
        had = {"version": found.get("version")} | found.get("options", {})
        asked = {"version": VERSION} | options
        differing = [k for k in asked if had.get(k) != asked[k]]
        if differing:
            detail = "; ".join(f"{k} {had.get(k)} there, {asked[k]} asked" for k in differing)
            raise ValueError(f"{out} holds phantoms of other options: {detail}")
        return found["complete"]
    for layout in LAYOUTS:
        if (out / layout).exists():
            raise ValueError(f"{out / layout} exists and was not written by phantoms.py")
    out.mkdir(parents=True, exist_ok=True)
    save_state(out, options, complete=False)
    return False


def save_state(out: Path, options: dict, complete: bool) -> None:
    """Write phantoms.json."""
    write_json(
        out / "phantoms.json", {"version": VERSION, "complete": complete, "options": options}
    )


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse type: an integer of at least `least`."""

    def parse(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return parse


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    count, add = at_least(1), parser.add_argument
    add("--out", type=Path, required=True, help="folder to write; made if absent")
    add("--train", type=count, default=9000, help="ROCO training images (default: %(default)s)")
    add("--validation", type=count, default=500, help="ROCO validation images (%(default)s)")
    add("--test", type=count, default=1000, help="ROCO test images (%(default)s)")
    add("--medicat", type=count, default=1000, help="MedICaT figures (%(default)s)")
    add("--vqa", type=count, default=300, help="VQA-RAD images, ~7 questions each (%(default)s)")
    add("--px", type=at_least(32), default=192, help="image side in pixels (%(default)s)")
    add("--seed", type=at_least(0), default=0, help="another seed, another corpus (0)")
    add("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS, help="which corpora (all three)")
    add("--workers", type=count, default=min(8, os.cpu_count() or 1),
        help="processes; the output does not depend on it (%(default)s)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Generate the corpus; return 0, or 2 with one line on stderr if OUT cannot be used."""
    arguments = parse_arguments(argv)
    options = {name: value for name, value in vars(arguments).items()
               if name not in ("out", "workers")}  # fmt: skip
    options["layouts"] = [layout for layout in LAYOUTS if layout in arguments.layouts]
    out = arguments.out
    try:
        if claim(out, options):
            print(f"{out} already holds this phantom corpus, complete: nothing to do")
            return 0
    except (ValueError, OSError) as error:
        print(f"phantoms.py: error: {error}", file=sys.stderr)
        return 2
    records: list[dict] = []
    for layout in options["layouts"]:
        write_whole(out / layout / "NOTICE", NOTICE.encode())  # first: a torso has it too
        records += WRITERS[layout](out, options, arguments.workers)
    lists = {"coarse": COARSE, "fine": FINE, "text_only": TEXT_ONLY}
    write_json(out / "attributes.json", ATTRIBUTES | lists)
    write_lines(out / "records.jsonl", map(json.dumps, records))
    save_state(out, options, complete=True)
    print(f"{len(records)} phantom images in {out}: {', '.join(options['layouts'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
