"""Processes: which machine this is, whether one lives, its cores, its signals."""

import faulthandler
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What asks a run to end (schedulers send it before they take the machine), and what asks a process
# for the stacks of its threads; not on every platform.
STOP_SIGNALS = [getattr(signal, x) for x in ("SIGTERM", "SIGUSR1") if hasattr(signal, x)]
STACKS = getattr(signal, "SIGUSR2", None)


def show_stacks_on_signal() -> None:
    """From now on `STACKS` writes the stacks of this process's threads to stderr."""
    if STACKS:
        faulthandler.register(STACKS, file=2)


def start_loading(_: int) -> None:
    """For the start of a data-loading process: whether it ends is for its parent to say."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    show_stacks_on_signal()


def machine() -> str:
    """This machine since its start, and the namespace of process ids (a container has its own)."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    name = boot.read_text().strip() if boot.is_file() else socket.gethostname()
    space = Path("/proc/self/ns/pid")
    return f"{name} {os.readlink(space) if space.exists() else ''}"


def started(pid: int) -> str | None:
    """When a process started, which tells it from a later one of the same number; None: gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def usable_cores(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use, by its affinity and by its container's limits; at least 1.

    root, own: where Linux (cgroup v2) shows limits, and which of them are this process's.
    """
    known = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    lines = own.read_text().splitlines() if own.is_file() else []
    place = root / next((line[4:] for line in lines if line.startswith("0::/")), "")
    for folder in [place, *(parent for parent in place.parents if parent.is_relative_to(root))]:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                cores = min(cores, int(quota) // int(period))
    return max(1, cores)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """ValueError where another process of this machine is in such a block for the folder.

    The lock leaves no file, and ends with its process however that ends.
    """
    try:
        import fcntl
    except ImportError:  # not on every platform
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        said = "another process is at work in it; wait for it, or give another folder"
        raise ValueError(f"{folder}: {said}") from error
    except OSError as error:
        print(f"warning: {folder} cannot be locked ({error}): start one process", file=sys.stderr)
    try:
        yield
    finally:
        os.close(descriptor)
