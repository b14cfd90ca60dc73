"""Pieces of the page to ask a picture, as HTML that holds its pictures; every text is escaped."""

import base64
import html
import io

import numpy as np
from PIL import Image

from m3ae.downstream.asking import Answered, Picture
from m3ae.reports.parts import jpeg

BLIND = {"majority": "the commonest answer", "nearest": "the answer to the nearest question"}
BAR = (
    '<div class="m3ae-bar"><div style="display: flex; justify-content: space-between; gap: 1rem">'
    '<span>{name}</span><span style="font-variant-numeric: tabular-nums">{value}</span></div>'
    '<div style="background: color-mix(in srgb, currentColor 12%, transparent); height: .6rem; '
    'border-radius: .3rem; margin-bottom: .5rem"><div style="background: #2a6fc9; height: 100%; '
    'border-radius: .3rem; width: {share:.1%}"></div></div></div>'
)
SMALL = 'style="opacity: .8; font-size: .875rem"'
RANKED = (
    "Log-odds of a match, by which the captions are ranked; bars go from the lowest to the highest "
    "here. Scores of other pictures or models do not compare."
)


def answered(said: Answered) -> str:
    """Answers with bars, what blind baselines would have said, and the attention."""
    body = f"<h3>{html.escape(said.question)}</h3>"
    body += "".join(bar(name, f"{score:.1%}", score) for name, score in said.top)
    kind = "of each alone: they do not add up to 100 %" if not said.exclusive else "among all"
    body += note(f"Probabilities {kind}.")
    body += blind(said.blind)
    if said.attention is not None:
        alt = f"Attention over the picture, a panel a word, for: {said.question}"
        source = png(said.attention)
        body += f'<img class="m3ae-attention" style="max-width: 100%" {alt_src(alt, source)}>'
    return body + "".join(map(note, said.notes))


def blind(said: dict[str, str]) -> str:
    """What never looking at the picture would have said."""
    if not said:
        return ""
    lines = "".join(
        f"<li>{html.escape(BLIND.get(name, name))} in training: <b>{html.escape(text)}</b></li>"
        for name, text in said.items()
    )
    return f'<div class="m3ae-blind"><p>Without the picture:</p><ul>{lines}</ul></div>'


def ranked(captions: list[tuple[str, float]], notes: list[str]) -> str:
    """Captions with their scores, the best first."""
    scores = [score for _, score in captions]
    low, high = min(scores), max(scores)
    lines = "".join(
        f"<li>{bar(text, f'{score:+.2f}', (score - low) / (high - low) if high > low else 1)}</li>"
        for text, score in captions
    )
    return f'<ol class="m3ae-ranked">{lines}</ol>' + "".join(map(note, [RANKED, *notes]))


def bar(name: str, value: str, share: float) -> str:
    """A name, a value as text and a bar of `share` 0-1 of the width."""
    return BAR.format(name=html.escape(name), value=html.escape(value), share=share)


def note(text: str) -> str:
    """A smaller line."""
    return f"<p {SMALL}>{html.escape(text)}</p>"


def refused(text: str) -> str:
    """Why something cannot be done, as a message that is read aloud."""
    return f'<p role="alert" style="color: #c0392b">{html.escape(text)}</p>'


def shown(picture: Picture) -> str:
    """What the model sees of a picture, at the largest of its sides."""
    side = max(picture.pixels)
    alt = f"What the model sees: {side} x {side} pixels, the middle of the picture"
    image = f'<img class="m3ae-shown" style="width: 100%" {alt_src(alt, as_jpeg(picture, side))}>'
    return image + note(f"{alt}.") + "".join(map(note, picture.notes))


def as_jpeg(picture: Picture, side: int) -> str:
    """The address of a picture at one of its sides, in the page itself."""
    pixels = picture.pixels[side]
    return jpeg(Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)))


def png(image: Image.Image) -> str:
    """The address of an image in the page itself, as a PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def alt_src(alt: str, source: str) -> str:
    """The attributes of an image."""
    return f'alt="{html.escape(alt)}" src="{source}"'
