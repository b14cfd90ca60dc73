r"""Prepared shards -> WebDataset tars, for other code bases: OUT/SPLIT/000000.tar, ...

A sample is an image: KEY.png where the shards are `raw` (pixels after resize and crop), else the
stored bytes (KEY.jpg, ...); KEY.txt, its texts, one a line; and of corpora of questions KEY.json, a
list of {"question": ..., and its task fields}. --each-text writes a sample for each text instead,
for readers that take a .txt as one caption. A KEY is the image's key with _ for dots, by which
the package cuts names. The package `webdataset` reads the tars, and so does from_webdataset.py.

example: python data_prep/to_webdataset.py data/roco --out tars
"""

import argparse
import io
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from m3ae.command import parser_for, run
from m3ae.corpora.verification import split_folders
from m3ae.data.manifest import WITH_FIELDS
from m3ae.data.shards import Shards

_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}  # others: the format's name


def encoded_image(split: Shards, image: int) -> tuple[str, bytes]:
    """Suffix and bytes of an image: PNG of raw pixels, else the stored bytes."""
    if split.manifest["encoding"] != "raw":
        data = split.image_bytes(image)
        kind = Image.open(io.BytesIO(data)).format
        return _SUFFIXES.get(kind, kind.lower()), data
    pixels = split.image(image, split.manifest["px"])
    out = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(out, "PNG")
    return "png", out.getvalue()


def sample_key(key: str, known: Counter[str]) -> str:
    """A key that no reader cuts, skips or finds twice; `known`: how often it came before."""
    plain = re.sub(r"[^\w/-]", "_", key).strip("/") or "image"
    plain = f"image{plain}" if plain.startswith("__") else plain
    known[plain] += 1
    return plain if known[plain] == 1 else sample_key(f"{plain}-{known[plain]}", known)


def samples(split: Shards, each_text: bool) -> Iterator[dict[str, Any]]:
    """What `webdataset.ShardWriter` writes, in the order of the images."""
    rows = defaultdict(list)
    for row, image in enumerate(split.image_of_text.tolist()):
        rows[image].append(row)
    known: Counter[str] = Counter()
    for image in range(split.num_images):
        key, (suffix, data) = sample_key(split.image_key(image), known), encoded_image(split, image)
        parts = [[row] for row in rows[image]] if each_text else [rows[image]]
        for part in parts:
            number = f"-{part[0] - rows[image][0]}" if len(parts) > 1 else ""
            name = sample_key(f"{key}{number}", known) if number else key
            text = "\n".join(split.text(row) for row in part)
            sample = {"__key__": name, suffix: data, "txt": text.encode()}
            if split.manifest["kind"] == WITH_FIELDS:
                asked = [{"question": split.text(row), **split.fields(row)} for row in part]
                sample["json"] = json.dumps(asked, ensure_ascii=False).encode()
            yield sample


def write_tars(folder: Path, out: Path, size: int, each_text: bool) -> None:
    """Write a split's tars to OUT/SPLIT, which is there when they are whole."""
    try:
        from webdataset import ShardWriter
    except ImportError as error:
        raise ImportError("needs webdataset: pip install 'm3ae[webdataset]'") from error
    split, final = Shards(folder), out / folder.name
    if final.exists():
        raise ValueError(f"{final}: is there already; delete it, or give another --out")
    partial = final.with_name(f"{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pattern, options = str(partial).replace("%", "%%") + "/%06d.tar", {"mtime": 0, "verbose": 0}
    total = len(split) if each_text else split.num_images
    with ShardWriter(pattern, 10**9, size, encoder=lambda sample: sample, **options) as writer:
        for sample in tqdm(samples(split, each_text), folder.name, total, unit=" samples"):
            writer.write(sample)
    partial.rename(final)
    print(f"{final}: {total} samples in {len(list(final.glob('*.tar')))} tars")


def convert(args: argparse.Namespace) -> None:
    """The whole work."""
    if args.tar_mb < 1:
        raise ValueError(f"--tar-mb {args.tar_mb}: below 1")
    for folder in split_folders(args.folder):
        write_tars(folder.absolute(), args.out, args.tar_mb * 10**6, args.each_text)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = parser_for(__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="a prepared corpus or split")
    add("--out", type=Path, required=True, metavar="OUT", help="where the folders of tars go")
    add("--tar-mb", type=int, default=500, metavar="N", help="a tar's size (default: %(default)s)")
    add("--each-text", action="store_true", help="a sample for each text, not for each image")
    return run(convert, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
