"""data_prep/tokens.py: new tokens in prepared shards, and nothing else changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import tokens, verify
from m3ae.corpora import chunks
from m3ae.corpora.shard_writer import write_shard
from m3ae.corpora.verification import find_problems
from m3ae.data import shards
from m3ae.data.shards import Shards
from m3ae.data.texts import load_tokenizer, train_wordpiece
from tests.data_prep.test_prepare import everything, run, ten

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Folders of two tokenizers that cut `Axial CT of case ROCO_00001.` differently."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, text in {"words": "axial ct of case roco _ 0123456789", "letters": "a x"}.items():
        train_wordpiece([text] * 4, 60, folder / name)
    return folder


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A corpus of one split in several shards, without tokens."""
    monkeypatch.setattr(chunks.Settings, "chunk_images", property(lambda self: 4))
    assert run(ten(tmp_path / "raw"), tmp_path / "out") == 0
    return tmp_path / "out"


def add(out: Path, tokenizer: Path) -> int:
    return tokens.main([str(out), "--tokenizer", str(tokenizer)])


def digests(folder: Path) -> list[str]:
    return [file["sha256"] for file in shards.read_manifest(folder)["files"]]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_same_as_prepared_with_tokens(tmp_path, tokenizers, monkeypatch, encoding):
    """Any difference from preparing with the tokenizer: pixels, texts, tokens, report."""
    monkeypatch.setattr(chunks.Settings, "chunk_images", property(lambda self: 4))
    raw, name = ten(tmp_path / "raw"), str(tokenizers / "words")
    options = ["--encoding", encoding, "--limit", "9"]
    assert run(raw, tmp_path / "with", *options, "--tokenizer", name) == 0
    assert run(raw, tmp_path / "out", *options) == 0
    assert add(tmp_path / "out", tokenizers / "letters") == 0  # replaced by the next
    assert add(tmp_path / "out", tokenizers / "words") == 0
    assert digests(tmp_path / "out" / "train") == digests(tmp_path / "with" / "train")
    reports = [json.loads((tmp_path / out / "report.json").read_text()) for out in ("out", "with")]
    assert reports[0] == reports[1]
    split = tmp_path / "out" / "train"
    assert Shards(split, load_tokenizer(name)).tokens(0) is not None
    assert verify.main([str(tmp_path / "out")]) == 0
    manifest = shards.read_manifest(split)
    names = {file["name"] for file in manifest["files"]} | {"manifest.json", manifest["chunks"]}
    assert {path.name for path in split.iterdir()} == names


class KilledError(Exception):
    """Stands for a kill: no handler of the program knows it."""


def test_killed_anywhere(prepared, tokenizers, monkeypatch):
    """A kill between two file operations that leaves a split unreadable, or cannot be continued."""
    split, real = prepared / "train", {name: getattr(os, name) for name in ("replace", "unlink")}
    before = digests(split)
    left = {"operations": 0}

    def counted(name):
        def operation(*args, **more):
            if left["operations"] == 0:
                raise KilledError
            left["operations"] -= 1
            return real[name](*args, **more)

        return operation

    for name in real:
        monkeypatch.setattr(os, name, counted(name))
    done, kills = None, 0
    for allowed in range(100):  # from the very first operation to a run that ends by itself
        tokenizer = tokenizers / ("words" if allowed % 2 else "letters")
        left["operations"] = allowed
        try:
            done = add(prepared, tokenizer)
        except KilledError:
            kills += 1
        left["operations"] = 10**9
        assert find_problems(split) == [], allowed
        assert add(prepared, tokenizer) == 0
        after = digests(split)
        assert len(after) == len(before) == len(list(split.glob("shard-*")))
        if done == 0:
            break
    assert done == 0 and kills > 10


def test_a_continued_run_keeps_what_is_done(prepared, tokenizers, monkeypatch):
    """A continued run that begins again, or takes a half-written shard for a whole one."""
    written, real, kill = [], write_shard, [True]

    def writing(path, tensors):
        if kill and len(written) == 2:
            path.write_bytes(b"half")
            raise KilledError
        written.append(path)
        return real(path, tensors)

    monkeypatch.setattr(tokens, "write_shard", writing)
    with pytest.raises(KilledError):
        add(prepared, tokenizers / "words")
    count = len(digests(prepared / "train"))
    kill.clear()
    assert add(prepared, tokenizers / "words") == 0
    assert len(written) == count and find_problems(prepared / "train") == []
    assert not list((prepared / "train").glob("*.tmp"))


def test_damage_is_not_given_a_new_checksum(prepared, tokenizers, capsys):
    """A flipped bit in a pixel that the new sha256 would hide from verify for ever."""
    path = prepared / "train" / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    made = everything(prepared)
    assert add(prepared, tokenizers / "words") == 1
    assert "shard-00001.safetensors: sha256 is not" in capsys.readouterr().err
    assert all(everything(prepared)[name] == value for name, value in made.items())


def test_one_split_and_mistakes(prepared, tokenizers, tmp_path, capsys):
    """A split given by itself whose report stays old; a traceback for a mistyped path."""
    assert add(prepared / "train", tokenizers / "words") == 0
    report = json.loads((prepared / "report.json").read_text())
    assert report["splits"]["train"]["tokenizer"]["name"] == str(tokenizers / "words")
    assert add(prepared / "train", tokenizers / "words") == 0
    assert "holds the tokens of" in capsys.readouterr().out
    cases = [
        (tmp_path / "absent", tokenizers / "words", "absent: not there"),
        (tmp_path / "raw", tokenizers / "words", "no split in it"),
        (prepared, tmp_path / "raw", "no folder that holds one"),
    ]
    for folder, tokenizer, message in cases:
        assert add(folder, tokenizer) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and message in error


def test_no_script_hides_a_library_module():
    """A script named like a module of Python (tokenize.py), which breaks all others beside it."""
    names = {path.stem for path in (ROOT / "data_prep").glob("*.py")}
    assert not names & sys.stdlib_module_names
    ran = subprocess.run(
        [sys.executable, ROOT / "data_prep" / "tokens.py", "--help"], capture_output=True, text=True
    )
    assert ran.returncode == 0 and "example: python data_prep/tokens.py" in ran.stdout
