"""Pictures of what masked image modelling predicts: original | masked | reconstructed.

Letters: `B` pairs, `N` patches, `K` kept patches.
"""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from m3ae.drawing import GAP, INK, MARGIN, MUTED, RULE, font, line_height, tile, wrap, write_lines
from m3ae.models.losses import patch_pixels
from m3ae.models.m3ae import M3AE
from m3ae.pretraining.evaluation import only
from m3ae.training.engine import evaluating

GREY = 0.5  # of removed patches, 0-1
TEXT_DIVISOR, NOTE_DIVISOR = 40, 46  # size of the letters: the picture's width over this
NOTE = "Grey: the {percent} of the patches that were removed. Reconstructed: kept patches are the \
original's, removed ones are the model's prediction from the kept ones and the text."
NORMALISED_NOTE = " It predicts each patch at mean 0 and variance 1; the picture puts back the \
original patch's own mean and variance, which the model was not shown."


def unpatch(pixels: Tensor, patch_px: int) -> Tensor:
    """Pixels of each patch (B, N, 3 patch_px^2) -> square images (B, 3, H, H).

    The inverse of `patch_pixels`. Raises ValueError if N is not a square number.
    """
    side = round(pixels.shape[1] ** 0.5)
    if side**2 != pixels.shape[1]:
        raise ValueError(f"{pixels.shape[1]} patches do not fill a square image")
    x = pixels.reshape(len(pixels), side, side, patch_px, patch_px, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(pixels), 3, side * patch_px, side * patch_px)


def reconstruct(model: M3AE, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Original, masked and reconstructed images of a batch, each float32 (B, 3, H, H), 0-1, CPU.

    Kept patches are the original's. With `mim.normalise_target` predictions are un-normalised with
    the original patch's mean and variance, which the model never saw: contrast and brightness of a
    removed patch are given, not predicted. Grey images (uint8, channels alike) come back grey: the
    three predicted channels are averaged. Runs in eval mode and restores the mode it found.
    Raises ValueError if the model has no masked image modelling.
    """
    if "mim" not in model.loss_weights:
        raise ValueError("no reconstruction to draw: masked image modelling is off (mim.weight 0)")
    raw, image = batch["image"], model.normalise(batch["image"])
    colourless = raw.eq(raw[:, :1]).flatten(1).all(dim=1) & (not raw.is_floating_point())
    with evaluating(model), only(model, "mim"):
        predicted = model.outputs(batch).mim_pixels
    patch_px = model.image_encoder.patch_px
    original, predicted = patch_pixels(image.float(), patch_px), predicted.float()
    removed = batch["patch_order"][:, model.kept(batch).shape[1] :, None].expand_as(predicted)
    if model.config.mim.normalise_target:
        variance, mean = torch.var_mean(original.gather(1, removed), dim=-1, keepdim=True)
        predicted = predicted * (variance + 1e-6).sqrt() + mean  # undoes `mim_target`

    def show(pixels: Tensor) -> Tensor:
        images = unpatch(pixels, patch_px)
        images = (images * model.pixel_std + model.pixel_mean).clamp(0, 1)
        images[colourless] = images[colourless].mean(dim=1, keepdim=True)
        return images.cpu()

    # Grey is a colour of the screen, so it goes through the normalisation before it comes back.
    grey = ((GREY - model.pixel_mean) / model.pixel_std).expand_as(image)
    masked = original.scatter(1, removed, patch_pixels(grey, patch_px))
    return show(original), show(masked), show(original.scatter(1, removed, predicted))


def draw_reconstructions(
    model: M3AE, batch: dict[str, Tensor], texts: list[str], path: Path
) -> None:
    """A PNG with one row a pair: original | masked | reconstructed, and its text below.

    `texts` has one text a pair; line breaks in it are kept. With `mim.normalise_target` removed
    patches show the prediction at the *original* patch's mean and variance (see `reconstruct`), and
    the picture says so. Raises ValueError if MIM is off or the texts do not fit the batch.
    """
    if len(texts) != len(batch["image"]):
        raise ValueError(f"{len(texts)} texts for {len(batch['image'])} pairs")
    images = reconstruct(model, batch)
    rows = list(zip(*([tile(image) for image in column] for column in images), strict=True))
    side = rows[0][0].width
    width = 3 * side + 2 * GAP
    size, note_size = width // TEXT_DIVISOR, width // NOTE_DIVISOR
    fraction = 1 - model.kept(batch).shape[1] / batch["patch_order"].shape[1]
    note = NOTE.format(percent=f"{fraction:.0%}")
    if model.config.mim.normalise_target:
        note += NORMALISED_NOTE
    captions = [wrap(text, width, size) for text in texts]
    note_lines = wrap(note, width, note_size, lines=100)

    text_height, note_height = line_height(size), line_height(note_size)
    heights = [side + GAP // 2 + len(lines) * text_height + 2 * GAP for lines in captions]
    top = MARGIN + text_height + GAP // 2
    height = top + sum(heights) + len(note_lines) * note_height + MARGIN
    picture = Image.new("RGB", (width + 2 * MARGIN, height), "white")
    draw = ImageDraw.Draw(picture)
    for column, heading in enumerate(("original", "masked", "reconstructed")):
        x = MARGIN + column * (side + GAP)
        draw.text((x, MARGIN), heading, font=font(size, bold=True), fill=INK)
    y = top
    for tiles, lines, row_height in zip(rows, captions, heights, strict=True):
        for column, image in enumerate(tiles):
            x = MARGIN + column * (side + GAP)
            picture.paste(image, (x, y))
            draw.rectangle((x - 1, y - 1, x + side, y + side), outline=RULE)  # white images end too
        write_lines(draw, lines, y + side + GAP // 2, size, INK)
        y += row_height
        draw.line((MARGIN, y - GAP, MARGIN + width, y - GAP), fill=RULE)
    write_lines(draw, note_lines, y, note_size, MUTED)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG", optimize=True)
