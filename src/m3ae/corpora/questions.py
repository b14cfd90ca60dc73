"""Questions on images: what the scripts that prepare corpora of texts with task fields share.

The task fields of a question, as `Shards.fields` gives them:

    question_id    unique among the questions of its image and split; ends the text's key
    answer         as in the file, without outer white space; a number as a string
    label          the answer normalised (`scoring.answers.normalise_answer`)
    blank_answer   true of an answer that is white space alone, which `strict` leaves out
    answer_type    open or closed
    question_type  the corpus's own categories

and what a corpus adds, e.g. `framed` of VQA-RAD. `alternatives`, where a corpus has them, are all
answers that the strict protocol counts as right (`scoring.answers.accepted_answers`). Corpora of
classes (MELINDA) have fields of their own, and tables of findings

    labels         the findings of a text, a list of classes
    unlabelled     the classes of which it says nothing, where there are some
"""

import argparse
import json
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from m3ae.corpora.items import Drops, Item, Stored, is_inside
from m3ae.corpora.prepare import compare, corpus_parser, options_of, prepare
from m3ae.corpora.splits import ORDER
from m3ae.corpora.tables import read_json_list
from m3ae.corpora.verification import finished_splits
from m3ae.data import shards
from m3ae.files import is_unicode, read_json, read_json_object, write_json
from m3ae.scoring.answers import normalise_answer

ANSWER_TYPES = ("open", "closed")

Place = Callable[[str], Path | Stored]  # where the image of a file name lies, e.g. folder.joinpath


@dataclass(frozen=True)
class Question:
    """A question: the file name of its image below the images' folder, its words, its fields."""

    image: str
    text: str
    fields: dict[str, Any]


Splits = dict[str, list[Question]]
Facts = dict[str, dict[str, Any]]  # by list


def check_row(row: Any, keys: Sequence[str], blank: bool = False) -> dict[str, Any]:
    """The row with qid, answer and `keys` as strings without outer white space.

    `blank`: an answer may be white space alone, not absent. The first of `keys` names the image,
    another is `answer_type`, which the official files spell "CLOSED " too. Raises ValueError whose
    message is a reason to leave the row out.
    """
    if not isinstance(row, dict):
        raise ValueError("not an object")
    row = dict(row)
    for key in ("qid", "answer", *keys):
        value = row.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and key in ("qid", "answer"):
            value = str(value)
        may_be_blank = blank and key == "answer"
        if not isinstance(value, str) or not (value.strip() or may_be_blank):
            raise ValueError(f"no {key}")
        if not is_unicode(value):
            raise ValueError(f"{key} not UTF-8")
        row[key] = value.strip()
    row["answer_type"] = row["answer_type"].lower()
    if row["answer_type"] not in ANSWER_TYPES:
        raise ValueError("unknown answer_type")
    if not is_inside(row[keys[0]]):
        raise ValueError(f"{keys[0]} leads elsewhere")
    return row


def checked_rows(
    path: Path,
    keys: Sequence[str],
    drops: Drops,
    repeated: bool = False,
    blank: bool = False,
    encoding: str | None = None,
) -> list[dict[str, Any]]:
    """`check_row` of a JSON file's rows; those that it refuses are counted.

    So are rows of a qid that occurred before, unless `repeated`: then the n-th becomes QID-n.
    encoding: of texts that are not UTF-8.
    """
    rows: dict[str, dict[str, Any]] = {}
    for number, raw in enumerate(read_json_list(path, encoding), start=1):
        qid = raw.get("qid") if isinstance(raw, dict) else None
        where = f"{path.name}: row {number}, qid {qid!r}"
        try:
            row = check_row(raw, keys, blank)
            if repeated:
                row["qid"] = unused(row["qid"], rows)
            if row["qid"] in rows:
                raise ValueError("qid occurs twice, first one kept")
            rows[row["qid"]] = row
        except ValueError as error:
            drops.add(f"question: {error}", where)
    return list(rows.values())


def unused(name: str, known: Container[str]) -> str:
    """The name, or NAME-2, NAME-3, ...: the first that is not known yet."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(n for n in chain([name], numbered) if n not in known)


def task_fields(
    question_id: str, answer: str, answer_type: str, question_type: str, **more: Any
) -> dict[str, Any]:
    """The fields of a question; `more`: the corpus's own."""
    fields = {"question_id": question_id, "answer": answer, "label": normalise_answer(answer)}
    more |= {} if answer else {"blank_answer": True}
    return {**fields, "answer_type": answer_type, "question_type": question_type, **more}


def to_items(
    questions: Iterable[Question],
    place: Place,
    key_of: Callable[[str], str],
    file_of: Callable[[str], str] = lambda name: "",
) -> list[Item]:
    """One item an image, in the order of first questions; `key_of` its file name is its key.

    `file_of` it is its `image_id`: needed where the key is not how the file is called.
    """
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    items = []
    for name, asked in by_image.items():
        texts, fields = tuple(q.text for q in asked), tuple(q.fields for q in asked)
        items.append(Item(key_of(name), place(name), texts, file_of(name), fields))
    return items


def labels(*splits: Iterable[Question]) -> set[str]:
    """The labels that occur in these questions."""
    return {question.fields["label"] for split in splits for question in split}


def coverage(lists: dict[str, set[str]], test: Sequence[Question]) -> Facts:
    """Of each answer list its length, and the fraction of test questions whose label is in it.

    That is a ceiling on accuracy; None without test questions. `test_coverage_any`, where answers
    have alternatives: the fraction that has one in it.
    """
    facts: Facts = {}
    for name, known in lists.items():
        right = fraction([question.fields["label"] in known for question in test])
        facts[name] = {"answers": len(known), "test_coverage": right}
        if any("alternatives" in question.fields for question in test):
            any_right = [not known.isdisjoint(q.fields["alternatives"]) for q in test]
            facts[name]["test_coverage_any"] = fraction(any_right)
    return facts


def class_lists(splits: Splits, columns: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Of each column the sorted classes: `paper`, of all splits, and `train`; null is none."""

    train, every = splits.get("train", []), list(chain(*splits.values()))

    def found(column: str, questions: list[Question]) -> list[str]:
        return sorted({q.fields[column] for q in questions} - {None})

    return {name: {"paper": found(name, every), "train": found(name, train)} for name in columns}


def class_coverage(lists: dict[str, dict[str, list[str]]], test: Sequence[Question]) -> Facts:
    """Of each column: numbers of classes, and the fraction of test rows' classes in `train`."""
    facts: Facts = {}
    for column, classes in lists.items():
        facts[column] = {name: len(each) for name, each in classes.items()}
        given = [q.fields[column] for q in test if q.fields[column] is not None]
        facts[column]["test_coverage"] = fraction([name in classes["train"] for name in given])
    return facts


def count_empty(questions: Sequence[Question], columns: Sequence[str]) -> dict[str, int]:
    """Of each column: rows without a class."""
    return {name: sum(q.fields[name] is None for q in questions) for name in columns}


def own_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that only this script has, as JSON has them; they decide the lists."""
    common = vars(corpus_parser(None).parse_args(["--raw", "", "--out", ""]))
    own = {name: value for name, value in options_of(args).items() if name not in common}
    return json.loads(json.dumps(own))


def refuse_mixture(args: argparse.Namespace, source: str, path: Path, lists: Any) -> None:
    """Raise ValueError where OUT has splits that these lists, to be written to `path`, do not fit.

    That is a split (finished or begun) of another corpus or made with other `own_options`, or a
    file of lists that another state of the corpus gave. All splits of OUT share one such file.
    """
    wanted, splits = {**own_options(args), "source": source}, {}
    for split in finished_splits(args.out):
        manifest = shards.read_manifest(split)
        splits[split] = {**manifest["options"], "source": manifest["source"]}
    for begun in sorted(args.out.glob("*.partial/options.json")):
        splits[begun.parent] = read_json_object(begun)
    advice = f"give those, another --out, or delete what is in {args.out}"
    for split, options in splits.items():
        if differing := compare(options, wanted, wanted):
            message = f"{split}: prepared with other options ({differing})"
            raise ValueError(f"{message}, and {path.name} is one for all splits; {advice}")
    if splits and path.exists() and read_json(path) != lists:
        raise ValueError(f"{path}: made from other files of the corpus than in --raw; {advice}")


@dataclass(frozen=True)
class Parsed:
    """A corpus with its questions, their items and what was left out by split; facts to report."""

    source: str
    splits: Splits
    items: dict[str, list[Item]]
    dropped: dict[str, Drops]
    facts: dict[str, Any]


def prepare_fields(corpus: Parsed, args: argparse.Namespace, file: str, lists: Any) -> None:
    """`prepare` for texts with fields, and OUT/`file` with the lists; see also `refuse_mixture`."""
    path, source = args.out / file, corpus.source
    refuse_mixture(args, source, path, lists)
    prepare(corpus.items, corpus.dropped, args, source, shards.WITH_FIELDS, corpus.facts)
    # Only now: where OUT was prepared with other options, `prepare` has refused.
    write_json(path, lists)


def prepare_classes(corpus: Parsed, args: argparse.Namespace, columns: Sequence[str]) -> None:
    """`prepare_fields` for texts with classes, and OUT/classes.json: `class_lists`."""
    lists = class_lists(corpus.splits, columns)
    corpus.facts["classes"] = class_coverage(lists, corpus.splits.get("test", []))
    prepare_fields(corpus, args, "classes.json", lists)


def prepare_questions(
    corpus: Parsed,
    args: argparse.Namespace,
    type_order: Sequence[str] | None = (),
    more: dict[str, set[str]] | None = None,
) -> None:
    """`prepare_fields` for questions, and OUT/answers.json with lists of the whole corpus.

    `paper`: the labels of all rows; `train`: of the training rows that are no frames and whose
    answer is not blank; `more` lists;
    and, unless `type_order` is None, `reference_order`: all labels as they first occur in train,
    valid and test, in a split by these question types. That is the order of a released checkpoint's
    outputs, if the rows stand as in the files that it was made from (reference, data fact 22).
    """
    splits = corpus.splits
    apart = ("framed", "blank_answer")
    asked = [q for q in splits.get("train", []) if not any(map(q.fields.get, apart))]
    lists = {"paper": labels(*splits.values()), "train": labels(asked), **(more or {})}
    answers = {name: sorted(known) for name, known in lists.items()}
    if type_order is not None:
        rank = {kind: place for place, kind in enumerate(type_order)}
        found: dict[str, None] = {}
        for name in ORDER:
            asked = splits.get(name, [])
            ordered = sorted(asked, key=lambda q: rank.get(q.fields["question_type"], len(rank)))
            found |= dict.fromkeys(question.fields["label"] for question in ordered)
        answers["reference_order"] = list(found)
    corpus.facts["answers"] = coverage(lists, splits.get("test", []))
    prepare_fields(corpus, args, "answers.json", answers)


def count_images(folder: Path) -> int:
    """Number of image files directly in a folder, by their names."""
    return sum(path.suffix.lower() in (".jpg", ".jpeg", ".png") for path in folder.iterdir())


def count_questions(questions: Sequence[Question]) -> dict[str, int]:
    """Of one split: images with a question, questions by type."""
    asked_about = len({question.image for question in questions})
    return {"images_asked_about": asked_about, **count_types(questions)}


def fraction(hits: list[bool]) -> float | None:
    """The fraction of hits; None of nothing."""
    return round(sum(hits) / len(hits), 4) if hits else None


def count_types(questions: Iterable[Question]) -> dict[str, int]:
    """Number of questions, of closed and of open ones."""
    types = [question.fields["answer_type"] for question in questions]
    counts = {kind: types.count(kind) for kind in reversed(ANSWER_TYPES)}
    return {"questions": len(types), **counts}
