"""Overlap between corpora."""

import json

import numpy as np
import pytest
from PIL import Image

from data_prep import audit
from m3ae.data.prepare import read_exclusions


def smooth(seed: int, size=(120, 100)) -> Image.Image:
    """A smooth picture with structure of its own, as radiographs have."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folders(tmp_path):
    keep, against = tmp_path / "keep", tmp_path / "against"
    (against / "sub").mkdir(parents=True)
    keep.mkdir()
    for number in (100, 200, 300):
        smooth(number).save(keep / f"synpic{number}.jpg")
    Image.new("L", (50, 50), 7).save(keep / "ROCO_00001.png")
    # smaller, recompressed, RGB and brighter: the same picture
    smooth(100, (60, 50)).convert("RGB").point(lambda v: v * 0.8 + 30).save(
        against / "sub" / "copy.jpg", quality=60
    )
    smooth(1).save(against / "synpic201.jpg")  # another picture, neighbouring number
    smooth(2).save(against / "synpic203.jpg")  # three away
    smooth(3).save(against / "ROCO_00001.png")  # numbers of other corpora mean nothing
    Image.new("L", (50, 50), 200).save(against / "flat.png")  # flat pictures match nothing
    (against / "broken.png").write_bytes(b"")
    return keep, against


@pytest.mark.parametrize("workers", ["0", "2"])
def test_copies_and_neighbours_are_found(tmp_path, folders, workers, capsys):
    """A re-encoded copy or the next slice of an evaluation image stays in the training data."""
    keep, against = folders
    out = tmp_path / "lists" / "exclude.txt"
    arguments = ["--keep", str(keep), "--against", str(against), "--out", str(out)]
    assert audit.main([*arguments, "--workers", workers]) == 0
    assert read_exclusions(out) == {"copy", "synpic201"}
    report = json.loads((tmp_path / "lists" / "exclude.txt.json").read_text())
    assert (report["keep"], report["against"]) == (4, 5)
    assert (report["by_id"], report["by_pixels"], len(report["unreadable"])) == (1, 1, 1)
    html = (tmp_path / "lists" / "exclude.txt.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 4 and "numbers 1 apart" in html
    assert "2 of 5 images match one of 4" in capsys.readouterr().out


def test_options(tmp_path, folders, capsys):
    """The window of numbers or the naming by path is not obeyed."""
    keep, against = folders
    out = tmp_path / "exclude.txt"
    arguments = ["--keep", str(keep), "--against", str(against), "--out", str(out), "--workers=0"]
    assert audit.main([*arguments, "--id-window=-1", "--ids", "path"]) == 0
    assert read_exclusions(out) == {"sub/copy.jpg"}
    assert audit.main([*arguments, "--id-window=3", "--threshold=1.1"]) == 0
    assert read_exclusions(out) == {"synpic201", "synpic203"}
    assert audit.main([*arguments, "--keep", str(tmp_path / "absent")]) == 1
    assert "absent: not there" in capsys.readouterr().err


def test_blocks(monkeypatch):
    """Rows of the second block are named as those of the first."""
    monkeypatch.setattr(audit, "BLOCK", 2)
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(576, 5)))[0].T.astype(np.float32)
    paths = [audit.Path(f"{k}.png") for k in range(5)]
    matches = audit.find_matches((paths[3:], vectors[3:]), (paths, vectors), 0.9, 2, "abcde")
    assert [(match.id, match.keep) for match in matches] == [("d", "3.png"), ("e", "4.png")]
