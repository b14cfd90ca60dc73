r"""Your own images with questions, or with classes -> shards.

A table FILE (.csv, .tsv, .jsonl or .parquet; cells between commas, semicolons or tabs), or several
of them, a pattern ("data/*.parquet") or a folder of the hub's parquet files, one row a question:

    image     path below --raw, however it is written, of a picture or a DICOM file; in a parquet
              file also the image itself (binary, or a struct with `bytes`), and then each row is
              an image of its own
    question  the words
    answer    the words, or a number
    type      open or closed; without it an answer that is yes or no is closed, any other open
    split     e.g. train, valid, test; without it what a name such as test-00000-of-00002.parquet
              of several files says, else train, or see --test-share
    id        of the question, unique for its image; without it the row's number, from 1
    question_type   categories of your own, for the table of results

The last four may be absent or empty; columns beyond these are ignored and named in the report. A
table that calls them otherwise is read with --columns, e.g. image=filename "answer=Final answer".
Rows that cannot be used are left out and counted. Answers are normalised (no articles, no
punctuation); one that has nothing left then, such as the letter A of a multiple choice, stays as it
is in lower case, and is counted.

With --classes COLUMN[,COLUMN] the rows are texts with classes: columns image, text and those; a
row whose cell is empty has no class of that column.

With --findings the rows are texts with several classes each: one column of names between
separators (`Effusion|Mass`; an empty cell, or No Finding, is none), or a column of 0 and 1 for each
(an empty cell or -1: not said). A column `text` is read where there is one. --as questions makes a
question of each finding, answered by yes or no; --as labels a multi-label classification
(task=multilabel), and OUT/classes.json the list `labels`.

OUT/answers.json has the sorted answers (OUT/classes.json for each column the classes): `paper`, of
all splits, and `train`, of the training rows alone. --test-share and --valid-share draw splits by
image, or with --group COLUMN by patient, study or case: rows with the same cell stay together. A
column `split` is checked for images, and groups, that are in two.
For pairs without labels, and for retrieval, see pairs.py.

examples:
  python data_prep/table.py --table nih.csv --columns "image=Image Index" --raw images \
      --findings "Finding Labels" --out data/nih --tokenizer roberta-base --test-share 0.2
  python data_prep/table.py --table questions.csv --raw images --out data/mine --px 384 \
      --tokenizer roberta-base --valid-share 0.1 --test-share 0.2 --group patient
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3ae.command import run
from m3ae.corpora import questions
from m3ae.corpora.findings import (
    Findings,
    add_findings_options,
    count_findings,
    label_lists,
    read_findings,
)
from m3ae.corpora.items import Stored
from m3ae.corpora.own_table import SPLIT_AND_ID, OwnTable, add_table_options, read_own_table
from m3ae.corpora.prepare import corpus_parser
from m3ae.corpora.questions import ANSWER_TYPES, Question, Splits
from m3ae.corpora.splits import ORDER, Groups, check_undrawn, read_fractions
from m3ae.corpora.tables import cell, shared_images, split_of
from m3ae.scoring.answers import answer_label, keeps_its_form

OPTIONAL_FOR_QUESTIONS = ("type", "question_type")


def make_question(
    row: dict[str, Any],
    number: int,
    image: str,
    classes: Sequence[str],
    findings: Findings | None = None,
) -> Question:
    """The question (or text with `classes`, or `findings`) of a row.

    ValueError says why to leave the row out.
    """
    name = cell(row, "id") or str(number)
    if findings:
        return findings.make_question(row, name, image)
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
    fields["label"] = answer_label(answer)
    if not fields["answer_type"]:
        fields["answer_type"] = "closed" if fields["label"] in ("yes", "no") else "open"
    if fields["answer_type"] not in ANSWER_TYPES:
        raise ValueError("unknown type, neither open nor closed")
    return Question(image, text, fields)


def read_questions(
    table: OwnTable, classes: Sequence[str], findings: Findings | None = None
) -> tuple[Splits, dict[str, Stored]]:
    """Questions by split, in order, and stored images by name.

    Rows that cannot be used are counted, and repetitions of a key IMAGE/ID in a split.
    """
    splits: Splits = {}
    stored: dict[str, Stored] = {}
    known: set[tuple[str, str]] = set()
    for where, number, row in table.rows:
        split = name = ""
        try:
            split = split_of(row)
            name, image = table.image(row)
            question = make_question(row, number, name, classes, findings)
            group = table.groups.read(row)
        except ValueError as error:
            table.leave_out(error, where, split, name)
            continue
        key = (split, f"{question.image}/{question.fields['question_id']}")
        if key in known:
            reason = "id occurs twice for its image, first one kept"
            table.leave_out(reason, f"{where}: {key[1]}", split, name)
            continue
        known.add(key)
        if image is not None:
            stored[question.image] = image
        splits.setdefault(split, []).append(question)
        table.groups.add(split, question.image, group)
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
    """Of each split: images; questions by type, or texts and those without a class by column.

    Of texts with findings: those that have none.
    """
    counts: dict[str, Any] = {}
    for split, some in splits.items():
        counts[split] = {"images": len({question.image for question in some})}
        if classes:
            empty = questions.count_empty(some, classes)
            counts[split] |= {"texts": len(some), "without_class": empty}
        elif some and "labels" in some[0].fields:
            without = sum(not question.fields["labels"] for question in some)
            counts[split] |= {"texts": len(some), "without_finding": without}
        else:
            counts[split] |= questions.count_types(some)
    return counts


def count_as_written(splits: Splits) -> int:
    """Questions whose answer has no word left when normalised, so that it stays as it is."""
    asked = [question.fields["label"] for some in splits.values() for question in some]
    return sum(map(keeps_its_form, asked))


def read_classes(names: str | None) -> list[str]:
    """The class columns asked for; raises ValueError where a name cannot be one."""
    classes = [name.strip() for name in names.split(",")] if names is not None else []
    for name in classes:
        if name in ("", "image", "text", "question_id", *SPLIT_AND_ID) or classes.count(name) > 1:
            why = "cannot be a column of classes, or is there twice"
            raise ValueError(f"--classes {names}: {name!r} {why}")
    return classes


def find_splits(
    table: OwnTable, args: argparse.Namespace, classes: Sequence[str], findings: Findings | None
) -> tuple[Splits, dict[str, Stored]]:
    """`read_questions` of the table, drawn where asked for."""
    fractions = read_fractions(args)
    splits, stored = read_questions(table, classes, findings)
    if not splits:
        raise table.no_usable_row()
    if fractions:
        check_undrawn(table.name, splits)
        splits = draw_splits(splits["train"], table.groups, fractions, args.seed)
    every = [question.fields for some in splits.values() for question in some]
    for name in classes:
        if all(fields[name] is None for fields in every):
            raise ValueError(f"{table.name}: column {name!r} is empty in every usable row")
    if "train" not in splits:
        said = f"{table.name} has no split train, only {', '.join(splits)}"
        print(f"warning: {said}", file=sys.stderr)
    return splits, stored


def columns_of(
    classes: Sequence[str], findings: Findings | None
) -> tuple[Sequence[str], Sequence[str]]:
    """The columns that a table must have, and those that it may have."""
    if findings:
        return ("image", *findings.columns), (*SPLIT_AND_ID, "text")
    if classes:
        return ("image", "text", *classes), SPLIT_AND_ID
    return ("image", "question", "answer"), (*SPLIT_AND_ID, *OPTIONAL_FOR_QUESTIONS)


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    classes, findings, source = read_classes(args.classes), read_findings(args), args.table[0].stem
    if classes and findings:
        raise ValueError("--classes, --findings: give one of the two")
    table = read_own_table(args, *columns_of(classes, findings))
    splits, stored = find_splits(table, args, classes, findings)
    images = {split: {question.image for question in some} for split, some in splits.items()}
    dropped, facts = table.book(images, drawn=bool(read_fractions(args)))
    if findings:
        named = findings.classes(splits)
        facts["findings"] = count_findings(splits, named)
        lists = label_lists(splits, named)
        if findings.kind == "questions":
            splits = {split: findings.ask(some, named) for split, some in splits.items()}
    shared = shared_images(images)
    facts |= {"corpus": count_splits(splits, classes)}
    facts |= {"ignored_columns": table.unused, "images_in_two_splits": len(shared)}
    facts |= table.groups.facts()

    def place(name: str) -> Path | Stored:
        return stored.get(name) or args.raw / name

    items = {split: questions.to_items(some, place, str) for split, some in splits.items()}
    corpus = questions.Parsed(source, splits, items, dropped, facts)
    if classes:
        questions.prepare_classes(corpus, args, classes)
    elif findings and findings.kind == "labels":
        questions.prepare_fields(corpus, args, "classes.json", lists)
    else:
        facts["answers_as_written"] = count_as_written(splits)
        questions.prepare_questions(corpus, args, type_order=None)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = corpus_parser(__doc__)
    add_table_options(parser)
    add_findings_options(parser)
    classes = "columns of classes, instead of answers"
    parser.add_argument("--classes", metavar="COLUMN[,COLUMN]", help=classes)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
