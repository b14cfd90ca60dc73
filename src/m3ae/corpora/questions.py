"""Questions on images: what the scripts that prepare corpora of texts with task fields share.

The task fields of a question, as `Shards.fields` gives them:

    question_id    unique among the questions of its image and split; ends the text's key
    answer         as in the file, without outer white space; a number as a string
    label          the answer normalised (`scoring.answers.normalise_answer`)
    answer_type    open or closed
    question_type  the corpus's own categories

and what a corpus adds, e.g. framed, leaked and image_in_test of VQA-RAD. `alternatives`, where a
corpus has them, are all answers that the strict protocol counts as right, normalised
(`scoring.answers.accepted_answers`). Corpora of classes (MELINDA) have fields of their own.
"""

import argparse
import json
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from m3ae.corpora.items import Drops, Item, Stored, is_inside
from m3ae.corpora.prepare import compare_options, corpus_parser, finished_splits, prepare
from m3ae.corpora.tables import read_json_list
from m3ae.data import shards
from m3ae.files import is_unicode, write_json
from m3ae.scoring.answers import normalise_answer

ANSWER_TYPES = ("open", "closed")

Place = Callable[[str], Path | Stored]  # where the image of a file name lies, e.g. folder.joinpath


@dataclass(frozen=True)
class Question:
    """A question: the file name of its image below the images' folder, its words, its fields."""

    image: str
    text: str
    fields: dict[str, Any]


def check_row(row: Any, keys: Sequence[str]) -> dict[str, Any]:
    """The row with qid, answer and `keys` as strings without outer white space.

    The first of `keys` names the image. `answer_type`, one of them, is open or closed; the official
    files have "CLOSED " among them. Raises ValueError whose message is a reason
    to leave the row out, without the row's particulars.
    """
    if not isinstance(row, dict):
        raise ValueError("not an object")
    row = dict(row)
    for key in ("qid", "answer", *keys):
        value = row.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and key in ("qid", "answer"):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
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
    path: Path, keys: Sequence[str], drops: Drops, repeated: bool = False
) -> list[dict[str, Any]]:
    """`check_row` of a JSON file's rows; those that it refuses are counted.

    So are rows of a qid that occurred before, unless `repeated`: then the n-th becomes QID-n.
    """
    rows: dict[str, dict[str, Any]] = {}
    for number, raw in enumerate(read_json_list(path), start=1):
        qid = raw.get("qid") if isinstance(raw, dict) else None
        where = f"{path.name}: row {number}, qid {qid!r}"
        try:
            row = check_row(raw, keys)
        except ValueError as error:
            drops.add(f"question: {error}", where)
            continue
        if repeated:
            row["qid"] = unused(row["qid"], rows)
        if row["qid"] in rows:
            drops.add("question: qid occurs twice, first one kept", where)
        else:
            rows[row["qid"]] = row
    return list(rows.values())


def unused(name: str, known: Container[str]) -> str:
    """The name, or NAME-2, NAME-3, ...: the first that is not known yet."""
    numbered = (f"{name}-{number}" for number in count(2))
    return next(n for n in chain([name], numbered) if n not in known)


def task_fields(
    question_id: str, answer: str, answer_type: str, question_type: str, **more: Any
) -> dict[str, Any]:
    """The fields of a question; `more`: the corpus's own."""
    return {
        "question_id": question_id,
        "answer": answer,
        "label": normalise_answer(answer),
        "answer_type": answer_type,
        "question_type": question_type,
        **more,
    }


def to_items(
    questions: Iterable[Question], place: Place, key_of: Callable[[str], str]
) -> list[Item]:
    """One item an image, in the order of first questions; `key_of` its file name is its key."""
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        by_image.setdefault(question.image, []).append(question)
    items = []
    for name, asked in by_image.items():
        texts, fields = tuple(q.text for q in asked), tuple(q.fields for q in asked)
        items.append(Item(key_of(name), place(name), texts, fields=fields))
    return items


def labels(*splits: Iterable[Question]) -> set[str]:
    """The labels that occur in these questions."""
    return {question.fields["label"] for split in splits for question in split}


def coverage(lists: dict[str, set[str]], test: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """What the report says of each answer list.

    `answers`: its length. `test_coverage`: the fraction of test questions whose label is in it (a
    ceiling on accuracy); None without test questions. `test_coverage_any`, where answers have
    alternatives: the fraction that has one in it.
    """
    facts: dict[str, dict[str, Any]] = {}
    for name, known in lists.items():
        right = fraction([question.fields["label"] in known for question in test])
        facts[name] = {"answers": len(known), "test_coverage": right}
        if any("alternatives" in question.fields for question in test):
            any_right = [not known.isdisjoint(q.fields["alternatives"]) for q in test]
            facts[name]["test_coverage_any"] = fraction(any_right)
    return facts


def class_lists(
    splits: dict[str, list[Question]], columns: Sequence[str]
) -> dict[str, dict[str, list[str]]]:
    """Of each column the sorted classes: `paper`, of all splits, and `train`; null is none."""

    def found(column: str, *names: str) -> list[str]:
        given = {q.fields[column] for name in names for q in splits.get(name, ())}
        return sorted(given - {None})

    return {
        name: {"paper": found(name, *splits), "train": found(name, "train")} for name in columns
    }


def class_coverage(
    lists: dict[str, dict[str, list[str]]], test: Sequence[Question]
) -> dict[str, dict[str, Any]]:
    """Of each column: numbers of classes, and the fraction of test rows with a class in `train`.

    Of those that have a class; None without any.
    """
    facts: dict[str, dict[str, Any]] = {}
    for column, some in lists.items():
        given = [q.fields[column] for q in test if q.fields[column] is not None]
        covered = fraction([name in some["train"] for name in given])
        facts[column] = {
            **{name: len(each) for name, each in some.items()},
            "test_coverage": covered,
        }
    return facts


def count_empty(questions: Iterable[Question], columns: Sequence[str]) -> dict[str, int]:
    """Of each column: rows without a class."""
    rows = list(questions)
    return {name: sum(row.fields[name] is None for row in rows) for name in columns}


def own_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that only this script has, as JSON has them; they decide the lists."""
    common = vars(corpus_parser(None).parse_args(["--raw", "", "--out", ""]))
    own = {name: value for name, value in vars(args).items() if name not in common}
    return json.loads(json.dumps(own))


def refuse_mixture(
    args: argparse.Namespace, source: str, path: Path, lists: dict[str, Any]
) -> None:
    """Raise ValueError where OUT has splits that these lists, to be written to `path`, do not fit.

    That is a split (finished or begun) of another corpus or made with other `own_options`, or a
    file of lists that another state of the corpus gave. All splits of OUT share one such file.
    """
    wanted, splits = {**own_options(args), "source": source}, []
    for split in finished_splits(args.out):
        made = shards.read_manifest(split)
        splits.append((split, {**made["options"], "source": made["source"]}))
    for begun in sorted(args.out.glob("*.partial/options.json")):
        splits.append((begun.parent, json.loads(begun.read_text(encoding="utf-8"))))
    advice = f"give those, another --out, or delete what is in {args.out}"
    for split, made in splits:
        if differing := compare_options(made, wanted, wanted):
            said = f"{split}: prepared with other options ({differing})"
            raise ValueError(f"{said}, and {path.name} is one for all splits; {advice}")
    if splits and path.exists() and json.loads(path.read_text(encoding="utf-8")) != lists:
        raise ValueError(
            f"{path}: made from other files of the corpus than --raw has now; {advice}"
        )


def prepare_fields(
    items: dict[str, list[Item]],
    dropped: dict[str, Drops],
    args: argparse.Namespace,
    source: str,
    facts: dict[str, Any],
    file: str,
    lists: dict[str, Any],
) -> dict[str, Any]:
    """`prepare` for texts with fields, and OUT/`file` with the lists; returns the report.

    Raises ValueError as `refuse_mixture` and `prepare` do.
    """
    path = args.out / file
    refuse_mixture(args, source, path, lists)
    report = prepare(items, dropped, args, source, kind=shards.WITH_FIELDS, facts=facts)
    # Only now: where OUT was prepared with other options, `prepare` has refused.
    write_json(path, lists)
    return report


def prepare_questions(
    splits: dict[str, list[Question]],
    images: dict[str, Place],
    key_of: Callable[[str], str],
    lists: dict[str, set[str]],
    corpus: dict[str, Any],
    dropped: dict[str, Drops],
    args: argparse.Namespace,
    source: str,
    type_order: Sequence[str] = (),
) -> dict[str, Any]:
    """`prepare` for questions, and OUT/answers.json; returns the report.

    The file has each of `lists` sorted, and as `reference_order` all labels in the order in which
    they first occur in train, valid and test: that of a released checkpoint's outputs, if the rows
    stand as in the files that it was made from, in a split by the question types in `type_order`
    (reference, data fact 22). `images`: where the images of a split lie. `key_of`: an image's key
    from its file name.
    `corpus`: what the raw corpus has, for the report. The rest is as in `prepare`. The lists are of
    the whole corpus, whatever --split, --limit or missing images leave of it. Raises ValueError
    where OUT has splits that these lists do not fit (`refuse_mixture`).
    """
    facts = {"corpus": corpus, "answers": coverage(lists, splits["test"])}
    items = {name: to_items(asked, images[name], key_of) for name, asked in splits.items()}
    answers = {name: sorted(lists[name]) for name in lists}
    rank = {kind: place for place, kind in enumerate(type_order)}
    found: dict[str, None] = {}
    for name in ("train", "valid", "test"):
        asked = splits.get(name, [])
        ordered = sorted(asked, key=lambda q: rank.get(q.fields["question_type"], len(rank)))
        found |= dict.fromkeys(question.fields["label"] for question in ordered)
    answers["reference_order"] = list(found)
    return prepare_fields(items, dropped, args, source, facts, "answers.json", answers)


def count_images(folder: Path) -> int:
    """Number of image files directly in a folder, by their names."""
    return sum(path.suffix.lower() in (".jpg", ".jpeg", ".png") for path in folder.iterdir())


def count_corpus(questions: Sequence[Question], images: Path) -> dict[str, int]:
    """Of one split: files in its images' folder, images with a question, questions by type."""
    asked_about = len({question.image for question in questions})
    counts = {"image_files": count_images(images), "images_asked_about": asked_about}
    return {**counts, **count_types(questions)}


def fraction(hits: list[bool]) -> float | None:
    """The fraction of hits; None of nothing."""
    return round(sum(hits) / len(hits), 4) if hits else None


def count_types(questions: Iterable[Question]) -> dict[str, int]:
    """Number of questions, of closed and of open ones."""
    types = [question.fields["answer_type"] for question in questions]
    counts = {kind: types.count(kind) for kind in reversed(ANSWER_TYPES)}
    return {"questions": len(types), **counts}
