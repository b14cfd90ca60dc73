r"""SLAKE 1.0 -> shards of questions on images.

The corpus: DIR/train.json, DIR/validate.json (in the hub copy: validation.json), DIR/test.json and
DIR/imgs/xmlab1/source.jpg, as published, or in their place DIR/imgs.zip, as in the hub copy. The
paper uses the English questions. The keys of images are their folders, e.g. xmlab1.
The official train.json has one question with a blank answer (qid 1622). The published models have
its answer, "", as one of their 222; protocol `strict` leaves the row and the answer out.

example: python data_prep/slake.py --raw Slake1.0 --out data/slake --tokenizer roberta-base
"""

import argparse
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from m3ae.command import run
from m3ae.corpora import questions
from m3ae.corpora.items import Drops
from m3ae.corpora.prepare import corpus_parser
from m3ae.corpora.questions import Place, Question
from m3ae.corpora.stored import InZip, has_images, plain_name, zip_names
from m3ae.files import need

VALID = ("validate.json", "validation.json")
FILES = {"train": ("train.json",), "valid": VALID, "test": ("test.json",)}
KEYS = ("img_name", "question", "answer_type", "q_lang")
MORE = ("base_type", "location", "modality", "q_lang")  # columns that become fields as they are


def make_question(row: dict[str, Any]) -> Question:
    """A checked row as a question; columns that are not text become empty fields."""
    more = {key: row[key] if isinstance(row.get(key), str) else "" for key in MORE}
    kind = row["content_type"] if isinstance(row.get("content_type"), str) else ""
    fields = questions.task_fields(row["qid"], row["answer"], row["answer_type"], kind, **more)
    return Question(row["img_name"], row["question"], fields)


def read_split(
    path: Path, languages: Sequence[str], drops: Drops, encoding: str | None = None
) -> list[Question]:
    """Questions of one file in these languages, in its order."""
    asked = []
    for row in questions.checked_rows(path, KEYS, drops, blank=True, encoding=encoding):
        if row["q_lang"] in languages:
            asked.append(make_question(row))
        elif row["q_lang"] not in ("en", "zh"):
            drops.add("question: unknown q_lang", f"{path.name}: qid {row['qid']}")
    return asked


def find_images(raw: Path) -> Place:
    """Where the image of a file name lies: below DIR/imgs, else in DIR/imgs.zip."""
    folder, archive = raw / "imgs", raw / "imgs.zip"
    if has_images(folder) or (folder.is_dir() and not archive.exists()):
        return folder.joinpath
    need(archive, "SLAKE's images (or the folder imgs)")
    members = {plain_name(member): member for member in zip_names(archive)}
    # The hub's archive holds the folder itself.
    top = "imgs/" if any(name.startswith("imgs/") for name in members) else ""

    def place(name: str) -> InZip:
        path = top + str(PurePosixPath(name))
        return InZip(archive, members.get(path, path))

    return place


def image_key(name: str) -> str:
    """xmlab1 of xmlab1/source.jpg; a path of another form without its ending."""
    path = PurePosixPath(name)
    return str(path.parent if path.stem == "source" and path.parent.name else path.with_suffix(""))


def image_file(name: str) -> str:
    """Where the image lies in the corpus, which an audit of its files lists it by."""
    return str(PurePosixPath("imgs", name))


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    images = find_images(need(args.raw, "the SLAKE corpus"))
    languages = ("en", "zh") if args.language == "both" else (args.language,)
    splits: dict[str, list[Question]] = {}
    dropped = {split: Drops() for split in FILES}
    for split, names in FILES.items():
        first, *others = (args.raw / name for name in names)
        path = need(first, " or ".join(names) + " of SLAKE", *others)
        splits[split] = read_split(path, languages, dropped[split], args.text_encoding)
    counts = {split: questions.count_questions(asked) for split, asked in splits.items()}
    for split, asked in splits.items():
        counts[split]["blank_answers"] = sum("blank_answer" in q.fields for q in asked)
    items = {
        split: questions.to_items(asked, images, image_key, image_file)
        for split, asked in splits.items()
    }
    corpus = questions.Parsed("SLAKE", splits, items, dropped, {"corpus": counts})
    questions.prepare_questions(corpus, args)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser, which = corpus_parser(__doc__), "whose questions to keep (default: %(default)s)"
    parser.add_argument("--language", choices=("en", "zh", "both"), default="en", help=which)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
