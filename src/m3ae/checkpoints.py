"""Checkpoint folders: written whole or not at all, with a digest of every file; the newest whole.

`state.json`, which is written last, holds size and SHA-256 of each file that something reads (the
model card is for people), and a digest of itself.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from m3ae.files import file_sha256

log = logging.getLogger(__name__)

STATE = "state.json"
CARD = "README.md"


class DamagedError(ValueError):
    """A file of a checkpoint is not what was written."""


@contextmanager
def writing(final: Path, **state: Any) -> Iterator[Path]:
    """A folder to be filled in the block, which then takes the place of `final`, synced.

    Under the name of `final` there is nothing, the old folder or the whole new one, with `state`
    in its state.json. What a killed process left of its kind (step-..., best-...) is removed.
    """
    part, kind = _aside(final, "part"), final.name.rpartition("-")[0]
    for end in ("part", "old"):
        for left in final.parent.glob(f"{kind}-*.{end}"):
            _remove(left)
    try:
        part.mkdir()
        yield part
        files = {path.name: _record(path) for path in sorted(part.iterdir()) if path.name != CARD}
        text = _sealed(state | {"files": files})
        (part / STATE).write_text(text, encoding="utf-8")
        for path in [*part.iterdir(), part]:
            _sync(path)
        old = _aside(final, "old")
        if final.exists():  # moved, not removed: between the two names nothing takes time
            os.rename(final, old)
        os.rename(part, final)
        _sync(final.parent)
        _remove(old)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # another error would hide this one
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder, of which no part stays under its name if this is broken off."""
    old = _aside(folder, "old")
    _remove(old)
    if folder.exists():
        os.rename(folder, old)
        _remove(old)


def _aside(folder: Path, end: str) -> Path:
    return folder.with_name(f"{folder.name}.{end}")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _record(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _sealed(state: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    return json.dumps(state | {"sha256": digest}, sort_keys=True) + "\n"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------- reading


def read_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json; DamagedError where it is not what was written."""
    path = folder / STATE
    try:
        text = path.read_text(encoding="utf-8")
        state = json.loads(text)
        bare = {key: value for key, value in state.items() if key != "sha256"}
    except FileNotFoundError:
        raise
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: damaged (no JSON of a checkpoint)") from error
    if {"files", "sha256"} & state.keys() and text != _sealed(bare):
        raise DamagedError(f"{path}: damaged (its digest is another)")
    return state


def check_folder(folder: Path) -> None:
    """DamagedError naming a file that is not the one that was written.

    A folder without digests (older, or of `save_pretrained` alone) passes.
    """
    if (folder / STATE).is_file():
        stats = [path.stat() for path in sorted(folder.iterdir())]
        _check_once(folder, tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))


@cache
def _check_once(folder: Path, _: tuple[tuple[int, int], ...]) -> None:
    for name, record in read_state(folder).get("files", {}).items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path}: damaged (not there)")
        if path.stat().st_size != record["bytes"]:
            found = f"{path.stat().st_size} bytes, written were {record['bytes']}"
            raise DamagedError(f"{path}: damaged ({found})")
        if file_sha256(path) != record["sha256"]:
            raise DamagedError(f"{path}: damaged (its SHA-256 is another)")


def step_of(folder: Path) -> int:
    """The step of a checkpoint by its name."""
    return int(folder.name.partition("-")[2])


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = (run / "checkpoints").glob("step-*")
    return sorted((path for path in found if path.name[5:].isdecimal()), key=step_of)


def newest_whole(run: Path) -> Path | None:
    """A run's newest checkpoint whose files are those that were written; None: it has no one.

    Damaged ones are named in the log and passed over. ValueError where all are damaged.
    """
    saved = checkpoints(run)
    for folder in reversed(saved):
        try:
            check_folder(folder)
            return folder
        except DamagedError as error:
            log.warning("%s; passed over", error)
    if saved:
        raise ValueError(f"{run}/checkpoints: all are damaged; delete them to begin anew")
    return None


def last_checkpoint(folder: Path) -> Path:
    """A run folder's newest whole checkpoint; a folder of weights, or a hub id, is itself."""
    saved = newest_whole(folder)
    if (folder / "checkpoints").is_dir() and not saved:
        raise FileNotFoundError(f"{folder}/checkpoints: no whole checkpoint in it yet")
    return saved or folder
