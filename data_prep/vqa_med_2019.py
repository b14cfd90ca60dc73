r"""VQA-Med-2019 -> shards of image-caption pairs, one composed caption a training image.

A caption joins the answers about modality, plane, organ and abnormality by ", ", e.g. "cta - ct
angiography, axial, lung, mediastinum, pleura, cryptococcal pneumonia". A yes or no says nothing
without its question and is left out, but for "is this a ct scan? yes", which gives "ct scan".
Say wherever results are reported that these captions are composed. Only training images are
used; a seeded part of them is held out as `valid`.

example: python data_prep/vqa_med_2019.py --as captions --raw vqa_med_2019 --out data/vqa_med
"""

import argparse
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from m3ae.data.prepare import Drops, Item, add_arguments, need, prepare, read_lines, run

TRAINING = "ImageClef-2019-VQA-Med-Training"
CATEGORIES = ("C1_Modality", "C2_Plane", "C3_Organ", "C4_Abnormality")  # their order in a caption


def phrase(question: str, answer: str) -> str:
    """What an answer says on its own; empty for a yes or no to anything but `is this a ...?`."""
    answer = " ".join(answer.split())
    if answer.lower() not in ("yes", "no"):
        return answer
    kind = re.fullmatch(r"is this an? (?!normal)(.+?) ?\?", " ".join(question.lower().split()))
    return kind.group(1) if kind and answer.lower() == "yes" else ""


def read_captions(folder: Path, drops: Drops) -> dict[str, str]:
    """Composed caption by image id, in the order of the modality file."""
    parts: dict[str, list[str]] = {}
    for category in CATEGORIES:
        path = need(folder / "QAPairsByCategory" / f"{category}_train.txt", "VQA-Med's questions")
        for number, line in read_lines(path):
            columns = line.split("|")
            if len(columns) != 3 or not columns[0].strip():
                drops.add("line: not `image|question|answer`", f"{path.name}:{number}: {line[:60]}")
                continue
            image, question, answer = columns
            said = phrase(question, answer)
            if not said:
                drops.add("answer: yes or no says nothing alone", f"{path.name}:{number}: {line}")
            parts.setdefault(image.strip(), []).extend([said] if said else [])
    return {image: ", ".join(said) for image, said in parts.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    add = parser.add_argument
    add("--as", dest="form", choices=["captions"], required=True, help="what to make of it")
    add("--held-out", type=int, default=300, metavar="N",
        help="training images held out as `valid` (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=42, help="of the held-out draw (default: %(default)s)")
    args = parser.parse_args(argv)

    def body() -> None:
        folder = need(args.raw, "the VQA-Med-2019 corpus") / TRAINING
        images = need(folder / "Train_images", "VQA-Med-2019's training images")
        drops = Drops()
        captions = read_captions(folder, drops)
        if not 0 <= args.held_out < len(captions):
            raise ValueError(f"--held-out {args.held_out}: there are {len(captions)} images")
        held_out = set(random.Random(args.seed).sample(sorted(captions), args.held_out))
        splits: dict[str, list[Item]] = {"train": [], "valid": []}
        for image, caption in captions.items():
            item = Item(image, images / f"{image}.jpg", (caption,))
            splits["valid" if image in held_out else "train"].append(item)
        splits = {name: items for name, items in splits.items() if items}
        prepare(splits, {"train": drops}, args, source="VQA-Med-2019, composed captions")

    return run(body)


if __name__ == "__main__":
    sys.exit(main())
