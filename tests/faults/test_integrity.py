"""A prepared split that is damaged, mixed up or altered while it is read: found, and named."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import verify
from m3ae.corpora.shard_writer import seal
from m3ae.corpora.verification import find_problems
from m3ae.data.shards import Shards
from tests.data.test_shards import write_split
from tests.faults.offered import cost


@pytest.fixture()
def split(tmp_path) -> Path:
    return write_split(tmp_path / "train")


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*"))


def read_all(shards: Shards) -> None:
    for row in range(len(shards)):
        shards.text(row), shards.text_key(row)
    for row in range(shards.num_images):
        shards.image(row, shards.manifest["px"])


def cut(folder: Path) -> str:
    path = files(folder)[1]
    os.truncate(path, path.stat().st_size - 9)
    return path.name


def gone(folder: Path) -> str:
    files(folder)[1].unlink()
    return files(folder)[0].name.replace("00000", "00001")


def grown(folder: Path) -> str:
    with open(files(folder)[2], "ab") as file:
        file.write(b"x")
    return files(folder)[2].name


def swapped(folder: Path) -> str:
    """A grey shard and one of colour."""
    one, other = files(folder)[:2]
    for path, to in ((one, "kept"), (other, one.name), (folder / "kept", other.name)):
        os.rename(path, folder / to)
    return "shard-0000"


def of_another_version(folder: Path) -> str:
    path = folder / "manifest.json"
    path.write_text(re.sub(r'"version": \d+', '"version": 99', path.read_text()))
    return "manifest.json"


def of_another_split(folder: Path) -> str:
    """The manifest of a split of other sizes."""
    other = write_split(folder.parent / "other", "original")
    shutil.copy(other / "manifest.json", folder / "manifest.json")
    return "shard-0000"


OPENED = (cut, gone, grown, swapped, of_another_version, of_another_split)


@pytest.mark.parametrize("damage", OPENED)
def test_found_at_open(split, damage: Callable[[Path], str], capsys):
    """A run that begins on half a corpus, on another's rows or on a format of another version."""
    name = damage(split)
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        Shards(split)
    assert verify.main([str(split)]) == 1
    assert name in "".join(capsys.readouterr())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_flipped_byte_anywhere(split, number):
    """A byte of a shard of which neither the reader nor `verify` says a word."""
    path = files(split)[number]
    content = path.read_bytes()
    for place in range(0, len(content), 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert any(name == path.name for name, _ in find_problems(split)), place
    path.write_bytes(content)
    assert not find_problems(split)


def test_two_shards_of_one_size_swapped(split):
    """Rows of another shard under the names of this one: of equal sizes, only sums tell."""
    one, other = files(split)[1:]
    assert one.stat().st_size == other.stat().st_size
    content = one.read_bytes(), other.read_bytes()
    one.write_bytes(content[1]), other.write_bytes(content[0])
    assert {name for name, _ in find_problems(split)} == {one.name, other.name}


def test_two_manifests_that_disagree(tmp_path, questions):
    """A record for repairs that is of another preparation than the manifest."""
    folder = tmp_path / "test"
    shutil.copytree(questions / "test", folder)
    record = json.loads((folder / "chunks.json").read_text())
    record["chunks"][0]["files"][0]["sha256"] = "0" * 64
    record.pop("sha256")
    (folder / "chunks.json").write_text(json.dumps(seal(record)))
    ((name, message),) = find_problems(folder)
    assert name == "chunks.json" and "manifest.json" in message


def replaced(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def altered(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(1, 1))


CHANGES = {
    "cut": lambda path: os.truncate(path, 100),
    "emptied": lambda path: os.truncate(path, 0),
    "altered": altered,
    "replaced": replaced,
    "removed": Path.unlink,
}


@pytest.mark.parametrize("touched", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_while_it_is_read(split, change, touched):
    """A process that dies of SIGBUS, or a run that goes on with other rows."""
    shards, path = Shards(split), files(split)[1]

    def run() -> None:
        if touched:
            read_all(shards)
        CHANGES[change](path)
        time.sleep(0.003)  # files are looked at once a millisecond
        read_all(shards)

    found, _ = cost(run)
    assert isinstance(found, ValueError | OSError) and path.name in str(found), repr(found)
