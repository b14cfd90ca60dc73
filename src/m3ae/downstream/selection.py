"""The rows of a training split that a run trains on, and those that it selects on.

From shards and config alone, so that the length of a run is known before there is a model.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np

from m3ae.data.exclusions import image_keys
from m3ae.data.sampler import SUBSET, keyed
from m3ae.data.shards import WITH_FIELDS, Shards
from m3ae.downstream.config import FinetuneConfig
from m3ae.scoring.protocols import Protocol, protocols_of, select_rows

log = logging.getLogger(__name__)


def read_fields(shards: Shards, field: str) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Task fields of every row ([] where shards have none), and the rows that have `field`.

    Raises ValueError naming the folder where no row has it.
    """
    rows = np.arange(len(shards))
    if shards.manifest["kind"] != WITH_FIELDS:
        return [], rows
    fields = [shards.fields(row) for row in range(len(shards))]
    missing = [k for k, values in enumerate(fields) if values.get(field) is None]
    if len(missing) == len(fields):
        known = ", ".join(sorted(fields[0])) if fields else ""
        raise ValueError(f"data.field: {shards.folder} has no {field!r}, only {known}")
    if missing:
        log.info("%s: %d rows without %s are left out", shards.folder, len(missing), field)
    return fields, np.setdiff1d(rows, missing)


def select_training(
    config: FinetuneConfig,
    shards: Shards,
    fields: list[dict[str, Any]],
    labelled: np.ndarray,
    protocols: list[Protocol],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows to train on, and those held out to select on (None where a split of its own does it).

    fields, labelled: of `read_fields`. Raises ValueError where protocols train on other rows.
    """
    rows, held = labelled, None
    keys = np.array(image_keys(shards))[shards.image_of_text]
    if config.kind != "retrieval":
        rows = select_rows(protocols[0], fields)
        if not same_rows(protocols, fields):
            apart = "the two train on other rows; run paper and strict apart"
            raise ValueError(f"protocol=both: {apart}")
        if any(rules.select == "held_out" for rules in protocols):
            rows, held = hold_out(rows, keys, config.data.held_out)
        rows = np.intersect1d(rows, labelled)
    return few_images(rows, keys, config.data.fraction, config.seed), held


def same_rows(protocols: list[Protocol], fields: list[dict[str, Any]]) -> bool:
    """Whether protocols train on the same rows; fields: of a training split."""
    first, *others = (select_rows(rules, fields) for rules in protocols)
    return all(np.array_equal(first, rows) for rows in others)


def hold_out(rows: np.ndarray, images: np.ndarray, fraction: float) -> tuple[np.ndarray, ...]:
    """Split rows into those to train on and a held-out part, no image in both.

    images: keys, text (Q,), of every row of the split. About `fraction` of them are held out: the
    same ones for every seed of a run, so that runs can be compared, and whatever the encoding of
    the shards and the order of the rows in them.
    """
    known = np.unique(images[rows])  # sorted
    shuffled = keyed(0, SUBSET).permutation(known)
    held = np.isin(images[rows], shuffled[: max(1, round(fraction * len(known)))])
    return rows[~held], rows[held]


def few_images(rows: np.ndarray, images: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The rows of `fraction` of their images, at least one.

    images as for `hold_out`. By a digest of seed and key: what 1 % has is in 10 % of that seed.
    """
    if fraction == 1:
        return rows
    known = sorted(
        set(images[rows].tolist()),
        key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest(),
    )
    return rows[np.isin(images[rows], known[: max(1, round(fraction * len(known)))])]


def training_rows(config: FinetuneConfig) -> int:
    """How many rows a run trains on; of the two runs of `both`, the one that has fewer."""
    shards = Shards(Path(config.data.train))
    fields, labelled = read_fields(shards, config.data.field)
    rules = protocols_of(config.protocol, shards.manifest["source"], bool(config.data.valid))
    return min(len(select_training(config, shards, fields, labelled, [one])[0]) for one in rules)
