"""Claims: who runs a cell, among processes and machines that share a folder.

A cell's claims are files claim-000001, claim-000002, ...; the newest one counts. It is made so that
only one can make it (O_EXCL), and its owner touches it while it lives. A claim is dead when it says
so, when its process is gone (seen from the same machine), or when nobody touched it for
`STALE_SECONDS` by the clock of the shared folder. Whoever finds it dead makes the next one; an
owner that finds a newer one than its own has lost the cell and stops.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3ae.processes import machine, started

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0


@dataclass(frozen=True)
class Claim:
    """A claim of this process; `path` is its file."""

    path: Path

    def touch(self) -> bool:
        """Show that the owner lives; False where another one has taken the cell over."""
        if newest(self.path.parent) != self.path:
            return False
        os.utime(self.path)
        return True

    def note_child(self, pid: int) -> None:
        """Write down the process that does the work, for whoever takes over on this machine."""
        self.path.write_text(json.dumps({**_me(), "child": [pid, started(pid)]}), encoding="utf-8")

    def release(self) -> None:
        """The cell is free again, whether it is finished or not."""
        if self.path.is_file():
            self.path.write_text(json.dumps({"released": True}), encoding="utf-8")


def claim(folder: Path) -> Claim | None:
    """Claim a cell's folder, made if absent; None where another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    last = newest(folder)
    if last is not None and not is_dead(last):
        return None
    number = int(last.name.rpartition("-")[2]) + 1 if last else 1
    path = folder / f"claim-{number:06d}"
    whole = folder / f".{path.name}.{os.getpid()}.{time.monotonic_ns()}"
    whole.write_text(json.dumps(_me()), encoding="utf-8")
    try:
        os.link(whole, path)  # atomic, and whole when it appears; fails where the file is there
    except FileExistsError:
        return None
    finally:
        whole.unlink()
    return Claim(path)


def newest(folder: Path) -> Path | None:
    """The claim that counts."""
    return max(folder.glob("claim-*"), default=None)


def is_held(folder: Path) -> bool:
    """Whether some process works on a cell."""
    last = newest(folder)
    return last is not None and not is_dead(last)


def is_dead(path: Path) -> bool:
    """Whether a claim's owner has released it or is gone, and with it the process it started."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        owner = {}  # being written, or its process was killed while it was: by its age
    if owner.get("released"):
        return True
    if owner.get("machine") == machine() and owner["process"][1]:  # without /proc: by its age
        pids = [owner["process"], *([owner["child"]] if "child" in owner else [])]
        return not any(started(pid) == when for pid, when in pids)
    return clock(path.parent) - path.stat().st_mtime > STALE_SECONDS


def clock(folder: Path) -> float:
    """The time by the clock of the folder's file system, which may be another machine's."""
    probe = folder / f".clock.{socket.gethostname()}.{os.getpid()}"
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def _me() -> dict[str, Any]:
    return {"machine": machine(), "process": [os.getpid(), started(os.getpid())]}
