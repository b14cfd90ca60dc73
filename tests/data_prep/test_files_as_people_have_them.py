"""Files of corpora that are not quite as published: other names, marks, sizes, broken pictures."""

import codecs
import csv
import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from data_prep import medicat, pairs, roco, roco_retrieval, rocov2, slake, vqa_med_2019, vqa_rad
from m3ae.corpora.stored import FileNames
from m3ae.data.exclusions import listed
from m3ae.data.images import ImageError, decode
from m3ae.data.shards import Shards
from tests.data_prep.test_corpora import SMALL, dropped, save_image, texts_of
from tests.data_prep.test_exclude import write_slake
from tests.data_prep.test_vqa import RAD_ROWS, rad_row, write_med, write_rad


def run(script, raw: Path, *more: str) -> Shards:
    out = raw.parent / "out"
    assert script.main(["--raw", str(raw), "--out", str(out), *SMALL, *more]) == 0
    return Shards(out / "train")


def write_table(raw: Path, text: str, encoding: str = "utf-8") -> list[str]:
    raw.mkdir(exist_ok=True)
    (raw.parent / "x.csv").write_bytes(text.encode(encoding))
    return ["--table", str(raw.parent / "x.csv")]


# ------------------------------------------------------------------ pictures


def test_an_elongated_picture_is_a_counted_drop(tmp_path):
    """One picture longer than JPEG can be ends the preparation, without its name."""
    raw = tmp_path / "raw"
    save_image(raw / "a.png", 1)
    Image.new("L", (20_000, 80)).save(raw / "long.png")
    save_image(raw / "b.png", 2)
    more = write_table(raw, "image,text\na.png,one two three\nlong.png,a b c\nb.png,d e f\n")
    split = run(pairs, raw, *more, "--encoding", "jpeg", "--px", "288")
    assert list(texts_of(split)) == ["a.png", "b.png"]
    report = split.manifest["report"]["dropped"]
    assert report["image: too elongated for JPEG"]["examples"] == [
        "long.png (long.png): too elongated for JPEG: 20000 x 80 resized to 72000 x 288"
    ]


# A texture of an unknown kind, at which Pillow raises NotImplementedError, a RuntimeError.
TEXTURE = b"DDS " + struct.pack("<7I", 124, 0x1007, 8, 8, 0, 0, 0) + bytes(44)
TEXTURE += struct.pack("<2I4s5I", 32, 4, b"ODD!", 0, 0, 0, 0, 0) + bytes(20 + 64)


def test_any_error_of_a_decoder_is_a_counted_drop(tmp_path):
    """A traceback without the file's name for an error that no list of errors foresaw."""
    raw = tmp_path / "raw"
    save_image(raw / "a.png", 1)
    (raw / "b.png").write_bytes(TEXTURE)
    with pytest.raises(RuntimeError):
        Image.open(raw / "b.png")
    more = write_table(raw, "image,text\na.png,one two three\nb.png,a b c\n")
    split = run(pairs, raw, *more)
    (example,) = split.manifest["report"]["dropped"]["image: unreadable"]["examples"]
    assert example.startswith("b.png (b.png): unreadable: Unimplemented")
    assert list(texts_of(split)) == ["a.png"]


def test_too_little_memory_is_no_fault_of_the_picture(monkeypatch):
    """A picture left out of one machine's shards and not of another's."""
    out = io.BytesIO()
    Image.new("L", (4, 4)).save(out, "PNG")

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(MemoryError):
        decode(out.getvalue())
    monkeypatch.undo()
    with pytest.raises(ImageError, match="unreadable: not a known image format"):
        decode(b"x")


# ------------------------------------------------------------------ names of files


def test_names_of_files():
    """Another file taken though there is the very one; a file of another stem."""
    names = FileNames(["A.JPG", "a.jpg", "b.Jpeg", "c.png", "c.JPG", "dd.jpg"])
    found = {stem: names.find(stem) for stem in ("a", "A", "b", "c", "d")}
    assert found == {"a": "a.jpg", "A": "A.JPG", "b": "b.Jpeg", "c": "c.JPG", "d": None}


def write_roco(raw: Path, names: list[str], licences: bool = False) -> None:
    base = raw / "train" / "radiology"
    for k, name in enumerate(names):
        save_image(base / "images" / name, k)
    captions = "".join(f"ROCO_{k:05d}\t A caption of {k}.\n" for k in range(len(names)))
    (base / "captions.txt").write_text(captions)
    rows = [(f"ROCO_{k:05d}", f"PMC{k}", "fig-g01.jpg") for k in range(len(names))]
    if licences:
        lines = [f"{key},{paper}_{figure},CC BY\n" for key, paper, figure in rows]
        (base / "licences.txt").write_text("ROCO_ID,PMC_ID,CC\n" + "".join(lines))
    else:
        link = "{}\twget -r ftp://host/{}.tar.gz -P /path\t{}\n"
        (base / "dlinks.txt").write_text("".join(link.format(*row) for row in rows))


@pytest.mark.parametrize("licences", [True, False])
def test_roco_by_either_name(tmp_path, licences, capsys):
    """Every image of an older download missing; another figure's image beside a caption."""
    raw = tmp_path / "raw"
    names = ["PMC0_fig-g01.jpg", "ROCO_00001.JPG", "pmc2_fig-g01.JPG", "ROCO_00003.jpg"]
    write_roco(raw, names, licences)
    split = run(roco, raw, "--encoding", "original")
    assert texts_of(split) == {f"ROCO_{k:05d}": [f"A caption of {k}."] for k in range(4)}
    offsets, data = split.shard(0)["image_offsets"], split.shard(0)["image_bytes"]
    for k, name in enumerate(names):
        wanted = (raw / "train" / "radiology" / "images" / name).read_bytes()
        assert data[offsets[k] : offsets[k + 1]].tobytes() == wanted
    left_out, _ = listed(split, {"PMC0_fig-g01", "ROCO_00003"})
    assert left_out.tolist() == [True, False, False, True]


def test_roco_retrieval_by_either_name(tmp_path):
    """Pools whose images are missing where the download is an older one."""
    for split in ("validation", "test"):
        write_roco(tmp_path / "other" / split, ["ROCO_00000.jpg"])
    raw = tmp_path / "raw"
    write_roco(raw, ["PMC0_fig-g01.jpg", "ROCO_00001.jpg"])
    for split in ("validation", "test"):
        (tmp_path / "other" / split / "train").rename(raw / split)
    assert list(texts_of(run(roco_retrieval, raw))) == ["ROCO_00000", "ROCO_00001"]


@pytest.mark.parametrize("zipped", [True, False])
def test_rocov2_suffixes_and_an_empty_folder(tmp_path, zipped):
    """An empty folder taken for the images; .JPG, or a name with backslashes, that is missing."""
    raw = tmp_path / "raw"
    files = ["R_0.jpg", "R_1.JPG"]
    for k, name in enumerate(files):
        save_image(raw / "train" / name, k)
    if zipped:
        with zipfile.ZipFile(raw / "train_images.zip", "w") as archive:
            for name in files:
                archive.write(raw / "train" / name, f"train_images\\{name}")
                (raw / "train" / name).unlink()
    else:
        (raw / "train_images" / "train").mkdir(parents=True)
    (raw / "train_captions.csv").write_text("ID,Caption\nR_0,one two three\nR_1,four five six\n")
    split = run(rocov2, raw)
    assert list(texts_of(split)) == ["R_0", "R_1"] and dropped(split) == {}


def test_slake_of_a_windows_archive(tmp_path):
    """An empty imgs/ beside the archive, or its backslashes, for which all images are missing."""
    raw = tmp_path / "raw"
    write_slake(raw)
    with zipfile.ZipFile(raw / "imgs.zip", "w") as archive:
        for path in sorted((raw / "imgs").rglob("*.jpg")):
            archive.write(path, f"imgs\\{path.parent.name}\\{path.name}")
    (raw / "imgs").rename(tmp_path / "aside")
    (raw / "imgs").mkdir()
    assert len(texts_of(run(slake, raw))) == 6


# ------------------------------------------------------------------ texts


@pytest.mark.parametrize("script", [roco, rocov2, pairs])
def test_latin_1(tmp_path, script, capsys):
    """Captions with ° or µ left out though their encoding is given; others read in it too."""
    raw, texts = tmp_path / "raw", ["5 µm at 45°", "in UTF-8: é", "plain old text"]
    encoded = [texts[0].encode("latin-1"), texts[1].encode(), texts[2].encode()]
    images = raw / ("train/radiology/images" if script is roco else "train")
    for k in range(3):
        save_image(images / f"R_{k}.jpg", k)
    if script is roco:
        lines = [f"R_{k}\t ".encode() + text + b"\n" for k, text in enumerate(encoded)]
        (images.parent / "captions.txt").write_bytes(b"".join(lines))
    else:
        lines = [f"train/R_{k}.jpg,R_{k},".encode() + t + b"\n" for k, t in enumerate(encoded)]
        path = raw / "train_captions.csv"
        head = b"image,id,text\n" if script is pairs else b"image,ID,Caption\n"
        path.write_bytes(head + b"".join(lines))
    more = ["--table", str(raw / "train_captions.csv")] if script is pairs else []
    split = run(script, raw, *more, "--text-encoding", "latin-1")
    assert texts_of(split) == {f"R_{k}": [text] for k, text in enumerate(texts)}
    assert split.manifest["options"]["text_encoding"] == "latin-1"
    out = tmp_path / "plain"
    assert script.main(["--raw", str(raw), "--out", str(out), *SMALL, *more]) == 0
    plain = Shards(out / "train")
    assert list(texts_of(plain)) == ["R_1", "R_2"]
    assert "text_encoding" not in plain.manifest["options"]
    wrong = ["--raw", str(raw), "--out", str(tmp_path / "no"), *more, "--text-encoding", "latin1x"]
    assert script.main(wrong) == 1
    assert "latin1x: no encoding of texts" in capsys.readouterr().err


def test_medicat_with_a_mark_of_byte_order(tmp_path):
    """The first figure lost, and with it the whole seeded split another one."""
    keys = {}
    for name, mark in (("plain", b""), ("marked", codecs.BOM_UTF8)):
        raw = tmp_path / name / "raw"
        rows = []
        for k in range(12):
            row = {"pdf_hash": f"{k:02d}", "fig_uri": "a.png", "s2_caption": f"Figure of {k}."}
            rows.append(json.dumps({**row, "radiology": True}).encode() + b"\n")
            save_image(raw / "figures" / f"{k:02d}_a.png", k)
        (raw / "x.jsonl").write_bytes(mark + b"".join(rows))
        keys[name] = list(texts_of(run(medicat, raw, "--held-out", "3")))
    assert keys["plain"] == keys["marked"] and len(keys["plain"]) == 6


def test_long_cells(tmp_path):
    """A report of more than 131,072 letters that ends the reading of its table."""
    raw, report = tmp_path / "raw", "word " * 40_000
    save_image(raw / "a.png", 1)
    with open(tmp_path / "x.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "text"], ["a.png", report]])
    split = run(pairs, raw, "--table", str(tmp_path / "x.csv"))
    assert split.text(0) == report.strip()


def test_an_id_of_several_images(tmp_path, capsys):
    """All but the first image of a patient, whose number stands in `id`, left out."""
    raw = tmp_path / "raw"
    rows = ["image,id,text"]
    for k in range(4):
        save_image(raw / f"{k}.png", k)
        rows += [f"{k}.png,p{k // 3},text one of {k}", f"{k}.png,p{k // 3},text two of {k}"]
    split = run(pairs, raw, *write_table(raw, "\n".join(rows)))
    texts = {f"{k}.png": [f"text one of {k}", f"text two of {k}"] for k in range(3)}
    assert texts_of(split) == {**texts, "p1": ["text one of 3", "text two of 3"]}
    assert dropped(split) == {}
    said = "1 ids of split train are of several images, e.g. p0; their files name these images"
    assert said in capsys.readouterr().err


# ------------------------------------------------------------------ parts of a corpus


def test_roco_without_the_captions_of_train(tmp_path, capsys):
    """A split that is whole refused, as another one that nobody asked for is not."""
    raw = tmp_path / "raw"
    write_roco(raw, ["ROCO_00000.jpg", "ROCO_00001.jpg"])
    (raw / "train").rename(raw / "val")
    (raw / "train" / "radiology" / "images").mkdir(parents=True)
    where = ["--raw", str(raw), "--out", str(tmp_path / "out"), *SMALL]
    assert roco.main([*where, "--split", "valid"]) == 0
    assert len(texts_of(Shards(tmp_path / "out" / "valid"))) == 2
    assert roco.main(where) == 1
    assert "train/radiology/captions.txt: not there" in capsys.readouterr().err
    assert roco.main([*where, "--split", "train"]) == 1
    assert "train/radiology/captions.txt: not there" in capsys.readouterr().err


def in_latin_1(path: Path) -> None:
    """Write a file's text again with the byte 0xB5, a micro sign, wherever `MICRO` stands."""
    path.write_bytes(path.read_bytes().replace(b"MICRO", b"\xb5"))


@pytest.mark.parametrize("kind", ["official", "mevf", "slake", "vqa_med"])
def test_latin_1_of_questions(tmp_path, kind):
    """--text-encoding that does nothing; a whole JSON file refused for one byte of it."""
    raw, more = tmp_path / "raw", []
    row = rad_row(1, "synpic1", "How many MICROm?", "5 MICROm")
    if kind == "slake":
        write_slake(raw)
        script, files = slake, [raw / "train.json"]
        rows = json.loads(files[0].read_text())
        rows[0] |= {"question": row["question"], "answer": row["answer"]}
        files[0].write_text(json.dumps(rows))
    elif kind == "vqa_med":
        write_med(raw, official=False)
        script, files = vqa_med_2019, [raw / "train" / "QA" / "Modality.csv"]
        files[0].write_text(f"synpic1|{row['question']}|{row['answer']}\n")
        more = ["--as", "questions"]
    else:
        write_rad(raw, [row, *RAD_ROWS[3:]])
        script, files = vqa_rad, [raw / vqa_rad.OFFICIAL]
        if kind == "mevf":
            files[0].unlink()
            files = [raw / name for name in vqa_rad.MEVF]
            for file in files:
                file.write_text(json.dumps([row]))
    for file in files:
        in_latin_1(file)
    split = run(script, raw, *more, "--text-encoding", "latin-1")
    answers = {split.text(i): split.fields(i)["answer"] for i in range(len(split))}
    assert answers["How many µm?"] == "5 µm"


# ------------------------------------------------------------------ names


@pytest.mark.parametrize("kind", ["vqa_rad", "slake", "zip", "pairs"])
def test_names_of_another_case(tmp_path, kind):
    """synpic1.JPG missing where a corpus says synpic1.jpg, or found without a word."""
    raw, more = tmp_path / "raw", []
    script, images = slake, raw / "imgs"
    if kind == "vqa_rad":
        script, images = vqa_rad, raw / vqa_rad.IMAGES
        write_rad(raw, RAD_ROWS)
    elif kind == "pairs":
        script, images = pairs, raw
        save_image(raw / "a.jpg", 1)
        more = write_table(raw, "image,text,id\na.jpg,one two three,k\n")
    else:
        write_slake(raw)
    before = texts_of(run(script, raw, *more))
    shutil.rmtree(tmp_path / "out")
    for path in sorted(images.rglob("*.jpg")):
        path.rename(path.with_suffix(".JPG"))
    if kind == "zip":
        with zipfile.ZipFile(raw / "imgs.zip", "w") as archive:
            for path in sorted(images.rglob("*.JPG")):
                archive.write(path, f"imgs/{path.parent.name}/{path.name}")
        shutil.rmtree(images)
    split = run(script, raw, *more)
    assert texts_of(split) == before and len(before)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    if kind == "pairs":
        assert report["names_of_another_case"] == {"count": 1, "examples": ["a.jpg"]}
    else:
        note = split.manifest["report"]["notes"]["found under a name of another case"]
        assert note["count"] == len(before)


def test_one_image_under_two_cases(tmp_path, capsys):
    """One image in train as a.jpg and in test as A.JPG, unnoticed; the wrong one of two files."""
    raw = tmp_path / "raw"
    for k, name in enumerate(("a.jpg", "b.jpg", "B.jpg")):
        save_image(raw / name, k)
    rows = ["a.jpg,one two three,train", "A.JPG,four five six,test", "B.JPG,seven eight nine,train"]
    more = write_table(raw, "\n".join(["image,text,split", *rows]))
    split = run(pairs, raw, *more)
    assert "1 images of split train are in another split too, e.g. a.jpg" in capsys.readouterr().err
    assert list(texts_of(split)) == ["a.jpg"]
    assert split.manifest["report"]["dropped"]["image: missing"]["count"] == 1


def test_images_of_the_splits_asked_for(tmp_path, capsys):
    """Images of train needed by --split valid, though nobody asked for them."""
    raw = tmp_path / "raw"
    save_image(raw / "valid" / "valid_1.jpg", 1)
    captions = {
        "train": "train_1,a b c\ntrain_2,words to learn\n",
        "valid": "valid_1,the caption\n",
    }
    for name, lines in captions.items():
        (raw / f"{name}_captions.csv").write_text(f"ID,Caption\n{lines}")
    (tmp_path / "x.txt").write_text("train_1\n")
    out = ["--raw", str(raw), "--out", str(tmp_path / "out"), "--min-words", "1", *SMALL]
    more = ["--tokenizer", "train:30", "--exclude", str(tmp_path / "x.txt")]
    assert rocov2.main([*out, "--split", "valid", *more]) == 0
    assert texts_of(Shards(tmp_path / "out" / "valid")) == {"valid_1": ["the caption"]}
    assert rocov2.main(out) == 1
    assert "the images of split train" in capsys.readouterr().err
