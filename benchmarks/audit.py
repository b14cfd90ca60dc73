"""How much change `data_prep/audit.py` tolerates in near-duplicate images, and what it costs.

    python benchmarks/audit.py IMAGES [IMAGES ...] --queries 60
    python benchmarks/audit.py --size 300000 10000 [--part 20000]

The first changes --queries images of the folders in each of several ways and looks for them among
all images of the folders with the search and the threshold of the audit: `recall` is the share
found, `lowest_tenth` the score that nine of ten changed images reach. Then the folders are searched
for duplicates within them; `over` are the pairs found, to be looked at: many are duplicates indeed.

The second makes up pictures, as many to search and to search among, and times the search alone:
reading and describing images comes on top, at `images_read_a_s` a core in the first. With --part,
only so many are searched, and the hours for all are reckoned from that. Prints JSON.
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
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from m3ae.corpora.alignment import SIDE
from m3ae.corpora.match_kinds import THRESHOLD
from m3ae.corpora.near_duplicates import Pictures, Search, near_texts, picture
from m3ae.data.exclusions import IMAGE_SUFFIXES
from m3ae.data.images import decode

Change = Callable[[Image.Image], Image.Image]
INVERTED = "grey levels inverted"


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


def crop(share: float, across: float = 0.5, down: float = 0.5) -> Change:
    def change(image: Image.Image) -> Image.Image:
        width, height = (round(share * side) for side in image.size)
        x, y = round(across * (image.width - width)), round(down * (image.height - height))
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


def frame(grey: int, left: float, top: float, right: float, bottom: float) -> Change:
    """A border of these parts of the sides."""

    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        x, y = round(left * width), round(top * height)
        size = (width + x + round(right * width), height + y + round(bottom * height))
        out = Image.new("RGB", size, (grey,) * 3)
        out.paste(image, (x, y))
        return out

    return change


def annotate(image: Image.Image) -> Image.Image:
    """Burnt-in texts and a coloured line."""
    image, size = image.copy(), max(8, image.height // 14)
    width, height = image.size
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for across, down, text in ((0.04, 0.03, "PORTABLE 12:45"), (0.7, 0.88, "R  SUPINE")):
        draw.text((across * width, down * height), text, (255,) * 3, font)
    ends = (0.4 * width, 0.3 * height, 0.5 * width, 0.45 * height)
    draw.line(ends, (255, 255, 0), max(1, size // 6))
    return image


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
    "JPEG quality 30": jpeg(30),
    "JPEG quality 20": jpeg(20),
    "zoom, 95 % of the sides": crop(0.95, 1, 0.2),
    "zoom 90 %": crop(0.9),
    "zoom 80 %": crop(0.8),
    "zoom 70 %": crop(0.7),
    "zoom 60 %": crop(0.6),
    "corner 90 %": crop(0.9, 0, 0),
    "corner 80 %": crop(0.8, 0, 0),
    "corner 70 %": crop(0.7, 1, 0),
    "corner 60 %": crop(0.6, 0, 1),
    "side 70 %": crop(0.7, 0.3, 1),
    "side 60 %": crop(0.6, 0, 0.4),
    "squeezed to a square": lambda image: image.resize((224, 224), Image.Resampling.BICUBIC),
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
    INVERTED: grey_levels(lambda value: 255 - value),
    "brighter by 50": grey_levels(lambda value: value + 50),
    "black frame": frame(0, 0.15, 0.08, 0.15, 0.08),
    "white frame": frame(255, 0.15, 0.08, 0.15, 0.08),
    "uneven grey frame": frame(128, 0.4, 0.05, 0.1, 0.3),
    "frame in a frame": several(frame(20, 0.06, 0.06, 0.06, 0.06), frame(235, 0.2, 0.1, 0.05, 0.3)),
    "burnt-in text and line": annotate,
    "zoom 75 %, text, JPEG 50": several(crop(0.75, 0.2, 0.7), annotate, jpeg(50)),
    "zoom 70 %, white frame, x 0.5, JPEG 50": several(
        crop(0.7, 0.8, 0.3), frame(255, 0.2, 0.1, 0.1, 0.3), resize(0.5), jpeg(50)
    ),
    "rotated 3, gamma 0.8, corner 90 %, x 0.5, JPEG 50": several(
        rotate(3),
        grey_levels(lambda value: 255 * (value / 255) ** 0.8),
        crop(0.9, 0, 0),
        resize(0.5),
        jpeg(50),
    ),
}


def pictures(images: list[Image.Image]) -> Pictures:
    pixels, aspects = zip(*map(picture, images), strict=True)
    return Pictures(torch.from_numpy(np.stack(pixels)), torch.tensor(aspects))


class MadeUp:
    """Pictures of structure at several scales, made when asked for; each seed its own."""

    def __init__(self, number: int, seed: int) -> None:
        self.number, self.seed = number, seed

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, rows: torch.Tensor | slice) -> Pictures:
        found = rows if isinstance(rows, torch.Tensor) else torch.arange(self.number)[rows]
        made = [self.made(int(row)) for row in found]
        return Pictures(torch.stack(made), torch.ones(len(made)))

    def made(self, row: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(self.seed + row)
        total = torch.zeros(1, 1, SIDE, SIDE)
        for cells in (4, 8, 16, 32, 64):
            coarse = torch.rand(1, 1, cells, cells, generator=draw)
            total += F.interpolate(coarse, (SIDE, SIDE), mode="bilinear")
        return (total[0, 0] * 51).byte()


def processor_seconds(work: Callable[[], object]) -> tuple[float, float, object]:
    """Wall and CPU seconds of some work, and its result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def size(against: int, keep: int, part: int) -> dict[str, object]:
    """Time and memory of a search of made-up pictures."""
    search = Search(
        MadeUp(keep, 0),
        MadeUp(part, 10**7),
        np.arange(keep),
        np.arange(part) + keep,
        THRESHOLD,
    )
    wall, cpu, _ = processor_seconds(search.describe_keep)
    wall_search, cpu_search, found = processor_seconds(
        lambda: [pair for _, near in tqdm(search.run(), total=len(search.starts)) for pair in near]
    )
    reckoned = (wall + wall_search * against / part) / 3600
    reckoned_cpu = (cpu + cpu_search * against / part) / 3600 / search.threads
    return {
        "against": against,
        "keep": keep,
        "searched": part,
        "device": str(search.device),
        "threads": search.threads,
        "pairs": len(found),
        "index_s": {"wall": round(wall, 1), "cpu": round(cpu, 1)},
        "search_s": {"wall": round(wall_search, 1), "cpu": round(cpu_search, 1)},
        "cpu_ms_an_image": round(1000 * cpu_search / part, 1),
        "hours_for_all": {"wall": round(reckoned, 2), "cpu_by_threads": round(reckoned_cpu, 2)},
    }


def tolerance(paths: list[Path], queries: int, seed: int) -> dict[str, object]:
    """Recall of changed images, pairs within the folders, and what both cost."""
    _, cpu, corpus = processor_seconds(
        lambda: pictures([decode(path)[0] for path in tqdm(paths, "reading")])
    )
    chosen = np.random.default_rng(seed).choice(len(paths), queries, replace=False)
    images = [decode(paths[k])[0].convert("RGB") for k in chosen]
    changed = pictures(
        [change(image) for change in tqdm(CHANGES.values(), "changes") for image in images]
    )
    places = np.arange(len(paths))
    new = np.arange(len(changed)) + len(paths)
    search = Search(corpus, changed, places, new, 1e-6)
    index = processor_seconds(search.describe_keep)[:2]
    wall_search, cpu_search, found = processor_seconds(lambda: list(search.run()))
    own, others = np.zeros((len(CHANGES), queries)), set()
    for i, j, score in (pair for _, near in found for pair in near):
        if j == chosen[i % queries]:
            own[i // queries, i % queries] = score
        elif score >= THRESHOLD:
            others.add((paths[chosen[i % queries]].stem, paths[j].stem))
    itself = Search(corpus, corpus, places, places, THRESHOLD)
    wall_self, cpu_self, over = processor_seconds(
        lambda: [pair for _, near in itself.run() for pair in near]
    )
    table = {
        name: {
            "recall": round(float((scores >= THRESHOLD).mean()), 3),
            "lowest_tenth": round(float(np.quantile(scores, 0.1)), 3),
        }
        for name, scores in zip(CHANGES, own, strict=True)
    }
    return {
        "images": len(paths),
        "queries": queries,
        "threshold": THRESHOLD,
        "changes": table,
        "recall": round(float((own >= THRESHOLD).mean()), 4),
        "recall_but_inverted": round(
            float((own[[name != INVERTED for name in CHANGES]] >= THRESHOLD).mean()), 4
        ),
        "other_images_found": sorted(others),
        "within": [[paths[i].stem, paths[j].stem, round(score, 3)] for i, j, score in over],
        "device": str(search.device),
        "threads": search.threads,
        "images_read_a_s": round(len(paths) / cpu, 1),
        "seconds": {
            "index": [round(value, 1) for value in index],
            "search of all changes": [round(wall_search, 1), round(cpu_search, 1)],
            "index and search within": [round(wall_self, 1), round(cpu_self, 1)],
        },
    }


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
    add = parser.add_argument
    add("folders", type=Path, nargs="*", metavar="IMAGES")
    add("--queries", type=int, default=60, help="(default: %(default)s)")
    add("--texts", type=int, default=30000, help="(default: %(default)s)")
    add("--size", type=int, nargs=2, metavar=("AGAINST", "KEEP"), help="of made-up pictures")
    add("--part", type=int, metavar="N", help="of AGAINST to search (default: all)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    if bool(args.folders) == bool(args.size):
        parser.error("give folders of images, or --size")
    if args.size:
        result = size(*args.size, args.part or args.size[0])
    else:
        paths = [
            path
            for folder in args.folders
            for path in sorted(folder.rglob("*"))
            if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not 2 <= args.queries <= len(paths):
            parser.error(f"{len(paths)} images for {args.queries} queries: need as many, 2+")
        result = tolerance(paths, args.queries, args.seed)
        result["texts_s"] = {f"{args.texts} by 4000": round(text_seconds(args.texts, 4000), 1)}
    result |= {
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
