"""How many cores a process may use."""

import os

import pytest

from m3ae.processes import usable_cores


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, 6),
        ({"a/b": "max 100000", "a": "max 100000"}, 6),
        ({"a/b": "300000 100000"}, 3),
        ({"a/b": "max 100000", "a": "150000 100000"}, 1),  # of the whole job
        ({"a/b": "50000 100000"}, 1),
        ({"c": "100000 100000"}, 6),  # another job's
        ({"": "400000 100000"}, 4),
    ],
)
def test_cores(tmp_path, monkeypatch, limits, cores):
    """Sixty processes in a container of two cores, or of a job that may use two."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/a/b\n")
    for place, limit in limits.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        (root / place / "cpu.max").write_text(limit + "\n")
    assert usable_cores(root, own) == cores
    assert usable_cores(tmp_path / "none", tmp_path / "nothing") == 6
