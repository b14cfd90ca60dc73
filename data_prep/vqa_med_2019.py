r"""VQA-Med-2019 -> shards of questions on images, or of image-caption pairs.

`--as questions`: splits train, valid and test as published, of the categories asked for (the
paper's are modality, plane and organ). `closed` is a question answered by yes or no. In a test
answer, `#` separates alternatives, listed in the field `alternatives`, and `(...)` is optional; the
label is that of the whole string, as in the paper. Read are the official layout
(DIR/ImageClef-2019-VQA-Med-Training, ...-Validation, DIR/VQAMed2019Test) and the paper's
(DIR/{train,val,test}/QA/Modality.csv, images/).

`--as captions`: one composed caption a training image. A caption joins the answers about modality,
plane, organ and abnormality by ", ", e.g. "cta - ct angiography, axial, lung, mediastinum, pleura,
cryptococcal pneumonia". A yes or no is left out, but for "is this a ct scan? yes", which gives "ct
scan". `--categories` leaves some out: the control for a model that is tested on them. Say wherever
results are reported that these captions are composed. Only training images are used; a seeded part,
the same for any categories, is held out as `valid`.

example: python data_prep/vqa_med_2019.py --as questions --raw vqa_med_2019 --out data/vqa_med_qa
         python data_prep/vqa_med_2019.py --as captions --raw vqa_med_2019 --out data/vqa_med
"""

import argparse
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3ae.command import run
from m3ae.corpora import questions
from m3ae.corpora.items import Drops, Item, is_inside
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.questions import Question
from m3ae.corpora.tables import read_lines
from m3ae.files import is_unicode, need
from m3ae.scoring.answers import accepted_answers

TRAINING = "ImageClef-2019-VQA-Med-Training"
CATEGORIES = ("C1_Modality", "C2_Plane", "C3_Organ", "C4_Abnormality")  # their order in a caption
NAMES = tuple(category[3:].lower() for category in CATEGORIES)
REFERENCE_ORDER = ("modality", "organ", "plane", "abnormality")  # in which it reads its files
OFFICIAL = {
    "train": (TRAINING, "Train_images", "train"),
    "valid": ("ImageClef-2019-VQA-Med-Validation", "Val_images", "val"),
}
TEST = Path("VQAMed2019Test")
ANSWERED = "VQAMed2019_Test_Questions_w_Ref_Answers.txt"


def phrase(question: str, answer: str) -> str:
    """What an answer says on its own; empty for a yes or no to anything but `is this a ...?`."""
    answer = " ".join(answer.split())
    if answer.lower() not in ("yes", "no"):
        return answer
    kind = re.fullmatch(r"is this an? (?!normal)(.+?) ?\?", " ".join(question.lower().split()))
    return kind.group(1) if kind and answer.lower() == "yes" else ""


def read_captions(folder: Path, categories: Sequence[str], drops: Drops) -> dict[str, str]:
    """Caption composed of these categories by image id, in the order of their first file."""
    parts: dict[str, list[str]] = {}
    for category in (file for file in CATEGORIES if file[3:].lower() in categories):
        path = need(folder / "QAPairsByCategory" / f"{category}_train.txt", "VQA-Med's questions")
        for number, line in read_lines(path):
            columns = line.split("|")
            if len(columns) != 3 or not columns[0].strip():
                drops.add("line: not `image|question|answer`", f"{path.name}:{number}: {line[:60]}")
                continue
            phrases = parts.setdefault(columns[0].strip(), [])
            if words := phrase(*columns[1:]):
                phrases.append(words)
            else:
                drops.add("answer: yes or no says nothing alone", f"{path.name}:{number}: {line}")
    return {image: ", ".join(phrases) for image, phrases in parts.items()}


@dataclass(frozen=True)
class Source:
    """Where a split lies: its images, and question files with their category ("": in the line)."""

    images: Path
    files: tuple[tuple[Path, str], ...]


def find_sources(raw: Path, categories: Sequence[str]) -> dict[str, Source]:
    """The split's files in the official layout or in the paper's; all of them must be there."""
    need(raw, "the VQA-Med-2019 corpus")
    sources = {}
    if (raw / "train" / "QA").is_dir():
        for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
            qa = raw / name / "QA"
            files = tuple((qa / f"{kind.capitalize()}.csv", kind) for kind in categories)
            sources[split] = Source(raw / name / "images", files)
        return sources
    file_of = dict(zip(NAMES, CATEGORIES, strict=True))
    for split, (name, images, ending) in OFFICIAL.items():
        folder = need(raw / name, "a part of the VQA-Med-2019 corpus")
        qa = folder / "QAPairsByCategory"
        files = tuple((qa / f"{file_of[kind]}_{ending}.txt", kind) for kind in categories)
        sources[split] = Source(folder / images, files)
    test = need(raw / TEST, "the test part of the VQA-Med-2019 corpus")
    sources["test"] = Source(test / "VQAMed2019_Test_Images", ((test / ANSWERED, ""),))
    return sources


def read_questions(
    source: Source, categories: Sequence[str], drops: Drops, encoding: str | None = None
) -> list[Question]:
    """Questions of one split, in file order; lines `image|[category|]question|answer`."""
    need(source.images, "VQA-Med-2019's images")
    asked: list[Question] = []
    taken: dict[str, set[str]] = {}  # ids of questions by image
    for path, category in source.files:
        for number, line in read_lines(need(path, "VQA-Med's questions"), encoding):
            where = f"{path.name}:{number}: {line[:60]}"
            if not is_unicode(line):
                drops.add("line: not UTF-8", where)
                continue
            columns = [column.strip() for column in line.split("|")]
            if len(columns) != (3 if category else 4) or not all(columns):
                wanted = "image|question|answer" if category else "image|category|question|answer"
                drops.add(f"line: not `{wanted}`", where)
                continue
            image, *named, text, answer = columns
            kind = named[0].lower() if named else category
            if kind not in NAMES or not is_inside(image):
                drops.add("line: unknown category or image outside", where)
            elif kind in categories:
                name = questions.unused(kind, taken.setdefault(image, set()))
                taken[image].add(name)
                asked.append(make_question(image, name, kind, text, answer))
    return asked


def make_question(image: str, name: str, category: str, text: str, answer: str) -> Question:
    """A question with its fields; `name` is its id among those on the image."""
    closed = "closed" if answer.lower() in ("yes", "no") else "open"
    accepted = sorted(accepted_answers(answer))
    fields = questions.task_fields(name, answer, closed, category, alternatives=accepted)
    return Question(image if Path(image).suffix else f"{image}.jpg", text, fields)


def make_questions(args: argparse.Namespace) -> None:
    """Body of `--as questions`."""
    sources = find_sources(args.raw, args.categories)
    dropped = {split: Drops() for split in sources}
    splits, items, counts = {}, {}, {}
    for split, source in sources.items():
        asked = read_questions(source, args.categories, dropped[split], args.text_encoding)
        folder = source.images
        items[split] = questions.to_items(asked, folder.joinpath, lambda name: Path(name).stem)
        counts[split] = {"image_files": questions.count_images(folder)}
        counts[split] |= questions.count_questions(asked)
        splits[split] = asked
    more = {"train_valid": questions.labels(splits["train"], splits["valid"])}
    source, facts = "VQA-Med-2019, questions", {"corpus": counts}
    corpus = questions.Parsed(source, splits, items, dropped, facts)
    questions.prepare_questions(corpus, args, REFERENCE_ORDER, more)


def make_captions(args: argparse.Namespace) -> None:
    """Body of `--as captions`."""
    folder = need(args.raw, "the VQA-Med-2019 corpus") / TRAINING
    images = need(folder / "Train_images", "VQA-Med-2019's training images")
    drops = Drops()
    captions = read_captions(folder, args.categories, drops)
    if not 0 <= args.held_out < len(captions):
        raise ValueError(f"--held-out {args.held_out}: there are {len(captions)} images")
    held_out = set(random.Random(args.seed).sample(sorted(captions), args.held_out))
    splits: dict[str, list[Item]] = {"train": [], "valid": []}
    for image, caption in captions.items():
        item = Item(image, images / f"{image}.jpg", (caption,))
        splits["valid" if image in held_out else "train"].append(item)
    splits = {name: items for name, items in splits.items() if items}
    prepare(splits, {"train": drops}, args, source="VQA-Med-2019, composed captions")


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    wanted = args.categories or (NAMES if args.form == "captions" else NAMES[:3])
    args.categories = [name for name in NAMES if name in wanted]
    if args.form == "captions":
        make_captions(args)
    else:
        del args.held_out, args.seed  # they decide nothing here, so the shards do not record them
        make_questions(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = corpus_parser(__doc__)
    add, forms, what = parser.add_argument, ["questions", "captions"], "what to make of it"
    add("--as", "--form", dest="form", choices=forms, required=True, help=what)
    held_out = "captions: training images held out as `valid` (default: %(default)s)"
    add("--held-out", type=int, default=300, metavar="N", help=held_out)
    add("--seed", type=int, default=42, help="captions: of the held-out draw (%(default)s)")
    which = "which (default: questions: the paper's, modality plane organ; captions: all four)"
    add("--categories", nargs="+", choices=NAMES, help=which)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
