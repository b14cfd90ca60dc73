"""Prediction files: read, check, write, join with a prepared split; right or wrong; strata.

A file holds one JSON object a line (or is a CSV with a header), one a question; .gz: compressed.
docs/scoring.md has the columns. Besides: label, the answer normalised; the flags of `annotate`.
`right` counts where there is no prediction, or neither answer nor label. Only id and prediction are
needed where a prepared split says the rest, and only these two and answer (or label) without one.
Other columns are kept as they stand.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from m3ae.files import is_unicode, most_expanded, printable, replacing
from m3ae.scoring.answers import accepted_answers, answer_label, keeps_its_form, normalise_answer
from m3ae.scoring.protocols import protocols_of, select_rows

Row = dict[str, Any]
Rows = Sequence[Row]
Runs = Sequence[Rows]  # one list of rows a seed

PROTOCOLS = ("paper", "strict", "image_disjoint")
TYPES = ("open", "closed")
WAYS = ("t2i", "i2t")
FLAGS = ("leaked_twin", "image_in_train", "answer_in_train", "near_duplicate")
_OR_NUMBER = ("id", "prediction", "answer")  # a number there is read as its digits
_TEXTS = (*_OR_NUMBER, "label", "image", "question", "question_type", "type")
_ALL_FLAGS = (*FLAGS, "leaked", "framed", "image_in_test")
_OWN = ("prediction", "score", "top", "right", "scores")  # what a model says, and no prepared split
_NUMBERS = {"score": float, "rank": int, "pool": int}  # columns of a CSV
_TRAINED_ON = re.compile(r"# .*: ([0-9]+) of [0-9]+ rows")  # the first line of such a file


def check_row(row: Any) -> Row:
    """The row with texts as strings, `type` in lower case, columns that are null left out.

    Raises ValueError that says what is wrong with it.
    """
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__} where an object should be")
    row = {key: value for key, value in row.items() if value is not None}
    for key in _TEXTS:
        value = row.get(key, "")
        if key in _OR_NUMBER and _is_number(value):
            value = row[key] = json.dumps(value)
        if not isinstance(value, str):
            raise ValueError(f"{key} is a {type(value).__name__}, not text")
        if not is_unicode(value):
            raise ValueError(f"{key} has half of a surrogate pair in it, which is no text")
    if not row.get("id"):
        raise ValueError("an empty id" if "id" in row else "no id")
    if not row.keys() & {"prediction", "right", "rank", "scores"}:
        raise ValueError("no prediction")
    _check_labels(row)
    for key in _ALL_FLAGS:
        if not isinstance(row.get(key, False), bool):
            raise ValueError(f"{key} is {row[key]!r}, not true or false")
    if not _is_number(row.get("score", 0)):
        raise ValueError(f"score is {row['score']!r}, not a number")
    right = row.get("right", False)
    by_protocol = right if isinstance(right, dict) and right else {"paper": right}
    if not all(k in PROTOCOLS and isinstance(x, bool) for k, x in by_protocol.items()):
        raise ValueError(f"right is {right!r}, neither true nor false, nor these by protocol")
    if "rank" in row:
        ends = row["rank"], row.get("pool")
        if row.get("way") not in WAYS:
            raise ValueError(f"way is {row.get('way')!r}, neither t2i nor i2t")
        if not all(type(x) is int for x in ends) or not 1 <= ends[0] <= ends[1]:
            raise ValueError("rank is {!r} of pool {!r}, no place from 1".format(*ends))
    if "type" in row:
        row["type"] = row["type"].strip().lower()
        if row["type"] not in TYPES:
            raise ValueError(f"type is {row['type']!r}, neither open nor closed")
    return row


def _check_labels(row: Row) -> None:
    """Raise ValueError where the scores by class, or the lists of classes, are no such things."""
    scores = row.get("scores", {"": 0})
    if not isinstance(scores, dict) or not scores or not all(map(_is_number, scores.values())):
        raise ValueError(f"scores is {scores!r}, not a number for each class")
    for key in ("labels", "unlabelled"):
        names = row.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{key} is {names!r}, not a list of classes")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_predictions(path: str | Path) -> list[Row]:
    """The rows of a prediction file, each as `check_row` gives it; .csv is read as CSV.

    Raises ValueError naming the file and the line: not UTF-8, not JSON, a column missing or of
    another type, an id twice, no row at all.
    """
    path, rows, lines = Path(path), [], {}
    csv_file = path.name.lower().removesuffix(".gz").endswith(".csv")
    for number, raw in (_csv_rows if csv_file else _json_rows)(path):
        try:
            row = check_row(raw)
            key = _key(row)
            if key in lines:
                raise ValueError(f"id {row['id']!r} is on line {lines[key]} too")
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        lines[key] = number
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no prediction in it")
    return rows


def write_predictions(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines, whole or not at all; ValueError names one that cannot be read."""
    lines: dict[tuple[str, str], str] = {}
    for row in rows:
        try:
            key = _key(check_row(row))
            if key in lines:
                raise ValueError(f"id {key[0]!r} twice")
            lines[key] = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        except ValueError as error:
            raise ValueError(f"{path}: row {len(lines) + 1} to write: {error}") from error
    _write(Path(path), "".join(lines.values()))


def _key(row: Row) -> tuple[str, str]:
    """What may occur once in a file: a caption and its image may have one id, ranked two ways."""
    return row["id"], row["way"] if "rank" in row else ""


def _write(path: Path, text: str) -> None:
    """Write UTF-8, whole or not at all; .gz has no time in it."""
    data = text.encode()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _read(path: Path) -> bytes:
    """What a file holds, decompressed where it ends in .gz; ValueError where that cannot be."""
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        with gzip.open(path) as file:
            data = file.read(most_expanded(path) + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error
    if len(data) > most_expanded(path):
        raise ValueError(f"{path}: expands to more than {most_expanded(path)} bytes; a bomb")
    return data


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of each line that is not blank."""
    for number, line in enumerate(_read(path).split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line.decode("utf-8-sig"), parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                what = f"not JSON ({error}); give one object a line, or a .csv"
                raise ValueError(f"{path}:{number}: {what}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Last line and cells by column of each row; empty cells, but for predictions, are null."""
    file = io.TextIOWrapper(io.BytesIO(_read(path)), "utf-8-sig", newline="")
    reader = csv.reader(file, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if "id" not in header or not {"prediction", "right", "rank"} & set(header):
            lacking = "prediction" if "id" in header else "id"
            raise ValueError(
                f"{path}:1: no column {lacking}; it has {printable(', '.join(header)) or 'none'}"
            )
        if len(set(header)) < len(header):
            raise ValueError(f"{path}:1: a column occurs twice: {printable(', '.join(header))}")
        for cells in filter(None, reader):
            if len(cells) != len(header):
                what = f"{len(cells)} cells, the header has {len(header)}"
                raise ValueError(f"{path}:{reader.line_num}: {what}")
            yield reader.line_num, dict(map(_cell, header, cells))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{reader.line_num + 1}: not UTF-8; save it as such") from error
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not CSV ({error})") from error


def _cell(name: str, text: str) -> tuple[str, Any]:
    """A column's name and value; flags and numbers are no text in JSON either."""
    if not text and name != "prediction":
        return name, None
    if name in _ALL_FLAGS or name == "right":
        return name, {"true": True, "false": False}.get(text.strip().lower(), text)
    try:
        return name, _NUMBERS.get(name, str)(text)
    except ValueError:
        return name, text  # which `check_row` refuses


def join(
    rows: Rows, questions: Rows, name: str, allow_missing: bool = False
) -> tuple[list[Row], int]:
    """Each of `questions` with its prediction from the file `name`, and the number missing there.

    All but the prediction, its scores and the flags is the split's. ValueError: an id that is no
    question's, another answer than the split's, a question without a prediction unless
    `allow_missing` (its prediction is then None, which is wrong).
    """
    given = {row["id"]: row for row in rows}
    ids = [question["id"] for question in questions]
    if unknown := given.keys() - ids:
        what = f"{len(unknown)} of its {len(rows)} ids are not in the prepared split"
        raise ValueError(f"{name}: {what}, e.g. {min(unknown)!r}; is --data what was predicted on?")
    missing = [key for key in ids if key not in given]
    if missing and not allow_missing:
        what = f"no prediction for {len(missing)} of {len(ids)} questions, e.g. {missing[0]!r}"
        raise ValueError(f"{name}: {what}; --allow-missing counts them as wrong")
    joined = []
    for question in questions:
        row = given.get(question["id"], {"prediction": None})
        labels = question.get("labels", [])
        if sorted(row.get("labels", labels)) != sorted(labels):
            what = f"{name}: {question['id']}: labels {row['labels']!r}"
            raise ValueError(f"{what} where the prepared split has {labels!r}")
        for key in ("answer", "label"):
            same = normalise_answer if "type" in question else str
            if key in row and same(row[key]) != same(str(question.get(key, row[key]))):
                what = f"{name}: {question['id']}: {key} {row[key]!r}"
                raise ValueError(f"{what} where the prepared split has {question[key]!r}")
        joined.append({**question, **{key: row[key] for key in (*_OWN, *FLAGS) if key in row}})
    return joined, len(missing)


def complete(rows: Rows, name: str) -> list[Row]:
    """Rows that can be scored alone, with `image` on each and, of questions, `label`.

    A column that some rows have and others lack would shift what is counted, so it is refused, as
    are rows that cannot be told right from wrong, and a label that is not the answer normalised.
    """
    keys = ("image", "type", "question_type", "question", "answer", "rank", "scores", "labels")
    for key in keys:
        lacking = [row["id"] for row in rows if key not in row]
        if 0 < len(lacking) < len(rows):
            what = f"no {key} on {len(lacking)} of {len(rows)} rows, e.g. {lacking[0]!r}"
            raise ValueError(f"{name}: {what}; give it on all or on none")
    done, classes = [], rows[0].get("scores", {}).keys()
    for row in rows:
        row = {"image": row["id"].rpartition("/")[0] or row["id"], **row}
        if row.get("scores", {}).keys() != classes:
            raise ValueError(
                f"{name}: {row['id']!r} has scores of other classes than the first row"
            )
        answered = not row.keys().isdisjoint({"answer", "label"} if not classes else {"labels"})
        if not answered and not row.keys() & {"right", "rank"}:
            what = f"{row['id']!r} has no answer and no label"
            raise ValueError(f"{name}: {what}; give the prepared split with --data")
        if answered and "type" in row:
            label = normalise_answer(row.get("answer", row.get("label")))
            own = answer_label(row.get("answer", row.get("label")))
            label = own if row.get("label") == own else label
            if "answer" in row and row.get("label", label) != label:
                what = f"{name}: {row['id']!r}: label {row['label']!r}"
                raise ValueError(f"{what} is not the answer normalised, {label!r}")
            row["label"] = label
        done.append(row)
    return done


def is_right(row: Row, protocol: str) -> bool:
    """Whether a row of `complete` is right; ValueError where it does not tell.

    paper: the normalised prediction is the label. The other protocols accept any of
    `accepted_answers`. A label that `answer_label` left as it is asks for that alone. Of classes:
    the names are equal. No prediction (None) is wrong. Without a prediction, or an answer to
    compare it with, the row's `right` says it.
    """
    prediction, known = row.get("prediction"), reference(row)
    if ("prediction" not in row or known is None) and "right" in row:
        counted = "paper" if protocol == "paper" else "strict"
        right = row["right"] if isinstance(row["right"], dict) else {counted: row["right"]}
        if counted not in right:
            raise ValueError(f"{row['id']!r}: its `right` does not say what {counted} counts")
        return right[counted]
    if prediction is None:
        return False
    if "type" not in row:
        return prediction == known
    if keeps_its_form(known):
        return answer_label(prediction) == known
    if protocol == "paper":
        return normalise_answer(prediction) == known
    if "answer" not in row:
        what = f"{row['id']!r} has a label and no answer, whose alternatives {protocol} accepts"
        raise ValueError(f"{what}; give --data, or --protocol paper")
    return normalise_answer(prediction) in accepted_answers(row["answer"])


def reference(row: Row) -> str | None:
    """What a row teaches: the label, or the name of the class; None where only `right` is known."""
    return row.get("label") if "type" in row else row.get("answer", row.get("label"))


def kind_of(row: Row) -> str:
    """What a row of a predictions file is of: ranks, labels, answers or classes."""
    kinds = {"rank": "ranks", "scores": "labels", "type": "answers"}
    return next((kind for key, kind in kinds.items() if key in row), "classes")


def right_answers(row: Row, protocol: str) -> set[str]:
    """The normalised answers that count as right under a protocol, or the class's name."""
    known = reference(row)
    if protocol == "paper" or "type" not in row or "answer" not in row or keeps_its_form(known):
        return {known}
    return set(accepted_answers(row["answer"]))


def training_rows(train: Rows, protocol: str) -> list[Row]:
    """Rows of a training split that a protocol allows; ValueError where they do not tell."""
    return [train[int(i)] for i in select_rows(protocols_of(protocol, "", True)[0], train)]


def write_trained_on(path: str | Path, folder: str | Path, ids: Sequence[str], total: int) -> None:
    """Write ids of the rows that a run trained on, one a line below `# FOLDER: N of M rows`."""
    _write(Path(path), "\n".join([f"# {folder}: {len(ids)} of {total} rows", *ids, ""]))


def read_trained_on(path: str | Path) -> list[str]:
    """The ids of `write_trained_on`; ValueError where the file is not one, or not a whole one."""
    first, *ids = _read(Path(path)).decode("utf-8", "replace").removesuffix("\n").split("\n")
    counted = _TRAINED_ON.fullmatch(first)
    if counted is None:
        raise ValueError(f"{path}: begins with {first[:60]!r}, not with `# SPLIT: N of M rows`")
    if not len(ids) == len(set(ids)) == int(counted[1]):
        raise ValueError(f"{path}: {len(set(ids))} ids where its first line says {counted[1]}")
    return ids


def rows_trained_on(train: Rows, ids: Sequence[str], name: str) -> list[Row]:
    """Rows of a training split that a list `name` has; ValueError where the split lacks an id."""
    wanted = set(ids)
    if unknown := wanted - {row["id"] for row in train}:
        what = f"{len(unknown)} of its {len(wanted)} ids are not in the training split"
        raise ValueError(f"{name}: {what}, e.g. {min(unknown)!r}; is --train what was trained on?")
    return [row for row in train if row["id"] in wanted]


def annotate(
    rows: Rows, trained_on: Rows, train: Rows, protocol: str
) -> tuple[list[Row], list[str]]:
    """Rows with the flags that a training split decides, and what could not be decided and why.

    leaked_twin: a row of `train` that is `leaked` has the same `qid`, trained on or not.
    image_in_train: a row of `trained_on` has the same image. answer_in_train: such a row has as its
    label one of `right_answers`, which is the ceiling of a classifier over training answers.
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
    images, answers = {row["image"] for row in trained_on}, {reference(row) for row in trained_on}
    answered = all(reference(row) is not None for row in rows)
    if not answered:
        notes.append("answers in training: not told, for the predictions have none; give --data")
    for row in out:
        row["image_in_train"] = row["image"] in images
        if answered:
            row["answer_in_train"] = not answers.isdisjoint(right_answers(row, protocol))
    return out, notes
