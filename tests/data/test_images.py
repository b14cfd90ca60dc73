"""Decoding and the deterministic transform, against the reference's recorded pixels."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3ae.data import images
from m3ae.data.images import ImageError, decode, resize_crop

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_transforms.pt"
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)  # CLIP
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def as_bytes(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def reference_transform(image: Image.Image, px: int) -> np.ndarray:
    """The slow twin: always RGBA, torchvision's own resize and crop, alpha dropped at the end."""
    from torchvision.transforms import functional as F

    rgba = F.center_crop(F.resize(image.convert("RGBA"), px, F.InterpolationMode.BICUBIC), px)
    return np.asarray(rgba)[..., :3].transpose(2, 0, 1)


@pytest.mark.parametrize("name", sorted(torch.load(GOLDEN, weights_only=True)["inputs"]))
def test_golden_pixels(name):
    """Another filter, size rounding, crop offset or treatment of alpha than the reference's."""
    golden = torch.load(GOLDEN, weights_only=True)
    array, wanted = golden["inputs"][name].numpy(), golden["outputs"][name].numpy()
    data = array.tobytes() if array.ndim == 1 else as_bytes(Image.fromarray(array))
    pixels = resize_crop(decode(data)[0], golden["size"])
    assert pixels.dtype == np.uint8 and len(pixels) == (1 if name.startswith("gray") else 3)
    pixels = np.broadcast_to(pixels, wanted.shape)
    wanted_pixels = np.rint((wanted * STD[:, None, None] + MEAN[:, None, None]) * 255)
    assert np.array_equal(pixels, wanted_pixels)
    normalised = (pixels / np.float32(255) - MEAN[:, None, None]) / STD[:, None, None]
    assert np.abs(normalised - wanted).max() < 1e-5


@settings(max_examples=40)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(8, 60),
    st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"]),
    st.integers(0, 9),
)
def test_fast_paths_equal_the_rgba_path(width, height, px, mode, seed):
    """The RGB or L shortcut differs from the reference's RGBA path for some size or mode."""
    image = Image.fromarray(noise((height, width, 4), seed)).convert(mode)
    data = as_bytes(image, "TIFF" if mode == "CMYK" else "PNG")
    pixels = resize_crop(decode(data)[0], px)
    wanted = reference_transform(Image.open(io.BytesIO(data)), px)
    assert np.array_equal(np.broadcast_to(pixels, wanted.shape), wanted)


@settings(max_examples=300)
@given(
    st.sampled_from([(4, 3), (3, 2), (16, 9), (1, 1), (5, 4), (7, 3), (2, 1), (9, 1), None]),
    st.integers(1, 40),
    st.integers(1, 120),
    st.integers(1, 120),
    st.integers(1, 64),
    st.booleans(),
    st.sampled_from(["L", "RGB"]),
    st.integers(0, 9),
)
def test_the_part_alone_equals_a_part_of_the_whole(
    ratio, factor, width, height, px, upright, mode, seed
):
    """Leaving out what the crop cuts off changes a pixel: at an edge, or by another rounding.

    Of common ratios the corners of the crop often lie on whole pixels, of others hardly ever.
    """
    if ratio:
        width, height = (side * factor for side in ratio)
    if upright:
        width, height = height, width
    image = Image.fromarray(noise((height, width, 3), seed)).convert(mode)
    wanted = reference_transform(image, px)
    assert np.array_equal(np.broadcast_to(resize_crop(image, px), wanted.shape), wanted)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "size",
    [
        (800, 600),
        (600, 800),
        (1024, 768),
        (640, 480),
        (600, 400),
        (1000, 711),
        (711, 1000),
        (2001, 333),
        (288, 500),
        (500, 288),
        (64, 48),
        (1280, 720),
    ],
)
def test_common_sizes_at_288_px(size, mode):
    """The same, at the size of the paper and sizes of real pictures."""
    image = Image.fromarray(noise((size[1], size[0], 3))).convert(mode)
    wanted = reference_transform(image, 288)
    assert np.array_equal(np.broadcast_to(resize_crop(image, 288), wanted.shape), wanted)


def test_transparent_pixels_become_black():
    """Hidden colours under full transparency leak into the picture."""
    image = np.full((40, 40, 4), 200, dtype=np.uint8)
    image[..., 3] = 0
    decoded, notes = decode(as_bytes(Image.fromarray(image)))
    assert notes == ["alpha"] and resize_crop(decoded, 16).max() == 0


def test_colourless_rgb_becomes_one_channel():
    """Grey pictures saved as RGB take three times their bytes; one coloured pixel must count."""
    grey = np.repeat(noise((30, 30, 1)), 3, axis=2)
    assert resize_crop(decode(as_bytes(Image.fromarray(grey)))[0], 30).shape == (1, 30, 30)
    grey[15, 15, 2] ^= 1
    assert resize_crop(decode(as_bytes(Image.fromarray(grey)))[0], 30).shape == (3, 30, 30)


def test_notes():
    """CMYK, animation, EXIF rotation and palette pass uncounted, or the rotation is applied."""
    cmyk = as_bytes(Image.fromarray(noise((9, 9, 4)), "CMYK"), "JPEG")
    assert decode(cmyk)[1] == ["CMYK converted"]
    frames = [Image.fromarray(noise((9, 9), seed)).convert("P") for seed in (1, 2)]
    animated = as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    first, notes = decode(animated)
    assert notes == ["first frame of several taken", "palette"]
    assert np.array_equal(np.asarray(first.convert("L")), np.asarray(frames[0].convert("L")))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned, notes = decode(as_bytes(Image.fromarray(noise((10, 20, 3))), "JPEG", exif=exif))
    assert notes == ["EXIF rotation ignored"] and turned.size == (20, 10)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "RGBA"])
def test_exif_orientation(orientation, mode):
    """A picture turned the wrong way or mirrored, turned without being asked, or twice."""
    pixels = noise((10, 20, 4))
    pixels[..., 3] = np.maximum(pixels[..., 3], 1)
    deep = pixels[..., 0].astype(np.uint16)
    image = Image.fromarray(deep if mode == "I;16" else pixels)
    image = image if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_bytes(image, "PNG", exif=exif)
    plain = decode(data, (0, 255))[0]
    turned, notes = decode(data, (0, 255), exif=True)
    wanted = np.asarray(plain)
    if 2 <= orientation <= 8:
        slow = {
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.swapaxes(0, 1),
            6: lambda a: np.rot90(a, -1),
            7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
            8: lambda a: np.rot90(a),
        }
        wanted = slow[orientation](wanted)
        assert "EXIF rotation applied" in notes
    assert ("EXIF rotation ignored" in notes) == (orientation == 9)
    assert np.array_equal(np.asarray(turned), wanted)
    assert plain.size == (20, 10)


def gigantic_png(side: int = 20_000) -> bytes:
    """A sound PNG of side x side black pixels of one bit, some 50 KB; 400 MB in memory."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    packed = b"".join(packer.compress(row * 1000) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")):
        check = zlib.crc32(kind + data)
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
    return out


GIGANTIC = """
import resource, sys
from pathlib import Path
from m3ae.data.images import ImageError, decode
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
try:
    decode(Path(sys.argv[1]))
except ImageError as error:
    print(error, peak() - before, sep="|")
"""


def test_a_gigantic_image_is_not_decoded(tmp_path):
    """Some kB that take all memory before they are found to be too large."""
    path = tmp_path / "gigantic.png"
    path.write_bytes(gigantic_png())
    assert path.stat().st_size < 100_000
    ran = subprocess.run(
        [sys.executable, "-c", GIGANTIC, str(path)], capture_output=True, text=True, check=True
    )
    said, kib = ran.stdout.split("|")
    assert said == "too many pixels: more than 89,478,485; --max-pixels N sets the limit"
    assert int(kib) < 100_000


def test_sixteen_bit_needs_a_window():
    """16-bit grey silently clipped to white, or the window mapped wrongly."""
    deep = Image.fromarray(np.array([[0, 1000], [2000, 65535]], dtype=np.uint16))
    for data in (as_bytes(deep), as_bytes(deep, "TIFF")):
        with pytest.raises(ImageError, match=r"16-bit.*window"):
            decode(data)
        image, _ = decode(data, window=(1000, 3000))
        assert np.asarray(image).tolist() == [[0, 0], [128, 255]]
    with pytest.raises(ValueError, match="must be above low"):
        decode(as_bytes(deep), window=(5, 5))


def test_broken_files(monkeypatch, tmp_path):
    """Damaged files decode to half a picture or end the preparation with a foreign exception."""
    good = {f: as_bytes(Image.fromarray(noise((60, 60, 3))), f) for f in ("PNG", "JPEG", "GIF")}
    for data, reason in [
        (b"", "zero bytes"),
        (b"<html>not found</html>", "unreadable"),
        (good["JPEG"][:900], "truncated"),
        (good["PNG"][:900], "truncated"),
    ]:
        with pytest.raises(ImageError) as caught:
            decode(data)
        assert caught.value.reason == reason
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="too many pixels"):
        decode(good["PNG"], max_pixels=3599)
    assert decode(good["PNG"], max_pixels=3600)[0].size == (60, 60)
    monkeypatch.setattr(images, "MAX_PIXELS", 3000)
    with pytest.raises(ImageError, match="too many pixels"):  # a line, harmless before the resize
        resize_crop(decode(as_bytes(Image.new("L", (1000, 2))))[0], 32)


@settings(max_examples=60)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "BMP"]), st.data())
def test_damage_anywhere_is_an_image_error(format, data):
    """A flipped or missing byte somewhere raises something a preparation does not count."""
    blob = bytearray(as_bytes(Image.fromarray(noise((20, 20, 3))), format))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = bytes(blob[: data.draw(st.integers(0, len(blob)))])
    try:
        resize_crop(decode(blob)[0], 16)
    except ImageError:
        pass
