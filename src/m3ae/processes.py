"""Processes: which machine this is, and whether a process of it still lives."""

import os
import socket
from pathlib import Path


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
