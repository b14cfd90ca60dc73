"""Writers of the phantoms' files: the raw layouts of ROCO, MedICaT and VQA-RAD, and tables.

Phantoms are generated: see data_prep/phantoms.py.
"""

import csv
import functools
import hashlib
import io
import json
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from m3ae.corpora import phantom_texts as texts
from m3ae.corpora.phantom_images import draw_image
from m3ae.files import replacing, write_json

NOTICE = """PHANTOMS: generated pictures and texts, not patients.

Everything in this folder was drawn and written by data_prep/phantoms.py from random numbers.
No image shows a person, no text describes one, no identifier names a real article or case.
It exists to exercise software. It must not be used for, or mistaken for, medical evidence.
"""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=False) as temporary:  # ten thousand of them, soon made again
        temporary.write_bytes(content)


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write text lines, each ended by a newline."""
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    """Write a table; its columns are those of the first row."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(path, text.getvalue().encode())


def make_image(task: tuple[int, str, int, int, str]) -> texts.Facts:
    """Draw and save one image of (seed, layout, index, px, path) if absent; return its facts."""
    seed, layout, index, px, path = task
    facts = texts.draw_facts(texts.generator(seed, layout, index, 0))
    if not os.path.exists(path):
        pixels = draw_image(facts, px, texts.generator(seed, layout, index, 1))
        encoded = io.BytesIO()
        kind = "PNG" if path.endswith(".png") else "JPEG"
        Image.fromarray(pixels).save(encoded, kind, quality=92, comment="phantom, not a patient")
        write_whole(Path(path), encoded.getvalue())
    return facts


def make_images(layout: str, paths: list[Path], options: dict, workers: int) -> list[texts.Facts]:
    """Make the images of a layout, path i from index i, and return their facts in order."""
    tasks = [(options["seed"], layout, i, options["px"], str(p)) for i, p in enumerate(paths)]
    bar = functools.partial(tqdm, total=len(tasks), desc=layout, unit="image")
    if workers < 2:
        return list(bar(map(make_image, tasks)))
    # Spawned, not forked: a caller may hold threads (torch), which do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return list(bar(pool.imap(make_image, tasks, chunksize=32)))


def deal_papers(count: int, seed: int, layout: str) -> list[tuple[int, int]]:
    """Deal `count` figures to papers of 1 to 4: (paper from 1, figure from 1) of each."""
    sizes = texts.generator(seed, layout, 0, 3).integers(1, 5, count)
    return [(p + 1, f + 1) for p, size in enumerate(sizes) for f in range(size)][:count]


def write_roco(out: Path, options: dict, workers: int) -> list[dict]:
    """Write ROCO's layout and the references file beside it; return the records."""
    counts = {split: options[split] for split in ("train", "validation", "test")}
    splits = [split for split, count in counts.items() for _ in range(count)]
    names = [f"ROCO_{i + 1:05d}" for i in range(len(splits))]
    folders = {split: out / "roco" / split / "radiology" for split in counts}
    paths = [folders[s] / "images" / f"{n}.jpg" for s, n in zip(splits, names, strict=True)]
    all_facts = make_images("roco", paths, options, workers)
    papers = deal_papers(len(paths), options["seed"], "roco")
    lines: dict[str, dict[str, list[str]]] = {split: defaultdict(list) for split in counts}
    references: dict[str, list[str]] = {split: [] for split in counts}
    records = []
    for index, (split, name, facts) in enumerate(zip(splits, names, all_facts, strict=True)):
        rng = texts.generator(options["seed"], "roco", index, 2)
        caption, stated = texts.write_caption(facts, rng)
        paper, figure = f"PMC99{papers[index][0]:07d}", papers[index][1]
        file_name = f"phantom-g{figure:02d}.jpg"
        link = f"wget -r ftp://phantom.invalid/{paper}.tar.gz -P /path/to/Dir"
        words = "\t".join(stated.values())
        rows = {
            "captions": f"{name}\t {caption}",
            "dlinks": f"{name}\t{link}\t{file_name}",
            "licences": f"{name},{paper}_{file_name},PHANTOM",
            "keywords": f"{name}\t\t{words}",
            "cuis": "\t".join([name, *(f"PHANTOM_{word}" for word in stated.values())]),
            "semtypes": "\t".join([name, *(f"PHANTOM_{fact}" for fact in stated)]),
        }
        for file, row in rows.items():
            lines[split][file].append(row)
        draw = rng.random()
        if draw < 0.2:  # some images have references, some an empty entry, most no entry at all
            said = [texts.write_reference(stated, rng, figure)] if draw < 0.15 else None
            entry = {"roco_image_id": f"{paper}_{file_name}", "gorc_references": said}
            references[split].append(json.dumps(entry))
        records.append(record("roco", split, f"{name}.jpg", facts, stated))
    for split, folder in folders.items():
        lines[split]["licences"].insert(0, "ROCO_ID,PMC_ID,CC")
        for file, some in lines[split].items():
            write_lines(folder / f"{file}.txt", some)
    beside = out / "roco_references"
    write_whole(beside / "NOTICE", NOTICE.encode())
    for split, entries in references.items():
        short = "val" if split == "validation" else split
        write_lines(beside / f"roco_{short}_references.jsonl", entries)
    return records


def record(layout: str, split: str, file: str, facts: texts.Facts, stated: texts.Facts) -> dict:
    """Return the line of records.jsonl for an image."""
    hidden = {name: word for name, word in facts.items() if name in texts.TEXT_ONLY}
    shown = {name: word for name, word in facts.items() if name not in texts.TEXT_ONLY}
    place = {"layout": layout, "split": split, "file": file}
    return {**place, "shown": shown, "text_only": hidden, "stated": sorted(stated)}


def write_medicat(out: Path, options: dict, workers: int) -> list[dict]:
    """Write MedICaT's layout; return the records."""
    seed, count = options["seed"], options["medicat"]
    papers = deal_papers(count, seed, "medicat")
    hashes = [hashlib.sha1(f"phantom {seed} {paper}".encode()).hexdigest() for paper, _ in papers]
    uris = [f"{figure + 1}-Figure{figure}-1.png" for _, figure in papers]
    release = out / "medicat" / "release"
    names = [f"{digest}_{uri}" for digest, uri in zip(hashes, uris, strict=True)]
    paths = [release / "figures" / name for name in names]
    lines, records = [], []
    for index, facts in enumerate(make_images("medicat", paths, options, workers)):
        rng = texts.generator(seed, "medicat", index, 2)
        caption, stated = texts.write_caption(facts, rng)
        figure = papers[index][1]
        full = f"Figure {figure}. {caption}"
        said = [texts.write_reference(stated, rng, figure) for _ in range(rng.integers(1, 3))]
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


ORGANS = {"head": "HEAD", "chest": "CHEST", "abdomen": "ABD", "pelvis": "PELVIS", "knee": "KNEE"}


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
        rng = texts.generator(options["seed"], "vqa_rad", index, 2)
        for number, item in enumerate(texts.ask(facts, rng)):
            question, para = item.pop("question"), item.pop("para")
            frame = item.pop("frame") if rng.random() < 0.6 else "NULL"
            prefix = "test_" if rng.random() < 0.2 else ""
            twin = rng.random() < 0.4
            styles = [("freeform", question, para if twin else "NULL"), ("para", para, question)]
            for style, words, other in styles if twin else styles[:1]:
                row = {
                    "qid": len(rows),
                    "phrase_type": prefix + style,
                    "qid_linked_id": f"phantom-{index:05d}-{number}",
                    "image_case_url": f"https://phantom.invalid/case?id={index}",
                    "image_name": name,
                    "image_organ": ORGANS[facts["region"]],
                    "evaluation": "evaluated" if twin else "not evaluated",
                    "question": words,
                    "question_rephrase": other,
                    "question_relation": "strict agreement" if twin else "NULL",
                    "question_frame": frame,
                }
                rows.append(row | item)
        records.append(record("vqa_rad", "", name, facts, {}))
    write_json(out / "vqa_rad" / "VQA_RAD Dataset Public.json", rows)
    return records


CLASSES = ("modality", "plane", "region", "kind")


def write_tables(out: Path, options: dict, workers: int) -> list[dict]:
    """Write questions.csv and classes.csv of the same images, split by image; return the records.

    Both as data_prep/table.py reads them. A text with classes is the same for all: only the image
    tells them.
    """
    folder, count = out / "tables", options["tables"]
    tested, valid = count // 5, count // 10
    splits = ["train"] * (count - tested - valid) + ["valid"] * valid + ["test"] * tested
    names = [f"phantom-{index + 1:05d}.jpg" for index in range(count)]
    made = make_images("tables", [folder / "images" / name for name in names], options, workers)
    questions, classes, records = [], [], []
    for index, (name, split, facts) in enumerate(zip(names, splits, made, strict=True)):
        rng = texts.generator(options["seed"], "tables", index, 2)
        for number, item in enumerate(texts.ask(facts, rng), start=1):
            row = {"image": name, "question": item["question"], "answer": item["answer"]}
            row |= {"type": item["answer_type"].lower(), "question_type": item["question_type"]}
            questions.append(row | {"split": split, "id": str(number)})
        row = {"image": name, "text": "A phantom image."}
        row |= {column: facts.get(column, "") for column in CLASSES}
        classes.append(row | {"split": split, "id": "1"})
        records.append(record("tables", split, name, facts, {}))
    write_csv(folder / "questions.csv", questions)
    write_csv(folder / "classes.csv", classes)
    return records


WRITERS = {
    "roco": write_roco,
    "medicat": write_medicat,
    "vqa_rad": write_vqa_rad,
    "tables": write_tables,
}


def write_phantoms(out: Path, options: dict, workers: int) -> int:
    """Write the layouts of `options` and their description; returns the number of images."""
    records: list[dict] = []
    for layout in options["layouts"]:
        write_whole(out / layout / "NOTICE", NOTICE.encode())  # first: a torso has it too
        records += WRITERS[layout](out, options, workers)
    lists = {"coarse": texts.COARSE, "fine": texts.FINE, "text_only": texts.TEXT_ONLY}
    write_json(out / "attributes.json", texts.ATTRIBUTES | lists)
    write_lines(out / "records.jsonl", map(json.dumps, records))
    return len(records)
