"""How much change `data_prep/audit.py` tolerates in near-duplicate images, and what it costs.

    python benchmarks/audit.py IMAGES [IMAGES ...] --queries 60

Changes --queries images of the folders in each of several ways and looks for them among all images
of the folders with the search and the threshold of the audit: `recall` is the share found,
`lowest_tenth` the score that nine of ten changed images reach. False positives: `random` = random
pairs, aligned from their best view; `hardest` = for unchanged queries, the best other image by
thumbnail, so the most alike image in the folders. Some of those are duplicates indeed: `hardest`
is a bound from above, pairs over the threshold are named, to be looked at. Times are of the CPU,
one thread. Prints JSON.
"""

import argparse
import io
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from m3ae.corpora.near_duplicates import (
    THRESHOLD,
    Pictures,
    align,
    near_images,
    near_texts,
    picture,
    start_maps,
    turned,
    view_maps,
    views,
)
from m3ae.data.exclusions import IMAGE_SUFFIXES
from m3ae.data.images import decode

Change = Callable[[Image.Image], Image.Image]


def resize(share: float) -> Change:
    return lambda image: image.resize(
        [max(1, round(share * side)) for side in image.size], Image.Resampling.BICUBIC
    )


def jpeg(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        return Image.open(out)

    return change


def crop(share: float, place: float = 0.5) -> Change:
    def change(image: Image.Image) -> Image.Image:
        width, height = (round(share * side) for side in image.size)
        x, y = round(place * (image.width - width)), round(place * (image.height - height))
        return image.crop((x, y, x + width, y + height))

    return change


def centre_square(image: Image.Image) -> Image.Image:
    """As in raw shards."""
    side = min(image.size)
    x, y = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((x, y, x + side, y + side)).resize((288, 288), Image.Resampling.BICUBIC)


def rotate(degrees: float) -> Change:
    return lambda image: image.rotate(degrees, Image.Resampling.BICUBIC)


def grey_levels(table: Callable[[int], float]) -> Change:
    values = [int(min(255, max(0, table(value)))) for value in range(256)]
    return lambda image: image.point(values * 3)


def pad(grey: int, share: float = 0.15) -> Change:
    def change(image: Image.Image) -> Image.Image:
        border = round(share * max(image.size))
        size = (image.width + 2 * border, image.height + border)
        out = Image.new("RGB", size, (grey,) * 3)
        out.paste(image, (border, border // 2))
        return out

    return change


def several(*changes: Change) -> Change:
    def change(image: Image.Image) -> Image.Image:
        for step in changes:
            image = step(image)
        return image

    return change


CHANGES: dict[str, Change] = {
    "none": lambda image: image,
    "resized to 0.5": resize(0.5),
    "resized to 0.25": resize(0.25),
    "JPEG quality 90": jpeg(90),
    "JPEG quality 50": jpeg(50),
    "JPEG quality 20": jpeg(20),
    "centre crop, 95 % of the sides": crop(0.95),
    "centre crop, 90 %": crop(0.9),
    "centre crop, 80 %": crop(0.8),
    "corner crop, 90 %": crop(0.9, 0),
    "corner crop, 80 %": crop(0.8, 0),
    "centre square at 288 px": centre_square,
    "rotated by 2 degrees": rotate(2),
    "rotated by 5 degrees": rotate(5),
    "rotated by 10 degrees": rotate(10),
    "rotated by 20 degrees": rotate(20),
    "rotated by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "rotated by 180 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "flipped": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "gamma 0.6": grey_levels(lambda value: 255 * (value / 255) ** 0.6),
    "gamma 1.7": grey_levels(lambda value: 255 * (value / 255) ** 1.7),
    "contrast x 0.6": grey_levels(lambda value: 0.6 * value + 40),
    "contrast x 1.6, clipped": grey_levels(lambda value: 1.6 * value - 60),
    "inverted": grey_levels(lambda value: 255 - value),
    "black border": pad(0),
    "white border": pad(255),
    "rotated 3, gamma 0.8, corner 90 %, x 0.5, JPEG 50": several(
        rotate(3),
        grey_levels(lambda value: 255 * (value / 255) ** 0.8),
        crop(0.9, 0),
        resize(0.5),
        jpeg(50),
    ),
}


def pictures(images: list[Image.Image]) -> Pictures:
    made = [picture(image) for image in images]
    pixels, boxes = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
    return Pictures(pixels, boxes)


def scores_of(ours: Pictures, theirs: Pictures) -> torch.Tensor:
    """Scores of picture k of ours with picture k of theirs."""
    maps = start_maps(
        turned(views(ours)), views(theirs), view_maps(ours.boxes), view_maps(theirs.boxes)
    )
    return align(ours.pixels, theirs.pixels, maps)[1]


def text_seconds(texts: int, others: int) -> float:
    """CPU seconds to compare made-up captions of 20 words, of a vocabulary as captions have."""
    rng = np.random.default_rng(0)
    often = 1 / np.arange(5, 20005)
    words = rng.choice(20000, (texts + others, 20), p=often / often.sum())
    made = [" ".join(f"w{word}" for word in row) for row in words]
    started = time.process_time()
    for _ in near_texts(made[:others], made[others:], 0.8):
        pass
    return time.process_time() - started


def main(argv: list[str] | None = None) -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="IMAGES")
    parser.add_argument("--queries", type=int, default=60, help="(default: %(default)s)")
    parser.add_argument("--texts", type=int, default=30000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    paths = [
        path
        for folder in args.folders
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if len(paths) < 2 * args.queries or args.queries < 2:
        parser.error(f"{len(paths)} images for {args.queries} queries: need twice as many, 2+")
    started = time.process_time()
    corpus = pictures([decode(path)[0] for path in tqdm(paths, "reading")])
    reading = time.process_time() - started
    started = time.process_time()
    views(corpus[:512])
    viewing = (time.process_time() - started) / min(512, len(paths))
    rng = np.random.default_rng(args.seed)
    chosen = rng.choice(len(paths), args.queries, replace=False)
    images = [decode(paths[k])[0].convert("RGB") for k in chosen]
    places, new = np.arange(len(paths)), np.arange(args.queries) + len(paths)
    table = {}
    for name, change in tqdm(CHANGES.items(), "changes"):
        queries = pictures([change(image) for image in images])
        own = np.zeros(args.queries)
        for part in near_images(corpus, queries, places, new, 1e-6):
            for i, j, score in part:
                if j == chosen[i]:
                    own[i] = max(own[i], score)
        table[name] = {
            "recall": round(float((own >= THRESHOLD).mean()), 3),
            "lowest_tenth": round(float(np.quantile(own, 0.1)), 3),
        }
    # ---- false positives
    started = time.process_time()
    found: list[tuple[int, int, float]] = []
    for part in near_images(corpus, corpus[torch.from_numpy(chosen)], places, chosen, 1e-6):
        found += part
    searching = time.process_time() - started
    best: dict[int, tuple[float, int]] = {}
    for i, j, score in found:
        best[i] = max(best.get(i, (0.0, 0)), (score, j))
    over = [
        [paths[chosen[i]].stem, paths[j].stem, round(score, 3)]
        for i, (score, j) in sorted(best.items())
        if score >= THRESHOLD
    ]
    other = torch.from_numpy(rng.integers(len(paths), size=4 * args.queries))
    first = torch.from_numpy(rng.integers(len(paths), size=4 * args.queries))
    started = time.process_time()
    random = scores_of(corpus[first], corpus[other])[first != other]
    aligning = (time.process_time() - started) / len(first)
    texts = text_seconds(args.texts, 4000)
    each = (searching - viewing * len(paths)) / args.queries  # views of the corpus: made once
    result = {
        "images": len(paths),
        "queries": args.queries,
        "threshold": THRESHOLD,
        "changes": table,
        "random_pairs": {
            "pairs": len(random),
            "over": int((random >= THRESHOLD).sum()),
            "highest": round(float(random.max()), 3),
        },
        "hardest": {
            "queries": args.queries,
            "over": over,
            "tenth_highest": round(
                float(np.quantile([best.get(i, (0.0, 0))[0] for i in range(args.queries)], 0.9)), 3
            ),
        },
        "cpu": {
            "images_read_a_s": round(len(paths) / reading, 1),
            "views_ms_an_image": round(1000 * viewing, 2),
            "align_ms_a_pair": round(1000 * aligning, 2),
            "search_ms_an_image": round(1000 * each, 1),
            "hours_300k_images_in_this_corpus": round(
                3e5 * (each + reading / len(paths)) / 3600, 2
            ),
            "texts_s": {f"{args.texts} by 4000": round(texts, 1)},
        },
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
