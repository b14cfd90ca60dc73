r"""Your own images with questions, or with classes -> shards.

A table FILE (.csv, .tsv, .jsonl or .parquet; cells between commas, semicolons or tabs), one row a
question:

    image     path relative to --raw; in a parquet file also the image itself (binary, or a struct
              with `bytes`), and then each row is an image of its own
    question  the words
    answer    the words, or a number
    type      open or closed; without it an answer that is yes or no is closed, any other open
    split     e.g. train, valid, test; without it train, or see --test-share
    id        of the question, unique for its image; without it the row's number, from 1
    question_type   categories of your own, for the table of results

The last four may be absent or empty; columns beyond these are ignored and named in the report. A
table that calls them otherwise is read with --columns, e.g. image=filename "answer=Final answer".
Rows that cannot be used are left out and counted, also for an answer such as the letter A, of which
no word is left once it is normalised (no articles, no punctuation).

With --classes COLUMN[,COLUMN] the rows are texts with classes: columns image, text and those; a
row whose cell is empty has no class of that column.

OUT/answers.json has the sorted answers (OUT/classes.json for each column the classes): `paper`, of
all splits, and `train`, of the training rows alone. --test-share and --valid-share draw splits by
image, or with --group COLUMN by patient, study or case: rows with the same cell stay together. A
column `split` is checked for images, and groups, that are in two.
For pairs without labels, and for retrieval, see pairs.py.

example: python data_prep/table.py --table questions.csv --raw images --out data/mine --px 384 \
             --tokenizer roberta-base --valid-share 0.1 --test-share 0.2 --group patient
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from m3ae.command import run
from m3ae.corpora import questions
from m3ae.corpora.items import Drops, Stored
from m3ae.corpora.prepare import corpus_parser
from m3ae.corpora.questions import ANSWER_TYPES, Question, Splits
from m3ae.corpora.splits import (
    ORDER,
    Groups,
    add_table_options,
    check_undrawn,
    name_unused,
    read_fractions,
)
from m3ae.corpora.tables import (
    Row,
    cell,
    read_column_names,
    read_table,
    shared_images,
    split_and_image,
)
from m3ae.files import need

OPTIONAL = ("split", "id")
OPTIONAL_FOR_QUESTIONS = ("type", "question_type")


def make_question(row: dict[str, Any], number: int, image: str, classes: Sequence[str]) -> Question:
    """The question (or text with `classes`) of a row; ValueError says why to leave the row out."""
    name = cell(row, "id") or str(number)
    if classes:
        text, given = cell(row, "text"), {column: cell(row, column) or None for column in classes}
        if not text:
            raise ValueError("no text")
        return Question(image, text, {"question_id": name, **given})
    text, answer = cell(row, "question"), cell(row, "answer")
    if not text or not answer:
        raise ValueError("no answer" if text else "no question")
    said, category = cell(row, "type").lower(), cell(row, "question_type")
    fields = questions.task_fields(name, answer, said, category)
    if not fields["label"]:
        raise ValueError("no word is left of the answer, normalised")
    if not fields["answer_type"]:
        fields["answer_type"] = "closed" if fields["label"] in ("yes", "no") else "open"
    if fields["answer_type"] not in ANSWER_TYPES:
        raise ValueError("unknown type, neither open nor closed")
    return Question(image, text, fields)


def read_questions(
    rows: Iterable[Row], file: str, classes: Sequence[str], drops: Drops, groups: Groups
) -> tuple[Splits, dict[str, Stored]]:
    """Questions by split, in order, and stored images by name; `groups` gets theirs.

    Rows that cannot be used are counted, and repetitions of a key IMAGE/ID in a split.
    """
    splits: Splits = {}
    stored: dict[str, Stored] = {}
    known: set[tuple[str, str]] = set()
    for number, row in rows:
        where = f"{file}: row {number}"
        try:
            split, name, image = split_and_image(row)
            question, group = make_question(row, number, name, classes), groups.read(row)
        except ValueError as error:
            drops.add(f"row: {error}", where)
            continue
        key = (split, f"{question.image}/{question.fields['question_id']}")
        if key in known:
            drops.add("row: id occurs twice for its image, first one kept", f"{where}: {key[1]}")
            continue
        known.add(key)
        if image is not None:
            stored[question.image] = image
        splits.setdefault(split, []).append(question)
        groups.add(split, question.image, group)
    order = [*(split for split in ORDER if split in splits), *splits]
    return {split: splits[split] for split in dict.fromkeys(order)}, stored


def draw_splits(
    asked: Sequence[Question], groups: Groups, fractions: dict[str, float], seed: int
) -> Splits:
    """Questions by split, as `Groups.draw` has their images."""
    split_of = groups.draw(fractions, seed)
    parts: Splits = {split: [] for split in ORDER if split in ("train", *fractions)}
    for question in asked:
        parts[split_of[question.image]].append(question)
    return parts


def count_splits(splits: Splits, classes: Sequence[str]) -> dict[str, Any]:
    """Of each split: images; questions by type, or texts and those without a class by column."""
    counts: dict[str, Any] = {}
    for split, some in splits.items():
        texts = {"texts": len(some), "without_class": questions.count_empty(some, classes)}
        images = len({question.image for question in some})
        counts[split] = {"images": images, **(texts if classes else questions.count_types(some))}
    return counts


def read_classes(names: str | None) -> list[str]:
    """The class columns asked for; raises ValueError where a name cannot be one."""
    classes = [name.strip() for name in names.split(",")] if names is not None else []
    for name in classes:
        if name in ("", "image", "text", "question_id", *OPTIONAL) or classes.count(name) > 1:
            why = "cannot be a column of classes, or is there twice"
            raise ValueError(f"--classes {names}: {name!r} {why}")
    return classes


def find_splits(
    path: Path, args: argparse.Namespace, classes: Sequence[str], drops: Drops, groups: Groups
) -> tuple[Splits, dict[str, Stored], list[str]]:
    """`read_questions` of the table, drawn where asked for, and the columns that are ignored."""
    needed = ("image", "text", *classes) if classes else ("image", "question", "answer")
    optional = OPTIONAL if classes else (*OPTIONAL, *OPTIONAL_FOR_QUESTIONS)
    names = read_column_names(args.columns, (*needed, *optional))
    needed += (groups.column,) if groups.column else ()
    table = read_table(path, needed, drops, optional, names, args.text_encoding)
    fractions, rows = read_fractions(args), list(table)
    columns = dict.fromkeys(name for _, row in rows for name in row)
    ignored = [name for name in columns if name not in (*needed, *optional)]
    splits, stored = read_questions(rows, path.name, classes, drops, groups)
    if not splits:
        raise ValueError(f"{path}: no usable row: {drops.as_dict()}")
    if fractions:
        check_undrawn(path, splits)
        splits = draw_splits(splits["train"], groups, fractions, args.seed)
    every = [question.fields for some in splits.values() for question in some]
    for name in classes:
        if all(fields[name] is None for fields in every):
            raise ValueError(f"{path}: column {name!r} is empty in every usable row")
    name_unused(path.name, ignored, groups.column)
    if "train" not in splits:
        print(f"warning: {path.name} has no split train, only {', '.join(splits)}", file=sys.stderr)
    return splits, stored, ignored


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    path, drops = need(args.table, "a table of images and questions"), Drops()
    need(args.raw, "the folder that image paths start from")
    classes = read_classes(args.classes)
    groups = Groups(args.group)
    splits, stored, ignored = find_splits(path, args, classes, drops, groups)
    shared = shared_images({split: [q.image for q in some] for split, some in splits.items()})
    facts: dict[str, Any] = {"corpus": count_splits(splits, classes), "ignored_columns": ignored}
    facts |= {"images_in_two_splits": len(shared), **groups.facts()}

    def place(name: str) -> Path | Stored:
        return stored.get(name) or args.raw / name

    items = {split: questions.to_items(some, place, str) for split, some in splits.items()}
    corpus = questions.Parsed(path.stem, splits, items, {next(iter(splits)): drops}, facts)
    if classes:
        questions.prepare_classes(corpus, args, classes)
    else:
        questions.prepare_questions(corpus, args, type_order=None)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = corpus_parser(__doc__)
    add_table_options(parser)
    classes = "columns of classes, instead of answers"
    parser.add_argument("--classes", metavar="COLUMN[,COLUMN]", help=classes)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
