"""Splits of a user's own table: drawn by image or by group, and checked for what two of them share.

A group is what one row of the table has in common with others of a patient, a study or a case.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from m3ae.corpora.stored import SPLIT_NAMES
from m3ae.corpora.tables import cell, shared_images
from m3ae.data.sampler import SUBSET, keyed

ORDER = tuple(SPLIT_NAMES)  # first in the report, others as they come


def read_fractions(args: argparse.Namespace) -> dict[str, float]:
    """The fractions asked for, by split; raises ValueError where they are none."""
    given = {"test": args.test_share, "valid": args.valid_share}
    parts = {split: part for split, part in given.items() if part is not None}
    if any(not 0 < part < 1 for part in parts.values()) or sum(parts.values()) >= 1:
        raise ValueError("--test-share, --valid-share: between 0 and 1, together below 1")
    return parts


def check_undrawn(table: str, splits: Iterable[str]) -> None:
    """Raise ValueError where a table has splits of its own, so that none can be drawn."""
    if list(splits) != ["train"]:
        has = f"{table}: has a column split ({', '.join(splits)})"
        raise ValueError(f"{has}; give no --test-share or --valid-share")


class Groups:
    """The groups of a table's images by split; without a column each image is its own."""

    def __init__(self, column: str | None) -> None:
        self.column, self.rows_without = column, 0
        self.of: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))

    def read(self, row: Mapping[str, Any]) -> str:
        """The group of a row, "" without one; ValueError as `tables.cell`."""
        return cell(row, self.column) if self.column else ""

    def add(self, split: str, image: str, group: str) -> None:
        """Note the group of a row that is used."""
        self.of[split][image].update({group} - {""})
        self.rows_without += bool(self.column and not group)

    def draw(self, fractions: Mapping[str, float], seed: int) -> dict[str, str]:
        """Draw splits from `train`; returns the split of each image.

        Of each of `fractions`, whole units are drawn until the split has the rounded part of the
        images, one at least. It depends on the names of images and groups and on the seed.
        ValueError where nothing is left to train on.
        """
        of = self.of.pop("train", {})
        units = join_images(of)
        drawn, split_of = [units[k] for k in keyed(seed, SUBSET).permutation(len(units))], {}
        for split, part in fractions.items():
            wanting = max(1, round(part * len(of)))
            while drawn and wanting > 0:
                wanting -= len(drawn[0])
                split_of |= dict.fromkeys(drawn.pop(0), split)
        if not drawn:
            said = f"nothing is left to train on of {len(of)} images"
            said += f" that {self.column!r} joins to {len(units)} groups" if self.column else ""
            raise ValueError(f"--test-share, --valid-share: {said}")
        split_of |= {image: "train" for unit in drawn for image in unit}
        for image, groups in of.items():
            self.of[split_of[image]][image] = groups
        return split_of

    def facts(self) -> dict[str, Any]:
        """For the report: groups of each split, and how many are in two, which are named."""
        if self.column is None:
            return {}
        sets = {split: set().union(*of.values()) for split, of in self.of.items()}
        shared = shared_images(sets, f"groups ({self.column})")
        counts = {split: len(groups) for split, groups in sets.items()}
        facts = {"column": self.column, "rows_without": self.rows_without, "splits": counts}
        return {"groups": {**facts, "in_two_splits": len(shared)}}


def join_images(groups_of: Mapping[str, set[str]]) -> list[list[str]]:
    """Images that must stay together, given the groups of each, sorted by the name of the group.

    An image of several groups joins these; one without any stands alone.
    """
    joined: dict[str, str] = {}  # a group to another of its unit, the first one to itself

    def first(group: str) -> str:
        while joined.setdefault(group, group) != group:
            group = joined[group]
        return group

    for groups in groups_of.values():
        if groups:
            firsts = {first(group) for group in groups}
            joined.update(dict.fromkeys(firsts, min(firsts)))
    units: dict[tuple[str, bool], list[str]] = {}
    for image, groups in sorted(groups_of.items()):
        name = (first(min(groups)), True) if groups else (image, False)
        units.setdefault(name, []).append(image)
    return [units[name] for name in sorted(units)]
