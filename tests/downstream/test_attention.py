"""Attention pictures: the recorded maps, the right words, and colours at the right places."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae.data.texts import encode, train_wordpiece
from m3ae.downstream.attention import (
    MARGIN,
    attention_of_words,
    draw_attention,
    draw_words,
    merge_words,
    paint,
    text_to_image,
    word_texts,
)
from m3ae.downstream.trained import Trained
from m3ae.drawing import TILE_PX
from m3ae.models import build_model
from tests.recipe import close, golden, golden_batch, golden_model, tiny_config


def golden_maps() -> list[torch.Tensor]:
    batch, maps = golden_batch(), []
    with torch.no_grad():
        golden_model().encode_pair(batch["image"], batch["text_ids"], batch["text_keep"], maps)
    return maps


@pytest.mark.parametrize("layer, recorded", [(1, 0), (2, 1), (4, 3), (-1, 3)])
def test_the_recorded_maps(layer, recorded):
    """The image's attention to the text, another layer, or heads counted from 0."""
    maps = golden_maps()
    cross = golden()["attentions"]["text2image_attns"][recorded][1]  # (B, H, L, S)
    for head in range(1, 5):
        close(text_to_image(maps, layer, head), cross[:, head - 1], 0, f"head {head}")
    close(text_to_image(maps, layer), cross.mean(dim=1), 0, "mean")


def test_recorded_maps_by_word():
    """Pieces of two words mixed, special tokens taken for words, or sums instead of means."""
    cross = golden()["attentions"]["text2image_attns"][3][1].mean(dim=1)[0]  # (L, S)
    words = np.array([-1, 0, 1, 1, 1, 2, -1, *([-1] * (len(cross) - 7))])
    merged = merge_words(text_to_image(golden_maps())[0], words)
    assert list(merged) == [0, 1, 2]
    close(merged[0], cross[1], 0, "one piece")
    close(merged[1], cross[2:5].mean(dim=0), 0, "three pieces")
    assert all(row.sum().item() == pytest.approx(1, abs=1e-5) for row in merged.values())


def test_no_such_layer_or_head():
    """An IndexError, or a layer counted from the end without being asked."""
    maps = golden_maps()
    for layer in (0, 5, -2):
        with pytest.raises(ValueError, match="layers 1 to 4"):
            text_to_image(maps, layer)
    for head in (0, 5, -1):
        with pytest.raises(ValueError, match="heads 1 to 4"):
            text_to_image(maps, -1, head)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["is there a mass ?"] * 3
    return train_wordpiece(texts, 60, tmp_path_factory.mktemp("tokenizer"))


def test_words_as_they_stand_in_the_text(tokenizer):
    """Pieces or lower-cased text for labels, or labels out of step with the maps."""
    text = "Is there a mass-seam?"
    names = word_texts(tokenizer, text)
    assert names == {0: "Is", 1: "there", 2: "a", 3: "mass", 4: "-", 5: "seam", 6: "?"}
    ids, words = encode(tokenizer, [text])[0]
    assert len(ids) > len(names) and sorted(set(words)) == list(names)


@pytest.fixture(scope="module")
def model():
    return build_model(tiny_config())


@pytest.fixture
def trained(model, tokenizer):
    """The model with texts of another length."""
    return lambda length: Trained(Path(), model, tokenizer, length, {}, None)


IMAGE = np.random.default_rng(0).integers(0, 256, (1, 64, 64), dtype=np.uint8)


def test_words_without_punctuation_and_beyond_the_cut(trained):
    """A panel for a question mark, a word that was cut off, or no error for nothing to draw."""
    names, attention = attention_of_words(trained(16), IMAGE, "Is there? a mass")
    assert names == ["Is", "there", "a", "mass"]
    assert attention.shape == (4, 17)
    torch.testing.assert_close(attention.sum(dim=1), torch.ones(4))
    assert attention_of_words(trained(4), IMAGE, "is there a mass")[0] == ["is", "there"]
    with pytest.raises(ValueError, match="no word"):
        attention_of_words(trained(16), IMAGE, "?!")


def test_leaves_the_mode_alone(model, trained):
    """A model that goes on in eval mode, or dropout in the picture."""
    model.train()
    once, again = (attention_of_words(trained(8), IMAGE, "a mass")[1] for _ in range(2))
    assert model.training and torch.equal(once, again)
    model.eval()


def one_bright_patch(grid: int, row: int, column: int) -> torch.Tensor:
    attention = torch.full((1, 1 + grid * grid), 0.2 / (grid * grid))
    attention[0, 1 + row * grid + column] += 0.8
    return attention


def panels(path) -> tuple[np.ndarray, np.ndarray]:
    """The first two panels of a picture, by their frames' places."""
    picture = np.asarray(Image.open(path).convert("RGB"), dtype=float)
    # The original: the only full-width tile of its exact pixels; rows below a heading.
    top = next(
        y for y in range(picture.shape[0]) if (picture[y, MARGIN : MARGIN + TILE_PX] == 0).all()
    )
    first = picture[top : top + TILE_PX, MARGIN : MARGIN + TILE_PX]
    left = MARGIN + TILE_PX + 12
    return first, picture[top : top + TILE_PX, left : left + TILE_PX]


@pytest.mark.parametrize("row, column", [(0, 3), (2, 1)])
def test_colour_where_the_word_looked(tmp_path, row, column):
    """Rows and columns swapped, CLS counted as a patch, or a map of another size."""
    path = tmp_path / "deep" / "a.png"
    black = np.zeros((1, 64, 64), np.uint8)
    draw_attention(black, ["word"], one_bright_patch(4, row, column), path, "word")
    image, panel = panels(path)
    assert not image.any()
    patch = TILE_PX // 4
    brightness = panel.sum(axis=2).reshape(4, patch, 4, patch).mean(axis=(1, 3))
    assert np.unravel_index(brightness.argmax(), (4, 4)) == (row, column)
    far = brightness[3 - row if row != 2 else 0, 3 - column if column != 1 else 3]
    assert far == 0  # at or below the even share there is no colour


def test_even_attention_has_no_colour(tmp_path):
    """Noise of an untrained model stretched until it looks like a finding."""
    path = tmp_path / "a.png"
    black, even = np.zeros((1, 64, 64), np.uint8), torch.full((1, 17), 1 / 17)
    draw_attention(black, ["word"], even, path, "x")
    assert panels(path)[1].max() <= 1


def test_paint_is_stronger_for_more():
    """A colour scale that goes up and down, so that a legend means nothing."""
    ramp = np.linspace(0, 1, 50, dtype=np.float32)[None]
    for grey in (0.0, 0.5):
        colours = np.asarray(paint(np.full((1, 50), grey, np.float32), ramp), dtype=int)[0]
        red = colours[:, 0]
        assert (np.diff(red[:45]) >= 0).all() and red[45] > red[0] + 80
    assert np.array_equal(
        np.asarray(paint(np.full((1, 1), 1.0), np.full((1, 1), -3.0)))[0, 0], [204, 204, 204]
    )


def test_a_picture_of_many_words(tmp_path, trained):
    """Words left out, long ones running into the next panel, a text that leaves the picture."""
    path, few = tmp_path / "a.png", tmp_path / "b.png"
    text = " ".join(["mass" * 12] * 5 + ["a"] * 20)
    draw_words(trained(64), IMAGE, text, path, 1, 2, subtitle="answer: " + "no " * 200)
    draw_words(trained(64), IMAGE, "a mass", few)
    with Image.open(path) as many, Image.open(few) as small:
        assert small.width == 2 * MARGIN + 3 * TILE_PX + 2 * 12
        assert many.height > small.height
        for picture in (many, small):
            grey = np.asarray(picture.convert("L"))
            edge = MARGIN - 2  # frames of the panels take one pixel of the margin
            assert grey[:, :edge].min() == grey[:, -edge:].min() == grey[-8:].min() == 255
