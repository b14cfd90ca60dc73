"""Protocols: which rows are trained on, which answers are known, what selects the epoch.

paper: what the published implementation does. All rows, the answers of all splits, the exact
string; VQA-RAD's epoch is selected on test (its published valid split is a copy of test), as is
that of a corpus without valid; of others on valid.

strict: what can be defended. No leaked rows, only the answers of the rows trained on, alternatives
accepted; the epoch is selected on valid or, without one, on a part of train held out by image.

image_disjoint: strict, and without training questions on test images.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3ae.data.sampler import SUBSET, keyed


@dataclass(frozen=True)
class Protocol:
    """Rules of one protocol for one corpus. `select`: test, valid or held_out."""

    name: str
    known_answers: str
    select: str
    left_out: tuple[str, ...]


def protocols_of(name: str, source: str, has_valid: bool) -> list[Protocol]:
    """The protocols that a config's `protocol` stands for."""
    held_out = "valid" if has_valid else "held_out"
    on_test = source == "VQA-RAD" or not has_valid
    leaks = ("leaked", "image_in_test")
    known = {
        "paper": Protocol("paper", "all", "test" if on_test else "valid", ()),
        "strict": Protocol("strict", "train", held_out, leaks[:1]),
        "image_disjoint": Protocol("image_disjoint", "train", held_out, leaks),
    }
    return [known["paper"], known["strict"]] if name == "both" else [known[name]]


def select_rows(protocol: Protocol, fields: Sequence[dict[str, Any]]) -> np.ndarray:
    """Rows (of a training split's fields) that a protocol trains and selects on.

    Raises ValueError where a flag that it needs is unknown for some row.
    """
    rows = np.arange(len(fields))
    for flag in protocol.left_out:
        values = [row.get(flag, False) for row in fields]
        if None in values:
            raise ValueError(f"protocol {protocol.name}: some training rows do not say whether "
                             f"they are {flag}; prepare from the official files")  # fmt: skip
        rows = rows[~np.array(values, dtype=bool)[rows]]
    return rows


def hold_out(rows: np.ndarray, images: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into those to train on and a held-out part, no image in both.

    images int64: the image of every row of the split. About `share` of the images are held out,
    the same ones for every seed of a run, so that runs can be compared.
    """
    known = np.unique(images[rows])
    shuffled = keyed(0, SUBSET).permutation(known)
    chosen = shuffled[: max(1, round(share * len(known)))]
    held = np.isin(images[rows], chosen)
    return rows[~held], rows[held]


def read_answers(
    folder: str, file: str | None, field: str, name: str = "paper"
) -> list[str] | None:
    """The list `name` of answers that preparation wrote beside a split, None if it wrote none.

    `file` names another one: a JSON list, or an object with the list `name`. The order is that of
    the head's outputs. Raises ValueError where the file has no such list.
    """
    parent = Path(folder).parent
    names = [parent / "answers.json", parent / "classes.json"] if file is None else [Path(file)]
    path = next((path for path in names if path.is_file()), None)
    if path is None:
        if file is not None:
            raise FileNotFoundError(f"data.answers: {file} does not exist")
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and field in content:  # classes.json: lists by column
            content = content[field]
        answers = content[name] if isinstance(content, dict) else content
        if not all(isinstance(answer, str) for answer in answers) or not answers:
            raise ValueError("not a list of strings")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no list {name} for data.field={field} ({error})") from error
    return list(answers)
