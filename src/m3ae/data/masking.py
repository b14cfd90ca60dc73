"""Which patches are kept and which pairs are shown with another's image (paper section 2.2).

Letters: `B` pairs, `N` patches, `K` kept patches. Every draw comes from a generator that the caller
keys by seed and position, so that a batch is a pure function of both.
"""

import numpy as np
from torch import Tensor

NOT_SCORED = -100  # label of a token that no loss is taken of; cross_entropy ignores it


def kept_patches(patches: int, ratio: float) -> int:
    """K = int(N (1 - ratio)); 81 of 324 at 288 px and 0.75 (reference, model fact 2)."""
    return int(patches * (1 - ratio))


def draw_patch_order(patches: int, rng: np.random.Generator) -> np.ndarray:
    """A uniform permutation (N,) of the patches: its first K are kept, in that order."""
    return np.argsort(rng.random(patches))


def draw_matches(group: int, rng: np.random.Generator) -> np.ndarray:
    """Which pairs of a group keep their own image: bool (group,), half of them, rounded down."""
    match = np.zeros(group, dtype=bool)
    match[rng.permutation(group)[: group // 2]] = True
    return match


def draw_in_batch_negatives(
    image_ids: np.ndarray, corpora: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """False images for a group of pairs, taken from the group itself.

    image_ids and corpora int64 (group,) -> match bool (group,), rows int64 (group,): the row whose
    image is shown, its own where it matches. A false image is another image of the same corpus
    (caption style must not give it away); a row for which the group has none becomes a match.
    """
    size = len(image_ids)
    match, rows = draw_matches(size, rng), np.arange(size)
    for row in np.flatnonzero(~match):
        others = np.flatnonzero((image_ids != image_ids[row]) & (corpora == corpora[row]))
        if len(others):
            rows[row] = rng.choice(others)
        else:
            match[row] = True
    return match, rows


def scored_positions(labels: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Positions and labels of the scored tokens, padded to `most` (default: the batch's maximum).

    labels (B, L), -100 = not scored -> positions (B, M), targets (B, M); padding reads position 0
    and has target -100. Raises ValueError if a row has more than `most`.
    """
    scored = labels.ne(NOT_SCORED)
    largest = int(scored.sum(dim=1).max()) if len(labels) else 0  # host sync on a GPU: do it early
    most = max(1, largest) if most is None else most
    if largest > most:
        raise ValueError(f"a text has {largest} scored tokens, more than {most}")
    # A stable sort brings scored tokens to the front in their order.
    positions = scored.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    targets = labels.gather(1, positions)
    return positions * targets.ne(NOT_SCORED), targets
