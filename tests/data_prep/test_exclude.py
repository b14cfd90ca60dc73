"""--exclude of the scripts and data.exclude of a run leave out the same images."""

import json
import shutil
from pathlib import Path

import pytest

from data_prep import (
    audit,
    medicat,
    melinda,
    mimic_cxr,
    pairs,
    roco,
    rocov2,
    slake,
    table,
    tokens,
    vqa_med_2019,
    vqa_rad,
)
from m3ae.data.datasets import Pairs
from m3ae.data.exclusions import image_keys, listed, read_exclusions
from m3ae.data.shards import Shards
from tests.data_prep.test_corpora import SMALL, dropped, save_image
from tests.data_prep.test_vqa import rad_row

VIEWS = [f"patient{p}/study{s}/view1.jpg" for p in (1, 2) for s in (1, 2, 3)]


def views(raw: Path) -> Path:
    for k, name in enumerate(VIEWS):
        save_image(raw / name, k)
    return raw


def write_questions(raw: Path) -> list[str]:
    rows = [f"{name},Is it {k}?,yes\n" for k, name in enumerate(VIEWS)]
    (raw.parent / "x.csv").write_text("image,question,answer\n" + "".join(rows))
    views(raw)
    return ["--table", str(raw.parent / "x.csv")]


def write_pairs(raw: Path) -> list[str]:
    rows = [f"{name},a text of number {k},{k}\n" for k, name in enumerate(VIEWS)]
    (raw.parent / "x.csv").write_text("image,text,id\n" + "".join(rows))
    views(raw)
    return ["--table", str(raw.parent / "x.csv")]


def write_slake(raw: Path) -> list[str]:
    raw.mkdir()
    asked = {"question": "Is it?", "answer": "yes", "answer_type": "CLOSED", "q_lang": "en"}
    rows = [{**asked, "qid": k, "img_name": f"xmlab{k}/source.jpg"} for k in range(6)]
    for k in range(6):
        save_image(raw / "imgs" / f"xmlab{k}" / "source.jpg", k)
    (raw / "train.json").write_text(json.dumps(rows))
    for name in ("validate", "test"):
        (raw / f"{name}.json").write_text(json.dumps(rows[:1]))
    return []


def write_roco(raw: Path) -> list[str]:
    base = raw / "train" / "radiology"
    for k in range(6):
        save_image(base / "images" / f"ROCO_{k:05d}.jpg", k)
    captions = "".join(f"ROCO_{k:05d}\t A caption of {k}.\n" for k in range(6))
    (base / "captions.txt").write_text(captions)
    return []


def write_rocov2(raw: Path) -> list[str]:
    for k in range(6):
        save_image(raw / "train" / f"R_{k}.jpg", k)
    rows = "".join(f"R_{k},A caption of {k}\n" for k in range(6))
    (raw / "train_captions.csv").write_text("ID,Caption\n" + rows)
    return []


def write_medicat(raw: Path) -> list[str]:
    figures = [
        {"pdf_hash": "ab", "fig_uri": f"{k}-Figure.png", "radiology": True} for k in range(6)
    ]
    for k, figure in enumerate(figures):
        figure["s2_caption"] = f"A caption of {k}."
        save_image(raw / "figures" / f"ab_{k}-Figure.png", k)
    (raw / "x.jsonl").write_text("".join(json.dumps(figure) + "\n" for figure in figures))
    return ["--held-out", "0"]


def write_mimic(raw: Path) -> list[str]:
    rows, said = [], []
    for k in range(6):
        save_image(raw / "files" / "p10" / "p1000" / f"s{k}" / f"d-{k}.jpg", k)
        rows.append(f"d-{k},{k},1000,train\n")
        said.append(f"s{k},Findings of number {k}.,\n")
    split = "dicom_id,study_id,subject_id,split\n" + "".join(rows)
    (raw / "mimic-cxr-2.0.0-split.csv").write_text(split)
    (raw / "mimic_cxr_sectioned.csv").write_text("study,findings,impression\n" + "".join(said))
    return []


def write_vqa_rad(raw: Path) -> list[str]:
    rows = [rad_row(k, f"synpic{k}", "Is it?", "Yes", answer_type="CLOSED") for k in range(6)]
    rows.append(rad_row(9, "synpic0", "Was it?", "No", phrase_type="test_para"))
    for k in range(6):
        save_image(raw / vqa_rad.IMAGES / f"synpic{k}.jpg", k)
    (raw / vqa_rad.OFFICIAL).write_text(json.dumps(rows))
    return []


def write_vqa_med(raw: Path) -> list[str]:
    base = raw / vqa_med_2019.TRAINING
    for k in range(6):
        save_image(base / "Train_images" / f"synpic{k}.jpg", k)
    (base / "QAPairsByCategory").mkdir()
    lines = "".join(f"synpic{k}|which one?|organ of number {k}\n" for k in range(6))
    (base / "QAPairsByCategory" / "C3_Organ_train.txt").write_text(lines)
    return ["--as", "captions", "--categories", "organ", "--held-out", "0"]


def write_melinda(raw: Path) -> list[str]:
    head = "figure_file,caption,i_meth,p_meth,i_meth_label,p_meth_label\n"
    rows = [f"f/{k}.png,a caption,x,y,z,w\n" for k in range(6)]
    for k in range(6):
        save_image(raw / "melinda_images" / "f" / f"{k}.png", k)
    for name, some in (("train", rows), ("dev", rows[:1]), ("test", rows[:1])):
        (raw / f"{name}.csv").write_text(head + "".join(some))
    return []


CORPORA = {
    table: write_questions,
    pairs: write_pairs,
    slake: write_slake,
    roco: write_roco,
    rocov2: write_rocov2,
    medicat: write_medicat,
    mimic_cxr: write_mimic,
    vqa_rad: write_vqa_rad,
    vqa_med_2019: write_vqa_med,
    melinda: write_melinda,
}


def prepare(script, raw: Path, out: Path, *more: str) -> Shards:
    arguments = ["--raw", str(raw), "--out", str(out), "--split", "train", *SMALL, *more]
    assert script.main(arguments) == 0
    return Shards(out / "train")


@pytest.mark.parametrize("script", CORPORA, ids=lambda script: script.__name__)
def test_an_audit_of_the_raw_files_is_obeyed_by_both(tmp_path, script, capsys):
    """An audit's list that a script, or a run on its shards, takes for no image, or for more."""
    raw, leaked = tmp_path / "raw", tmp_path / "leaked"
    more = CORPORA[script](raw)
    files = sorted(path for path in raw.rglob("*") if path.suffix in (".jpg", ".png"))
    for k in (1, 4):
        leaked.mkdir(exist_ok=True)
        shutil.copy(files[k], leaked / f"leak{k}.jpg")
    where = ["--keep", str(leaked), "--against", str(raw), "--out", str(tmp_path / "x.txt")]
    assert audit.main([*where, "--no-image", "--workers", "0"]) == 0
    whole = prepare(script, raw, tmp_path / "whole", *more)
    few = prepare(script, raw, tmp_path / "few", *more, "--exclude", str(tmp_path / "x.txt"))
    left_out, named = listed(whole, read_exclusions(tmp_path / "x.txt"))
    assert len(named) == 2 == dropped(few)["image: in the --exclude list"]
    kept = [key for key, out in zip(image_keys(whole), left_out, strict=True) if not out]
    assert kept == image_keys(few) and len(kept) == 4
    assert set(image_keys(whole)) - set(kept) <= set(dropped_examples(few))
    report = json.loads((tmp_path / "few" / "report.json").read_text())["exclude"]
    assert report == {"ids": 2, "images": 2, "ids_of_no_image": 0, "examples": []}
    assert "name no image" not in capsys.readouterr().err


def dropped_examples(split: Shards) -> list[str]:
    return split.manifest["report"]["dropped"]["image: in the --exclude list"]["examples"]


def test_files_stay_known_after_new_tokens(tmp_path, shards):
    """The names of the files lost when a split's tokens are replaced."""
    raw = tmp_path / "raw"
    split = prepare(pairs, raw, tmp_path / "out", *write_pairs(raw))
    assert tokens.main([str(tmp_path / "out"), "--tokenizer", str(shards / "tokenizer")]) == 0
    left_out, named = listed(Shards(split.folder), {"patient2/study3/view1.jpg"})
    assert left_out.tolist() == [False] * 5 + [True] and len(named) == 1


def test_ids_of_no_image_are_named(tmp_path, capsys):
    """An id that is spelt wrongly, or the whole list, and the leak stays in without a word."""
    raw, path = tmp_path / "raw", tmp_path / "x.txt"
    more = [*write_questions(raw), "--exclude", str(path)]
    path.write_text(f"{VIEWS[0]}\npatient9/view1\nsynpic1\tx\n")
    prepare(table, raw, tmp_path / "out", *more)
    said = "2 of 3 ids name no image: patient9/view1, synpic1"
    assert f"warning: --exclude {path}: {said}\n" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "report.json").read_text())["exclude"]
    examples = ["patient9/view1", "synpic1"]
    assert report == {"ids": 3, "images": 1, "ids_of_no_image": 2, "examples": examples}
    places = ["--raw", str(raw), "--out", str(tmp_path / "no"), *SMALL, *more]
    path.write_text("synpic1\nsynpic2\n")
    assert table.main(places) == 1
    assert "x.txt: none of its 2 ids is an image, e.g. 'synpic1'; " in capsys.readouterr().err
    path.write_text("view1\n")
    assert table.main(places) == 1
    assert "id 'view1' of an exclusion list may be any of 6 images" in capsys.readouterr().err
    path.write_text("# nothing was found\n")
    assert table.main(places) == 0


def test_data_exclude_names_ids_of_no_image(tmp_path, shards, caplog):
    """A run that trains on what a list of another corpus does not leave out."""
    from m3ae.data.texts import load_tokenizer

    tokenizer, path, other = load_tokenizer(shards / "tokenizer"), tmp_path / "x", tmp_path / "y"
    key = Shards(shards / "train").image_key(3)
    path.write_text(f"{key}\nnobody\n")
    with caplog.at_level("WARNING"):
        few = Pairs([f"{shards}/train"], tokenizer, 24, 64, exclude=[str(path)])
    assert f"{path}: 1 of 2 ids name no image: nobody" in caplog.text
    assert few.image_starts[1] == 39
    other.write_text("of another corpus\n")
    both = {"tokenizer": tokenizer, "text_length": 24, "image_px": 64}
    with caplog.at_level("WARNING"):
        few = Pairs([f"{shards}/train"], **both, exclude=[str(path), str(other)])
    assert f"{other}: 1 of 1 ids name no image: of another corpus" in caplog.text
    assert few.image_starts[1] == 39
    path.write_text("nobody\n")
    with pytest.raises(ValueError, match=r"x, .*y: none of their 2 ids is an image"):
        Pairs([f"{shards}/train"], **both, exclude=[str(path), str(other)])
