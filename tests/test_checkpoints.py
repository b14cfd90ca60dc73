"""Folders written whole or not at all, and the newest whole one."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae.checkpoints import (
    DamagedError,
    check_folder,
    checkpoints,
    last_checkpoint,
    newest_whole,
    read_state,
    remove_folder,
    writing,
)


def save(run, step: int, text: str = "weights"):
    """A checkpoint of two files."""
    folder = run / f"checkpoints/step-{step:08d}"
    folder.parent.mkdir(exist_ok=True)
    with writing(folder, version=3, step=step) as part:
        (part / "model.safetensors").write_text(text)
        (part / "README.md").write_text("a card")
    return folder


def test_what_is_written(tmp_path):
    """A state that lacks a file, or a card that nobody may edit."""
    folder = save(tmp_path, 4)
    state = read_state(folder)
    assert state["step"] == 4 and state["files"].keys() == {"model.safetensors"}
    (folder / "README.md").write_text("a better card")
    check_folder(folder)
    assert last_checkpoint(tmp_path) == folder and last_checkpoint(folder) == folder


def test_a_broken_off_writing_changes_nothing(tmp_path):
    """An old checkpoint that is gone, or a half one in its place; leftovers for ever."""
    folder = save(tmp_path, 4, "old")
    with pytest.raises(RuntimeError, match="power"), writing(folder) as part:
        (part / "model.safetensors").write_text("new")
        raise RuntimeError("power")
    assert (folder / "model.safetensors").read_text() == "old"
    check_folder(folder)
    for name in ("step-00000002.part", "step-00000003.old"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "x").write_text("half")
    (tmp_path / "checkpoints/mine.old").mkdir()
    save(tmp_path, 6)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["mine.old", "step-00000004", "step-00000006"]
    remove_folder(folder)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000006"]


def test_order_is_by_number(tmp_path):
    """Step 100,000,000 sorted before step 20,000,000."""
    for step in (20_000_000, 100_000_000):
        save(tmp_path, step)
    assert newest_whole(tmp_path).name == "step-100000000"


def test_damaged_ones_are_passed_over(tmp_path, caplog, monkeypatch):
    """A damaged checkpoint loaded, or the run begun anew, without a word."""
    monkeypatch.setattr(logging.getLogger("m3ae"), "propagate", True)
    one, two, three = (save(tmp_path, step) for step in (1, 2, 3))
    (three / "model.safetensors").write_text("weight!")
    (two / "model.safetensors").unlink()
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == one
    assert list(dict.fromkeys(caplog.messages)) == [
        f"{three}/model.safetensors: damaged (its SHA-256 is another); passed over",
        f"{two}/model.safetensors: damaged (not there); passed over",
    ]
    (one / "model.safetensors").write_text("w")
    with pytest.raises(DamagedError, match=r"damaged \(1 bytes, written were 7\)"):
        check_folder(one)
    with pytest.raises(ValueError, match="all are damaged"):
        newest_whole(tmp_path)
    assert newest_whole(tmp_path / "nowhere") is None


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_altered_byte_of_the_state(tmp_path_factory, place, bit):
    """A version, a digest or a name in state.json that a flipped bit makes another."""
    folder = save(tmp_path_factory.mktemp("run"), 4)
    data = bytearray((folder / "state.json").read_bytes())
    data[place % len(data)] ^= 1 << bit
    (folder / "state.json").write_bytes(data)
    with pytest.raises(DamagedError, match="damaged"):
        check_folder(folder)


def test_folders_without_digests(tmp_path):
    """An older checkpoint, or a folder of weights, that can no longer be read."""
    (tmp_path / "state.json").write_text(json.dumps({"version": 2, "step": 4}) + "\n")
    check_folder(tmp_path)
    (tmp_path / "state.json").unlink()
    check_folder(tmp_path)
