"""Images: from the bytes of a file to the pixels that the model normalises.

`decode` then `resize_crop` is the reference's deterministic transform up to normalisation
(reference, base_transforms and base_dataset: open as RGBA, resize the shorter side, centre crop,
drop alpha). Opaque images take the RGB path and grey ones the L path: the same pixels, cheaper.

Letters: `C` channels (1 = grey, 3 = RGB).
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from m3ae.data.dicom import is_dicom, read_dicom
from m3ae.data.image_error import ImageError

MAX_PIXELS = 89_478_485  # of an image, unless told otherwise: Pillow's first limit, 256 MiB as RGB
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # what undoes each orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Window = tuple[float, float] | None  # grey values that become 0 and 255
_DEEP_GREY = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def decode(
    source: bytes | Path,
    window: Window = None,
    exif: bool = False,
    max_pixels: int | None = None,
) -> tuple[Image.Image, list[str]]:
    """Open an image; returns it as L, RGB or, where some pixel is transparent, RGBA, and notes.

    RGBA is kept because alpha takes part in the resize (reference, data fact 19), which drops it
    afterwards. `window` is for 16-bit and float grey values, and
    goes before that of a DICOM file. `exif`: turn it upright as its EXIF
    orientation says, which the reference ignores. An image of more than `max_pixels` (None:
    MAX_PIXELS) is refused by its header, before a pixel is decoded. Raises ImageError, and
    FileNotFoundError for a path that does not exist.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise ImageError("zero bytes")
    if is_dicom(data):
        return read_dicom(data, window, most)
    with _pixel_limit(most):
        try:
            image = Image.open(io.BytesIO(data))
            orientation, notes = _notes(image, exif)
            # 16 bits a channel in a mode that Pillow cuts to 8 (PNG, TIFF)
            deep = image.mode not in _DEEP_GREY and any(";16" in str(t.args) for t in image.tile)
            image.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            detail = f"more than {most:,}; --max-pixels N sets the limit"
            raise ImageError("too many pixels", detail) from error
        except Image.UnidentifiedImageError as error:
            raise ImageError("unreadable", "not a known image format") from error
        except MemoryError:  # of this machine, not of the file
            raise
        except Exception as error:  # decoders raise whatever their parsers stumble over
            cut = "truncated" in str(error).lower() or isinstance(error, EOFError)
            detail = str(error) or type(error).__name__
            raise ImageError("truncated" if cut else "unreadable", detail) from error
    if deep:
        notes.append("16-bit colour, high bytes taken")
    image = _to_eight_bit(image, window, notes)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image, notes


@contextmanager
def _pixel_limit(most: int) -> Iterator[None]:
    """Pillow raises an error in the block for an image of more pixels, by its header."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # metadata warnings; the two that matter are errors:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = most
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _notes(image: Image.Image, exif: bool) -> tuple[int, list[str]]:
    """The orientation to undo (1: none), and what is to be said of an image."""
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("first frame of several taken")
    if image.mode == "CMYK":
        notes.append("CMYK converted")
    if image.mode in ("P", "PA"):
        notes.append("palette")
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # an image may be sound without it
        orientation = 1
        notes.append("EXIF unreadable")
    if orientation not in (0, 1):
        applied = exif and orientation in _UPRIGHT
        notes.append("EXIF rotation applied" if applied else "EXIF rotation ignored")
    return orientation if exif else 1, notes


def _to_eight_bit(image: Image.Image, window: Window, notes: list[str]) -> Image.Image:
    if image.mode in _DEEP_GREY:
        if window is None:
            raise ImageError("16-bit", f"mode {image.mode} needs a grey-value window")
        low, high = window
        if not high > low:
            raise ValueError(f"window: high ({high}) must be above low ({low})")
        grey = (np.asarray(image, dtype=np.float64) - low) * (255 / (high - low))
        grey = np.nan_to_num(grey, nan=0.0, posinf=255.0, neginf=0.0)
        return Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            notes.append("alpha")
            return rgba
        return rgba.convert("RGB")
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    try:
        return image if image.mode == mode else image.convert(mode)  # convert copies in any case
    except ValueError as error:
        raise ImageError("unreadable", f"mode {image.mode}: {error}") from error


def resized_size(size: tuple[int, int], px: int) -> tuple[int, int]:
    """(width, height) after the shorter side is resized to `px`; the longer one is cut to a whole
    number as torchvision does. Raises ImageError for an image so elongated that the result would
    have more than MAX_PIXELS.
    """
    width, height = size
    longer = int(px * max(size) / min(size))
    if px * longer > MAX_PIXELS:
        raise ImageError("too many pixels", f"{width} x {height} resized to {px} x {longer}")
    return (px, longer) if width <= height else (longer, px)


def resize_shorter(image: Image.Image, px: int) -> Image.Image:
    """Resize so that the shorter side is `px` (bicubic, antialiased) and drop alpha: L or RGB."""
    size = resized_size(image.size, px)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    # After the resize a fully transparent pixel is black (Pillow resizes premultiplied colours).
    return image.convert("RGB") if image.mode == "RGBA" else image


def resize_crop(image: Image.Image, px: int) -> np.ndarray:
    """The reference's deterministic transform up to normalisation: uint8 (C, px, px).

    C = 1 if the three channels are equal at every pixel, else 3.
    """
    size = resized_size(image.size, px)
    left, top = (round((side - px) / 2) for side in size)  # half to even, as torchvision
    part = (left, top, left + px, top + px)
    if size == image.size or image.mode == "RGBA" or image.height >= image.width:
        return to_array(resize_shorter(image, px).crop(part))
    return to_array(_resize_part(image, size, part))


def _resize_part(image: Image.Image, size: tuple[int, int], part: tuple[int, ...]) -> Image.Image:
    """`image.resize(size).crop(part)` of a wide L or RGB image, the same pixels with less work.

    Pillow resizes each row, rounds, and then each column, every output from a window of inputs that
    its number gives. So columns can be left out in between; and where the corners of the part lie
    on whole input pixels, nothing else need be computed at all. Not of tall images: Pillow 13
    resizes some of them in the other order, by a rule of its own.
    """
    bicubic = Image.Resampling.BICUBIC
    left, top, right, bottom = part
    scales = zip(part, image.size * 2, size * 2, strict=True)
    ends = [divmod(end * before, after) for end, before, after in scales]
    if not any(rest for _, rest in ends):
        box = tuple(whole for whole, _ in ends)
        return image.resize((right - left, bottom - top), bicubic, box=box)
    columns = image.resize((size[0], image.height), bicubic).crop((left, 0, right, image.height))
    return columns.resize((right - left, size[1]), bicubic).crop((0, top, right - left, bottom))


def to_array(image: Image.Image) -> np.ndarray:
    """An L or RGB image as uint8 (C, H, W), C = 1 if its channels are equal at every pixel."""
    bands = [np.asarray(band) for band in image.split()]
    if all(np.array_equal(bands[0], band) for band in bands[1:]):
        bands = bands[:1]
    return np.stack(bands)


def as_png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
