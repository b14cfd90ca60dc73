"""The corpora's raw layouts: ROCO with references, MedICaT, VQA-Med-2019."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import medicat, roco, vqa_med_2019
from m3ae.data.shards import Shards

SMALL = ["--px", "16", "--workers", "0"]


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (18, 20, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(array).save(out, "JPEG")
    path.write_bytes(out.getvalue())


def texts_of(split: Shards) -> dict[str, list[str]]:
    """Texts by image key."""
    found: dict[str, list[str]] = {}
    for i in range(len(split)):
        found.setdefault(split.image_key(int(split.image_of_text[i])), []).append(split.text(i))
    return found


def dropped(split: Shards) -> dict[str, int]:
    return {k: v["count"] for k, v in split.manifest["report"]["dropped"].items()}


# ------------------------------------------------------------------ ROCO


def test_roco_references_are_joined(tmp_path):
    """Inline references beside another figure: a join by row, or by the figure's name alone."""
    for name in ("train", "val"):  # some users' folder for `validation`
        base = tmp_path / "raw" / name / "radiology"
        keys = [f"ROCO_{k:05d}" for k in range(3)]
        for k, key in enumerate(keys):
            save_image(base / "images" / f"{key}.jpg", k)
        (base / "captions.txt").write_text("".join(f"{k}\t Caption of {k}.\n" for k in keys))
        link = "{}\twget -r ftp://host/pub/{}.tar.gz -P /path/to/Dir\tfig-g01.jpg\r\n"
        # The same figure name in two articles; the third is known from licences.txt only.
        (base / "dlinks.txt").write_text(
            link.format(keys[0], "PMC1") + link.format(keys[1], "PMC2") + "no columns\n"
        )
        (base / "licences.txt").write_text(
            f"ROCO_ID,PMC_ID,CC\n{keys[2]},PMC3_fig-g01.jpg,CC BY-NC\n"
        )
        rows = [("PMC2_fig-g01.jpg", ["As figure two shows.", "See  figure two again."]),
                ("PMC3_fig-g01.jpg", None), ("PMC1_fig-g01.jpg", ["Figure one was taken."]),
                ("PMC9_fig-g01.jpg", ["Nobody knows this."])]  # fmt: skip
        lines = [json.dumps({"roco_image_id": n, "gorc_references": t}) for n, t in rows]
        (tmp_path / f"roco_{name}_references.jsonl").write_text("\n".join([*lines, "{broken"]))
    more = ["--raw", str(tmp_path / "raw"), "--references", str(tmp_path)]
    assert roco.main([*more, "--out", str(tmp_path / "out"), *SMALL]) == 0
    for name in ("train", "valid"):
        split = Shards(tmp_path / "out" / name)
        assert texts_of(split) == {
            keys[0]: ["Caption of ROCO_00000.", "Figure one was taken."],
            keys[1]: ["Caption of ROCO_00001.", "As figure two shows.", "See figure two again."],
            keys[2]: ["Caption of ROCO_00002."],
        }
        assert split.text_key(4) == "ROCO_00001/2"
        assert dropped(split) == {"line: no archive and figure": 1, "line: not a reference object":
                                  1, "references: figure not in this split": 1}  # fmt: skip


# ------------------------------------------------------------------ MedICaT


def figure(k: int, **changes) -> dict:
    row = {"pdf_hash": f"{k:040x}", "fig_uri": f"{k}-Figure1-1.png", "s2_caption": f"Figure {k} é.",
           "s2orc_caption": None, "s2orc_references": None, "radiology": True}  # fmt: skip
    return {**row, **changes}


def write_medicat(folder: Path, rows: list) -> None:
    folder.mkdir()
    with open(folder / "figures.jsonl", "wb") as file:
        for k, row in enumerate(rows):
            data = row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()
            file.write(data + b"\n")
            if not isinstance(row, bytes) and "/" not in row["fig_uri"]:
                save_image(folder / "figures" / f"{row['pdf_hash']}_{row['fig_uri']}", k)


def test_medicat_texts_and_drops(tmp_path):
    """Captions of the wrong source, references of null, non-radiology figures, foreign paths."""
    rows = [
        figure(0, s2orc_caption="not this one here", s2orc_references=["First reference here."]),
        figure(1, s2_caption=None, s2orc_caption="From the other source."),
        figure(2, radiology=False),
        figure(3, s2_caption="", s2orc_references=["Only a reference.", "short"]),
        figure(4, fig_uri="../../secret.png"),
        b'{"pdf_hash": "cut',
        json.dumps(figure(5, s2_caption="XX broken caption")).encode().replace(b"XX", b"\xff"),
        figure(6),
    ]
    write_medicat(tmp_path / "raw", rows)
    out = tmp_path / "out"
    more = ["--raw", str(tmp_path / "raw"), "--out", str(out), "--held-out", "0"]
    assert medicat.main([*more, *SMALL]) == 0
    split = Shards(out / "train")
    assert texts_of(split) == {
        f"{0:040x}_0-Figure1-1.png": ["Figure 0 é.", "First reference here."],
        f"{1:040x}_1-Figure1-1.png": ["From the other source."],
        f"{3:040x}_3-Figure1-1.png": ["Only a reference."],
        f"{6:040x}_6-Figure1-1.png": ["Figure 6 é."],
    }
    assert dropped(split) == {
        "figure: not radiology (any split)": 1, "line: not a figure (any split)": 2,
        "text: fewer than 3 words": 1, "text: not UTF-8": 1, "image: no text left": 1,
    }  # fmt: skip


def test_medicat_split_is_the_references(tmp_path):
    """Another shuffle, or one after texts are filtered: test figures of the paper to train on."""
    rows = [figure(k, radiology=k % 3 != 0, s2_caption="x" if k == 7 else f"Figure no. {k}.")
            for k in range(60)]  # fmt: skip
    write_medicat(tmp_path / "raw", rows)
    out = tmp_path / "out"
    more = ["--raw", str(tmp_path / "raw"), "--out", str(out), "--held-out", "5"]
    assert medicat.main([*more, *SMALL]) == 0
    indices = list(range(40))
    random.seed(42)
    random.shuffle(indices)
    kept = [k for k in range(60) if k % 3]
    wanted = {"train": indices[:-10], "valid": indices[-10:-5], "test": indices[-5:]}
    for name, places in wanted.items():
        keys = {f"{kept[p]:040x}_{kept[p]}-Figure1-1.png" for p in places if kept[p] != 7}
        assert set(texts_of(Shards(out / name))) == keys


@pytest.mark.parametrize(
    "more, message",
    [(["--held-out", "1"], "leaves none of 2 figures"), (["--metadata", "no.jsonl"], "no.jsonl")],
)
def test_medicat_mistakes(tmp_path, capsys, more, message):
    """A traceback for a number of held-out figures that a small corpus cannot give."""
    write_medicat(tmp_path / "raw", [figure(0), figure(1)])
    raw = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    assert medicat.main([*raw, *more]) == 1
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------ VQA-Med-2019


def test_vqa_med_captions(tmp_path):
    """Answers of another image or order; a bare `yes` in a caption; val or test images used."""
    folder = tmp_path / "raw" / vqa_med_2019.TRAINING
    answers = {
        "C1_Modality": ["cta - ct angiography", "no", "yes", "yes"],
        "C2_Plane": ["axial", "lateral view", "axial", "coronal"],
        "C3_Organ": ["lung, mediastinum, pleura", "breast tissue", "skull", "spine"],
        "C4_Abnormality": ["pneumonia", "yes", "tumour", "disc   hernia"],
    }
    questions = {"C1_Modality": ["what is it?", "is this a ct scan?", "is this  an mri image?",
                                 "was gi contrast given?"]}  # fmt: skip
    (folder / "QAPairsByCategory").mkdir(parents=True)
    for category, said in answers.items():
        asked = questions.get(category, ["is this a normal x-ray?"] * 4)
        lines = [f"synpic{k}|{asked[k]}|{said[k]}\n" for k in (2, 0, 1, 3)]
        path = folder / "QAPairsByCategory" / f"{category}_train.txt"
        path.write_text("".join(lines) + ("a|b\n" if category == "C2_Plane" else ""))
    for k in range(4):
        save_image(folder / "Train_images" / f"synpic{k}.jpg", k)
    more = ["--as", "captions", "--raw", str(tmp_path / "raw"), "--held-out", "1", *SMALL]
    assert vqa_med_2019.main([*more, "--out", str(tmp_path / "out")]) == 0
    train, valid = (Shards(tmp_path / "out" / name) for name in ("train", "valid"))
    assert (len(train), len(valid)) == (3, 1)
    assert texts_of(train) | texts_of(valid) == {
        "synpic0": ["cta - ct angiography, axial, lung, mediastinum, pleura, pneumonia"],
        "synpic1": ["lateral view, breast tissue"],
        "synpic2": ["mri image, axial, skull, tumour"],
        "synpic3": ["coronal, spine, disc hernia"],
    }
    assert dropped(train) == {"answer: yes or no says nothing alone": 3,
                              "line: not `image|question|answer`": 1}  # fmt: skip
    assert vqa_med_2019.main([*more, "--out", str(tmp_path / "o"), "--held-out", "9"]) == 1
