"""An audit that was stopped goes on, and finds the same."""

import hashlib
import json

import numpy as np
import pytest

from data_prep import audit
from m3ae.corpora import audit_work
from m3ae.corpora import near_duplicates as near
from tests.data_prep.test_audit import copy_of, scene


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(audit_work, "BLOCK", 2)
    monkeypatch.setattr(near, "BLOCK", 2)
    keep, against = tmp_path / "keep", tmp_path / "against"
    keep.mkdir(), against.mkdir()
    for number in range(4):
        scene(number).save(keep / f"k{number}.png")
    for number in range(6):
        copy_of(scene(number + 2)).save(against / f"a{number}.jpg")
    return keep, against


def command(folders, out) -> list[str]:
    keep, against = map(str, folders)
    return ["--keep", keep, "--against", against, "--out", str(out), "--workers", "0"]


def test_a_stopped_search_goes_on(tmp_path, folders, monkeypatch, capsys):
    """Hours of work lost; finished blocks searched again; another result than in one go."""
    whole, out = tmp_path / "whole.txt", tmp_path / "out.txt"
    assert audit.main(command(folders, whole)) == 0
    block, searched = near.Search.block, []

    def stopping(self, start):
        searched.append(start)
        if start == 4 and len(searched) < 4:
            raise KeyboardInterrupt
        return block(self, start)

    monkeypatch.setattr(near.Search, "block", stopping)
    assert audit.main(command(folders, out)) == 130
    parts = tmp_path / "out.txt.parts"
    blocks = parts / "blocks.jsonl"
    assert not out.exists() and len(blocks.read_text().splitlines()) == 3
    # A kill may leave the last line and the last picture cut short.
    blocks.write_text(blocks.read_text()[:-3])
    pictures = parts / f"pictures-{audit_work.FORMAT}"
    pictures.write_bytes(pictures.read_bytes()[:-5])
    read = []
    made = near.picture
    monkeypatch.setattr(near, "picture", lambda image: read.append(1) or made(image))
    searched.clear()
    capsys.readouterr()
    searched.append(-1)
    monkeypatch.setattr(near.Search, "block", lambda self, s: searched.append(s) or block(self, s))
    assert audit.main(command(folders, out)) == 0
    said = capsys.readouterr().out
    assert len(read) == 1 and "pictures: 9 made before" in said
    assert sorted(searched[1:]) == [2, 4] and "1 of 3 blocks done before" in said
    assert out.read_text() == whole.read_text() and not parts.exists()
    assert json.loads((tmp_path / "out.txt.json").read_text()) == json.loads(
        (tmp_path / "whole.txt.json").read_text()
    )


def test_blocks_of_another_search(tmp_path, capsys):
    """Finished blocks of other images or of another threshold taken for this search's."""
    path = tmp_path / "blocks.jsonl"
    path.write_text('{"search": "a"}\n{"start": 0, "near": [[0, 1, 0.9]]}\n')
    assert audit_work.finished_blocks(path, "a") == {0: [(0, 1, 0.9)]}
    assert audit_work.finished_blocks(path, "b") == {}
    assert "the search begins anew" in capsys.readouterr().out

    stored = audit_work.PictureFile(tmp_path)
    for number in range(3):
        stored.add(hashlib.sha256(b"%d" % number).digest(), *near.picture(scene(number)))
    stored.close()
    keys = [hashlib.sha256(b"%d" % number).digest() for number in (2, 0, 2)]
    pictures = stored.of(keys)
    assert (pictures[:].pixels[1].numpy() == near.picture(scene(0))[0]).all()
    places = np.arange(3)
    one = near.Search(pictures, pictures, places, places, 0.85)
    for other in (
        near.Search(stored.of(keys[:2]), pictures, places[:2], places, 0.85),
        near.Search(pictures, pictures, places, places, 0.9),
        near.Search(pictures, pictures, places, places + 1, 0.85),
    ):
        assert audit_work.search_key(one) != audit_work.search_key(other)
