"""The drawings of phantoms: modality, plane and region as a body, a finding laid over it.

"left" is the left of the image (in radiology it would be the patient's left).
"""

import functools

import numpy as np

from m3ae.corpora.phantom_texts import Facts

NOISE = 0.006  # standard deviation of the pixel noise, of a range of 1


@functools.lru_cache(maxsize=2)
def grid(px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x (1, px) and y (px, 1) in [-1, 1], float32; y grows downwards."""
    axis = (np.arange(px, dtype=np.float32) + 0.5) * (2 / px) - 1
    return axis[None, :], axis[:, None]


def body(region: str, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth below the skin and the organs' brightness, (px, px); inside, depth > 0."""
    if region == "head":
        depth = 1 - np.hypot(u / 0.76, v / 0.94)
        organs = -0.14 * np.exp(-((u / 0.16) ** 2) - (v / 0.34) ** 2)
    elif region == "chest":
        depth = 1 - ((u / 0.97) ** 4 + (v / 0.90) ** 4) ** 0.25
        organs = -0.16 * np.clip(6 * (1 - np.hypot((np.abs(u) - 0.48) / 0.34, v / 0.70)), 0, 1)
    elif region == "abdomen":
        depth = 1 - np.hypot(u / 0.98, v / 0.70)
        organs = 0.12 * np.clip(6 * (1 - np.hypot((np.abs(u) - 0.45) / 0.3, v / 0.26)), 0, 1)
    elif region == "pelvis":
        depth = 1 - ((u / (0.66 - 0.32 * v)) ** 6 + (v / 0.92) ** 6) ** (1 / 6)
        organs = 0.14 * np.exp(-(((np.hypot(np.abs(u) - 0.45, v + 0.2) - 0.3) / 0.06) ** 2))
    else:
        depth = 1 - np.abs(u) / (0.42 + 0.28 * np.exp(-((v / 0.4) ** 2)))
        organs = 0.14 - 0.34 * np.exp(-((v / 0.06) ** 2))
    return depth, organs


def structure(plane: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the brightness (px, px) that tells the plane: layers all over, and a spine."""
    if plane == "axial":
        radius = np.hypot(u, v)
        layers, spine = radius, np.exp(-(((radius - 0.16) / 0.05) ** 2))
    elif plane == "coronal":
        layers, spine = u, np.exp(-((u / 0.07) ** 2)) * (0.6 + 0.4 * np.cos(25 * v))
    else:
        bent = u + 0.35 * v * v - 0.15
        layers, spine = v + 0.5 * u, np.exp(-((bent / 0.07) ** 2)) * (0.6 + 0.4 * np.cos(25 * v))
    return 0.09 * np.cos(15 * layers) + 0.18 * spine


def render_body(facts: Facts, px: int, rng: np.random.Generator) -> np.ndarray:
    """Return the picture without finding, float32 (px, px), about 0 to 1."""
    x, y = grid(px)
    angle, scale = rng.uniform(-0.07, 0.07), rng.uniform(0.95, 1.04)
    dx, dy = rng.uniform(-0.03, 0.03, 2)
    cos, sin = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    x0, y0 = x - np.float32(dx), y - np.float32(dy)
    u, v = cos * x0 + sin * y0, cos * y0 - sin * x0
    depth, organs = body(facts["region"], u, v)
    tissue = 0.45 + organs + structure(facts["plane"], u, v)
    # Slopes, not flat black: a flat patch normalised by its deviation is a target of pure noise.
    backdrop = 0.03 + 0.05 * (x * x + y * y)
    modality = facts["modality"]
    edge = 8 if modality == "radiograph" else 40
    inside = np.clip(edge * depth, 0, 1)
    if modality == "ct":  # a bone-white rim
        picture = backdrop + inside * (tissue - backdrop)
        picture += 0.35 * np.exp(-(((depth - 0.05) / 0.035) ** 2))
    elif modality == "mr":  # a coil's gradient, a fine weave, a dark rim
        lean = rng.uniform(0, 2 * np.pi)
        coil = 1 + 0.2 * np.float32(np.cos(lean)) * x + 0.2 * np.float32(np.sin(lean)) * y
        weave = 0.05 * np.cos(60 * x) * np.cos(60 * y)
        picture = backdrop + inside * (tissue * coil + weave - backdrop)
        picture -= 0.3 * np.exp(-(((depth - 0.08) / 0.05) ** 2))
    elif modality == "radiograph":  # thickness, ribs, an exposed film around
        ribs = 0.05 * np.cos(24 * (y + 0.4 * x * x))
        backdrop = 0.30 - 0.10 * y
        thick = 0.15 + 0.85 * np.sqrt(np.clip(depth, 0, 1))
        picture = backdrop + inside * (0.14 + tissue * thick + ribs - backdrop)
    else:  # a fan below a curved probe, echoes, weaker with depth
        radius, turn = np.hypot(x, y + 1.9), np.arctan2(x, y + 1.9)
        fan = np.clip(40 * (0.57 - np.abs(turn)), 0, 1) * np.clip(30 * (radius - 0.95), 0, 1)
        fan *= np.clip(30 * (2.88 - radius), 0, 1)
        echoes = 0.07 * np.cos(70 * radius) * np.cos(44 * turn + 3 * radius)
        picture = 0.16 + inside * (tissue - 0.16) + echoes
        picture = 0.4 * backdrop * (1 - fan) + fan * picture * (1.45 - 0.22 * radius)
    return picture


def render_finding(picture: np.ndarray, facts: Facts, rng: np.random.Generator) -> np.ndarray:
    """Lay the finding over a picture (px, px): its place, extent, count and texture."""
    px = len(picture)
    x, y = grid(px)
    jitter = rng.uniform(-0.03, 0.03, 2)
    cx = {"left": -0.45, "right": 0.45}[facts["side"]] + jitter[0]
    cy = {"upper": -0.60, "middle": 0.0, "lower": 0.60}[facts["level"]] + jitter[1]
    large = facts["size"] == "large"
    if facts["number"] == "single":
        radius, shift = (0.38 if large else 0.22), (0.0, 0.0)
    else:  # side by side on a slant, about the area of a single one
        radius, shift = (0.25, (0.29, 0.10)) if large else (0.15, (0.24, 0.10))
    radius *= rng.uniform(0.94, 1.06)
    first = np.hypot(x - np.float32(cx - shift[0]), y - np.float32(cy - shift[1]))
    second = np.hypot(x - np.float32(cx + shift[0]), y - np.float32(cy + shift[1]))
    inside = np.float32(radius) - np.minimum(first, second)  # depth below the finding's edge
    # Textures in steps of the image, not of a patch: 12 and 8 px a period at 192 px.
    if facts["kind"] == "nodule":  # bright and smooth
        fabric = 0.84 + 0.4 * inside
    elif facts["kind"] == "cyst":  # dark, a bright rim
        fabric = np.where(inside < 0.05, 1.0, 0.10 - 0.2 * inside)
    elif facts["kind"] == "calcification":  # bright checks
        fabric = np.where(np.sin(16 * np.pi * x) * np.sin(16 * np.pi * y) > 0, 1.0, 0.25)
    else:  # consolidation: dark stripes
        fabric = np.where(np.sin(24 * np.pi * y) > 0, 0.70, 0.0) + 0 * x
    cover = np.clip(inside * (px / 3) + 0.5, 0, 1)
    # A glow around the finding: a cue for its place that all kinds share and many patches see.
    glow = np.exp(-((np.maximum(-inside, 0) / 0.3) ** 2))
    picture = 0.78 * picture + 0.30 * glow
    return picture + cover * (fabric - picture)


def draw_image(facts: Facts, px: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the image of the facts: uint8 (px, px), grey."""
    picture = render_body(facts, px, rng)
    if "kind" in facts:
        picture = render_finding(picture, facts, rng)
    picture = picture + rng.standard_normal(picture.shape, dtype=np.float32) * NOISE
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
