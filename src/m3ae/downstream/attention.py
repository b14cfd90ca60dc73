"""Pictures of cross-attention: which patches of the image each word of a text looked at.

Letters: `B` pairs, `H` heads, `L` text tokens, `S` image tokens (CLS first), `N` patches,
`W` words, `P` pixels a side of a panel.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from m3ae.data.datasets import stack_texts
from m3ae.data.texts import assemble, encode, special_ids
from m3ae.downstream.trained import Trained
from m3ae.drawing import GAP, INK, MARGIN, MUTED, RULE, font, line_height, tile, wrap, write_lines
from m3ae.training.engine import evaluating, to_device

Draw = ImageDraw.ImageDraw
PANEL_PX = 240  # panels are at most this wide
MOST_COLUMNS, LEAST_COLUMNS = 6, 3
TEXT_SIZE, WORD_SIZE, NOTE_SIZE = 19, 15, 13  # of the letters, pixels
BACKDROP = 0.8  # brightness of the image under the colours
STRENGTH = 0.9  # how much of it the strongest colour hides
BAR_HEIGHT = 12
NOTE = "Colour: how much of a word's attention a patch gets, in multiples of the share that each \
of the {tokens} image tokens would have if all had the same (1x); patches at or below that have \
none. One logarithmic scale for all panels; beside each word, its highest patch. {source}, \
averaged over the word's pieces and interpolated between the {grid} x {grid} patches. Not shown: \
punctuation, and what goes to the image's CLS token ({cls} of a word's attention). Attention says \
where a layer read, not what the result rests on."


def text_to_image(maps: list[Tensor], layer: int = -1, head: int | None = None) -> Tensor:
    """What `M3AE.encode_pair` collected -> how the text attends to the image (B, L, S).

    `layer` from 1 (-1: the last), `head` from 1 (None: the mean over heads). Rows sum to 1.
    Raises ValueError where the model has no such layer or head.
    """
    depth = len(maps) // 2  # a text map and an image map a layer
    if not (layer == -1 or 1 <= layer <= depth):
        raise ValueError(f"layer {layer}: the model has fusion layers 1 to {depth} (-1: the last)")
    chosen = maps[2 * ((depth if layer == -1 else layer) - 1)]
    if head is None:
        return chosen.mean(dim=1)
    if not 1 <= head <= chosen.shape[1]:
        raise ValueError(f"head {head}: the layer has heads 1 to {chosen.shape[1]}")
    return chosen[:, head - 1]


def merge_words(attention: Tensor, words: np.ndarray) -> dict[int, Tensor]:
    """Rows (L', S) of tokens -> word index: mean row (S,) of its pieces, in text order.

    words int64 (L,) as `texts.assemble` gives them, L >= L': -1 at special tokens and padding.
    """
    words = torch.from_numpy(words[: len(attention)])
    found = words[words >= 0].unique()
    return {int(word): attention[words == word].mean(dim=0) for word in found}


def word_texts(tokenizer: Any, text: str) -> dict[int, str]:
    """Word index: the word as it stands in the text."""
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans: dict[int, tuple[int, int]] = {}
    for word, (begin, end) in zip(out.word_ids(), out["offset_mapping"], strict=True):
        first, last = spans.get(word, (begin, end))
        spans[word] = min(first, begin), max(last, end)
    return {word: text[begin:end].strip() for word, (begin, end) in spans.items()}


def attention_of_words(
    trained: Trained, image: np.ndarray, text: str, layer: int = -1, head: int | None = None
) -> tuple[list[str], Tensor]:
    """The words of a text that have a letter or a digit, and their attention float32 (W, S).

    image uint8 (C, px, px). In eval mode and float32; the mode found is restored. Raises
    ValueError where the text has no word or the model no fusion, and as `text_to_image`.
    """
    trained.need_fusion("there is no attention between text and image to draw")
    model, tokenizer, maps = trained.model, trained.tokenizer, []
    tokens, special = encode(tokenizer, [text])[0], special_ids(tokenizer)
    ids, words = assemble(*tokens, trained.text_length, special)
    batch = {"image": torch.from_numpy(image)[None], **stack_texts([(ids, words)])}
    batch = to_device(batch, trained.device)
    with evaluating(model):
        model.encode_pair(batch["image"], batch["text_ids"], batch["text_keep"], maps)
    merged = merge_words(text_to_image(maps, layer, head)[0].float().cpu(), words)
    names = word_texts(tokenizer, text)
    shown = [word for word in merged if any(letter.isalnum() for letter in names[word])]
    if not shown:
        raise ValueError(f"{text!r}: no word in it whose attention could be drawn")
    return [names[word] for word in shown], torch.stack([merged[word] for word in shown])


def draw_words(
    trained: Trained,
    image: np.ndarray,
    text: str,
    path: Path,
    layer: int = -1,
    head: int | None = None,
    subtitle: str = "",
) -> None:
    """`picture_of_words` as a PNG file."""
    _save(picture_of_words(trained, image, text, layer, head, subtitle), path)


def picture_of_words(
    trained: Trained,
    image: np.ndarray,
    text: str,
    layer: int = -1,
    head: int | None = None,
    subtitle: str = "",
) -> Image.Image:
    """The image and, for each word, the patches it looked at; raises as `attention_of_words`."""
    names, attention = attention_of_words(trained, image, text, layer, head)
    depth, heads = trained.model.fusion.depth, trained.model.config.fusion.heads
    shown = f"mean of {heads} heads" if head is None else f"head {head} of {heads}"
    shown = f"fusion layer {depth if layer == -1 else layer} of {depth}, {shown}"
    source = f"Cross-attention of the text on the image in {shown}"
    return picture_of_attention(image, names, attention, text, subtitle, source)


def draw_attention(
    image: np.ndarray,
    words: list[str],
    attention: Tensor,
    path: Path,
    text: str,
    subtitle: str = "",
    source: str = "Cross-attention",
) -> None:
    """`picture_of_attention` as a PNG file."""
    _save(picture_of_attention(image, words, attention, text, subtitle, source), path)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG", optimize=True)


def picture_of_attention(
    image: np.ndarray,
    words: list[str],
    attention: Tensor,
    text: str,
    subtitle: str = "",
    source: str = "Cross-attention",
) -> Image.Image:
    """Text and subtitle, the image, a panel a word, a colour bar and what is shown.

    image uint8 (C, H, H), attention (W, S), each row of sum 1 with CLS first.
    """
    grid = round((attention.shape[1] - 1) ** 0.5)
    times = attention[:, 1:] * attention.shape[1]  # 1 = what each token has if all have the same
    top = max(2.0, float(times.max()))  # so that even attention does not look like a finding
    panels = make_panels(image, words, times.reshape(-1, grid, grid), top)
    side = panels[0][2].width

    columns = min(MOST_COLUMNS, max(LEAST_COLUMNS, round(len(panels) ** 0.5 + 0.5)))
    width = columns * side + (columns - 1) * GAP
    ends = dict.fromkeys(f"{float(end):.0%}" for end in attention[:, 0].aminmax())
    note = NOTE.format(tokens=attention.shape[1], source=source, grid=grid, cls=" to ".join(ends))
    head_lines = wrap(text, width, TEXT_SIZE)
    below = wrap(subtitle, width, WORD_SIZE, lines=2)
    note_lines = wrap(note, width, NOTE_SIZE, lines=100)
    word_height, note_height = line_height(WORD_SIZE), line_height(NOTE_SIZE)
    start = MARGIN + len(head_lines) * line_height(TEXT_SIZE) + len(below) * word_height + GAP
    row_height = word_height + side + GAP
    rows = -(-len(panels) // columns)
    bar_top = start + rows * row_height + GAP // 2
    notes_top = bar_top + BAR_HEIGHT + note_height + GAP
    height = notes_top + len(note_lines) * note_height + MARGIN

    picture = Image.new("RGB", (width + 2 * MARGIN, height), "white")
    draw = ImageDraw.Draw(picture)
    write_lines(draw, head_lines, MARGIN, TEXT_SIZE, INK)
    write_lines(draw, below, MARGIN + len(head_lines) * line_height(TEXT_SIZE), WORD_SIZE, MUTED)
    for number, (word, peak, panel) in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = MARGIN + column * (side + GAP), start + row * row_height
        write_heading(draw, x, y, side, word, peak)
        picture.paste(panel, (x, y + word_height))
        frame = (x - 1, y + word_height - 1, x + side, y + word_height + side)
        draw.rectangle(frame, outline=RULE)
    draw_bar(picture, draw, bar_top, width, top)
    write_lines(draw, note_lines, notes_top, NOTE_SIZE, MUTED)
    return picture


def make_panels(
    image: np.ndarray, words: list[str], times: Tensor, top: float
) -> list[tuple[str, str, Image.Image]]:
    """The image, and for each word the image under its patches: title, highest patch, picture.

    image uint8 (C, H, H), times (W, grid, grid): 1 has no colour, `top` the strongest.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image)).float() / 255
    original = tile(pixels.expand(3, -1, -1))
    if original.width > PANEL_PX:
        original = original.resize((PANEL_PX, PANEL_PX), Image.Resampling.LANCZOS)
    size = (original.width, original.width)
    heat = F.interpolate(times[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    grey = np.asarray(original.convert("L"), dtype=np.float32) / 255
    # Logarithmic: one word with a single bright patch would leave all others without colour.
    levels = (heat.clamp(min=1).log() / math.log(top)).numpy()
    peaks = [f"{shorten(peak)}x" for peak in times.amax(dim=(1, 2)).tolist()]
    drawn = [paint(grey, level) for level in levels]
    return [("image", "", original), *zip(words, peaks, drawn, strict=True)]


def paint(grey: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Heat in colour over a grey image 0-1, both (P, P): nothing at 0 or below, strongest at 1."""
    heat = heat.clip(0, 1)
    # The lower third of the colour map is black, which over a dark image would be no colour.
    import matplotlib

    colour = matplotlib.colormaps["inferno"](0.4 + 0.55 * heat)[..., :3]
    hidden = STRENGTH * heat[..., None] ** 0.6  # a weak colour is still to be seen
    mixed = BACKDROP * grey[..., None] * (1 - hidden) + colour * hidden
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def write_heading(draw: Draw, x: int, y: int, width: int, word: str, peak: str) -> None:
    """A panel's word in bold at the left, its peak at the right; a long word is cut."""
    small = font(NOTE_SIZE).getlength(peak)
    bold, room = font(WORD_SIZE, bold=True), width - small - GAP
    if bold.getlength(word) > room:
        while word and bold.getlength(word + "…") > room:
            word = word[:-1]
        word += "…"
    draw.text((x, y), word, font=bold, fill=INK)
    drop = font(WORD_SIZE, bold=True).getbbox("x")[3] - font(NOTE_SIZE).getbbox("x")[3]
    draw.text((x + width - small, y + drop), peak, font=font(NOTE_SIZE), fill=MUTED)


def draw_bar(picture: Image.Image, draw: Draw, y: int, width: int, top: float) -> None:
    """The colour bar from the even share to `top` times it, over mid grey, with its labels."""
    length = min(width, 480)
    ramp = np.broadcast_to(np.linspace(0, 1, length, dtype=np.float32), (BAR_HEIGHT, length))
    picture.paste(paint(np.full((BAR_HEIGHT, length), 0.5, np.float32), ramp), (MARGIN, y))
    draw.rectangle((MARGIN - 1, y - 1, MARGIN + length, y + BAR_HEIGHT), outline=RULE)
    letters, below = font(NOTE_SIZE), y + BAR_HEIGHT + 3
    middle, high = f"{shorten(math.sqrt(top))}x", f"{shorten(top)}x"
    draw.text((MARGIN, below), "1x, the even share, or less", font=letters, fill=MUTED)
    half = MARGIN + length / 2 - letters.getlength(middle) / 2
    if half > MARGIN + letters.getlength("1x, the even share, or less") + GAP:
        draw.text((half, below), middle, font=letters, fill=MUTED)
    draw.text((MARGIN + length - letters.getlength(high), below), high, font=letters, fill=MUTED)


def shorten(value: float) -> str:
    """Two significant digits, or the whole number."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
