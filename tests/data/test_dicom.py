"""DICOM files to 8-bit pixels, and nothing of their headers anywhere."""

import io
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import pairs
from m3ae.data import dicom
from m3ae.data.images import ImageError, decode

pydicom = pytest.importorskip("pydicom")
NAME = "MUSTERFRAU^ERIKA"
HEADER = {"PatientName": NAME, "PatientID": "MRN0815", "StudyDescription": "secret words"}


def dataset(values: np.ndarray, colours: str = "MONOCHROME2", **header):
    """A secondary capture of values (H, W), (F, H, W) or (H, W, 3)."""
    made = pydicom.Dataset()
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    made.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    colour = values.ndim == 3 and values.shape[2] == 3
    bits = 8 * values.dtype.itemsize
    facts = {"Rows": values.shape[-2 - colour], "Columns": values.shape[-1 - colour]}
    facts |= {"SamplesPerPixel": 3 if colour else 1, "PhotometricInterpretation": colours}
    facts |= {"BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1}
    facts |= {"PixelRepresentation": int(values.dtype.kind == "i")}
    facts |= {"PlanarConfiguration": 0} if colour else {}
    facts |= {"NumberOfFrames": len(values)} if values.ndim == 3 and not colour else {}
    for name, value in {**HEADER, **facts, **header}.items():
        setattr(made, name, value)
    made.add_new("PixelData", "OB" if bits == 8 else "OW", values.tobytes())
    return made


def as_bytes(made, bare: bool = False) -> bytes:
    out = io.BytesIO()
    if bare:
        pydicom.dcmwrite(
            out, made, implicit_vr=False, little_endian=True, enforce_file_format=False
        )
        start = out.getvalue().index(b"\x08\x00\x16\x00")
        return out.getvalue()[start:]
    pydicom.dcmwrite(out, made, enforce_file_format=True)
    return out.getvalue()


def grey_of(values: np.ndarray, window=None, colours: str = "MONOCHROME2", **header) -> list:
    image, _ = decode(as_bytes(dataset(values, colours, **header)), window)
    assert image.mode == "L"
    return np.asarray(image).tolist()


HU = np.array([[-1024, -1, 0, 20], [39, 59, 79, 3000]])
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}
WINDOWED = [[0, 0, 0, 65], [126, 190, 255, 255]]  # ((x - 39.5) / 79 + 0.5) * 255


def test_the_window_of_the_file():
    """Stored values windowed before they are rescaled; the second of several windows."""
    stored = (HU + 1024).astype(np.uint16)
    assert grey_of(stored, **CT, WindowCenter=40, WindowWidth=80) == WINDOWED
    assert grey_of(stored, **CT, WindowCenter=[40, 300], WindowWidth=[80, 1500]) == WINDOWED
    dark = [[255 - value for value in row] for row in WINDOWED]
    assert grey_of(stored, None, "MONOCHROME1", **CT, WindowCenter=40, WindowWidth=80) == dark
    exact = grey_of(stored, **CT, WindowCenter=40, WindowWidth=80, VOILUTFunction="LINEAR_EXACT")
    assert exact == [[0, 0, 0, 64], [124, 188, 252, 255]]  # ((x - 40) / 80 + 0.5) * 255
    assert grey_of(stored, (0, 79), **CT, WindowCenter=300, WindowWidth=1500) == WINDOWED
    with pytest.raises(ValueError, match=r"window: high \(5\) must be above low \(5\)"):
        grey_of(stored, (5, 5))


def test_a_falling_scale():
    """A window over a negative slope that comes out inverted."""
    stored = np.array([[0, 40, 80]], np.uint16)
    falling = {"RescaleSlope": -1, "RescaleIntercept": 80}
    assert grey_of(stored, **falling, WindowCenter=40.5, WindowWidth=81) == [[255, 128, 0]]


def test_without_a_window():
    """8-bit pictures that are stretched; deep ones that are black; padding taken for a value."""
    assert grey_of(np.array([[10, 20]], np.uint8)) == [[10, 20]]
    deep = np.array([[63536, 1000, 1500, 2000]], np.uint16).view(np.int16)
    assert grey_of(deep, PixelPaddingValue=-2000) == [[0, 0, 128, 255]]
    _, notes = decode(as_bytes(dataset(deep, WindowCenter=40, WindowWidth=0)))
    assert notes == ["DICOM: no window in the file, range of its grey values"]
    assert grey_of(np.full((2, 2), 700, np.uint16)) == [[0, 0], [0, 0]]


def test_lookup_tables():
    """A table of the modality or of the view that is passed over."""
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [4, 10, 16], [0, 30, 60, 100]
    item["LUTData"].VR = "US"
    item["LUTDescriptor"].VR = "US"
    values = np.array([[0, 10, 11, 12, 13, 99]], np.uint16)
    wanted = [[0, 0, 76, 153, 255, 255]]
    assert grey_of(values, VOILUTSequence=[item], WindowCenter=1, WindowWidth=1) == wanted
    assert grey_of(values, ModalityLUTSequence=[item]) == wanted


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 4095), min_size=2, max_size=8),
    st.sampled_from([None, (40.0, 400.0), (1000.0, 1.0), (-5.5, 77.0)]),
    st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    st.sampled_from([-2.0, -0.5, 0.25, 1.0, 3.0]),
    st.booleans(),
)
def test_brighter_stays_brighter(values, window, function, slope, inverted):
    """A rule of scaling by which a higher value is darker, or MONOCHROME1 is not inverted."""
    facts = {"RescaleSlope": slope, "RescaleIntercept": -100, "VOILUTFunction": function}
    if window:
        facts |= {"WindowCenter": window[0], "WindowWidth": window[1]}
    stored = np.array([values], np.uint16)
    grey = np.array(grey_of(stored, None, f"MONOCHROME{2 - inverted}", **facts)[0])
    order = np.argsort(np.array(values) * slope * (-1 if inverted else 1), kind="stable")
    assert (np.diff(grey[order]) >= 0).all()


def test_frames():
    """The first frame, or a window of another frame than the one that is shown."""
    frames = np.stack([np.full((2, 4), 10 * k, np.uint8) for k in range(5)])
    image, notes = decode(as_bytes(dataset(frames)))
    assert np.asarray(image).tolist() == [[20] * 4] * 2
    assert notes == ["DICOM: middle frame of several"]
    groups = []
    for centre in (500, 1000, 1500):
        group, view = pydicom.Dataset(), pydicom.Dataset()
        view.WindowCenter, view.WindowWidth = centre + 0.5, 1001
        group.FrameVOILUTSequence = [view]
        groups.append(group)
    deep = np.full((3, 1, 1), 1000, np.uint16)
    shared = pydicom.Dataset()
    scale = pydicom.Dataset()
    scale.RescaleSlope, scale.RescaleIntercept = 1, 0
    shared.PixelValueTransformationSequence = [scale]
    enhanced = {"PerFrameFunctionalGroupsSequence": groups}
    enhanced |= {"SharedFunctionalGroupsSequence": [shared]}
    assert grey_of(deep, **enhanced) == [[128]]


def test_colours():
    """YBR or a palette shown as it is stored; planes taken for pixels; 16 bits cut from below."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)

    def shown(made) -> np.ndarray:
        image, _ = decode(as_bytes(made))
        assert image.mode == "RGB"
        return np.asarray(image)

    assert (shown(dataset(rgb, "RGB")) == rgb).all()
    planes = dataset(rgb, "RGB", PlanarConfiguration=1)
    planes.PixelData = rgb.transpose(2, 0, 1).tobytes()
    assert (shown(planes) == rgb).all()
    assert (shown(dataset(rgb.astype(np.uint16) * 256 + 255, "RGB")) == rgb).all()
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    assert np.abs(shown(dataset(ybr, "YBR_FULL")).astype(int) - rgb).max() <= 2
    palette = dataset(np.array([[0, 1], [2, 1]], np.uint8), "PALETTE COLOR")
    table = np.array([[0, 250, 3], [7, 8, 9], [30, 20, 200]], np.uint16)
    for colour, column in zip(("Red", "Green", "Blue"), table.T, strict=True):
        setattr(palette, f"{colour}PaletteColorLookupTableDescriptor", [3, 0, 16])
        setattr(palette, f"{colour}PaletteColorLookupTableData", (column * 256).tobytes())
    assert (shown(palette) == table[[[0, 1], [2, 1]]]).all()
    with pytest.raises(ImageError, match="DICOM of colours that are not read"):
        decode(as_bytes(dataset(np.zeros((2, 2), np.uint8), "CMYK")))


def bundled(name: str) -> bytes:
    return Path(pydicom.data.get_testdata_file(name, download=False)).read_bytes()


def test_files_of_pydicom():
    """One picture that differs by its transfer syntax; a palette or YBR in the wrong colours."""
    names = ("", "_RLE", "_bigendian", "_implicit", "_expb", "_jp2klossless")
    first, *others = [np.asarray(decode(bundled(f"MR_small{n}.dcm"))[0]) for n in names]
    assert first.std() > 30 and all((first == other).all() for other in others)
    for name in ("examples_palette", "examples_ybr_color", "SC_rgb_rle", "SC_rgb_jpeg_dcmtk"):
        image, _ = decode(bundled(f"{name}.dcm"))
        assert image.mode == "RGB"
    bars = np.asarray(decode(bundled("SC_rgb_jpeg_dcmtk.dcm"))[0])[[5, 25, 45], 50]
    assert (bars.argmax(axis=1) == [0, 1, 2]).all() and (bars.max(axis=1) > 250).all()


@pytest.mark.parametrize(
    "name, reason",
    [
        ("JPEGLSNearLossless_16.dcm", "no decoder for DICOM in JPEG-LS Lossy"),
        ("JPGExtended.dcm", "DICOM pixels that its decoder does not read"),
        ("MR_truncated.dcm", "truncated"),
        ("DICOMDIR", "DICOM without a picture"),
        ("test-SR.dcm", "DICOM without a picture"),
        ("nested_priv_SQ.dcm", "DICOM header without what its pixels need"),
        ("badVR.dcm", "unreadable"),
    ],
)
def test_files_that_are_left_out(name, reason):
    """A traceback, or a reason that is not the true one; `1A` stands in a header."""
    with pytest.raises(ImageError) as caught:
        decode(bundled(name))
    if reason.startswith("no decoder"):
        syntax = pydicom.uid.JPEGLSNearLossless
        if pydicom.pixels.get_decoder(syntax).is_available:
            pytest.skip("a decoder of JPEG-LS is installed")
    assert caught.value.reason.startswith(reason) and "1A" not in str(caught.value)


def test_too_many_pixels():
    """A gigantic picture that is decoded before anybody looks at its size."""
    data = as_bytes(dataset(np.zeros((10, 10), np.uint8)))
    decode(data, max_pixels=100)
    with pytest.raises(ImageError, match="too many pixels"):
        decode(data, max_pixels=99)


def test_pydicom_is_missing(monkeypatch):
    """A traceback, or every DICOM file counted as unreadable, where pydicom is not installed."""
    data = as_bytes(dataset(np.zeros((2, 2), np.uint8)))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom._pydicom.cache_clear()
    with pytest.raises(ImportError, match=r"DICOM files need pydicom: pip install 'm3ae\[dicom\]'"):
        decode(data)
    dicom._pydicom.cache_clear()


WHOLE = as_bytes(dataset(np.arange(64, dtype=np.uint16).reshape(8, 8), WindowCenter=30, **CT))


@settings(max_examples=200)
@given(st.integers(0, len(WHOLE)), st.binary(max_size=12), st.booleans())
def test_damaged_files(place, junk, cut):
    """A traceback from a damaged header, or a message that quotes it."""
    data = WHOLE[:place] + junk + (b"" if cut else WHOLE[place + len(junk) :])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            decode(data)
        except ImageError as error:
            assert not any(word in str(error) for word in ("MUSTER", "ERIKA", "MRN", "secret"))


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "original"])
def test_no_word_of_a_header_is_kept(tmp_path, encoding, capfd, caplog):
    """A patient's name in a shard, a report or the log; files without suffix that are not read."""
    caplog.set_level(logging.DEBUG)
    raw = tmp_path / "raw"
    raw.mkdir()
    noise = np.random.default_rng(0).integers(0, 4096, (40, 50), dtype=np.uint16)
    whole = as_bytes(dataset(noise, **CT, BurnedInAnnotation="YES"))
    files = {"a.dcm": whole, "b.DCM": whole, "IM0001": whole, "cut.dcm": whole[:-90]}
    files["bare"] = as_bytes(dataset(noise), bare=True)
    wrong = dataset(noise)
    wrong.BitsStored = 77
    files["wrong.dcm"] = as_bytes(wrong)
    files["name.dcm"] = whole.replace(b"UI", b"IS")  # values of another kind than they are
    lines = [f"{name},text of a picture" for name in files]
    for name, data in files.items():
        (raw / name).write_bytes(data)
    (tmp_path / "x.csv").write_text("image,text\n" + "\n".join(lines))
    out = tmp_path / "out"
    options = ["--table", str(tmp_path / "x.csv"), "--raw", str(raw), "--out", str(out)]
    options += ["--encoding", encoding, "--px", "32", "--workers", "0"]
    assert pairs.main(options) == 0
    report = json.loads((out / "report.json").read_text())["splits"]["train"]
    assert report["counts"]["images"] >= 4
    dropped = {why: entry["count"] for why, entry in report["report"]["dropped"].items()}
    assert dropped["image: truncated"] == 1
    note = "DICOM: by its header, with annotations burned in"
    assert report["report"]["notes"][note]["count"] >= 3
    streams = [*capfd.readouterr(), caplog.text]
    kept = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    for text in [*kept, *(stream.encode() for stream in streams)]:
        for word in (b"MUSTER", b"ERIKA", b"MRN0815", b"secret"):
            assert word not in text
