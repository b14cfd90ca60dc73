"""Files with texts that UTF-8 cannot hold: half of a character, as JSON and file names may have."""

import os

import pytest

from data_prep import audit
from m3ae import predict
from m3ae.files import read_json, write_json, write_text
from m3ae.reports.parts import page
from tests.test_predict import corpus, models  # noqa: F401  (fixtures)

HALF = "a mass \ud800"


def test_half_a_character(tmp_path):
    """A codec's error that names no file, half a file, or a text that is another when read."""
    path = tmp_path / "x"
    write_text(path, "before")
    with pytest.raises(ValueError, match=r"x: cannot hold what is not UTF-8: a mass \\ud800"):
        write_text(path, HALF)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["x"]
    write_json(path, {HALF: [HALF, "ü"]})
    assert read_json(path) == {HALF: [HALF, "ü"]} and b"\xc3\xbc" in path.read_bytes()
    assert r"a mass \ud800" in page(HALF, HALF).encode().decode()


def test_names_that_are_not_utf8(models, corpus, tmp_path, capsys):  # noqa: F811
    """Hours of a search lost when its list is written at the end."""
    folder = tmp_path / "images"
    folder.mkdir()
    image = (corpus / "raw/0.png").read_bytes()
    (folder / "good.png").write_bytes(image)
    with open(os.fsencode(folder) + b"/bad\xff.png", "wb") as file:
        file.write(image)
    for main, words in (
        (audit.main, ["--keep", folder, "--against", folder]),
        (predict.main, ["--model", models / "vqa", "--folder", folder, "--question", "Why?"]),
    ):
        assert main([*map(str, words), "--out", str(tmp_path / "out.csv")]) in (1, 2)
        told = capsys.readouterr().err
        assert "bad\\udcff.png: its name is not UTF-8; rename it" in told
        assert not (tmp_path / "out.csv").exists()
