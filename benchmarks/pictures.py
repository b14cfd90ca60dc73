"""Generated pictures that other benchmarks prepare and read."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (800, 600)


def save_picture(path: Path, rng: np.random.Generator, channels: int = 1) -> None:
    """A JPEG, grey (1) or coloured (3), of blurred noise with some grain, about 150 KB."""
    coarse = rng.integers(0, 256, (30, 40, channels), dtype=np.uint8)
    bands = [Image.fromarray(coarse[..., band]) for band in range(channels)]
    wide = [np.asarray(band.resize(SIZE, Image.Resampling.BICUBIC)) for band in bands]
    pixels = np.stack(wide, axis=-1)
    pixels = np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path, quality=90)
