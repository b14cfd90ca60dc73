"""Which patches are kept and which pairs see another's image, against plain loops and rates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.data.masking import draw_in_batch_negatives, draw_matches, draw_patch_order, kept_patches

SEEDS = st.integers(0, 10_000)


def test_kept_patches():
    """Rounding up where the reference cuts off."""
    values = {(324, 0.75): 81, (576, 0.75): 144, (16, 0.75): 4, (49, 0.75): 12, (9, 0.5): 4}
    for (patches, ratio), kept in values.items():
        assert kept_patches(patches, ratio) == kept


@given(st.integers(1, 60), SEEDS)
def test_patch_order_is_a_permutation(patches, seed):
    """A patch kept twice, or never."""
    order = draw_patch_order(patches, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(patches))
    again = draw_patch_order(patches, np.random.default_rng(seed))
    assert np.array_equal(order, again)  # a function of its generator alone


def test_patch_order_is_uniform():
    """A place that is masked more often than another: 4,000 draws, five standard deviations."""
    rng, draws = np.random.default_rng(0), 4000
    kept = np.zeros((16, 4))
    for _ in range(draws):
        kept[draw_patch_order(16, rng)[:4], np.arange(4)] += 1
    share = kept / draws
    assert np.abs(share - 1 / 16).max() < 5 * np.sqrt(1 / 16 * 15 / 16 / draws)


@given(st.integers(2, 33), SEEDS)
def test_half_of_a_group_matches(group, seed):
    """Matches drawn one by one, so that a group may have none or only such."""
    match = draw_matches(group, np.random.default_rng(seed))
    assert match.dtype == bool and match.shape == (group,) and match.sum() == group // 2


def test_every_place_matches_equally_often():
    """Matches in front, as in the unshuffled labels: 3,000 draws, five standard deviations."""
    rng, draws = np.random.default_rng(1), 3000
    share = np.mean([draw_matches(8, rng) for _ in range(draws)], axis=0)
    assert np.abs(share - 0.5).max() < 5 * np.sqrt(0.25 / draws)


GROUPS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=2, max_size=12)


def naive_choices(image_ids, corpora, row: int) -> set[int]:
    """Rows whose image may stand in for that of `row`."""
    return {
        other
        for other in range(len(image_ids))
        if corpora[other] == corpora[row] and image_ids[other] != image_ids[row]
    }


@settings(max_examples=200)
@given(GROUPS, SEEDS)
def test_false_images(group, seed):
    """A "false" image that is the pair's own, or of another corpus, or a false match."""
    image_ids, corpora = map(np.array, zip(*group, strict=True))
    match, rows = draw_in_batch_negatives(image_ids, corpora, np.random.default_rng(seed))
    drawn = draw_matches(len(group), np.random.default_rng(seed))
    for row in range(len(group)):
        choices = naive_choices(image_ids, corpora, row)
        if match[row]:
            assert rows[row] == row and (drawn[row] or not choices)
        else:
            assert rows[row] in choices and not drawn[row]
    assert match.dtype == bool and np.issubdtype(rows.dtype, np.integer)


@pytest.mark.parametrize("group", [2, 3, 8])
def test_different_images_give_exactly_half(group):
    """Fewer false pairs than promised where nothing stands in the way."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        match, _ = draw_in_batch_negatives(np.arange(group), np.zeros(group, int), rng)
        assert match.sum() == group // 2


def test_one_image_in_the_group():
    """Several texts of one image: every row becomes a match, not an error."""
    match, rows = draw_in_batch_negatives(
        np.zeros(6, int), np.zeros(6, int), np.random.default_rng(0)
    )
    assert match.all() and rows.tolist() == list(range(6))


def test_false_images_are_uniform():
    """Always the next row: the model could learn the order. Five standard deviations."""
    rng, draws, counts = np.random.default_rng(2), 4000, np.zeros((4, 4))
    for _ in range(draws):
        match, rows = draw_in_batch_negatives(np.arange(4), np.zeros(4, int), rng)
        for row in np.flatnonzero(~match):
            counts[row, rows[row]] += 1
    share = counts / counts.sum(axis=1, keepdims=True)
    assert (np.diag(counts) == 0).all()
    off = share[~np.eye(4, dtype=bool)]
    assert np.abs(off - 1 / 3).max() < 5 * np.sqrt(1 / 3 * 2 / 3 / (draws / 2))
