"""Chunks and shards: how large they are, and preparations that an earlier version began."""

import json

import numpy as np
import pytest

from data_prep import verify
from m3ae.corpora import chunks
from m3ae.corpora import prepare as prepare_module
from m3ae.corpora.chunks import Settings
from m3ae.corpora.reopening import CHUNK_IMAGES
from m3ae.corpora.shard_writer import seal
from m3ae.data.shards import Shards
from m3ae.files import write_json
from tests.data_prep.test_prepare import as_bytes, everything, picture, run, ten, write_roco


@pytest.mark.parametrize("px, images", [(288, 3072), (384, 1736), (64, 3072), (20000, 16)])
def test_a_chunk_of_grey_images_fills_a_shard(px, images):
    """Shards so small that a corpus has more files than may be open, or a chunk so large that
    workers idle and an interruption costs hours."""
    settings = Settings("raw", px, None, 3)
    assert settings.chunk_images == images
    assert images == 16 or images * px * px <= 256e6


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_full_shard_is_followed_by_another(tmp_path, monkeypatch, encoding):
    """A shard of coloured images of three times the size; images lost or doubled where one ends."""
    raw = write_roco(tmp_path / "raw", {f"R{k:02d}": as_bytes(picture(k)) for k in range(30)})
    options = ["--encoding", encoding, "--tokenizer", "train:60"]
    assert run(raw, tmp_path / "one", *options) == 0
    limit = 4 * 3 * 16 * 16 if encoding == "raw" else 3000
    monkeypatch.setattr(chunks, "_SHARD_BYTES", limit)
    monkeypatch.setattr(Settings, "chunk_images", property(lambda self: 20))
    assert run(raw, tmp_path / "many", *options) == 0
    assert verify.main([str(tmp_path / "many")]) == 0
    one, many = Shards(tmp_path / "one" / "train"), Shards(tmp_path / "many" / "train")
    rows = {many.image_key(j): j for j in range(many.num_images)}
    assert len(rows) == many.num_images == 30 and len(many.files) > 7
    for j in range(30):
        other = rows[one.image_key(j)]
        assert np.array_equal(one.image(j, 16), many.image(other, 16))
    texts = {many.text(i): many.tokens(i)[0].tolist() for i in range(30)}
    assert texts == {one.text(i): one.tokens(i)[0].tolist() for i in range(30)}
    for k in range(len(many.files)):
        name = "images" if encoding == "raw" else "image_bytes"
        assert many.shard(k)[name].nbytes <= limit


def forget_size(path) -> None:
    """Make a record what the version before wrote."""
    record = json.loads(path.read_text())
    del record[CHUNK_IMAGES]
    write_json(path, seal(record) if "sha256" in record else record, indent=None)


def test_a_finished_split_of_smaller_chunks(tmp_path, monkeypatch, capsys):
    """A split of an earlier version called "made from other files", or one whose repair is refused
    since its chunks are not today's."""
    raw, out = ten(tmp_path / "raw"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Settings, "chunk_images", property(lambda self: 4))
        assert run(raw, out) == 0
    forget_size(out / "train" / "chunks.json")
    assert run(raw, out) == 0
    said = capsys.readouterr()
    assert "already prepared" in said.out and "other files" not in said.err
    wanted = everything(out / "train")
    (out / "train" / "shard-00002.safetensors").unlink()
    assert verify.main([str(out), "--repair"]) == 0
    assert "1 of 3 chunks to make again" in capsys.readouterr().out
    assert run(raw, out) == 0
    again = everything(out / "train")
    assert {k: v for k, v in again.items() if k.startswith("shard")} == {
        k: v for k, v in wanted.items() if k.startswith("shard")
    }


def test_a_begun_split_of_smaller_chunks(tmp_path, monkeypatch, capsys):
    """A preparation that an earlier version began and this one refuses to continue."""
    raw, out = ten(tmp_path / "raw"), tmp_path / "out"
    monkeypatch.setattr(Settings, "version_1_images", property(lambda self: 4))
    with monkeypatch.context() as patch:
        patch.setattr(Settings, "chunk_images", property(lambda self: 4))
        patch.setattr(prepare_module, "summarise", lambda *_: (_ for _ in ()).throw(OSError("x")))
        assert run(raw, out) == 1
    forget_size(out / "train.partial" / "options.json")
    made = []
    monkeypatch.setattr(chunks, "prepare_chunk", lambda *args: made.append(args))
    assert run(raw, out) == 0
    assert not made and len(Shards(out / "train")) == 10
    assert verify.main([str(out)]) == 0
