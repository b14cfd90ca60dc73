"""Counts of the real corpora, against what is published. Set M3AE_RAW to the folder that holds
`vqa_rad` and `vqa_med_2019` as downloaded; without it these tests are skipped, and say so."""

import json
import os
from pathlib import Path

import pytest

from data_prep import vqa_med_2019, vqa_rad
from m3ae.data.shards import Shards

SMALL = ["--px", "16", "--workers", "0"]


def real(name: str) -> Path:
    """A corpus below M3AE_RAW; skips the test where it is not there."""
    raw = os.environ.get("M3AE_RAW")
    if not raw:
        pytest.skip(f"set M3AE_RAW to the folder that holds the real corpus as {name}/")
    if not (Path(raw) / name).is_dir():
        pytest.skip(f"M3AE_RAW is {raw}, which has no {name}/: put the real corpus there")
    return Path(raw) / name


def test_vqa_rad(tmp_path):
    """A count that differs from the published ones: other rows trained on than in the paper."""
    raw, out = real("vqa_rad"), tmp_path / "out"
    assert vqa_rad.main(["--raw", str(raw), "--out", str(out), *SMALL]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["corpus"] == {
        "image_files": 315, "images_asked_about": {"all": 314, "train": 313, "test": 203},
        "training_sets": {"paper": 3064, "strict": 2780, "unframed": 1797},
        "framed": 1267, "leaked": 284, "test": {"questions": 451, "closed": 272, "open": 179},
    }  # fmt: skip
    assert report["answers"]["paper"] == {"answers": 498, "test_coverage": 1.0}
    assert report["answers"]["train"] == {"answers": 418, "test_coverage": 0.7517}
    train, test = Shards(out / "train"), Shards(out / "test")
    assert (len(train), len(test)) == (3064, 451)
    fields = [train.fields(i) for i in range(len(train))]
    assert sum(not row["leaked"] for row in fields) == 2780
    assert sum(not row["framed"] for row in fields) == 1797
    assert not any(split["report"]["dropped"] for split in report["splits"].values())
    # The one test image that no train question is on comes into `train` by a leaked row alone.
    images = [train.image_key(int(j)) for j in train.image_of_text]
    asked = {image for image, row in zip(images, fields, strict=True) if not row["framed"]}
    alone = {image for image, row in zip(images, fields, strict=True) if image not in asked}
    assert len(alone) == 1 and (train.num_images, test.num_images) == (314, 203)


def test_vqa_med_2019(tmp_path):
    """Another number of answers or test questions than the paper's 79 and 375."""
    raw, out = real("vqa_med_2019"), tmp_path / "out"
    more = ["--as", "questions", "--raw", str(raw)]
    assert vqa_med_2019.main([*more, "--out", str(out), *SMALL]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["corpus"] == {
        "train": {"image_files": 3200, "images_asked_about": 3200, "questions": 9600,
                  "closed": 1184, "open": 8416},
        "valid": {"image_files": 500, "images_asked_about": 500, "questions": 1500,
                  "closed": 179, "open": 1321},
        "test": {"image_files": 500, "images_asked_about": 375, "questions": 375,
                 "closed": 53, "open": 322},
    }  # fmt: skip
    lists = {name: entry["answers"] for name, entry in report["answers"].items()}
    assert lists == {"paper": 79, "train": 69, "train_valid": 71}
    for name, split in report["splits"].items():
        assert split["counts"]["texts"] == report["corpus"][name]["questions"]
        assert not split["report"]["dropped"]


def test_vqa_med_2019_all_categories():
    """Questions of a category lost: the corpus has 15,292 on 3,200, 500 and 500 images."""
    sources = vqa_med_2019.find_sources(real("vqa_med_2019"), vqa_med_2019.NAMES)
    drops = vqa_med_2019.Drops()
    asked = {split: vqa_med_2019.read_questions(source, vqa_med_2019.NAMES, drops)
             for split, source in sources.items()}  # fmt: skip
    counts = {split: len({question.image for question in asked[split]}) for split in asked}
    assert counts == {"train": 3200, "valid": 500, "test": 500}
    assert sum(map(len, asked.values())) == 15292 and not drops.counts
    for split, source in sources.items():
        assert all((source.images / question.image).is_file() for question in asked[split])
