"""Prediction files: read, check, write, join with a prepared split; right or wrong.

A file holds one JSON object a line (or is a CSV with a header), one a question:

    id             key of the question in the shards, e.g. synpic54610/12
    prediction     one answer, or the name of a class
    image          key of its image; without it, what stands before the last `/` of the id
    question, answer (as in the corpus), label (the answer normalised), score
    type           open or closed; rows without it are of classes, not of questions
    question_type  the corpus's own categories
    leaked_twin, image_in_train, answer_in_train, near_duplicate   flags, see `annotate`

Only id and prediction are needed where a prepared split says the rest, and only these two and
answer (or label) without one. Other columns are kept as they stand.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from m3ae.files import is_unicode
from m3ae.scoring.answers import accepted_answers, normalise_answer
from m3ae.scoring.protocols import protocols_of, select_rows

Row = dict[str, Any]

PROTOCOLS = ("paper", "strict", "image_disjoint")
TYPES = ("open", "closed")
FLAGS = ("leaked_twin", "image_in_train", "answer_in_train", "near_duplicate")
_OR_NUMBER = ("id", "prediction", "answer")  # a number there is read as its digits
_TEXTS = (*_OR_NUMBER, "label", "image", "question", "question_type", "type")
_ALL_FLAGS = (*FLAGS, "leaked", "framed", "image_in_test")
_OWN = ("prediction", "score", "top")  # what a model says, and no prepared split


# ------------------------------------------------------------------ read and write


def check_row(row: Any) -> Row:
    """The row with texts as strings, `type` in lower case, columns that are null left out.

    Raises ValueError that says what is wrong with it.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__} where an object should be")
    row = {key: value for key, value in row.items() if value is not None}
    for key in _TEXTS:
        value = row.get(key, "")
        if key in _OR_NUMBER and isinstance(value, int | float) and not isinstance(value, bool):
            value = row[key] = json.dumps(value)
        if not isinstance(value, str):
            raise ValueError(f"{key} is a {type(value).__name__}, not text")
        if not is_unicode(value):
            raise ValueError(f"{key} has half of a surrogate pair in it, which is no text")
    for key in ("id", "prediction"):
        if key not in row:
            raise ValueError(f"no {key}")
    if not row["id"]:
        raise ValueError("an empty id")
    for key in _ALL_FLAGS:
        if not isinstance(row.get(key, False), bool):
            raise ValueError(f"{key} is {row[key]!r}, not true or false")
    score = row.get("score", 0)
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise ValueError(f"score is {score!r}, not a number")
    if "type" in row:
        row["type"] = row["type"].strip().lower()
        if row["type"] not in TYPES:
            raise ValueError(f"type is {row['type']!r}, neither open nor closed")
    return row


def read_predictions(path: str | Path) -> list[Row]:
    """The rows of a prediction file, each as `check_row` gives it; .csv is read as CSV.

    Raises ValueError naming the file and the line: not UTF-8, not JSON, a column missing or of
    another type, an id twice, no row at all.
    """
    path = Path(path)
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for number, raw in (_csv_rows if path.suffix.lower() == ".csv" else _json_rows)(path):
        try:
            row = check_row(raw)
            if row["id"] in lines:
                raise ValueError(f"id {row['id']!r} is on line {lines[row['id']]} too")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        lines[row["id"]] = number
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no prediction in it")
    return rows


def write_predictions(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, so that the file is the old one or the whole new one.

    Raises ValueError, before anything is written, naming a row that could not be read back.
    """
    path, known, lines = Path(path), set(), []
    for row in rows:
        try:
            checked = check_row(row)
            if checked["id"] in known:
                raise ValueError(f"id {checked['id']!r} twice")
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        except ValueError as error:
            raise ValueError(f"{path}: row {len(lines) + 1} to write: {error}") from error
        known.add(checked["id"])
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of each line that is not blank."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line.decode("utf-8-sig"), parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}:{number}: not JSON ({error}); expected one object a line, or a .csv"
                ) from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Last line and cells by column of each row; empty cells, but for predictions, are null."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            for name in ("id", "prediction"):
                if name not in header:
                    raise ValueError(
                        f"{path}:1: no column {name}; it has {', '.join(header) or 'none'}"
                    )
            if len(set(header)) < len(header):
                raise ValueError(f"{path}:1: a column occurs twice: {', '.join(header)}")
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path}:{reader.line_num}: {len(cells)} cells, the header "
                        f"has {len(header)}"
                    )
                yield reader.line_num, dict(map(_cell, header, cells))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: after line {reader.line_num}: not UTF-8; save it as UTF-8"
            ) from error
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: not CSV ({error})") from error


def _cell(name: str, text: str) -> tuple[str, Any]:
    """A column's name and value; flags and the score are no text in JSON either."""
    if not text and name != "prediction":
        return name, None
    if name in _ALL_FLAGS:
        return name, {"true": True, "false": False}.get(text.strip().lower(), text)
    if name == "score":
        try:
            return name, float(text)
        except ValueError:
            return name, text  # which `check_row` refuses
    return name, text


# ------------------------------------------------------------------ prepared splits


def join(
    rows: Sequence[Row], questions: Sequence[Row], name: str, allow_missing: bool = False
) -> tuple[list[Row], int]:
    """Each of `questions` with its prediction from `rows`, and the number of missing ones.

    All but the prediction, its scores and the flags is the split's; `name` is the file's, for
    errors. Raises ValueError: an id that is no question's, a question without a prediction unless
    `allow_missing` (its prediction is then None, which is wrong), another answer in the file than
    in the split.
    """
    given = {row["id"]: row for row in rows}
    known = {question["id"] for question in questions}
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(
            f"{name}: {len(unknown)} of its {len(rows)} ids are not in the prepared "
            f"split, e.g. {unknown[0]!r}; is --data what was predicted on?"
        )
    missing = [question["id"] for question in questions if question["id"] not in given]
    if missing and not allow_missing:
        raise ValueError(
            f"{name}: no prediction for {len(missing)} of {len(questions)} questions, "
            f"e.g. {missing[0]!r}; --allow-missing counts them as wrong"
        )
    joined = []
    for question in questions:
        row = given.get(question["id"], {"prediction": None})
        for key in ("answer", "label"):
            same = normalise_answer if "type" in question else str
            if key in row and same(row[key]) != same(str(question.get(key, row[key]))):
                raise ValueError(
                    f"{name}: {question['id']}: {key} {row[key]!r} where the prepared "
                    f"split has {question[key]!r}"
                )
        joined.append({**question, **{key: row[key] for key in (*_OWN, *FLAGS) if key in row}})
    return joined, len(missing)


def complete(rows: Sequence[Row], name: str) -> list[Row]:
    """Rows that can be scored alone, with `image` on each and, of questions, `label`.

    A column that some rows have and others lack would shift what is counted, so it is refused, as
    are rows without answer and label, and a label that is not the answer normalised.
    """
    for key in ("image", "type", "question_type", "question", "answer"):
        lacking = [row["id"] for row in rows if key not in row]
        if 0 < len(lacking) < len(rows):
            raise ValueError(
                f"{name}: no {key} on {len(lacking)} of {len(rows)} rows, e.g. "
                f"{lacking[0]!r}; give it on all or on none"
            )
    done = []
    for row in rows:
        if "answer" not in row and "label" not in row:
            raise ValueError(
                f"{name}: {row['id']!r} has no answer and no label; give the prepared "
                "split with --data"
            )
        row = {"image": row["id"].rpartition("/")[0] or row["id"], **row}
        if "type" in row:
            label = normalise_answer(row.get("answer", row.get("label")))
            if "answer" in row and row.get("label", label) != label:
                raise ValueError(
                    f"{name}: {row['id']!r}: label {row['label']!r} is not the answer "
                    f"normalised, {label!r}"
                )
            row["label"] = label
        done.append(row)
    return done


# ------------------------------------------------------------------ right or wrong, strata


def is_right(row: Row, protocol: str) -> bool:
    """Whether a row of `complete` is right.

    paper: the normalised prediction is the label. The other protocols accept any of
    `accepted_answers`. Of classes: the names are equal. No prediction (None) is wrong. Raises
    ValueError where the answer, with its alternatives, is not in the row.
    """
    prediction = row["prediction"]
    if prediction is None:
        return False
    if "type" not in row:
        return prediction == reference(row)
    if protocol == "paper":
        return normalise_answer(prediction) == row["label"]
    if "answer" not in row:
        raise ValueError(
            f"{row['id']!r} has a label and no answer, whose alternatives {protocol} "
            "would accept; give --data, or --protocol paper"
        )
    return normalise_answer(prediction) in accepted_answers(row["answer"])


def reference(row: Row) -> str:
    """What a training row teaches: the label, or the name of the class."""
    return row["label"] if "type" in row else row.get("answer", row.get("label"))


def training_rows(train: Sequence[Row], protocol: str) -> list[Row]:
    """Rows of `read_questions` that a protocol trains on; ValueError where they do not tell."""
    rule = protocols_of(protocol, "", True)[0]
    return [train[int(i)] for i in select_rows(rule, train)]


def annotate(
    rows: Sequence[Row], train: Sequence[Row], protocol: str
) -> tuple[list[Row], list[str]]:
    """Rows with the flags that a training split decides, and what could not be decided and why.

    leaked_twin: a training row that is `leaked` has the same `qid`, whether or not the protocol
    trains on it. image_in_train: a row that the protocol trains on has the same image key.
    answer_in_train: such a row has as its label this row's or, but for `paper`, an accepted
    alternative; the share of these is the ceiling of a classifier over training answers.
    """
    notes, out = [], [dict(row) for row in rows]
    leaked = [row["leaked"] for row in train if "leaked" in row]
    if None in leaked:
        notes.append("leaked twins: not told, for some training rows do not say if they are leaked")
    elif any(leaked) and not all("qid" in row for row in rows):
        notes.append("leaked twins: not told, for the predictions have no qid; give --data")
    elif any(leaked):
        twins = {row["qid"] for row in train if row["leaked"]}
        for row in out:
            row["leaked_twin"] = row["qid"] in twins
    try:
        known = training_rows(train, protocol)
    except ValueError as error:
        return out, [*notes, f"strata of training images and answers: not told, for {error}"]
    images, answers = {row["image"] for row in known}, {reference(row) for row in known}
    for row in out:
        row["image_in_train"] = row["image"] in images
        strict = protocol != "paper" and "type" in row and "answer" in row
        accepted = {reference(row), *(accepted_answers(row["answer"]) if strict else ())}
        row["answer_in_train"] = not answers.isdisjoint(accepted)
    return out, notes
