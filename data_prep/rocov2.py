r"""ROCOv2 -> shards of image-caption pairs.

The corpus: DIR/{train,valid,test}_captions.csv (ID,Caption), and each split's images, named
ROCOv2_2023_train_000001.jpg, in DIR/train/, DIR/train_images/, DIR/train_images/train/ or, as
downloaded, in DIR/train_images.zip, which is read as it is. Or the hub's parquet copy (columns
image, image_id, caption). The concepts are not used.

example: python data_prep/rocov2.py --raw rocov2 --out data/rocov2 --tokenizer roberta-base
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from m3ae.command import run
from m3ae.corpora.items import Drops, Item, is_inside
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.report import say_missing
from m3ae.corpora.roco_files import parquet_pairs
from m3ae.corpora.stored import (
    SPLIT_NAMES,
    FileNames,
    InZip,
    has_images,
    parquet_splits,
    plain_name,
    zip_names,
)
from m3ae.corpora.tables import read_table
from m3ae.files import need


def read_captions(path: Path, drops: Drops) -> dict[str, str]:
    """Caption by id, e.g. ROCOv2_2023_train_000001; ValueError where it is no such table."""
    captions: dict[str, str] = {}
    for number, row in read_table(path, ("ID", "Caption"), drops):
        key, where = row["ID"].strip(), f"{path.name}: row {number}"
        if not key or not row["Caption"].strip():
            drops.add("row: no id or no caption", f"{where}: {key}")
        elif not is_inside(key) or "/" in key:
            drops.add("row: id leads elsewhere", f"{where}: {key[:60]}")
        elif key in captions:
            drops.add("row: id occurs twice, first one kept", f"{where}: {key}")
        else:
            captions[key] = row["Caption"]
    return captions


def zip_members(archive: Path, drops: Drops) -> dict[str, str]:
    """Whole name of each image in a zip by its file name."""
    members: dict[str, str] = {}
    for member in zip_names(archive):
        path = plain_name(member)
        name, where = PurePosixPath(path).name, f"{archive.name}: {member[:60]}"
        if not is_inside(path):
            drops.add("archive: name leads elsewhere", where)
        elif members.setdefault(name, member) != member and name.lower().endswith(".jpg"):
            drops.add("archive: file name occurs twice, first one used", where)
    return members


def find_images(raw: Path, name: str) -> Path:
    """The innermost folder with images, else the zip; FileNotFoundError where there is neither."""
    # An archive unpacked into train_images/ may have its own train/.
    folders = [raw / f"{name}_images" / name, raw / name, raw / f"{name}_images"]
    archive = raw / f"{name}_images.zip"
    found = [place for place in folders if has_images(place)]
    if not found and not archive.exists():
        found = [place for place in folders if place.is_dir()]  # all images are missing
    return need(
        (found or [archive])[0],
        f"the images of split {name}, or the folder {name}/ or {name}_images/",
    )


def read_split(captions: Path, name: str, drops: Drops, asked: bool = True) -> list[Item]:
    """Items of one split; images that are not there are counted later, as missing.

    Not `asked` for, it needs no images: its captions may train a tokenizer, its ids be excluded.
    """
    images = find_images(captions.parent, name) if asked else captions.parent / name
    zipped = images.is_file()
    members = zip_members(images, drops) if zipped else {}
    names = FileNames(members if zipped else os.listdir(images) if asked else ())
    items = []
    for key, caption in read_captions(captions, drops).items():
        file = names.find(key) or f"{key}.jpg"
        place = InZip(images, members.get(file, file)) if zipped else images / file
        items.append(Item(key, place, (caption,)))
    return items


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    need(args.raw, "the ROCOv2 corpus")
    dropped = {split: Drops() for split in SPLIT_NAMES}
    splits: dict[str, list[Item]] = {}
    for split, names in SPLIT_NAMES.items():
        tables = [(args.raw / f"{name}_captions.csv", name) for name in names]
        for path, name in [(path, name) for path, name in tables if path.is_file()][:1]:
            asked = split in (args.split or SPLIT_NAMES)
            splits[split] = read_split(path, name, dropped[split], asked)
    if not splits:
        hub = parquet_splits(args.raw)
        splits = {split: parquet_pairs(files, dropped[split]) for split, files in hub.items()}
    if not splits:
        tables = "train_captions.csv, valid_captions.csv or test_captions.csv"
        raise FileNotFoundError(f"{args.raw}: no {tables} in it, and no parquet files train-* ...")
    say_missing(args.raw, splits)
    prepare(splits, dropped, args, source="ROCOv2")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(make_shards, corpus_parser(__doc__), argv)


if __name__ == "__main__":
    raise SystemExit(main())
