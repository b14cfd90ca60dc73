"""data_prep/tokens.py: new tokens in prepared shards, and nothing else changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep import tokens, verify
from m3ae.corpora import chunks
from m3ae.corpora.shard_writer import seal, write_shard
from m3ae.corpora.token_files import describe_tokenizer, ragged_tokens
from m3ae.corpora.verification import find_problems
from m3ae.data import shards
from m3ae.data.shards import Shards
from m3ae.data.texts import encode, load_tokenizer, train_wordpiece
from m3ae.files import write_json
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


def facts(folder: Path) -> dict[str, tuple[int, int]]:
    """By shard: its inode and time, which only copying or rewriting it changes."""
    stats = {path.name: path.stat() for path in folder.glob("shard-*")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_same_as_prepared_with_tokens(tmp_path, tokenizers, monkeypatch, encoding):
    """Any difference from preparing with the tokenizer: pixels, texts, tokens, report."""
    monkeypatch.setattr(chunks.Settings, "chunk_images", property(lambda self: 4))
    raw, name = ten(tmp_path / "raw"), str(tokenizers / "words")
    options = ["--encoding", encoding, "--limit", "9"]
    assert run(raw, tmp_path / "with", *options, "--tokenizer", name) == 0
    assert run(raw, tmp_path / "out", *options) == 0
    untouched = facts(tmp_path / "out" / "train")
    assert add(tmp_path / "out", tokenizers / "letters") == 0  # replaced by the next
    assert add(tmp_path / "out", tokenizers / "words") == 0
    assert facts(tmp_path / "out" / "train") == untouched
    assert everything(tmp_path / "out") == everything(tmp_path / "with")
    split = tmp_path / "out" / "train"
    assert Shards(split, load_tokenizer(name)).tokens(0) is not None
    assert verify.main([str(tmp_path / "out")]) == 0
    manifest = shards.read_manifest(split)
    names = {file["name"] for file in manifest["files"]} | {"manifest.json", manifest["chunks"]}
    names |= {manifest["tokens"]["name"]}
    assert {path.name for path in split.iterdir()} == names


class KilledError(Exception):
    """Stands for a kill: no handler of the program knows it."""


def test_killed_anywhere(prepared, tokenizers, monkeypatch):
    """A kill between two file operations that leaves a split unreadable, or cannot be continued."""
    split, real = prepared / "train", {name: getattr(os, name) for name in ("replace", "unlink")}
    before = facts(split)
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
        made = shards.read_manifest(split)["tokenizer"]
        if made:  # the old or the new one, with its own ids
            known = load_tokenizer(made["name"])
            texts = Shards(split, known)
            ids = [texts.tokens(i)[0].tolist() for i in range(len(texts))]
            assert ids == [encode(known, [texts.text(i)])[0][0] for i in range(len(texts))]
        assert add(prepared, tokenizer) == 0
        assert facts(split) == before and len(list(split.glob("tokens-*"))) == 1
        if done == 0:
            break
    assert done == 0 and kills > 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_damage_is_not_given_a_new_checksum(prepared, tokenizers):
    """A flipped bit in a pixel that a new sha256 would hide from verify for ever."""
    split = prepared / "train"
    flip(split / "shard-00001.safetensors")
    assert add(prepared, tokenizers / "words") == 0  # reads texts alone
    assert [name for name, _ in find_problems(split)] == ["shard-00001.safetensors"]


def test_a_damaged_token_file_is_made_again(prepared, tokenizers, capsys):
    """ "holds the tokens already" said of a file that is damaged or gone."""
    assert add(prepared, tokenizers / "words") == 0
    wanted = everything(prepared)
    (path,) = (prepared / "train").glob("tokens-*")
    for damage in (flip, Path.unlink):
        damage(path)
        assert add(prepared, tokenizers / "words") == 0
        assert everything(prepared) == wanted
    assert "already" not in capsys.readouterr().out


def as_version_1(split: Path, tokenizer: Path) -> None:
    """Make a split what the version before wrote: token ids inside the shards."""
    manifest, known = shards.read_manifest(split), load_tokenizer(tokenizer)
    for file in manifest["files"]:
        path = split / file["name"]
        tensors = {name: np.array(array) for name, array in shards.map_shard(path).items()}
        tensors.pop("padding", None)
        texts = [shards.row_bytes(tensors, "text", row).decode() for row in range(file["texts"])]
        file |= write_shard(path, tensors | ragged_tokens(encode(known, texts)))
    del manifest["tokens"], manifest["chunks"]
    (split / "chunks.json").unlink()
    made = describe_tokenizer(known, str(tokenizer))
    write_json(split / "manifest.json", seal(manifest | {"version": 1, "tokenizer": made}))


def test_a_split_of_the_version_before(prepared, tokenizers):
    """Shards with token ids inside: those read after the tokenizer was replaced, or refused."""
    split, words = prepared / "train", load_tokenizer(tokenizers / "words")
    as_version_1(split, tokenizers / "letters")
    assert find_problems(split) == []
    old = Shards(split, load_tokenizer(tokenizers / "letters"))
    untouched = facts(split)
    wanted = [encode(words, [old.text(i)])[0][0] for i in range(len(old))]
    assert old.tokens(0)[0].tolist() != wanted[0]
    assert add(prepared, tokenizers / "words") == 0
    new = Shards(split, words)
    assert [new.tokens(i)[0].tolist() for i in range(len(new))] == wanted
    assert find_problems(split) == [] and facts(split) == untouched


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
