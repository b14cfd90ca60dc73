"""The corpora's own files, damaged at random: rows are counted, or the file is named."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from data_prep import medicat, melinda, mimic_cxr, roco, rocov2, slake, vqa_med_2019, vqa_rad
from m3ae.corpora.items import Drops
from tests.data_prep.test_vqa import RAD_ROWS
from tests.faults.offered import DAMAGE, accepted_or_refused, damaged, often


def table(path: Path, row: dict[str, str]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([row, row])
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


SLAKE = {"qid": 1, "img_name": "xmlab1/source.jpg", "question": "Is it?", "answer": "Yes"}
SLAKE |= {"answer_type": "CLOSED", "q_lang": "en", "content_type": "Plane"}
FIGURE = {"pdf_hash": "a", "fig_uri": "1.png", "radiology": True, "s2_caption": "A text."}
IDS = {"dicom_id": "-".join(["0a1b2c3d"] * 5), "study_id": "50414267"}
IDS |= {"subject_id": "10000032", "split": "train"}
CLASSES = {name: "x" for name in melinda.COLUMNS}
REFERENCE = {"roco_image_id": "PMC1_a.jpg", "gorc_references": ["A sentence."]}


def corpora(place: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    rad = text(place / "rad.json", json.dumps(RAD_ROWS))
    mevf = [text(place / name, json.dumps(RAD_ROWS)) for name in vqa_rad.MEVF]
    asked = text(place / "slake.json", json.dumps([SLAKE, {**SLAKE, "qid": 2}]))
    figures = text(place / "medicat.jsonl", f"{json.dumps(FIGURE)}\n" * 2)
    captions = table(place / "rocov2.csv", {"ID": "R_1", "Caption": "A text."})
    rows = table(place / "melinda.csv", {"figure_file": "a.jpg", "caption": "A text.", **CLASSES})
    ids = table(place / "split.csv", IDS)
    sections = table(place / "sections.csv", {"study": "s50414267", "findings": "Normal."})
    views = table(place / "views.csv", {"dicom_id": "a", "ViewPosition": "PA"})
    plain = text(place / "captions.txt", "ROCO_1\tA text.\nROCO_2\tAnother.\n")
    references = text(place / "references.jsonl", f"{json.dumps(REFERENCE)}\n")
    lines = text(place / "lines.txt", "synpic1|modality|is it a ct?|yes\n" * 2)
    source = vqa_med_2019.Source(place, ((lines, ""),))
    names = {"PMC1_a.jpg": "ROCO_1"}

    def figures_of() -> list:
        kept = medicat.kept_figures(figures, False, Drops())
        return list(medicat.Figures(figures, [offset for offset, _ in kept]))

    return {
        "vqa_rad": (rad, lambda: vqa_rad.read_official(rad, Drops())),
        "mevf": (mevf[0], lambda: vqa_rad.unlike_published(vqa_rad.read_mevf(place, Drops()))),
        "slake": (asked, lambda: slake.read_split(asked, ("en",), Drops())),
        "medicat": (figures, figures_of),
        "rocov2": (captions, lambda: rocov2.read_captions(captions, Drops())),
        "melinda": (rows, lambda: melinda.read_split(rows, Drops())),
        "mimic_ids": (ids, lambda: mimic_cxr.read_ids(ids, Drops())),
        "mimic_texts": (
            sections,
            lambda: mimic_cxr.read_texts(sections, ("findings",), False, False, Drops()),
        ),
        "mimic_views": (views, lambda: mimic_cxr.read_views(views, Drops())),
        "roco": (plain, lambda: roco.read_captions(plain, Drops())),
        "references": (references, lambda: roco.read_references(references, names, Drops())),
        "vqa_med": (lines, lambda: vqa_med_2019.read_questions(source, ("modality",), Drops())),
    }


NAMES = ("vqa_rad", "mevf", "slake", "medicat", "rocov2", "melinda", "mimic_ids", "mimic_texts")
NAMES += ("mimic_views", "roco", "references", "vqa_med")


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_corpus(name, tmp_path_factory):
    """A row that ends the preparation in a traceback, or an error that does not name the file."""
    path, read = corpora(tmp_path_factory.mktemp("corpus"))[name]
    content = path.read_bytes()
    assert read()

    @often
    @given(DAMAGE)
    def offered(damage):
        path.write_bytes(damaged(content, damage))
        accepted_or_refused(read, path)

    offered()
