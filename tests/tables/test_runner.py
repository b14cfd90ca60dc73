"""The runner, with scripts that only pretend to train: whoever dies, each cell is run once."""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from m3ae.config import load_config, to_yaml
from m3ae.tables import claims, runner
from m3ae.tables.runner import Runner, is_done, last_line, why_not
from m3ae.training.checkpoint import check_same_config
from tests.tables.conftest import (
    background,
    children,
    events,
    outcomes,
    plan,
    run_cells,
    said,
    status_of,
)

OUT = Path("out")


def run(cells, jobs: int = 1, launcher: str = "python") -> dict[str, str]:
    return Runner(cells, OUT, launcher, jobs).run()


def until(holds, seconds: float = 600.0) -> None:
    """Wait for something that another process is about to do."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_all_are_run_in_the_order_of_need(bench):
    """A fine-tuning before its pre-training; a finished cell run again; one that is left out."""
    cells = plan(2).all
    assert run(cells) == {}
    names = [cell.folder(OUT).name for cell in cells]
    assert said("start") == said("end") == names
    assert all(is_done(cell, OUT) for cell in cells)
    for cell in cells:
        folder = cell.folder(OUT)
        assert json.loads((folder / "cell.json").read_text()) == cell.identity
        assert set(json.loads((folder / "done.json").read_text())) == {"seconds", "cpu_seconds"}
        # The weights that fine-tuning goes on from are no longer needed, a pre-training's are.
        assert (folder / "checkpoints").is_dir() == (cell.kind == "pretrain")
        assert not claims.is_held(folder)
    assert run(cells) == {} and said("start") == names


def test_a_failure_is_named_and_stops_no_other(bench):
    """One bad cell that ends the night's work; a reason that only a search in logs would find."""
    cells = plan().all
    bad = next(cell for cell in cells if cell.name == "tiny-half")
    (bench / "fail").write_text(bad.id)
    unfinished = run(cells)
    after = [cell for cell in cells if cell.init is not None and cell.init.id == bad.id]
    assert set(unfinished) == {bad.id, *(cell.id for cell in after)} and len(after) == 2
    assert unfinished[bad.id] == "it failed (status 2): error: nothing works"
    for cell in after:
        assert (
            unfinished[cell.id]
            == f"its pre-training {bad.id} is not finished: {unfinished[bad.id]}"
        )
    assert len(said("end")) == len(cells) - 3 and said("start").count(bad.id) == 1
    (bench / "fail").unlink()
    assert run(cells) == {} and said("start").count(bad.id) == 2
    assert len(said("end")) == len(set(said("end"))) == len(cells)
    assert not (bad.folder(OUT) / "failed.json").exists()


def test_a_run_that_ends_well_without_a_result_failed(bench):
    """A launcher that returns at once counted as a finished run."""
    (bench / "run_pretrain.py").write_text("")
    unfinished = run(plan().all)
    whole = next(name for name in unfinished if name.startswith("tiny-tiny-s0"))
    assert unfinished[whole] == "it failed (status 0): no output"


def test_two_runs_of_a_cell_are_both_there(bench):
    """VQA-RAD's protocol=both, where paper and strict have a folder each, counted as failed."""
    stub = (
        "import sys\nfrom pathlib import Path\n"
        "for name in ('paper', 'strict'):\n"
        "    place = Path(sys.argv[-1].removeprefix('output='), name)\n"
        "    place.mkdir()\n"
        "    (place / 'evaluation.json').write_text('{}')\n"
    )
    (bench / "run_finetune.py").write_text(stub)
    assert run([plan().cells["t"]["none", "a"][0]]) == {}


def test_what_lacks_data_is_left(bench):
    """Cells started to fail one after the other on the same folder that is not there."""
    shutil.rmtree("data/other")
    cells = plan().all
    unfinished = run(cells)
    assert set(unfinished.values()) == {"data are lacking: data/other/test"}
    assert {name.rpartition("--")[2][:2] for name in unfinished} == {"b-"}
    assert len(said("end")) == len(cells) - 3


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("$ a\nerror: old\n$ b\n", "no output"),
        ("$ a\nwell\n  9%|#  | 1/9\r 20%|## | 2/9\r\n\n", "20%|## | 2/9"),
        (
            "$ a\nTraceback (most recent call last):\n  File x\nValueError: bad \udcff\n",
            "ValueError: bad �",
        ),
        (
            "$ torchrun x\n[rank0]: ValueError: deep\nE1129 12:48:06.352000 25899 torch/"
            "distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 2)\n"
            "Traceback (most\n=====\n",
            "[rank0]: ValueError: deep",
        ),
        ("$ torchrun\nW1129 12:48:06.3 9 torch/distributed/elastic/agent.py:1] died\n===\n", "==="),
    ],
)
def test_the_last_line(tmp_path, text, line):
    """The reason of an earlier try; a row of ===== from torchrun; a byte that is no UTF-8."""
    (tmp_path / "output.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert last_line(tmp_path) == line


def test_a_launcher_beside_the_interpreter_is_found(bench, monkeypatch):
    """torchrun not found since the environment of this Python is not activated; another Python."""
    (bench / "bin").mkdir()
    torchrun = bench / "bin/torchrun"
    torchrun.write_text(f'#!/bin/sh\necho launched\nexec {sys.executable} "$@"\n')
    torchrun.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bench / "bin/python"))
    cell = plan().cells["t"]["none", "a"][0]
    assert run([cell], launcher="torchrun") == {}
    text = (cell.folder(OUT) / "output.txt").read_text()
    assert text.startswith("$ torchrun run_finetune.py --config") and "\nlaunched\n" in text


def test_killed_at_random_moments(bench, monkeypatch):
    """A finished cell repeated, a run that goes on without its runner, another report."""
    cells = plan(2).all
    assert status_of(background(run_cells, cells, bench / "peace")) == 0
    wanted = outcomes(bench / "peace")
    assert len(wanted) == len(cells)
    (bench / "log.txt").unlink()
    rng = random.Random(0)
    for number in range(10):
        # The first one is surely killed under way, however busy the machine is.
        monkeypatch.setenv("STUB_SECONDS", "600" if number == 0 else "0.03")
        more = 1 if number == 0 else rng.randint(0, 3)
        life, seen = background(run_cells, cells, OUT), len(events()) + more
        until(lambda life=life, seen=seen: len(events()) >= seen or not life.is_alive())
        life.join(rng.uniform(0.0, 0.1))
        life.kill()
        life.join()
        until(lambda: not children())
    monkeypatch.setenv("STUB_SECONDS", "0.03")
    assert status_of(background(run_cells, cells, OUT)) == 0 and not children()
    assert sorted(said("end")) == sorted(cell.folder(OUT).name for cell in cells)
    assert len(said("start")) > len(cells)  # some were killed under way, and resumed
    assert outcomes(OUT) == wanted


def test_two_processes_on_one_folder(bench):
    """A cell run twice, or one process that gives up since the other has what it waits for."""
    cells = plan(2).all
    both = [background(run_cells, cells, OUT) for _ in range(2)]
    assert [status_of(one) for one in both] == [0, 0]
    assert sorted(said("start")) == sorted(said("end")) == sorted(c.folder(OUT).name for c in cells)


@pytest.mark.parametrize("name", ["done.json", "failed.json"])
def test_a_cell_that_another_process_has_just_left(bench, monkeypatch, name):
    """A cell run twice: another process ended it between the look and the claim."""
    cell = plan().cells["t"]["none", "a"][0]
    claim = claims.claim

    def late(folder: Path):
        owned = claim(folder)
        (folder / name).write_text('{"code": 2, "line": "no"}')
        future = time.time() + 60
        os.utime(folder / name, (future, future))
        return owned

    monkeypatch.setattr(claims, "claim", late)
    assert len(run([cell])) == (name == "failed.json")
    assert said("start") == [] and not claims.is_held(cell.folder(OUT))


def test_a_failure_is_not_tried_by_the_other_process(bench):
    """Two processes that try a cell which fails in turns, for ever."""
    cells = plan().all
    bad = next(cell for cell in cells if cell.name == "tiny-half")
    (bench / "fail").write_text(bad.id)
    both = [background(run_cells, cells, OUT) for _ in range(2)]
    assert [status_of(one) for one in both] == [1, 1]
    assert said("start").count(bad.id) == 1


def test_sigterm_ends_all_and_frees_the_cells(bench, monkeypatch):
    """What a cluster's time limit leaves: runs that go on, cells that wait for a dead process."""
    monkeypatch.setenv("STUB_SECONDS", "600")
    cells = plan().all
    one = background(run_cells, cells, OUT)
    until(lambda: len(said("start")) == 2)
    under_way = [cell for cell in cells if claims.is_held(cell.folder(OUT))]
    assert len(under_way) == 2
    assert why_not(under_way[0], OUT) == "another process runs it"
    # Whoever finds this process gone must not begin before the scripts are.
    held = [json.loads(claims.newest(cell.folder(OUT)).read_text()) for cell in under_way]
    assert {claim["child"][0] for claim in held} == set(children())
    os.kill(one.pid, signal.SIGTERM)
    assert status_of(one) not in (0, None) and not children()
    for cell in under_way:
        assert "released" in claims.newest(cell.folder(OUT)).read_text()
        assert why_not(cell, OUT) == "interrupted; the same command continues it"


def test_a_lost_cell_is_left(bench, monkeypatch):
    """A run that goes on in a folder which another machine has taken over."""
    monkeypatch.setenv("STUB_SECONDS", "600")
    monkeypatch.setattr(runner, "HEARTBEAT_SECONDS", 0.05)
    cell = plan().cells["t"]["none", "a"][0]

    def steal(self) -> bool:
        owner = {"machine": "elsewhere", "process": [1, "1"]}
        (self.path.parent / "claim-000002").write_text(json.dumps(owner))
        monkeypatch.setattr(claims.Claim, "touch", lambda self: True)
        return claims.newest(self.path.parent) == self.path

    monkeypatch.setattr(claims.Claim, "touch", steal)
    worker = Runner([cell], OUT, "python")
    worker.bar = type("Bar", (), {"set_postfix_str": lambda self, text: None})()
    worker._start([cell])
    until(lambda: worker._look() or not worker.running)
    assert said("end") == [] and not children()
    assert claims.newest(cell.folder(OUT)).name == "claim-000002" and claims.is_held(
        cell.folder(OUT)
    )


def test_an_interrupted_run_goes_on_from_other_paths(bench):
    """A cell that cannot be finished since OUT is given as another path or the data have moved:
    the run knows its folders by name alone and asks for another output=."""
    whole = plan().cells["t"]["whole", "a"][0]
    place = whole.init.folder(OUT)
    old = whole.init.config_of_run(OUT)
    for folder in (place, place / "checkpoints/step-00000500"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(to_yaml(old))
    (place / "checkpoints/step").write_text("3")
    (bench / "data/pairs").rename(bench / "data/moved")
    for name in ("pretrain", "finetune"):
        config = bench / f"configs/{name}/tiny.yaml"
        config.write_text(config.read_text().replace("data/pairs", "data/moved"))
    moved = plan().cells["t"]["whole", "a"][0].init
    assert moved.id == whole.init.id
    with pytest.raises(ValueError, match=r"another config: data\.tokenizer"):
        check_same_config(place, moved.config_of_run(OUT), 500)
    assert run([moved]) == {}
    for folder in (place, place / "checkpoints/step-00000500"):
        check_same_config(folder, moved.config_of_run(OUT), 500)
        assert load_config(folder / "config.yaml") == moved.config_of_run(OUT)


def test_jobs_share_the_cores(bench, monkeypatch):
    """Two runs at a time on two cores of four threads each."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stub = (bench / "run_finetune.py").read_text()
    (bench / "run_finetune.py").write_text(
        "import os\nprint('T', os.environ.get('OMP_NUM_THREADS'))\n" + stub
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    cells = [plan(2).cells["t"]["none", "a"][seed] for seed in range(2)]
    assert run(cells[:1]) == {} and run(cells[1:], jobs=4) == {}
    threads = [
        re.findall("^T (.*)$", (c.folder(OUT) / "output.txt").read_text(), re.M) for c in cells
    ]
    assert threads == [["None"], ["2"]]
