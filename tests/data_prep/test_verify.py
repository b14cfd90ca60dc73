"""data_prep/verify.py: what it finds, and that a repair gives the bytes of before the damage."""

import json
import os
import shutil
from pathlib import Path

import pytest

from data_prep import tokens, verify
from m3ae.corpora import chunks, shard_writer
from m3ae.data import shards
from m3ae.data.manifest import ENCODINGS
from m3ae.data.shards import Shards, read_manifest
from m3ae.data.texts import train_wordpiece
from m3ae.files import write_json
from tests.data_prep.test_prepare import as_bytes, everything, picture, run, ten, write_roco


@pytest.fixture(autouse=True)
def chunks_of_four(monkeypatch):
    monkeypatch.setattr(chunks.Settings, "chunk_images", property(lambda self: 4))


@pytest.fixture
def made(monkeypatch):
    """Numbers of the chunks that are made, as they are."""
    numbers, real = [], chunks.prepare_chunk

    def counted(items, index, *rest):
        numbers.append(index)
        return real(items, index, *rest)

    monkeypatch.setattr(chunks, "prepare_chunk", counted)
    return numbers


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """By encoding: (raw corpus, prepared corpus, options); three chunks, grey and colour."""
    folder, patch = tmp_path_factory.mktemp("prepared"), pytest.MonkeyPatch()
    images = {f"ROCO_{k:05d}": as_bytes(picture(k)) for k in range(10)}
    raw = write_roco(folder / "corpus", images | {"ROCO_00005": b"<html>"})
    with patch.context() as context:
        context.setattr(chunks.Settings, "chunk_images", property(lambda self: 4))
        for encoding in ENCODINGS:
            options = ["--encoding", encoding, "--tokenizer", "train:60"]
            assert run(raw, folder / encoding, *options) == 0
    return raw, folder


@pytest.fixture
def copied(prepared, tmp_path):
    """A function: encoding -> (raw corpus, a copy of the prepared corpus, options)."""

    def copy(encoding: str) -> tuple[Path, Path, list[str]]:
        raw, folder = prepared
        shutil.copytree(folder / encoding, tmp_path / "out")
        return raw, tmp_path / "out", ["--encoding", encoding, "--tokenizer", "train:60"]

    return copy


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def damage_offset(path: Path) -> None:
    """The last text ends beyond its bytes; the file's size is right."""
    mapped = shards.map_shard(path)
    place = mapped["text_offsets"].__array_interface__["data"][0]
    start = mapped["text_offsets"].base
    while start.base is not None and hasattr(start.base, "__array_interface__"):
        start = start.base
    flip(path, place - start.__array_interface__["data"][0] + 8 * (len(mapped["text_offsets"]) - 1))


DAMAGE = {
    "first pixel": lambda path: flip(path, shard_writer._HEADER),
    "last byte": lambda path: flip(path, -1),
    "header": lambda path: flip(path, 30),
    "offset": damage_offset,
    "cut short": lambda path: os.truncate(path, 2500),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_repair_makes_the_broken_chunk_again(copied, made, capsys, encoding, damage):
    """A repair that gives other bytes, makes sound chunks again, or leaves the damage."""
    raw, out, options = copied(encoding)
    wanted, split = everything(out), out / "train"
    names = [file["name"] for file in read_manifest(split)["files"]]
    broken = names[3] if encoding == "raw" else names[1]  # of chunk 1
    DAMAGE[damage](split / broken)
    before = {name: (split / name).stat() for name in names if (split / name).exists()}
    assert verify.main([str(split)]) == 1
    assert f"train/{broken}: " in capsys.readouterr().out
    assert verify.main([str(split), "--repair"]) == 0
    assert "1 of 3 chunks to make again" in capsys.readouterr().out
    assert not split.exists()
    assert run(raw, out, *options) == 0
    assert made == [1]
    assert everything(out) == wanted and verify.main([str(out)]) == 0
    for name, old in before.items():
        number = names.index(name) // (2 if encoding == "raw" else 1)
        new = (split / name).stat()
        if number != 1:
            assert (new.st_ino, new.st_mtime_ns) == (old.st_ino, old.st_mtime_ns)


def test_several_broken_shards_at_once(copied, made, capsys):
    """Only the first broken file found."""
    raw, out, options = copied("raw")
    wanted, split = everything(out), out / "train"
    flip(split / "shard-00000.safetensors", -1)
    (split / "shard-00005.safetensors").unlink()
    assert verify.main([str(out), "--repair"]) == 0
    assert "2 problems" in capsys.readouterr().out
    assert run(raw, out, *options) == 0
    assert made == [0, 2] and everything(out) == wanted


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


MANIFEST_DAMAGE = {
    "a count of the report": lambda path: change(path, '"images_seen": 10', '"images_seen": 16'),
    "an option": lambda path: change(path, '"min_words": 3', '"min_words": 1'),
    "a sha256": lambda path: change(path, '"sha256": "', '"sha256": "0'),
    "cut short": lambda path: os.truncate(path, 300),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", MANIFEST_DAMAGE)
def test_a_damaged_manifest_is_made_again(copied, made, capsys, damage):
    """A manifest that says other than what was prepared, unnoticed; or images made again for it."""
    raw, out, options = copied("raw")
    wanted = everything(out)
    MANIFEST_DAMAGE[damage](out / "train" / "manifest.json")
    assert verify.main([str(out / "train")]) == 1
    assert "manifest.json" in capsys.readouterr().out
    assert verify.main([str(out), "--repair"]) == 0
    assert "0 of 3 chunks to make again" in capsys.readouterr().out
    assert run(raw, out, *options) == 0
    assert made == [] and everything(out) == wanted


def test_manifest_and_shard_damaged_together(copied, made):
    """A broken shard taken for sound because the manifest that knows better is lost."""
    raw, out, options = copied("jpeg")
    wanted = everything(out)
    (out / "train" / "manifest.json").unlink()
    flip(out / "train" / "shard-00002.safetensors", -1)
    assert verify.main([str(out), "--repair"]) == 0
    assert run(raw, out, *options) == 0
    assert made == [2] and everything(out) == wanted


def test_what_cannot_be_repaired_is_left_and_said(copied, capsys):
    """A repair that destroys what it cannot make again."""
    _, out, _ = copied("raw")
    split = out / "train"
    record = split / "chunks.json"
    sound = record.read_bytes()
    flip(record, 40)
    flip(split / "shard-00000.safetensors", -1)
    damaged = everything(out)
    for argument in ("--repair",):
        assert verify.main([str(out), argument]) == 1
        text = capsys.readouterr()
        assert "not repaired: " in text.out and "chunks.json: " in text.err
    assert everything(out) == damaged
    record.unlink()  # as in splits of an earlier version
    assert verify.main([str(out), "--repair"]) == 1
    assert "no chunks.json in it, which says how it was made" in capsys.readouterr().err
    record.write_bytes(sound)
    (out / "train.partial").mkdir()
    assert verify.main([str(out), "--repair"]) == 1
    assert "an unfinished preparation of train is in the way" in capsys.readouterr().err
    assert everything(out) == {**damaged, "train/chunks.json": sound}


def test_shards_of_an_earlier_version(copied, capsys):
    """Splits without checksum of the manifest and chunks.json called damaged, or not readable."""
    _, out, _ = copied("raw")
    split = out / "train"
    manifest = read_manifest(split)
    del manifest["sha256"], manifest["chunks"]
    write_json(split / "manifest.json", manifest)
    (split / "chunks.json").unlink()
    assert len(Shards(split)) == 9 and verify.main([str(out)]) == 0
    assert verify.main([str(out), "--repair"]) == 0  # nothing to do
    assert "sound" in capsys.readouterr().out and split.exists()


def test_the_printed_command_has_the_options(tmp_path, capsys):
    """A user who repeats the command without --limit gets another corpus."""
    (tmp_path / "not these.txt").write_text("ROCO_00003\n")
    options = [
        "--limit",
        "8",
        "--window",
        "0",
        "4000",
        "--encoding",
        "jpeg",
        "--exclude",
        str(tmp_path / "not these.txt"),
    ]
    raw, out = ten(tmp_path / "raw"), tmp_path / "out"
    assert run(raw, out, *options) == 0
    wanted = everything(out)
    flip(out / "train" / "shard-00001.safetensors", -1)
    assert verify.main([str(out / "train"), "--repair"]) == 0
    text = capsys.readouterr().out
    assert "SCRIPT: the one for ROCO radiology" in text
    assert (
        f"--raw RAW --out {out} --encoding jpeg --exclude 'not these.txt' --limit 8 "
        "--min-words 3 --px 16 --window 0.0 4000.0"
    ) in text
    assert run(raw, out) == 1  # without them
    assert "limit was 8, is None" in capsys.readouterr().err
    assert run(raw, out, *options) == 0 and everything(out) == wanted


class KilledError(BaseException):
    """Stands for a kill: no handler of the program knows it."""


def test_a_repair_killed_anywhere(copied, monkeypatch):
    """A kill in a repair after which neither repair nor preparation can go on."""
    raw, out, options = copied("raw")
    wanted, split = everything(out), out / "train"
    real, left = {name: getattr(os, name) for name in ("replace", "unlink")}, [10**9]

    def counted(name):
        def operation(*args, **more):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return real[name](*args, **more)

        return operation

    for name in real:
        monkeypatch.setattr(os, name, counted(name))
    for allowed in range(100):
        flip(split / "shard-00002.safetensors", -1)
        left[0] = allowed
        try:
            done = verify.main([str(split), "--repair"])
        except KilledError:
            done = None
        left[0] = 10**9
        if split.exists():
            assert done is None
            assert verify.main([str(out), "--repair"]) == 0
        assert run(raw, out, *options) == 0
        assert everything(out) == wanted, allowed
        if done == 0:
            break
    assert done == 0 and allowed > 3


def test_repair_after_the_tokens_were_replaced(copied, tmp_path, made, capsys):
    """A repair that brings back the old tokens, or calls the new shards broken."""
    raw, out, options = copied("raw")
    train_wordpiece(["axial ct of case roco _ 0123456789"], 50, tmp_path / "words")
    assert tokens.main([str(out), "--tokenizer", str(tmp_path / "words")]) == 0
    split = out / "train"
    assert verify.main([str(out)]) == 0
    before = read_manifest(split)
    flip(split / before["files"][2]["name"], -1)
    assert verify.main([str(out), "--repair"]) == 0
    assert f"--tokenizer {tmp_path / 'words'}" in capsys.readouterr().out
    assert run(raw, out, *options) == 1  # the old tokenizer
    assert "tokenizer was " in capsys.readouterr().err
    assert run(raw, out, "--tokenizer", str(tmp_path / "words")) == 0
    assert made == [1] and verify.main([str(out)]) == 0
    after = read_manifest(split)
    for entry in ("report", "counts", "tokenizer", "options"):
        assert after[entry] == before[entry]
    assert (after["files"], after["tokens"]) == (before["files"], before["tokens"])


@pytest.mark.parametrize("lost", ["tokens", "manifest"])
def test_repair_of_the_tokens(copied, tmp_path, made, capsys, lost):
    """A repair that makes pictures again for lost token ids, or forgets whose these were when the
    manifest is lost after they were replaced."""
    raw, out, _ = copied("raw")
    train_wordpiece(["axial ct of case roco _ 0123456789"], 50, tmp_path / "words")
    assert tokens.main([str(out), "--tokenizer", str(tmp_path / "words")]) == 0
    wanted = everything(out / "train")
    (path,) = (out / "train").glob("tokens-*" if lost == "tokens" else "manifest.json")
    path.unlink()
    assert verify.main([str(out), "--repair"]) == 0
    said = capsys.readouterr().out
    place = tmp_path / "words" if lost == "tokens" else "words"
    assert "0 of 3 chunks to make again" in said and f"--tokenizer {place}" in said
    assert run(raw, out, "--tokenizer", str(tmp_path / "words")) == 0
    assert made == [] and everything(out / "train") == wanted


def test_tokens_refuses_a_damaged_manifest(copied, tmp_path, capsys):
    """Damage of the manifest that a new checksum would hide."""
    _, out, _ = copied("jpeg")
    split = out / "train"
    train_wordpiece(["axial ct of case roco"], 50, tmp_path / "words")
    change(split / "manifest.json", '"images_seen": 10', '"images_seen": 16')
    assert tokens.main([str(out), "--tokenizer", str(tmp_path / "words")]) == 1
    assert "manifest.json: damaged" in capsys.readouterr().err


def test_verify_names_what_is_wrong(tmp_path, capsys):
    """A damaged corpus verified as sound, or the exit code 0 beside a list of problems."""
    assert run(ten(tmp_path / "raw"), tmp_path / "out") == 0
    shard = tmp_path / "out" / "train" / "shard-00001.safetensors"
    with open(shard, "r+b") as file:
        file.truncate(3000)
    assert verify.main([str(tmp_path / "out")]) == 1
    assert "shard-00001.safetensors: 3000 bytes" in capsys.readouterr().out
    assert verify.main([str(tmp_path)]) == 1
    assert "no split in it" in capsys.readouterr().err


def test_record_is_compact(prepared):
    """A record that grows with the images, or indented to ten times its size."""
    record = prepared[1] / "raw" / "train" / "chunks.json"
    assert record.stat().st_size < 4000 and record.read_text().count("\n") == 1
    assert len(json.loads(record.read_text())["chunks"]) == 3
