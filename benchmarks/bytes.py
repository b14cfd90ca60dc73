"""Bytes on disk and reading time of a grey image with its caption, by encoding of the shards.

    python benchmarks/bytes.py --images-from FOLDER            about a minute for 300 images
    python benchmarks/bytes.py                                 generated 800 x 600 JPEGs

Every image of the folder (and below) that is grey after resize and crop is prepared at --px in
each encoding, with a made-up caption of 5-50 words and its tokens; the others are counted.
`bytes_a_sample` are all files of the split over its images, `texts` the part of it that is no
image (texts, keys, tokens, checksums); `gb_for_300000` is 300,000 times that, in GB of 10^9 bytes.
`files` are the images as they came: what a copy in another container holds too, whose reader
decodes and resizes at every access. `ms_to_read`: from a shard in the page cache to pixels of that
size, one thread; best of the rounds. Prints JSON.
"""

import argparse
import contextlib
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
from pictures import save_picture
from PIL import Image

from m3ae.corpora import prepare
from m3ae.data.images import ImageError, decode, resize_crop
from m3ae.data.manifest import ENCODINGS
from m3ae.data.shards import Shards

SAMPLES = 300_000
ENDINGS = (".jpg", ".jpeg", ".png")
GENERATED = 256


def write_images(folder: Path) -> None:
    """Grey JPEGs of blurred noise with some grain, about 150 KB each."""
    rng = np.random.default_rng(0)
    for number in range(GENERATED):
        save_picture(folder / f"{number:03d}.jpg", rng)


def grey_images(folder: Path, px: int) -> tuple[list[Path], int, int]:
    """Paths of the grey images, and how many others there are: coloured, unusable."""
    grey, coloured, unusable = [], 0, 0
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS]
    for path in sorted(paths):
        try:
            channels = len(resize_crop(decode(path)[0], px))
        except ImageError:
            unusable += 1
            continue
        if channels == 1:
            grey.append(path)
        else:
            coloured += 1
    return grey, coloured, unusable


def write_items(paths: list[Path]) -> list[prepare.Item]:
    """The images, each with a caption of 5-50 made-up words."""
    rng, items = np.random.default_rng(0), []
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(3000)]
    often = 1 / np.arange(10, len(words) + 10)  # few words are frequent, as in any language
    for number, path in enumerate(paths):
        chosen = rng.choice(words, int(rng.integers(5, 51)), p=often / often.sum())
        items.append(prepare.Item(f"{number:06d}", path, (" ".join(chosen) + ".",)))
    return items


def prepare_shards(items: list[prepare.Item], out: Path, encoding: str, px: int) -> Shards:
    """The items as split `train` of `out`, with tokens."""
    options = f"--px {px} --encoding {encoding} --tokenizer train:2000 --workers 0".split()
    places = ["--raw", str(out.parent), "--out", str(out)]
    args = prepare.corpus_parser(None).parse_args([*places, *options])
    with contextlib.redirect_stdout(sys.stderr):
        prepare.prepare({"train": items}, {}, args, source="benchmark")
    return Shards(out / "train")


def seconds_to_read(split: Shards, px: int) -> float:
    """Seconds on the core an image, all images in random order."""
    order = np.random.default_rng(0).permutation(split.num_images)
    started = time.process_time()
    for j in order:
        split.image(int(j), px)
    return (time.process_time() - started) / len(order)


def measure(items: list[prepare.Item], folder: Path, px: int, rounds: int) -> dict[str, object]:
    """The figures by encoding."""
    figures: dict[str, dict[str, float]] = {}
    splits = {
        encoding: prepare_shards(items, folder / encoding, encoding, px) for encoding in ENCODINGS
    }
    for encoding, split in splits.items():
        shard_bytes = sum(path.stat().st_size for path in split.folder.iterdir())
        images = 0
        for k in range(len(split.files)):
            tensors = split.shard(k)
            images += tensors["images" if encoding == "raw" else "image_bytes"].nbytes
        figures[encoding] = {
            "bytes_a_sample": round(shard_bytes / len(items)),
            "texts": round((shard_bytes - images) / len(items)),
            "gb_for_300000": round(SAMPLES * shard_bytes / len(items) / 1e9, 2),
        }
    best = dict.fromkeys(splits, float("inf"))
    for _ in range(rounds):
        for encoding, split in splits.items():
            best[encoding] = min(best[encoding], seconds_to_read(split, px))
    for encoding, seconds in best.items():
        figures[encoding]["ms_to_read"] = round(1000 * seconds, 3)
    return figures


def main(argv: list[str] | None = None) -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images-from", type=Path, metavar="FOLDER", help="of real images; default: generated ones"
    )
    parser.add_argument("--px", type=int, default=288, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if args.px < 1 or args.rounds < 1:
        parser.error("--px and --rounds must be 1 or more")
    if args.images_from and not args.images_from.is_dir():
        parser.error(f"--images-from {args.images_from}: no folder")
    with tempfile.TemporaryDirectory() as folder:
        source = args.images_from
        if source is None:
            source = Path(folder) / "files"
            source.mkdir()
            write_images(source)
        paths, coloured, unusable = grey_images(source, args.px)
        if not paths:
            parser.error(f"--images-from {source}: no grey image in it")
        sizes = np.array([Image.open(path).size for path in paths])
        files = sum(path.stat().st_size for path in paths) / len(paths)
        figures = measure(write_items(paths), Path(folder) / "out", args.px, args.rounds)
    result = {
        "images": {
            "from": source.name if args.images_from else "generated",
            "grey": len(paths),
            "coloured_left_out": coloured,
            "unusable_left_out": unusable,
            "median_width_height": np.median(sizes, axis=0).astype(int).tolist(),
        },
        "px": args.px,
        "encodings": figures,
        "files": {"bytes_an_image": round(files), "gb_for_300000": round(SAMPLES * files / 1e9, 2)},
        "rounds": args.rounds,
        "pillow": PIL.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
