"""Hostile images of other kinds than many pixels: counted or read, with little memory."""

import io
import struct
import zlib

import pytest
from PIL import Image, ImageCms

from m3ae.data.images import ImageError, decode, resize_crop
from tests.faults.offered import MEMORY, cost, some


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks: bytes) -> bytes:
    """A small PNG with these chunks after its header."""
    plain = saved(SMALL, "PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]


SMALL = Image.effect_noise((40, 30), 50).convert("RGB")
BOMB = zlib.compress(bytes(2**28), 9)  # 256 kB
FRAMES = [Image.new("L", (2000, 2000), k) for k in range(20)]


def gif() -> bytes:
    return saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])


def tiff() -> bytes:
    pages = {"save_all": True, "append_images": FRAMES[1:], "compression": "tiff_deflate"}
    return saved(FRAMES[0], "TIFF", **pages)


def tiff_loop() -> bytes:
    """A directory whose next one is itself."""
    plain = bytearray(saved(SMALL, "TIFF"))
    (first,) = struct.unpack_from("<I", plain, 4)
    (count,) = struct.unpack_from("<H", plain, first)
    struct.pack_into("<I", plain, first + 2 + 12 * count, first)
    return bytes(plain)


def tiff_huge_tag() -> bytes:
    plain = bytearray(saved(SMALL, "TIFF"))
    (first,) = struct.unpack_from("<I", plain, 4)
    struct.pack_into("<I", plain, first + 2 + 4, 2**31 - 1)
    return bytes(plain)


def exif() -> bytes:
    return saved(SMALL, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 60_000)


READ, COUNTED = "read", "counted"
KINDS = {
    "tiff_loop": (tiff_loop, None),
    "gif_of_many_frames": (gif, READ),
    "tiff_of_many_frames": (tiff, READ),
    "tiff_huge_tag": (tiff_huge_tag, None),
    "png_text_bomb": (lambda: png_with(chunk(b"zTXt", b"a\0\0" + BOMB)), COUNTED),
    "png_international_text_bomb": (
        lambda: png_with(chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
        COUNTED,
    ),
    "png_many_texts": (
        lambda: png_with(*[chunk(b"tEXt", b"a%d\0" % k + b"x" * 10**5) for k in range(900)]),
        COUNTED,
    ),
    "png_profile_bomb": (lambda: png_with(chunk(b"iCCP", b"a\0\0" + BOMB)), None),
    "png_data_bomb": (lambda: png_with(chunk(b"IDAT", BOMB)), None),
    "png_bad_sum": (lambda: png_with(b"\0\0\0\1tEXt0000"), COUNTED),
    "jpeg_exif": (exif, READ),
    "jpeg_profile": (
        lambda: saved(SMALL, "JPEG", icc_profile=bytes(60_000)),
        READ,
    ),
    "cmyk": (lambda: saved(SMALL.convert("CMYK"), "JPEG"), READ),
    "cmyk_tiff": (lambda: saved(SMALL.convert("CMYK"), "TIFF"), READ),
    "lab": (lambda: saved(lab(), "TIFF"), READ),
    "svg": (lambda: b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', COUNTED),
    "svg_entities": (
        lambda: b'<!DOCTYPE x [<!ENTITY a "' + b"x" * 99 + b'">]><svg>&a;</svg>',
        COUNTED,
    ),
    "html": (lambda: b"<html><script>alert(1)</script>", COUNTED),
    "pdf": (lambda: saved(SMALL, "PDF"), COUNTED),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", COUNTED),
    "zip": (lambda: b"PK\3\4" + bytes(99), COUNTED),
    "zeros": (lambda: bytes(1000), COUNTED),
    "empty": (lambda: b"", COUNTED),
    "truncated": (lambda: saved(SMALL, "PNG")[:-400], COUNTED),
    "truncated_jpeg": (lambda: saved(SMALL, "JPEG")[:-400], COUNTED),
}


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(SMALL, *profiles, outputMode="LAB")


@pytest.mark.parametrize("kind", some(KINDS))
def test_hostile_images(kind):
    """A frame, a text or a profile that fills the memory; a file of another kind that runs."""
    make, wanted = KINDS[kind]
    data = make()

    def prepared() -> object:
        try:
            return resize_crop(decode(data)[0], 32).shape
        except ImageError as error:
            return error.reason

    found, grown = cost(prepared)
    assert isinstance(found, tuple | str), repr(found)  # else it would end the preparation
    assert grown < MEMORY, f"{grown / 2**20:.0f} MB"
    assert wanted in (None, READ if isinstance(found, tuple) else COUNTED), found
