"""Order of the samples and the arithmetic of a run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.data.sampler import Order, Plan


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    processes=st.integers(1, 3),
    micro=st.integers(1, 4),
    accumulation=st.integers(1, 3),
)
def test_every_split_takes_the_same_samples(sizes, processes, micro, accumulation):
    """Catches a step whose samples depend on the number of processes or micro-batches."""
    batch = processes * micro * accumulation
    order = Order(sizes, None, seed=5)
    plan = Plan(sum(sizes), 4, batch, micro, processes)
    for step in range(4):
        taken = [
            order[position]
            for rank in range(processes)
            for number in range(plan.accumulation)
            for position in plan.positions(step, rank, number)
        ]
        assert taken == [order[p] for p in range(step * batch, (step + 1) * batch)]


@settings(max_examples=30)
@given(samples=st.integers(1, 50), seed=st.integers(0, 9))
def test_an_epoch_holds_every_sample_once(samples, seed):
    """Catches dropped or repeated samples, and the same order in every epoch."""
    order = Order([samples], None, seed)
    epochs = [[order[e * samples + i] for i in range(samples)] for e in range(3)]
    assert all(sorted(epoch) == list(range(samples)) for epoch in epochs)
    if samples > 8:
        assert epochs[0] != epochs[1]


def test_order_is_read_from_anywhere():
    """Catches an order that depends on what was read before, as after a resume."""
    first, second = Order([100], None, 0), Order([100], None, 0)
    forwards = [first[p] for p in range(400)]
    assert [second[p] for p in reversed(range(400))] == forwards[::-1]


def test_weights_are_proportions():
    """Catches weights taken for counts, or a corpus of weight 0 that is drawn."""
    order = Order([10, 1000, 5], [3, 1, 0], seed=0)
    drawn = np.array([order[p] for p in range(4000)])
    assert np.mean(drawn < 10) == pytest.approx(0.75, abs=0.03)
    assert drawn.max() < 1010
    with pytest.raises(ValueError, match="train_weights"):
        Order([1, 1], [0, 0], seed=0)


def test_a_batch_that_cannot_be_split_is_an_error():
    """Catches a global batch rounded in silence."""
    with pytest.raises(ValueError, match="batch_global: 8 is no multiple"):
        Plan(100, 1, 8, 4, 3)
