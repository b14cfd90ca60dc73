"""The corpora's raw layouts: ROCO (with references, of the hub), MedICaT, VQA-Med-2019."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import medicat, roco, vqa_med_2019
from m3ae.data.shards import Shards
from tests.data_prep.test_real_counts import real

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
        rows = [
            ("PMC2_fig-g01.jpg", ["As figure two shows.", "See  figure two again."]),
            ("PMC3_fig-g01.jpg", None),
            ("PMC1_fig-g01.jpg", ["Figure one was taken."]),
            ("PMC9_fig-g01.jpg", ["Nobody knows this."]),
        ]
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
        assert dropped(split) == {
            "line: no archive and figure": 1,
            "line: not a reference object": 1,
            "references: figure not in this split": 1,
        }


def write_hub(folder: Path, images: int, **changes) -> None:
    """A hub copy in two files of two row groups; `changes`: other cells of the last row."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    folder.mkdir(parents=True)
    rows = []
    for k in range(images):
        save_image(folder / "image.jpg", k)
        image = {"bytes": (folder / "image.jpg").read_bytes(), "path": "image.jpg"}
        rows.append({"image": image, "image_id": f"ROCO_{k:05d}", "caption": f" Caption no. {k}."})
    rows[-1] |= changes
    (folder / "image.jpg").unlink()
    for part in range(2):
        name = folder / f"train-{part:05d}-of-00002-0a1b.parquet"
        table = pyarrow.Table.from_pylist(rows[part::2])
        parquet.write_table(table, name, row_group_size=2)


def test_roco_hub_copy(tmp_path, capsys):
    """Images beside another row's caption; a null caption or image taken in or ending the run."""
    write_hub(tmp_path / "raw" / "data", 8, caption=None)
    out = tmp_path / "out"
    more = ["--raw", str(tmp_path / "raw"), "--px", "16", "--encoding", "original"]
    assert roco.main([*more, "--out", str(out), "--workers", "1"]) == 0
    split = Shards(out / "train")
    order = [0, 2, 4, 6, 1, 3, 5]
    assert texts_of(split) == {f"ROCO_{k:05d}": [f"Caption no. {k}."] for k in order}
    for row, k in enumerate(order):
        save_image(tmp_path / "image.jpg", k)
        tensors = split.shard(0)
        start, stop = tensors["image_offsets"][row : row + 2]
        assert tensors["image_bytes"][start:stop].tobytes() == (tmp_path / "image.jpg").read_bytes()
    assert dropped(split) == {"row: no caption": 1}
    assert "no split valid" in capsys.readouterr().out
    more += ["--out", str(tmp_path / "o"), "--references", str(tmp_path)]
    assert roco.main(more) == 1
    assert "the hub's copies name no figures" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, drop",
    [
        ({"image": {"bytes": None, "path": "x"}}, "image: zero bytes"),
        ({"image": None}, "image: ze"),
        ({"image_id": " "}, "row: no image_id"),
        ({"image_id": "ROCO_00000"}, "row: image_id occurs tw"),
    ],
)
def test_roco_hub_copy_with_bad_rows(tmp_path, changes, drop):
    """A null ends the preparation, or a repeated id replaces the first image without a word."""
    write_hub(tmp_path / "raw", 6, **changes)
    assert roco.main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), *SMALL]) == 0
    split = Shards(tmp_path / "out" / "train")
    assert len(split) == 5 and next(iter(dropped(split))).startswith(drop)


def test_roco_ids_that_lead_elsewhere(tmp_path):
    """A caption file that has images from outside the corpus read into the shards."""
    base = tmp_path / "raw" / "train" / "radiology"
    for path in (base / "images" / "ROCO_1.jpg", tmp_path / "raw" / "secret.jpg"):
        save_image(path, 1)
    ids = ["ROCO_1", "../../../secret", str(tmp_path / "raw" / "secret"), "C:secret", "a\\b"]
    (base / "captions.txt").write_text("".join(f"{name}\tA caption of it.\n" for name in ids))
    assert roco.main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), *SMALL]) == 0
    split = Shards(tmp_path / "out" / "train")
    assert texts_of(split) == {"ROCO_1": ["A caption of it."]}
    assert dropped(split) == {"line: id leads elsewhere": 4}


def test_roco_folder_without_a_corpus(tmp_path, capsys):
    """An error that does not say what the folder should hold."""
    (tmp_path / "raw").mkdir()
    assert roco.main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 1
    assert "no train/radiology" in capsys.readouterr().err


# ------------------------------------------------------------------ MedICaT


def figure(k: int, **changes) -> dict:
    row = {
        "pdf_hash": f"{k:040x}",
        "fig_uri": f"{k}-Figure1-1.png",
        "s2_caption": f"Figure {k} é.",
        "s2orc_caption": None,
        "s2orc_references": None,
        "radiology": True,
    }
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
        "figure: not radiology (any split)": 1,
        "line: not a figure (any split)": 2,
        "text: fewer than 3 words": 1,
        "text: not UTF-8": 1,
        "image: no text left": 1,
    }


def test_medicat_split_is_the_references(tmp_path):
    """Another shuffle, or one after texts are filtered: test figures of the paper to train on."""
    rows = [
        figure(k, radiology=k % 3 != 0, s2_caption="x" if k == 7 else f"Figure no. {k}.")
        for k in range(60)
    ]
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


def test_medicat_split_by_paper(tmp_path, capsys):
    """Figures of one paper in two splits; a split far larger than asked for; options not kept."""
    rows = [figure(k, pdf_hash=f"{k % 7 if k < 30 else k:040x}") for k in range(60)]
    write_medicat(tmp_path / "raw", rows)
    out = tmp_path / "out"
    more = ["--raw", str(tmp_path / "raw"), "--out", str(out), "--held-out", "6"]
    assert medicat.main([*more, "--split-by", "paper", *SMALL]) == 0
    names = ("train", "valid", "test")
    papers = [{key.split("_")[0] for key in texts_of(Shards(out / name))} for name in names]
    assert not (papers[0] & papers[1] or papers[0] & papers[2] or papers[1] & papers[2])
    sizes = [len(Shards(out / name)) for name in names]
    assert sum(sizes) == 60 and all(6 <= size < 6 + 5 for size in sizes[1:])  # papers of 1 to 5
    facts = json.loads((out / "report.json").read_text())["corpus"]
    assert facts["figures"] == dict(zip(names, sizes, strict=True))
    assert facts["papers"] == {n: len(p) for n, p in zip(names, papers, strict=True)}
    assert (facts["split_by"], facts["papers_in_two_splits"]) == ("paper", 0)
    assert medicat.main([*more, *SMALL]) == 1
    assert "split_by was 'paper', is 'figure'" in capsys.readouterr().err
    again = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "o"), "--held-out", "6"]
    assert medicat.main([*again, *SMALL]) == 0
    places = [{k.split("_")[0] for k in texts_of(Shards(tmp_path / "o" / n))} for n in names]
    found = [paper for paper in set().union(*places) if sum(paper in p for p in places) > 1]
    facts = json.loads((tmp_path / "o" / "report.json").read_text())["corpus"]
    assert facts["papers_in_two_splits"] == len(found) > 0


def test_medicat_texts_of_wrong_types(tmp_path):
    """References of one string become a text a letter; a caption that is a number is lost."""
    rows = [
        figure(0),
        figure(1, s2_caption=7),
        figure(2, s2orc_references="As figure 2 shows."),
        figure(3, s2orc_references=[["As it shows."]]),
        figure(4, fig_uri=".."),
    ]
    write_medicat(tmp_path / "raw", rows)
    more = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--held-out", "0"]
    assert medicat.main([*more, *SMALL]) == 0
    split = Shards(tmp_path / "out" / "train")
    assert len(split) == 1 and dropped(split) == {"line: not a figure (any split)": 4}


def test_the_real_sample_of_medicat(tmp_path):
    """The release's own 10 figures: 6 are radiology, of 4 papers; one has two in two splits."""
    raw = real("medicat_sample")
    for rule, counts in (
        ("figure", {"train": 4, "valid": 1, "test": 1}),
        ("paper", {"train": 3, "valid": 1, "test": 2}),
    ):
        out = tmp_path / rule
        more = ["--raw", str(raw), "--out", str(out), "--split-by", rule, "--held-out", "1"]
        assert medicat.main([*more, *SMALL]) == 0
        report = json.loads((out / "report.json").read_text())
        assert report["corpus"]["figures"] == counts
        assert report["corpus"]["papers_in_two_splits"] == (rule == "figure")
        splits = report["splits"]
        assert {name: splits[name]["counts"]["images"] for name in splits} == counts
        assert sum(split["counts"]["texts"] for split in splits.values()) == 11
        assert list(dropped(Shards(out / "train"))) == ["figure: not radiology (any split)"]


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
    questions = {
        "C1_Modality": [
            "what is it?",
            "is this a ct scan?",
            "is this  an mri image?",
            "was gi contrast given?",
        ]
    }
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
    assert dropped(train) == {
        "answer: yes or no says nothing alone": 3,
        "line: not `image|question|answer`": 1,
    }
    without = [*more, "--out", str(tmp_path / "w"), "--categories", "organ", "modality"]
    assert vqa_med_2019.main(without) == 0  # the control: a caption that states the tested plane
    assert texts_of(Shards(tmp_path / "w" / "train")) | texts_of(
        Shards(tmp_path / "w" / "valid")
    ) == {
        "synpic0": ["cta - ct angiography, lung, mediastinum, pleura"],
        "synpic2": ["mri image, skull"],
    }  # the others' are under three words
    assert vqa_med_2019.main([*more, "--out", str(tmp_path / "o"), "--held-out", "9"]) == 1
