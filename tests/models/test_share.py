"""`share: true` computes less and gives the same: losses, gradients, what is reached."""

import functools
from itertools import product

import numpy as np
import pytest
import torch

from m3ae.data.masking import draw_in_batch_negatives, kept_patches
from m3ae.models import M3AE, build_model
from m3ae.models.layers import sincos_2d
from tests.recipe import golden_batch, tiny_config

OBJECTIVES = ("mlm", "mim", "itm")
SUBSETS = [
    [name for name, on in zip(OBJECTIVES, bits, strict=True) if on]
    for bits in product((True, False), repeat=3)
    if any(bits)
]
SMALL = """
model.image_encoder={image_px: 32, width: 16, depth: 1, heads: 2, patch_px: 8}
model.text_encoder={vocab_size: 40, width: 12, depth: 1, heads: 2, mlp_width: 24, max_positions: 20}
model.fusion={width: 12, depth: 4, heads: 2, mlp_ratio: 2}
model.mim={layer: 2, decoder_width: 8, decoder_depth: 1, decoder_heads: 2}
model.mlm={decoder_width: 8, decoder_depth: 1, decoder_heads: 2}
""".strip().splitlines()
B, L, N = 4, 10, 16


def small_batch(negatives: str = "in_batch", scored: bool = True) -> dict[str, torch.Tensor]:
    """Four pairs: a full text, a padded one, one of a single word, and one where nothing is scored.

    The last is what `mlm.sampling: reference` gives short texts; `scored=False`: none is scored.
    """
    draw = torch.Generator().manual_seed(5)
    lengths = torch.tensor([L, 7, 3, 5])
    keep = torch.arange(L) < lengths[:, None]
    ids = torch.randint(4, 40, (B, L), generator=draw).where(keep, 1)
    ids[:, 0] = 0
    ids[torch.arange(B), lengths - 1] = 2
    labels = torch.full((B, L), -100)
    if scored:
        for row, column in ((0, 1), (0, 4), (0, 8), (1, 2), (2, 1)):
            labels[row, column] = ids[row, column]
    order = torch.rand(B, N, generator=draw).argsort(dim=1)
    batch = {
        "image": torch.randn(B, 3, 32, 32, generator=draw),
        "text_ids": ids,
        "text_keep": keep,
        "mlm_ids": ids.masked_fill(labels != -100, 3),
        "mlm_labels": labels,
        "patch_order": order,
        "itm_match": torch.tensor([True, False, True, False]),
    }
    if negatives == "in_batch":
        return batch | {"itm_image": torch.tensor([0, 3, 2, 1])}
    return batch | {"negative_image": torch.randn(B, 3, 32, 32, generator=draw)}


@functools.cache
def small_model(*overrides: str) -> M3AE:
    """Random weights large enough that every branch shows; nothing frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = M3AE(tiny_config(*SMALL, *overrides).model)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(
                noise / parameter[0].numel() ** 0.5
                if parameter.ndim > 1
                else parameter + 0.2 * noise
            )
    return model.requires_grad_(True)


def named(key: str):
    """For `assert_close`: its message, with the name of what differs before it."""
    return lambda text: f"{key}: {text}"


def step(batch: dict, share: bool, *overrides: str) -> tuple[M3AE, dict, dict]:
    """Losses and gradients of one backward pass, dropout 0."""
    model = small_model(f"model.share={str(share).lower()}", *overrides)
    model.zero_grad(set_to_none=True)
    losses = model(batch)
    losses["loss"].backward()
    return model, losses, {name: p.grad for name, p in model.named_parameters()}


def check_equal(batch: dict, *overrides: str) -> dict:
    """Both ways: the same losses and gradients, and `unreached` tells which have none."""
    _, plain, plain_grads = step(batch, False, *overrides)
    model, shared, grads = step(batch, True, *overrides)
    assert plain.keys() == shared.keys()
    for key in plain:
        torch.testing.assert_close(shared[key], plain[key], rtol=1e-5, atol=1e-5, msg=named(key))
    for name, grad in plain_grads.items():
        assert (grad is None) == (grads[name] is None), name
        if grad is not None:
            assert grad.isfinite().all(), name
            size = max(1.0, float(grad.abs().max()))
            assert torch.allclose(grads[name], grad, rtol=1e-5, atol=1e-5 * size), name
    without = [name for name, grad in grads.items() if grad is None]
    assert without == model.unreached()
    return shared


def weights(active: list[str]) -> list[str]:
    return [f"model.{name}.weight={float(name in active)}" for name in OBJECTIVES]


@pytest.mark.parametrize("negatives", ["in_batch", "dataset"])
@pytest.mark.parametrize("active", SUBSETS, ids="-".join)
def test_objectives(active, negatives):
    """A pass that takes another's text or image when a third is off; a head that stays built."""
    losses = check_equal(
        small_batch(negatives), *weights(active), f"model.itm.negatives={negatives}"
    )
    assert {key for key in losses if key.endswith("_loss")} == {f"{name}_loss" for name in active}
    model = small_model("model.share=true", *weights(active), f"model.itm.negatives={negatives}")
    heads = {name.partition(".")[0] for name, _ in model.named_parameters() if "_head." in name}
    assert heads == {f"{name}_head" for name in active}


@pytest.mark.parametrize("active", [s for s in SUBSETS if s != ["itm"]], ids="-".join)
@pytest.mark.parametrize("layers", [(0, 0), (0, 4), (2, 1), (1, 2), (4, 0)])
def test_layers(layers, active):
    """An early stop one layer off, and a list of unreached parameters that ignores it."""
    mlm, mim = layers
    check_equal(small_batch(), *weights(active), f"model.mlm.layer={mlm}", f"model.mim.layer={mim}")


DECODER_CASES = [
    (active, mlm, mim)
    for active in (["mlm"], ["mim"], list(OBJECTIVES))
    for mlm in (("mlp", "transformer") if "mlm" in active else ("mlp",))
    for mim in (("mlp", "transformer") if "mim" in active else ("transformer",))
]


@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize(("active", "mlm", "mim"), DECODER_CASES)
def test_decoders(active, mlm, mim, layer):
    """Masked positions read before a decoder that needs all, mask tokens in the wrong places."""
    check_equal(
        small_batch(),
        *weights(active),
        f"model.mlm.decoder={mlm}",
        f"model.mim.decoder={mim}",
        f"model.mlm.layer={layer}",
        f"model.mim.layer={layer}",
    )


@pytest.mark.parametrize("decoder", ["mlp", "transformer"])
@pytest.mark.parametrize("active", [["mlm"], list(OBJECTIVES)], ids="-".join)
def test_nothing_scored(active, decoder):
    """A micro-batch without a scored token gives NaN (as the reference) or breaks the graph."""
    batch = small_batch(scored=False)
    overrides = (*weights(active), f"model.mlm.decoder={decoder}")
    losses = check_equal(batch, *overrides)
    assert losses["mlm_loss"] == 0 and losses["mlm_count"] == 0 and losses["mlm_correct"] == 0
    model, _, grads = step(batch, True, *overrides)
    dead = [name for name in grads if name.startswith("mlm_head.")]
    assert dead and all((grads[name] == 0).all() for name in dead)
    assert all(value == 0 for key, value in model.counts(batch).items() if key == "mlm")
    if active == ["mlm"]:
        assert all((grad == 0).all() for grad in grads.values() if grad is not None)


@pytest.mark.parametrize("match", [True, False])
@pytest.mark.parametrize("negatives", ["in_batch", "dataset"])
def test_all_or_none_match(negatives, match):
    """An empty call of the image encoder when no row has a false image, or when all have."""
    rows = torch.full((B,), match)
    batch = small_batch(negatives) | {"itm_match": rows}
    if negatives == "in_batch":
        batch["itm_image"] = torch.arange(B) if match else torch.tensor([1, 0, 3, 2])
    check_equal(batch)


def test_pairs_of_the_drawn_negatives():
    """The in-batch rows mean another thing to the model than to the one who draws them."""
    rng = np.random.default_rng(0)
    match, rows = draw_in_batch_negatives(np.arange(B), np.zeros(B, dtype=np.int64), rng)
    batch = small_batch("dataset") | {"itm_match": torch.from_numpy(match)}
    by_image = small_model()(batch | {"negative_image": batch["image"][torch.from_numpy(rows)]})
    by_row = small_model()(batch | {"itm_image": torch.from_numpy(rows)})
    torch.testing.assert_close(by_row["itm_loss"], by_image["itm_loss"], rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("share", ["true", "false"])
def test_per_sample_sums(share):
    """A row's sum that leaks into another's, or totals that do not divide what they should."""
    batch, model = small_batch(), small_model(f"model.share={share}")
    whole, rows, counts = model(batch), model(batch, per_sample=True), model.counts(batch)
    assert "loss" not in rows and all(value.shape == (B,) for value in rows.values())
    for name in OBJECTIVES:
        assert rows[f"{name}_count"].sum() == whole[f"{name}_count"] == counts[name]
        loss = rows[f"{name}_loss"].sum() / counts[name]
        torch.testing.assert_close(loss, whole[f"{name}_loss"])
    assert rows["mlm_count"].tolist() == [3, 1, 1, 0] and rows["mlm_loss"][3] == 0
    for row in range(B):  # a row alone, its false image from the corpus
        shown = batch["image"][batch["itm_image"][row]][None]
        one = {key: value[row : row + 1] for key, value in batch.items() if key != "itm_image"}
        alone = model(one | {"negative_image": shown}, per_sample=True)
        for key, value in alone.items():
            torch.testing.assert_close(
                rows[key][row], value[0], rtol=1e-4, atol=1e-5, msg=named(key)
            )


@torch.no_grad()
def test_micro_batches_add_up():
    """Losses normalised within a micro-batch: fewer scored tokens would weigh more."""
    batch, model = small_batch("dataset"), small_model()
    totals, whole = model.counts(batch), model(batch)
    parts = [
        model({key: value[rows] for key, value in batch.items()}, totals=totals)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    for key in ("loss", "mlm_loss", "mim_loss", "itm_loss"):
        torch.testing.assert_close(sum(part[key] for part in parts), whole[key])


@torch.no_grad()
def test_collated_positions():
    """Derived keys of the collate that change the losses instead of saving a synchronisation."""
    batch, model = small_batch("dataset"), small_model()
    positions = torch.tensor([[1, 4, 8, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    targets = batch["mlm_labels"].gather(1, positions)  # position 0 is never scored: -100
    derived = {"mlm_positions": positions, "mlm_targets": targets}
    derived["itm_negative_rows"] = torch.tensor([1, 3])
    plain, ours = model(batch), model(batch | derived)
    for key in plain:
        torch.testing.assert_close(ours[key], plain[key], msg=named(key))


@torch.no_grad()
@pytest.mark.parametrize("share", ["true", "false"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("negatives", ["in_batch", "dataset"])
def test_uint8_images(channels, share, negatives):
    """uint8 images normalised twice, with the wrong statistics, or grey ones not expanded."""
    model, draw = small_model(f"model.share={share}"), torch.Generator().manual_seed(2)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    pixels, floats = small_batch(negatives), small_batch(negatives)
    for key in {"image", "negative_image"} & pixels.keys():
        image = torch.randint(0, 256, (B, channels, 32, 32), generator=draw, dtype=torch.uint8)
        pixels[key] = image
        floats[key] = (image.expand(-1, 3, -1, -1).float() / 255 - mean) / std
    wanted, ours = model(floats), model(pixels)
    for key in wanted:
        torch.testing.assert_close(ours[key], wanted[key], msg=named(key))


@torch.no_grad()
def test_padding_changes_nothing():
    """Padding that is attended to, counted by positions, or scored."""
    batch, model = small_batch(), small_model()
    longer = dict(batch)
    for key, value in (("text_ids", 1), ("text_keep", False), ("mlm_ids", 1), ("mlm_labels", -100)):
        extra = torch.full((B, 6), value, dtype=batch[key].dtype)
        longer[key] = torch.cat([batch[key], extra], dim=1)
    plain, ours = model(batch), model(longer)
    for key in plain:
        torch.testing.assert_close(ours[key], plain[key], rtol=1e-5, atol=1e-6, msg=named(key))


def test_share_saves_work():
    """`share: true` that silently runs the plain step: each encoder is called only as needed."""
    calls = []
    model = small_model("model.share=true")
    handles = [
        model.text_encoder.register_forward_hook(lambda *a: calls.append(("text", len(a[2])))),
        model.image_encoder.blocks[0].register_forward_hook(
            lambda *a: calls.append(("image", len(a[2])))  # tokens of all images, end to end
        ),
        model.fusion.image_layers[3].register_forward_hook(
            lambda *a: calls.append(("last", tuple(a[2].shape[:2])))
        ),
    ]
    model(small_batch())
    for handle in handles:
        handle.remove()
    kept = kept_patches(N, 0.75)
    wanted = {("text", 2 * B), ("image", B * (1 + N) + B * (1 + kept)), ("last", (B, 1))}
    assert len(calls) == 3 and set(calls) == wanted


def test_built_model_freezes_what_is_unreached():
    """A dead parameter in the optimiser (decayed to nothing) or in DDP (which then waits)."""
    model = build_model(tiny_config("model.itm.weight=0"))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == model.unreached() and "fusion.text_pooler.weight" in frozen
    model(golden_batch())["loss"].backward()
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())


def test_checkpointed_blocks_give_the_same_gradients():
    """Activation checkpointing that re-enters, drops the keep mask, or detaches a block."""
    grads = []
    for flag in ("false", "true"):
        model = build_model(tiny_config(*SMALL, f"model.activation_checkpointing={flag}"))
        model(small_batch())["loss"].backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert (grad is None) == (grads[1][name] is None)
        if grad is not None:
            torch.testing.assert_close(grads[1][name], grad)


def test_same_seed_same_weights():
    """Initial weights that depend on the global generator, or that disturb it."""
    torch.manual_seed(3)
    first, after = build_model(tiny_config(*SMALL)), torch.rand(1)
    torch.manual_seed(4)
    second = build_model(tiny_config(*SMALL))
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    for (name, ours), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, other), name
    other = build_model(tiny_config(*SMALL, "seed=1"))
    assert not torch.equal(first.itm_head.classes.weight, other.itm_head.classes.weight)


def test_initial_spread():
    """Fact 10 forgotten: another spread, a bias that is not 0, tokens at 1, Xavier left out."""
    model = build_model(tiny_config())
    for name, parameter in model.named_parameters():
        if name == "image_encoder.position_embedding":
            assert torch.equal(parameter, sincos_2d(128, 4))
        elif "mim_head.blocks" in name and ".attention." in name and "out" not in name:
            if parameter.ndim == 2:
                bound = (6 / (48 + 3 * 48)) ** 0.5
                assert bound * 0.9 < parameter.abs().max() <= bound, name
        elif parameter.ndim > 1 or name.endswith(("class_token", "mask_token")):
            assert 0.012 < parameter.std() < 0.028 and abs(parameter.mean()) < 0.01, name
        else:
            assert (parameter == (1 if name.endswith("norm.weight") else 0)).all() or (
                "norm_" in name and name.endswith("weight") and (parameter == 1).all()
            ), name
