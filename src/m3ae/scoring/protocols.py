"""Protocols: which rows are trained on, which answers are known, what selects the epoch.

paper: what the published implementation does. All rows, the answers of all splits, the exact
string; VQA-RAD's epoch is selected on test (its published valid split is a copy of test), as is
that of a corpus without valid; of others on valid.
strict: what can be defended. No leaked rows, none whose answer is blank, only the answers of the
rows trained on, alternatives accepted; the epoch is selected on valid or, without one, on a part of
train held out by image.
image_disjoint: strict, and without training questions on test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    apart = ("blank_answer", "leaked")
    known = {
        "paper": Protocol("paper", "all", "test" if on_test else "valid", ()),
        "strict": Protocol("strict", "train", held_out, apart),
        "image_disjoint": Protocol("image_disjoint", "train", held_out, (*apart, "image_in_test")),
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
            what = f"some training rows do not say whether they are {flag}"
            raise ValueError(f"protocol {protocol.name}: {what}; prepare from the official files")
        rows = rows[~np.array(values, dtype=bool)[rows]]
    return rows
