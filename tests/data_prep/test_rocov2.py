"""ROCOv2: folders, zip archives and the hub's parquet copy."""

import csv
import zipfile
from pathlib import Path

import pytest

from data_prep import rocov2
from m3ae.data.shards import Shards
from tests.data_prep.test_corpora import SMALL, dropped, save_image, texts_of

NAMES = {"train": "train", "valid": "valid", "test": "test"}


def key(split: str, k: int) -> str:
    return f"ROCOv2_2023_{split}_{k:06d}"


def write_captions(raw: Path, split: str, captions: list[str], extra: str = "") -> None:
    raw.mkdir(exist_ok=True)
    with open(raw / f"{split}_captions.csv", "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "Caption"])
        writer.writerows((key(split, k), caption) for k, caption in enumerate(captions))
        file.write(extra)
    (raw / f"{split}_concepts.csv").write_text("ID,CUIs\n" + key(split, 0) + ",C0041618;C1\n")


def run(tmp_path: Path, *more: str) -> int:
    return rocov2.main(
        ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), *SMALL, *more]
    )


def originals(split: Shards) -> dict[str, bytes]:
    """Encoded images by key, of shards made with --encoding original."""
    found = {}
    for j in range(split.num_images):
        start, stop = split.shard(0)["image_offsets"][j : j + 2]
        found[split.image_key(j)] = split.shard(0)["image_bytes"][start:stop].tobytes()
    return found


def test_folders(tmp_path):
    """A layout not found; quotes, commas or new lines of a caption lost; a concept as a text."""
    raw = tmp_path / "raw"
    places = {"train": "train", "valid": "valid_images", "test": "test_images/test"}
    captions = ['A "quoted" word, a comma', "First line\nof a caption", "CT of  the naïve chest"]
    extra = f"{key('train', 0)},Another caption for it\n,No id for this\nx\n../y,Out of the way\n\n"
    for split, place in places.items():
        write_captions(raw, split, captions, extra if split == "train" else "")
        for k in range(3 if split != "test" else 2):
            save_image(raw / place / f"{key(split, k)}.jpg", k)
    assert run(tmp_path) == 0
    for split in places:
        shards = Shards(tmp_path / "out" / split)
        wanted = [" ".join(caption.split()) for caption in captions]
        assert texts_of(shards) == {key(split, k): [wanted[k]] for k in range(shards.num_images)}
    assert dropped(Shards(tmp_path / "out" / "test")) == {
        "image: missing": 1,
        "text: its image was left out": 1,
    }
    assert dropped(Shards(tmp_path / "out" / "train")) == {
        "row: id occurs twice, first one kept": 1,
        "row: no id or no caption": 1,
        "row: more or fewer cells than the header has": 1,
        "row: id leads elsewhere": 1,
    }


def test_zip_archives(tmp_path, capsys):
    """Files extracted, another member's bytes, or a bad member that ends the preparation."""
    raw = tmp_path / "raw"
    write_captions(raw, "train", [f"Caption number {k}." for k in range(5)])
    images = []
    for k in range(4):
        save_image(tmp_path / "image.jpg", k)
        images.append((tmp_path / "image.jpg").read_bytes())
    archive = raw / "train_images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("any name/deep/", b"")
        for k in (2, 0, 3):
            file.writestr(f"any name/deep/{key('train', k)}.jpg", images[k])
        file.writestr(f"again/{key('train', 0)}.jpg", images[1])
        file.writestr(f"../{key('train', 1)}.jpg", images[1])
        file.writestr(f"/tmp/{key('train', 4)}.jpg", images[1])
    data = archive.read_bytes()
    place = data.index(images[3]) + 40
    archive.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    before = sorted(path for path in tmp_path.rglob("*"))
    assert run(tmp_path, "--encoding", "original", "--workers", "1") == 0
    split = Shards(tmp_path / "out" / "train")
    assert originals(split) == {key("train", 0): images[0], key("train", 2): images[2]}
    assert dropped(split) == {
        "archive: name leads elsewhere": 2,
        "archive: file name occurs twice, first one used": 1,
        "image: missing": 2,
        "image: unreadable": 1,
        "text: its image was left out": 3,
    }
    assert "no split test" in capsys.readouterr().out
    after = [path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "out")]
    assert sorted(after) == before


def test_hub_copy(tmp_path):
    """The hub's names of columns or of the validation split are not found."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    (tmp_path / "raw" / "data").mkdir(parents=True)
    save_image(tmp_path / "image.jpg", 1)
    image = (tmp_path / "image.jpg").read_bytes()
    for split, name in {"train": "train", "valid": "validation", "test": "test"}.items():
        rows = [
            {
                "image": {"bytes": image, "path": None},
                "image_id": key(split, k),
                "caption": f"A caption of {k}",
                "cui": ["C1"],
            }
            for k in range(2)
        ]
        path = tmp_path / "raw" / "data" / f"{name}-00000-of-00001.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert run(tmp_path, "--encoding", "original") == 0
    for split in NAMES:
        shards = Shards(tmp_path / "out" / split)
        assert texts_of(shards) == {key(split, k): [f"A caption of {k}"] for k in range(2)}
        assert set(originals(shards).values()) == {image}


@pytest.mark.parametrize(
    "table, images, message",
    [
        ("ID,Caption\n", None, "train_images.zip: not there; it should be the images of split"),
        ("ID,Text\nx,a b c\n", b"", "train_captions.csv: no column 'Caption'; it has ID, Text"),
        ("", b"", "train_captions.csv: no column 'ID'; it has none"),
        ('ID,Caption\nx,"a b c\n', b"", "train_captions.csv: after line 0: unexpected end of data"),
        ("ID,Caption\nx,a b c\n", b"no zip", "train_images.zip: not a readable zip archive"),
        ("ID,Caption\nx,a b c\n", b"", "no image is left to prepare: image: missing: 1"),
        (None, None, "no train_captions.csv, valid_captions.csv or test_captions.csv in it"),
    ],
)
def test_mistakes(tmp_path, capsys, table, images, message):
    """A traceback, or half a corpus, where a file is not what it should be."""
    raw = tmp_path / "raw"
    raw.mkdir()
    if table is not None:
        (raw / "train_captions.csv").write_text(table)
    if images:
        (raw / "train_images.zip").write_bytes(images)
    elif images == b"":
        (raw / "train").mkdir()
    assert run(tmp_path) == 1
    assert message in capsys.readouterr().err
