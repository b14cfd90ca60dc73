"""DICOM: from the bytes of a file to 8-bit pixels, and not one word of its header.

pydicom is needed for DICOM alone, and imported there. Messages name reasons and types of errors
only, as pydicom's own may quote what stands in a header: names, dates, numbers of patients.
"""

import io
import logging
import warnings
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from m3ae.data.image_error import ImageError

_PREAMBLE = 128  # bytes before the magic
# The first tag of files that have neither, in little-endian.
_FIRST_TAGS = (b"\2\0\0\0", *(bytes([8, 0, element, 0]) for element in (0, 5, 8, 0x16)))
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_RESCALING = ("RescaleSlope", "RescaleIntercept")
_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation")
_NEEDED += ("BitsAllocated", "BitsStored", "PixelRepresentation")
_OF_FRAMES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # settings of a frame


def is_dicom(data: bytes) -> bool:
    """Whether a file's bytes are DICOM, with or without the preamble and magic of its files."""
    return data[_PREAMBLE : _PREAMBLE + 4] == b"DICM" or data[:4] in _FIRST_TAGS


def read_dicom(
    data: bytes, window: tuple[float, float] | None, most: int
) -> tuple[Image.Image, list[str]]:
    """The picture of a DICOM file as L or RGB, and notes; of several frames the middle one.

    Grey values go through the modality's transformation, then `window`, else the file's own window
    or lookup table, else their range, to 0-255. Raises ImageError (also for a frame of more than
    `most` pixels), ImportError without pydicom, and ValueError for a window without width.
    """
    if window is not None and not window[1] > window[0]:
        raise ValueError(f"window: high ({window[1]}) must be above low ({window[0]})")
    pydicom = _pydicom()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # they quote headers
        try:
            header = pydicom.dcmread(io.BytesIO(data), force=True)
            _check(header, pydicom, most)
            return _picture(header, pydicom.pixels, window)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # parsers and decoders raise whatever they stumble over
            cut = isinstance(error, EOFError) or "less than expected" in str(error)
            reason = "truncated" if cut else "unreadable"
            raise ImageError(reason, f"DICOM, {type(error).__name__}") from None


@cache
def _pydicom() -> ModuleType:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise ImportError("DICOM files need pydicom: pip install 'm3ae[dicom]'") from error
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its messages quote headers
    return pydicom


def _check(header: Any, pydicom: ModuleType, most: int) -> None:
    """Raise ImageError where there is no picture, too large a one, or nothing to decode it."""
    if not any(name in header for name in _PIXELS):
        raise ImageError("DICOM without a picture")
    if missing := [name for name in _NEEDED if name not in header and "PixelData" in header]:
        raise ImageError("DICOM header without what its pixels need", ", ".join(missing))
    size = int(header.Rows) * int(header.Columns)
    if size > most:
        raise ImageError("too many pixels", f"more than {most:,}; --max-pixels N sets the limit")
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        uid = pydicom.uid
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    syntax = header.file_meta.TransferSyntaxUID
    if syntax not in pydicom.uid.UID_dictionary:  # else its name could be any text
        raise ImageError("DICOM of an unknown transfer syntax")
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageError(f"no decoder for DICOM in {syntax.name}", "pydicom has none") from error
    if not decoder.is_available:
        lacks = "; ".join(decoder.missing_dependencies)
        raise ImageError(f"no decoder for DICOM in {syntax.name}", f"install one of {lacks}")


def _picture(
    header: Any, pixels: ModuleType, window: tuple[float, float] | None
) -> tuple[Image.Image, list[str]]:
    frames = int(header.get("NumberOfFrames") or 1)
    frame, notes = frames // 2, ["DICOM: middle frame of several"] if frames > 1 else []
    if str(header.get("BurnedInAnnotation", "")).upper() == "YES":
        notes.append("DICOM: by its header, with annotations burned in")
    values = _decoded(header, pixels, frame if frames > 1 else None)
    colours = str(header.PhotometricInterpretation)
    if colours in _GREY:
        _apply_frame(header, frame)
        grey = _grey(values, header, pixels, window, notes)
        if colours == "MONOCHROME1":
            notes.append("DICOM: MONOCHROME1 inverted")
            grey = 255 - grey
        return Image.fromarray(grey), notes
    bits = int(header.BitsStored)
    if colours == "PALETTE COLOR":
        _swap_palette(header)
        values, notes = pixels.apply_color_lut(values, header)[..., :3], [*notes, "palette"]
        bits = 8 * values.dtype.itemsize
    if values.ndim != 3 or values.shape[2] != 3:
        raise ImageError("DICOM of colours that are not read")
    if bits > 8:
        notes.append("16-bit colour, high bytes taken")
        values = values >> (bits - 8)
    return Image.fromarray(np.ascontiguousarray(values.astype(np.uint8))), notes


def _decoded(header: Any, pixels: ModuleType, frame: int | None) -> np.ndarray:
    """The stored values of the picture or of one frame, YBR as RGB; ImageError where none can."""
    try:
        return pixels.pixel_array(header, index=frame)
    except RuntimeError as error:  # of each decoder that there is
        syntax = header.file_meta.TransferSyntaxUID
        others = "; ".join(pixels.get_decoder(syntax).missing_dependencies)
        detail = f"{header.BitsStored:d} bits in {syntax.name}"
        detail += f"; untried, as not installed: {others}" if others else ""
        raise ImageError("DICOM pixels that its decoder does not read", detail) from error


def _swap_palette(header: Any) -> None:
    """Make the words of a big-endian palette little-endian, as `apply_color_lut` takes them."""
    names = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    for name in (name for name in names if name in header and not header.original_encoding[1]):
        header[name].value = np.frombuffer(header[name].value, ">u2").astype("<u2").tobytes()


def _apply_frame(header: Any, frame: int) -> None:
    """Bring to the top what enhanced files say of one frame's grey values; drop what is empty."""
    of_frames = header.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*(header.get("SharedFunctionalGroupsSequence") or []), *of_frames[frame : frame + 1]]
    for group in groups:
        for name in _OF_FRAMES:
            for item in group.get(name) or []:
                header.update(item)
    for name in _RESCALING:
        if name in header and header[name].is_empty:
            del header[name]


def _grey(
    values: np.ndarray,
    header: Any,
    pixels: ModuleType,
    window: tuple[float, float] | None,
    notes: list[str],
) -> np.ndarray:
    """Stored values (H, W) -> uint8 (H, W), before any inversion."""
    shown = values != _padding(header, values)
    rescaled = any(name in header for name in (*_RESCALING, "ModalityLUTSequence"))
    values = pixels.apply_modality_lut(values, header)
    if window is not None:
        low, high = window
    elif header.get("VOILUTSequence"):
        item = header.VOILUTSequence[0]
        count, first = item.LUTDescriptor[0] or 2**16, item.LUTDescriptor[1]
        table = pixels.apply_voi(np.arange(first, first + count), header)
        values = pixels.apply_voi(np.rint(values).astype(np.int64), header)
        low, high = table.min(), table.max()
        notes.append("DICOM: lookup table of the file")
    elif _has_window(header):
        low, high = pixels.apply_windowing(np.array([-1e30, 1e30]), header)  # what it gives at most
        values = pixels.apply_windowing(values, header)
        notes.append("DICOM: window of the file")
    elif "PixelData" in header and header.BitsStored <= 8 and not rescaled:
        low, high = 0, 2**header.BitsStored - 1
    else:
        inside = values[shown & np.isfinite(values)]
        low, high = (inside.min(), inside.max()) if inside.size else (0, 1)
        notes.append("DICOM: no window in the file, range of its grey values")
    span = float(high) - float(low)
    grey = (values.astype(np.float64) - float(low)) * (255 / span if span else 0.0)
    grey = np.nan_to_num(grey, nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _padding(header: Any, values: np.ndarray) -> Any:
    """The stored value that stands for no pixel, or NaN."""
    value = header.get("PixelPaddingValue")
    return np.nan if value is None or values.dtype.kind == "f" else value


def _has_window(header: Any) -> bool:
    """Whether there is a window that can be applied; of several the first one is."""
    centre, width = header.get("WindowCenter"), header.get("WindowWidth")
    if centre is None or width is None:
        return False
    first = float(width if isinstance(width, int | float) else width[0])
    return first >= 1 if header.get("VOILUTFunction", "LINEAR") == "LINEAR" else first > 0
