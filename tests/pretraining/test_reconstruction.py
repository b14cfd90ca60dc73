"""Reconstruction pictures: the right pixels in the right places, and no trace left behind."""

import pytest
import torch
from PIL import Image

from m3ae.data.masking import kept_patches
from m3ae.drawing import TILE_PX, tile, wrap
from m3ae.models import build_model
from m3ae.models.losses import Outputs, mim_target, patch_pixels
from m3ae.pretraining.reconstruction import GREY, draw_reconstructions, reconstruct, unpatch
from tests.recipe import tiny_config


def tiny(*overrides):
    model = build_model(tiny_config(*overrides))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 200, (4, 16), generator=generator)
    batch = {
        "image": torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8, generator=generator),
        "text_ids": ids,
        "text_keep": torch.ones(4, 16, dtype=torch.bool),
        "mlm_ids": ids,
        "mlm_labels": ids,
        "patch_order": torch.rand(4, 16, generator=generator).argsort(dim=1),
        "itm_match": torch.tensor([True, True, False, False]),
        "itm_image": torch.tensor([0, 1, 3, 2]),
    }
    return model, batch


def test_unpatch_is_the_inverse_of_patch_pixels():
    """Catches rows and columns, or colours, swapped: pictures that look plausible but are wrong."""
    image = torch.rand(2, 3, 12, 12)
    assert torch.equal(unpatch(patch_pixels(image, 4), 4), image)
    with pytest.raises(ValueError, match="5 patches"):
        unpatch(torch.zeros(1, 5, 48), 4)


@pytest.mark.parametrize("normalise", ["true", "false"])
def test_a_perfect_prediction_gives_the_original(normalise, monkeypatch):
    """Catches un-normalising with the wrong statistics, at the wrong patches, or without need."""
    model, batch = tiny(f"model.mim.normalise_target={normalise}")
    kept = kept_patches(16, 0.75)
    removed = batch["patch_order"][:, kept:]
    target = mim_target(model.normalise(batch["image"]), removed, 16, normalise == "true")
    monkeypatch.setattr(model, "outputs", lambda batch: Outputs(mim_pixels=target))
    original, _, rebuilt = reconstruct(model, batch)
    torch.testing.assert_close(original[:, :1], batch["image"] / 255, atol=1e-5, rtol=0)
    torch.testing.assert_close(rebuilt, original, atol=1e-5, rtol=0)


def test_only_removed_patches_are_grey_or_predicted():
    """Catches showing the model's output, or the answer, where the other belongs."""
    model, batch = tiny()
    original, masked, rebuilt = (patch_pixels(x, 16) for x in reconstruct(model, batch))
    for row, order in enumerate(batch["patch_order"]):
        kept, removed = order[:4], order[4:]
        assert torch.equal(masked[row, kept], original[row, kept])
        assert torch.equal(rebuilt[row, kept], original[row, kept])
        torch.testing.assert_close(masked[row, removed], torch.full((12, 768), GREY))
        assert not rebuilt[row, removed].isclose(original[row, removed]).all(dim=-1).any()


def test_leaves_training_mode_and_random_numbers_alone(tmp_path):
    """Catches a run that goes on in eval mode, or differs once a picture was drawn."""
    model, batch = tiny("model.fusion.dropout=0.5")
    model.train()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    draw_reconstructions(model, batch, ["a"] * 4, tmp_path / "a.png")
    draw_reconstructions(model, batch, ["a"] * 4, tmp_path / "b.png")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()  # no dropout
    assert all(parameter.grad is None for parameter in model.parameters())


def test_picture_has_a_row_a_pair(tmp_path):
    """Catches tiles too small to see, rows left out, and long texts running off the picture."""
    model, batch = tiny("model.mlm.weight=0", "model.itm.weight=0")
    path = tmp_path / "pictures" / "step-00000001.png"
    draw_reconstructions(model, batch, ["short", "long words " * 200, "", "x" * 500], path)
    with Image.open(path) as picture:
        assert picture.width >= 3 * 160
        assert picture.height >= 4 * 160
        assert min(picture.convert("L").crop((0, 0, 8, picture.height)).getdata()) == 255


def test_tiles_and_text_fit():
    """Catches tiles of uneven enlargement and lines wider than the picture."""
    for side in (64, 96, 192, 288):
        width = tile(torch.rand(3, side, side)).width
        assert width % side == 0
        assert width >= TILE_PX
    assert wrap("one two\n\nthree", 300, 15) == ["one two", "three"]
    assert "".join(wrap("x" * 100, 300, 15)) == "x" * 100
    long = wrap("word " * 500, 300, 15)
    assert len(long) == 4
    assert long[-1].endswith("…")


def test_says_what_is_wrong(tmp_path):
    """Catches an AttributeError deep in the model where MIM is off, and texts of other pairs."""
    model, batch = tiny("model.mim.weight=0")
    with pytest.raises(ValueError, match="masked image modelling is off"):
        draw_reconstructions(model, batch, ["a"] * 4, tmp_path / "a.png")
    with pytest.raises(ValueError, match="3 texts for 4 pairs"):
        draw_reconstructions(model, batch, ["a"] * 3, tmp_path / "a.png")


def test_grey_images_come_back_grey():
    """Catches coloured predictions of a grey image, also beside a coloured one."""
    model, batch = tiny()
    noise = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    noise[:2] = noise[:2, :1]
    rebuilt = reconstruct(model, batch | {"image": noise})[2]
    spread = (rebuilt.amax(dim=1) - rebuilt.amin(dim=1)).flatten(1).amax(dim=1)
    assert spread[:2].max() == 0 and spread[2:].min() > 0
