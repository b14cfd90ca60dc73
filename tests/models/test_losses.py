"""Targets and losses against plain loops over single numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from m3ae.data.masking import scored_positions
from m3ae.models import losses
from m3ae.models.losses import (
    Outputs,
    mim_target,
    patch_pixels,
    reduce_losses,
    sample_sums,
    word_losses,
)

LABELS = st.lists(
    st.lists(st.sampled_from([-100, 0, 3, 7]), min_size=5, max_size=5), min_size=1, max_size=4
)


def naive_patch(image: np.ndarray, patch: int, px: int) -> list[float]:
    """Pixels of one patch of an image (3, H, W), row by row, each its three channels."""
    columns = image.shape[2] // px
    top, left = patch // columns * px, patch % columns * px
    return [
        float(image[channel, top + row, left + column])
        for row in range(px)
        for column in range(px)
        for channel in range(3)
    ]


@pytest.mark.parametrize(("height", "width", "px"), [(8, 8, 4), (4, 8, 2), (6, 3, 3), (4, 4, 4)])
def test_patch_pixels(height, width, px):
    """Channels first, columns before rows, or patches numbered down instead of across."""
    image = torch.randn(2, 3, height, width)
    ours = patch_pixels(image, px)
    assert ours.shape == (2, height * width // px**2, 3 * px**2)
    for row in range(2):
        for patch in range(ours.shape[1]):
            assert ours[row, patch].tolist() == naive_patch(image[row].numpy(), patch, px)


@pytest.mark.parametrize("normalise", [True, False])
def test_mim_target(normalise):
    """The biased variance, eps outside the root, or targets in another order than predictions."""
    image = torch.randn(2, 3, 8, 8) * 3 + 1
    image[1, :, :4, :4] = 0.5  # a blank patch
    order = torch.stack([torch.tensor([3, 1, 0, 2]), torch.tensor([2, 0, 3, 1])])
    ours = mim_target(image, order[:, 1:], 4, normalise)
    assert ours.shape == (2, 3, 48) and ours.dtype == torch.float32
    for row in range(2):
        for place, patch in enumerate(order[row, 1:].tolist()):
            pixels = naive_patch(image[row].double().numpy(), patch, 4)
            if normalise:
                mean = sum(pixels) / len(pixels)
                variance = sum((x - mean) ** 2 for x in pixels) / (len(pixels) - 1)
                pixels = [(x - mean) / math.sqrt(variance + 1e-6) for x in pixels]
            assert ours[row, place].tolist() == pytest.approx(pixels, rel=1e-5, abs=1e-5)


@given(LABELS)
def test_scored_positions(rows):
    """A scored token lost, two labels exchanged, padding that is scored."""
    labels = torch.tensor(rows)
    positions, targets = scored_positions(labels)
    wanted = [[(i, x) for i, x in enumerate(row) if x != -100] for row in rows]
    most = max(1, *(len(row) for row in wanted)) if len(wanted) > 1 else max(1, len(wanted[0]))
    assert positions.shape == targets.shape == (len(rows), most)
    for row, pairs in enumerate(wanted):
        padding = [(0, -100)] * (most - len(pairs))
        assert list(zip(positions[row].tolist(), targets[row].tolist(), strict=True)) == (
            pairs + padding
        )


@given(LABELS)
def test_scored_positions_of_fixed_length(rows):
    """Another length by batch recompiles; one too short must not lose a token silently."""
    labels = torch.tensor(rows)
    free, _ = scored_positions(labels)
    positions, targets = scored_positions(labels, most=5)
    assert positions.shape == (len(rows), 5)
    assert torch.equal(positions[:, : free.shape[1]], free)
    assert (targets != -100).sum() == (labels != -100).sum()
    largest = int((labels != -100).sum(dim=1).max())
    if largest > 1:
        with pytest.raises(ValueError, match=f"{largest} scored tokens, more than {largest - 1}"):
            scored_positions(labels, most=largest - 1)


def log_softmax(row: list[float]) -> list[float]:
    total = math.log(sum(math.exp(x) for x in row))
    return [x - total for x in row]


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 10_000))
def test_sums_and_losses(pairs, tokens, seed):
    """A mean over pairs instead of units, a padded token counted, a class read upside down."""
    draw = torch.Generator().manual_seed(seed)
    out = Outputs(
        mlm_hidden=torch.randn(pairs, tokens, 6, generator=draw),
        mlm_vocabulary=nn.Identity(),
        mlm_targets=torch.randint(0, 6, (pairs, tokens), generator=draw),
        mim_pixels=torch.randn(pairs, 3, 12, generator=draw),
        mim_targets=torch.randn(pairs, 3, 12, generator=draw),
        itm_logits=torch.randn(pairs, 2, generator=draw),
        itm_targets=torch.rand(pairs, generator=draw) < 0.5,
    )
    out.mlm_targets[torch.rand(pairs, tokens, generator=draw) < 0.4] = -100
    sums = sample_sums(out)
    for pair in range(pairs):
        loss, count, correct = 0.0, 0, 0
        for logits, target in zip(
            out.mlm_logits[pair].tolist(), out.mlm_targets[pair].tolist(), strict=True
        ):
            if target != -100:
                loss, count = loss - log_softmax(logits)[target], count + 1
                correct += logits[target] == max(logits)
        assert sums["mlm_loss"][pair].item() == pytest.approx(loss, abs=1e-5)
        assert (sums["mlm_count"][pair], sums["mlm_correct"][pair]) == (count, correct)
        error = sum(
            sum((a - b) ** 2 for a, b in zip(one, two, strict=True)) / 12
            for one, two in zip(
                out.mim_pixels[pair].tolist(), out.mim_targets[pair].tolist(), strict=True
            )
        )
        assert sums["mim_loss"][pair].item() == pytest.approx(error, rel=1e-5)
        assert sums["mim_count"][pair] == 3
        logits, match = out.itm_logits[pair].tolist(), bool(out.itm_targets[pair])
        assert sums["itm_loss"][pair].item() == pytest.approx(-log_softmax(logits)[match], rel=1e-5)
        assert sums["itm_correct"][pair] == (logits[match] == max(logits))
    weights = {"mlm": 1.0, "mim": 0.5, "itm": 2.0}
    reduced = reduce_losses(sums, weights, None)
    for name in weights:
        count = max(1, int(sums[f"{name}_count"].sum()))
        wanted = float(sums[f"{name}_loss"].sum()) / count
        assert reduced[f"{name}_loss"].item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    wanted = sum(weight * reduced[f"{name}_loss"].item() for name, weight in weights.items())
    assert reduced["loss"].item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("total", [0, 7, torch.tensor(7)])
def test_given_totals(total):
    """Totals of the global batch ignored, or a total of 0 that gives NaN."""
    sums = {"itm_loss": torch.tensor([3.0, 4.0]), "itm_count": torch.tensor([1, 1])}
    reduced = reduce_losses(sums, {"itm": 1.0}, {"itm": total})
    assert reduced["itm_loss"] == reduced["loss"] == (1 if total else 7)
    assert reduced["itm_count"] == 2


def test_absent_objectives_have_no_keys():
    """A zero where there is nothing: logged as a loss that has been learnt."""
    out = Outputs(itm_logits=torch.zeros(2, 2), itm_targets=torch.tensor([True, False]))
    reduced = reduce_losses(sample_sums(out), {"itm": 1.0}, None)
    assert set(reduced) == {"loss", "itm_loss", "itm_count", "itm_correct"}
    assert reduced["loss"].item() == pytest.approx(math.log(2))


def test_half_precision_logits():
    """Losses computed in the autocast type: bf16 keeps two to three digits."""
    logits = torch.linspace(-4, 4, 60).view(1, 2, 30)
    targets = torch.tensor([[3, 9]])
    whole = {"mlm_vocabulary": nn.Identity(), "mlm_targets": targets}
    wanted = sample_sums(Outputs(mlm_hidden=logits.bfloat16().float(), **whole))
    ours = sample_sums(Outputs(mlm_hidden=logits.bfloat16(), **whole))
    assert torch.equal(ours["mlm_loss"], wanted["mlm_loss"])
    assert ours["mlm_loss"].dtype == torch.float32


def test_words_in_parts(monkeypatch):
    """A token of the last part lost, a gradient of the vocabulary counted for one part alone, or
    logits of all tokens kept in spite of the parts."""
    found, kept = [], []
    for rows in (100, 4):
        torch.manual_seed(0)
        vocabulary, hidden = nn.Linear(8, 50), torch.randn(3, 5, 8, requires_grad=True)
        targets = torch.randint(0, 50, (3, 5)).index_fill(1, torch.tensor([3]), -100)
        monkeypatch.setattr(losses, "WORD_ROWS", rows)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            loss, correct = word_losses(hidden, vocabulary, targets)
        loss.square().sum().backward()
        found.append((loss, correct, hidden.grad, vocabulary.weight.grad, vocabulary.bias.grad))
        kept.append(sum(sizes))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert (found[0][0][:, 3] == 0).all() and kept[0] > 15 * 50 > kept[1]
