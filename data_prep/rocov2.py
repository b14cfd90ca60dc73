r"""ROCOv2 -> shards of image-caption pairs.

The corpus: DIR/{train,valid,test}_captions.csv (ID,Caption), and each split's images, named
ROCOv2_2023_train_000001.jpg, in DIR/train/, DIR/train_images/, DIR/train_images/train/ or, as
downloaded, in DIR/train_images.zip, which is read as it is. Or the hub's parquet copy (columns
image, image_id, caption). The concepts are not used.

example: python data_prep/rocov2.py --raw rocov2 --out data/rocov2 --tokenizer roberta-base
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from m3ae.command import exit_status
from m3ae.corpora.items import Drops, Item, Stored, is_inside
from m3ae.corpora.prepare import add_arguments, prepare
from m3ae.corpora.stored import InZip, parquet_pairs, parquet_splits, zip_names
from m3ae.files import need

SPLITS = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}


def read_captions(path: Path, drops: Drops) -> dict[str, str]:
    """Caption by id, e.g. ROCOv2_2023_train_000001; ValueError where it is no such table."""
    captions: dict[str, str] = {}
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # strict: else a quote that is never closed swallows rows without a word.
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            for name in ("ID", "Caption"):
                if header.count(name) != 1:
                    raise ValueError(
                        f"{path}: not one column {name!r}; it has {', '.join(header) or 'none'}"
                    )
            for row in reader:
                where = f"{path.name}:{reader.line_num}"
                if not row:
                    continue  # a blank line
                if len(row) != len(header):
                    drops.add("row: not as many cells as columns", f"{where}: {str(row)[:60]}")
                    continue
                key, caption = row[header.index("ID")].strip(), row[header.index("Caption")]
                if not key or not caption.strip():
                    drops.add("row: no id or no caption", f"{where}: {key}")
                elif not is_inside(key) or "/" in key:
                    drops.add("row: id leads elsewhere", f"{where}: {key[:60]}")
                elif key in captions:
                    drops.add("row: id occurs twice, first one kept", f"{where}: {key}")
                else:
                    captions[key] = caption
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}; repair the table") from error
    return captions


def zip_members(archive: Path, drops: Drops) -> dict[str, str]:
    """Whole name of each image in a zip by its file name."""
    members: dict[str, str] = {}
    for member in zip_names(archive):
        name = PurePosixPath(member).name
        if not is_inside(member):
            drops.add("archive: name leads elsewhere", f"{archive.name}: {member[:60]}")
        elif members.setdefault(name, member) != member and name.endswith(".jpg"):
            drops.add(
                "archive: file name occurs twice, first one used", f"{archive.name}: {member[:60]}"
            )
    return members


def find_images(raw: Path, name: str) -> Path:
    """Folder or zip of a split's images; FileNotFoundError where there is neither.

    The innermost folder counts: an archive unpacked into train_images/ may have its own train/.
    """
    places = [raw / f"{name}_images" / name, raw / name, raw / f"{name}_images"]
    found = [place for place in places if place.is_dir()] or [raw / f"{name}_images.zip"]
    return need(found[0], f"the images of split {name}, or the folder {name}/ or {name}_images/")


def read_split(captions: Path, name: str, drops: Drops) -> list[Item]:
    """Items of one split; images that are not there are counted later, as missing."""
    images = find_images(captions.parent, name)
    zipped = images.is_file()
    members = zip_members(images, drops) if zipped else {}

    def source(file: str) -> Path | Stored:
        return InZip(images, members.get(file, file)) if zipped else images / file

    return [
        Item(key, source(f"{key}.jpg"), (caption,))
        for key, caption in read_captions(captions, drops).items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args(argv)

    def body() -> None:
        need(args.raw, "the ROCOv2 corpus")
        splits: dict[str, list[Item]] = {}
        dropped = {split: Drops() for split in SPLITS}
        for split, names in SPLITS.items():
            tables = [(args.raw / f"{name}_captions.csv", name) for name in names]
            found = [(path, name) for path, name in tables if path.is_file()]
            if found:
                splits[split] = read_split(*found[0], dropped[split])
        if not splits:
            for split, files in parquet_splits(args.raw).items():
                splits[split] = parquet_pairs(files, dropped[split])
        if not splits:
            raise FileNotFoundError(
                f"{args.raw}: no train_captions.csv, valid_captions.csv or "
                "test_captions.csv in it, and no parquet files train-*, "
                "validation-*, test-*"
            )
        for split in SPLITS:
            if split not in splits:
                print(f"{args.raw}: no split {split} in it, it is left out")
        prepare(splits, dropped, args, source="ROCOv2")

    return exit_status(body)


if __name__ == "__main__":
    sys.exit(main())
