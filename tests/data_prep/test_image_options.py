"""--exif and --max-pixels: what they do to a corpus, and that its manifest says so."""

import json

import numpy as np
import pytest
from PIL import Image

from m3ae.data.images import decode, resize_crop
from m3ae.data.shards import Shards
from tests.data.test_images import gigantic_png
from tests.data_prep.test_prepare import as_bytes, picture, run, write_roco


def turned_corpus(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = as_bytes(picture(1, size=(40, 20)), exif=exif)
    return write_roco(folder, {"turned": data, "plain": as_bytes(picture(2))}), data


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "original"])
def test_exif_is_applied_when_asked(tmp_path, encoding):
    """A picture that lies on its side though --exif was given, as preparing or as reading does it;
    shards made with it taken for ones made without."""
    raw, data = turned_corpus(tmp_path / "raw")
    upright = resize_crop(decode(data, exif=True)[0], 16)
    for option, wanted in (["--exif"], upright), ([], resize_crop(decode(data)[0], 16)):
        out = tmp_path / f"out{len(option)}"
        assert run(raw, out, "--encoding", encoding, *option) == 0
        split = Shards(out / "train")
        keys = [split.image_key(j) for j in range(2)]
        found = split.image(keys.index("turned"), 16)
        if encoding == "jpeg":
            assert np.abs(found.astype(int) - wanted).mean() < 12
        else:
            assert np.array_equal(found, wanted)
        assert split.manifest["options"].get("exif", False) == bool(option)
        note = "EXIF rotation applied" if option else "EXIF rotation ignored"
        assert split.manifest["report"]["notes"][note]["count"] == 1
    assert run(raw, out, "--encoding", encoding, "--exif") == 1  # of the split without


def test_gigantic_images_are_counted(tmp_path):
    """A preparation that some kB of a file end for lack of memory; a limit that is not recorded,
    by which a picture kept as its bytes cannot be read again."""
    images = {"gigantic": gigantic_png(), "good": as_bytes(picture(1))}
    raw = write_roco(tmp_path / "raw", images)
    assert run(raw, tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())["splits"]["train"]["report"]
    dropped = report["dropped"]["image: too many pixels"]
    assert dropped["count"] == 1 and "89,478,485; --max-pixels" in dropped["examples"][0]
    assert run(raw, tmp_path / "low", "--max-pixels", "319") == 1  # the good one has 320
    assert run(raw, tmp_path / "low", "--max-pixels", "0") == 1
    small = write_roco(tmp_path / "small", {"good": as_bytes(picture(1))})
    assert run(small, tmp_path / "kept", "--max-pixels", "320", "--encoding", "original") == 0
    split = Shards(tmp_path / "kept" / "train")
    assert split.manifest["options"]["max_pixels"] == 320 and split.image(0, 16).any()
