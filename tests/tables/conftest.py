"""A folder to make tables in: configs, a few bytes of data, scripts that only pretend to train."""

import json
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import pytest
from tqdm.auto import tqdm

import m3ae
from m3ae.processes import started
from m3ae.tables import runner
from m3ae.tables.cells import Cell
from m3ae.tables.definition import read_table
from m3ae.tables.plan import Plan, make_plan
from tests.recipe import ROOT

# What takes the place of run_pretrain.py and run_finetune.py. It resumes, is killed by SIGTERM, has
# a line in log.txt for each start and each end, and fails where the file `fail` names its folder.
STUB = """
import json, os, signal, sys, time
from pathlib import Path

given = dict(word.split("=", 1) for word in sys.argv[3:])
out = Path(given.pop("output"))
init = given.pop("init", None)

def say(what):
    with open("log.txt", "a") as file:
        file.write(f"{what} {out.name} {os.getpid()}\\n")

out.mkdir(parents=True, exist_ok=True)
if (out / "evaluation.json").is_file():
    sys.exit()
say("start")
fail = Path("fail")
if fail.is_file() and fail.read_text() in out.name:
    print("first line\\nerror: nothing works", file=sys.stderr)
    sys.exit(2)
if init is not None and not (Path(init) / "done.json").is_file():
    sys.exit("no pre-training")
place = out / "checkpoints" / "step"
place.parent.mkdir(exist_ok=True)
for step in range(int(place.read_text()) if place.is_file() else 0, 4):
    time.sleep(float(os.environ.get("STUB_SECONDS", "0.03")))
    place.with_suffix(".new").write_text(str(step + 1))
    place.with_suffix(".new").replace(place)
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the two that follow are one
say("end")
(out / "evaluation.new").write_text(json.dumps([Path(init or "").name, given], sort_keys=True))
(out / "evaluation.new").replace(out / "evaluation.json")
"""
SIZES = """
tiny: {title: tiny, pretrain: configs/pretrain/tiny.yaml, launcher: python}
"""
TASKS = """
a: {title: A, config: configs/finetune/tiny.yaml, protocols: [strict], parts: [overall]}
b:
  title: B
  config: configs/finetune/tiny.yaml
  set: [optim.lr=0.5, "data.test=data/other/test"]
  protocols: [strict]
  parts: [overall]
"""
TABLE = """
title: three rows
columns: {tiny: [a, b]}
rows:
  none: {title: no pre-training, pretrain: null}
  whole: {title: whole, pretrain: []}
  half: {title: half, pretrain: [half]}
"""
FILES = {
    "run_pretrain.py": STUB,
    "run_finetune.py": STUB,
    "configs/tables/sizes.yaml": SIZES,
    "configs/tables/tasks.yaml": TASKS,
    "configs/tables/data.yaml": "data/pairs: {prepare: make pairs, get: elsewhere}",
    "configs/tables/t.yaml": TABLE,
    "configs/tables/slurm.sh": (ROOT / "configs/tables/slurm.sh").read_text(encoding="utf-8"),
    "configs/pretrain/ablations/half.yaml": "base: ../tiny.yaml\nmodel: {mlm: {weight: 0.0}}",
    "configs/pretrain/tiny.yaml": f"""
base: {ROOT}/configs/pretrain/quickstart.yaml
data: {{train: [data/pairs/train], valid: [data/pairs/test], tokenizer: data/pairs/tokenizer}}
""",
    "configs/finetune/tiny.yaml": f"""
base: {ROOT}/configs/finetune/quickstart.yaml
data: {{train: data/asked/train, test: data/asked/test, tokenizer: data/pairs/tokenizer}}
""",
}
DATA = "pairs/train pairs/test pairs/tokenizer asked/train asked/test other/test".split()


@pytest.fixture()
def bench(tmp_path, monkeypatch):
    """The current folder, in which the table `t` of size tiny can be made in a few seconds."""
    for name, text in (FILES | {f"data/{name}/some": name for name in DATA}).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(m3ae.__file__).parents[1]))
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.1)
    return tmp_path


def plan(seeds: int = 1) -> Plan:
    """Of the table `t`: three rows, two columns."""
    return make_plan([read_table("t")], "tiny", seeds)


def background(work, *given) -> multiprocessing.Process:
    """A process of its own that does this work."""
    process = multiprocessing.get_context("fork").Process(target=work, args=given)
    process.start()
    return process


def run_cells(cells: list[Cell], out: Path, jobs: int = 2) -> None:
    """The work of a process that runs cells; exits with 1 where some are not finished."""
    tqdm.set_lock(threading.RLock())  # else one held by a process that was killed
    sys.exit(1 if runner.Runner(cells, out, "python", jobs).run() else 0)


def status_of(process: multiprocessing.Process) -> int | None:
    """Its exit status once it ends; None where it would not."""
    process.join(600)
    status = process.exitcode
    process.kill()
    process.join()
    return status


def events() -> list[list[str]]:
    """What the scripts have said so far: start or end, folder, process."""
    log = Path("log.txt")
    return [line.split() for line in log.read_text().splitlines()] if log.is_file() else []


def said(what: str) -> list[str]:
    """Folders of the cells that started or ended, in that order."""
    return [event[1] for event in events() if event[0] == what]


def children() -> list[int]:
    """Scripts that still run."""
    return [pid for pid in {int(event[2]) for event in events()} if lives_here(pid)]


def lives_here(pid: int) -> bool:
    """Whether a process lives and works in the current folder; its number may be another's now."""
    try:
        return started(pid) is not None and os.readlink(f"/proc/{pid}/cwd") == os.getcwd()
    except OSError:
        return False


def outcomes(out: Path) -> dict[str, str]:
    """What every finished cell holds, which is all that a report is made of."""
    found = sorted(out.glob("cells/*/done.json"))
    texts = {path.parent.name: (path.parent / "evaluation.json").read_text() for path in found}
    assert all(json.loads(text) for text in texts.values())
    return texts
