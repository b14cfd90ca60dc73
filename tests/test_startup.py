"""What a command costs before it works, by what it imports: no timings."""

import json
import logging
import subprocess
import sys

import pytest
import torch

from m3ae.data import datasets
from tests.recipe import ROOT

# Every command of floor 7; a room without a command line ends there.
ROOMS = [path for path in sorted((ROOT / "src/m3ae").glob("*.py")) if path.stem != "command"]
COMMANDS = [
    *("run_pretrain.py", "run_finetune.py", "run_tables.py", "verify_released.py"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "data_prep").glob("*.py")),
    *(f"m3ae.{path.stem}" for path in ROOMS if "parser_for(__doc__)" in path.read_text("utf-8")),
]
HEAVY = ["torch", "torchvision", "transformers", "sklearn", "matplotlib", "tensorboard"]

# Each command with --help as the main program, one after the other in one process.
PROBE = """
import contextlib, io, json, runpy, sys
commands, heavy = json.loads(sys.argv[1])
for command in commands:
    run = runpy.run_path if command.endswith(".py") else runpy.run_module
    sys.argv, out = [command, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            run(command, run_name="__main__")
    except SystemExit as end:
        assert not end.code and "usage:" in out.getvalue(), command
    found = [name for name in heavy if name in sys.modules]
    assert not found, f"{command} --help imports {found}"
"""
USE = """
import sys
import m3ae.predict, m3ae.predictor, m3ae.downstream.attention
print(*[name for name in sys.argv[1:] if name in sys.modules])
"""


def python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_help_imports_nothing_heavy():
    """Six seconds for --help; a command that has none."""
    assert len(COMMANDS) > 20
    python(PROBE, json.dumps([COMMANDS, HEAVY]))


def test_one_question_imports_what_it_uses():
    """A torchvision, a matplotlib or an FSDP on the way to one answer."""
    assert python(USE, *HEAVY, "torch.distributed.fsdp") == ["torch"]


@pytest.mark.parametrize("asked, taken", [(0, 0), (1, 1), (9, 1)])
def test_no_more_workers_than_cores(asked, taken, monkeypatch, caplog):
    """Four workers on two cores; a number changed and not said, or said at every loader."""
    monkeypatch.setattr(datasets, "usable_cores", lambda: 1)
    datasets.usable_workers.cache_clear()
    caplog.set_level(logging.INFO)
    data = torch.utils.data.TensorDataset(torch.arange(3))
    for _ in range(2):
        loader = datasets.loader_from(data, 0, asked, torch.device("cpu"))
        assert loader.num_workers == taken
    assert len(caplog.messages) == (asked > taken)
    assert all(f"{asked} asked for, 1 core" in message for message in caplog.messages)
    datasets.usable_workers.cache_clear()
