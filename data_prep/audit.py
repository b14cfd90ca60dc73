r"""Find images of one corpus that another one holds too, so that they can be left out.

Of the images in --against (to pre-train on), those are listed that match an image in --keep (to
evaluate on): by number, where both are MedPix pictures (synpicNNNNN; numbers at most --id-window
apart are often of one case), or by pixels (correlation of 24 x 24 grey thumbnails of at least
--threshold). Matches by pixels are candidates: look at them in the page OUT.html. OUT is the list
for --exclude of the preparation scripts, `id<TAB>reason`; OUT.json holds every pair.

example: python data_prep/audit.py --keep vqa_rad/images --against vqa_med/Train_images \
             --out exclude.txt
"""

import argparse
import base64
import html
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from m3ae.data.images import ImageError, decode
from m3ae.data.prepare import need, run
from m3ae.data.shards import write_json

SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"}
SIDE = 24
BLOCK = 4096  # images compared at a time


@dataclass(frozen=True)
class Match:
    """An image to leave out, the image that it matches, and how."""

    id: str
    against: str
    keep: str
    correlation: float
    ids_apart: int | None  # None: not two MedPix numbers within the window

    @property
    def reason(self) -> str:
        """For the exclusion list."""
        by_id = "" if self.ids_apart is None else f", numbers {self.ids_apart} apart"
        return f"{Path(self.keep).name}: correlation {self.correlation:.3f}{by_id}"


def thumbnail(path: Path) -> np.ndarray | str:
    """24 x 24 grey values as a vector of length 1 and mean 0, float32 (576,); or what is wrong."""
    try:
        image, _ = decode(path)
    except (ImageError, OSError) as error:
        return f"{path}: {error}"
    grey = np.asarray(image.convert("RGB").convert("L").resize((SIDE, SIDE)), dtype=np.float32)
    centred = grey.ravel() - grey.mean()
    norm = np.linalg.norm(centred)
    return centred / norm if norm > SIDE else np.zeros_like(centred)  # flat: matches nothing


def read_folders(
    folders: Sequence[Path], workers: int, unreadable: list[str]
) -> tuple[list[Path], np.ndarray]:
    """Paths of the readable images in folders and below, and their thumbnails (images, 576)."""
    found = [path for folder in folders for path in sorted(need(folder, "images").rglob("*"))
             if path.suffix.lower() in SUFFIXES]  # fmt: skip
    if not found:
        raise FileNotFoundError(f"{', '.join(map(str, folders))}: no image in it")
    label = folders[0].name
    if workers:
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            thumbnails = list(tqdm(pool.map(thumbnail, found, chunksize=32), label, len(found)))
    else:
        thumbnails = [thumbnail(path) for path in tqdm(found, label)]
    unreadable += [entry for entry in thumbnails if isinstance(entry, str)]
    pairs = [(path, entry) for path, entry in zip(found, thumbnails, strict=True)
             if not isinstance(entry, str)]  # fmt: skip
    vectors = np.array([entry for _, entry in pairs], np.float32).reshape(-1, SIDE * SIDE)
    return [path for path, _ in pairs], vectors


def medpix_numbers(paths: Sequence[Path]) -> np.ndarray:
    """N of synpicN.jpg, int64 (images,); for other names a number far from every other."""
    matches = [re.fullmatch(r"synpic(\d{1,9})", path.stem) for path in paths]
    return np.array([int(m.group(1)) if m else -(10**12) * (k + 1)
                     for k, m in enumerate(matches)], dtype=np.int64)  # fmt: skip


def find_matches(
    keep: tuple[list[Path], np.ndarray],
    against: tuple[list[Path], np.ndarray],
    threshold: float,
    id_window: int,
    ids: Sequence[str],
) -> list[Match]:
    """For each image of `against` (named by `ids`) that matches any of `keep`, its best match."""
    (keep_paths, kept), (paths, vectors) = keep, against
    keep_numbers, numbers = medpix_numbers(keep_paths), medpix_numbers(paths)
    matches = []
    for start in range(0, len(paths), BLOCK):
        correlation = vectors[start : start + BLOCK] @ kept.T
        apart = np.abs(numbers[start : start + BLOCK, None] - keep_numbers[None])
        # Two folders may both hold the k-th unnumbered image: negative numbers never match.
        apart[numbers[start : start + BLOCK] < 0] = np.iinfo(np.int64).max
        hit = (correlation >= threshold) | (apart <= id_window)
        for row in np.flatnonzero(hit.any(axis=1)):
            column = int(np.argmax(np.where(hit[row], correlation[row], -2)))
            near = int(apart[row, column])
            matches.append(Match(ids[start + row], str(paths[start + row]),
                                 str(keep_paths[column]), float(correlation[row, column]),
                                 near if near <= id_window else None))  # fmt: skip
    return matches


def _inline(path: str) -> str:
    image = decode(Path(path))[0].convert("RGB")
    image.thumbnail((200, 200), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def page(matches: Sequence[Match]) -> Iterator[str]:
    """Lines of an HTML page with the pairs side by side, the least certain ones first."""
    yield "<!doctype html><meta charset=utf-8><title>Near-duplicates</title>"
    yield "<style>body{font:14px sans-serif}img{max-height:200px}td{padding:4px 12px}</style>"
    yield f"<h1>{len(matches)} images to leave out</h1><table>"
    yield "<tr><th>left out<th>matches<th>by"
    for match in sorted(matches, key=lambda match: (match.correlation, match.id)):
        names = (html.escape(match.id), html.escape(match.reason))
        yield (f"<tr><td>{_inline(match.against)}<br>{names[0]}<td>{_inline(match.keep)}"
               f"<td>{names[1]}")  # fmt: skip
    yield "</table>"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--keep", type=Path, nargs="+", required=True, metavar="DIR", help="images to keep")
    add("--against", type=Path, nargs="+", required=True, metavar="DIR",
        help="images of which the matching ones are listed")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE", help="the exclusion list")
    add("--threshold", type=float, default=0.98, help="correlation (default: %(default)s)")
    add("--id-window", type=int, default=2, metavar="N", help="default: %(default)s; -1: never")
    add("--ids", choices=["stem", "path"], default="stem",
        help="name images by file name without suffix (default), or path in --against")  # fmt: skip
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes; 0: none")
    args = parser.parse_args(argv)

    def body() -> None:
        unreadable: list[str] = []
        keep = read_folders(args.keep, args.workers, unreadable)
        against = read_folders(args.against, args.workers, unreadable)
        ids = [image_id(path, args.against) if args.ids == "path" else path.stem
               for path in against[0]]  # fmt: skip
        matches = find_matches(keep, against, args.threshold, args.id_window, ids)
        by_id = [match for match in matches if match.ids_apart is not None]
        by_pixels = [match for match in matches if match.correlation >= args.threshold]
        report = {
            "keep": len(keep[0]), "against": len(against[0]), "threshold": args.threshold,
            "id_window": args.id_window, "matches": len(matches), "by_id": len(by_id),
            "by_pixels": len(by_pixels), "unreadable": unreadable,
            "pairs": [asdict(match) for match in matches],
        }  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{match.id}\t{match.reason}\n" for match in matches]
        args.out.write_text("".join(lines), encoding="utf-8")
        write_json(Path(f"{args.out}.json"), report)
        Path(f"{args.out}.html").write_text("\n".join(page(matches)), encoding="utf-8")
        print(f"{len(matches)} of {len(against[0])} images match one of {len(keep[0])}: "
              f"{len(by_id)} by number, {len(by_pixels)} by pixels; {len(unreadable)} unreadable; "
              f"{args.out}, {args.out}.json, {args.out}.html")  # fmt: skip

    return run(body)


def image_id(path: Path, folders: Sequence[Path]) -> str:
    """The path below whichever of the folders holds it."""
    folder = next(folder for folder in folders if path.is_relative_to(folder))
    return path.relative_to(folder).as_posix()


if __name__ == "__main__":
    sys.exit(main())
