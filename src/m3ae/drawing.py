"""Letters and tiles of the pictures that the package draws."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE_PX = 192  # tiles are at least this wide, so that small images can be seen
GAP, MARGIN = 12, 16
LINES = 4  # of one paragraph of a text, at most
INK, MUTED, RULE = "#1a1a1a", "#5f5f5f", "#d0d0d0"


def tile(image: Tensor) -> Image.Image:
    """float (3, H, W) 0-1 -> an image enlarged by a whole factor to `TILE_PX` or more."""
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    factor = -(-TILE_PX // pixels.shape[1])
    size = (pixels.shape[1] * factor, pixels.shape[0] * factor)
    # Nearest neighbour: what is seen is the pixels themselves.
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A sans-serif font of `size` pixels."""
    import matplotlib

    # Pillow's own font lacks µ, ≥ and é; matplotlib, a dependency, ships one that has them.
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf", name)), size)


def line_height(size: int) -> int:
    """Distance between two lines of text, pixels."""
    return round(size * 1.35)


def wrap(text: str, width: int, size: int, lines: int = LINES) -> list[str]:
    """Lines that fit `width` pixels; a paragraph over `lines` lines ends in an ellipsis."""
    measure = font(size).getlength
    out: list[str] = []
    for paragraph in text.splitlines():
        wrapped = wrap_paragraph(paragraph.split(), width, measure)
        if len(wrapped) > lines:
            last = wrapped[lines - 1]
            while last and measure(last + " …") > width:
                last = last[:-1]
            wrapped = [*wrapped[: lines - 1], last + " …"]
        out += wrapped
    return out


def wrap_paragraph(words: list[str], width: int, measure: Callable[[str], float]) -> list[str]:
    """Greedy lines of at most `width`; a word longer than a line is cut where the line ends."""
    out, line = [], ""
    for word in words:
        if measure(f"{line} {word}".strip()) <= width:
            line = f"{line} {word}".strip()
            continue
        if line:
            out.append(line)
        while measure(word) > width:
            end = next(i for i in range(len(word), 0, -1) if measure(word[:i]) <= width)
            out.append(word[:end])
            word = word[end:]
        line = word
    return [*out, line] if line else out


def write_lines(
    draw: ImageDraw.ImageDraw, lines: list[str], y: int, size: int, colour: str
) -> None:
    """Lines of text from the left margin down, the first at height `y`."""
    for number, line in enumerate(lines):
        draw.text((MARGIN, y + number * line_height(size)), line, font=font(size), fill=colour)
