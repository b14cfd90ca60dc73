"""Claims: one owner a cell, whoever dies or works elsewhere."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from m3ae.tables import claims
from m3ae.tables.claims import STALE_SECONDS, claim, is_dead, is_held, newest
from tests.tables.conftest import background


def race(folder, start, told):
    start.wait()
    won = [k for k in range(50) if claim(folder / str(k)) is not None]
    told.put(won)
    time.sleep(600)  # alive, so that its claims are


def test_each_cell_has_one_owner(tmp_path):
    """A cell that two processes get, or that neither does, when they claim at the same time."""
    context = multiprocessing.get_context("fork")
    start, told = context.Event(), context.Queue()
    racers = [background(race, tmp_path, start, told) for _ in range(2)]
    start.set()
    won = [told.get(timeout=600) for _ in racers]
    for one in racers:
        one.kill()
        one.join()
    assert sorted(won[0] + won[1]) == list(range(50))
    assert {len(list((tmp_path / str(k)).iterdir())) for k in range(50)} == {1}  # nothing is left


def hold(folder, told):
    owned = claim(folder)
    told.put(owned is not None)
    time.sleep(600)


@pytest.fixture()
def other(tmp_path):
    """A process that has claimed a cell."""
    told = multiprocessing.get_context("fork").Queue()
    process = background(hold, tmp_path, told)
    assert told.get(timeout=600)
    yield process
    process.kill()
    process.join()


def test_a_killed_owner_is_followed(other, tmp_path):
    """A cell whose process was killed, which nobody runs ever again; one stolen from the living."""
    assert is_held(tmp_path) and claim(tmp_path) is None
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert not is_held(tmp_path)
    assert claim(tmp_path) is not None and is_held(tmp_path)


def test_a_killed_owner_whose_run_still_goes_on_is_not_followed(other, tmp_path):
    """Two runs in one folder: the runner is gone, but what it started is not yet."""
    mine = claim(tmp_path / "cell")
    mine.note_child(other.pid)
    whole = json.loads(mine.path.read_text())
    mine.path.write_text(json.dumps({**whole, "process": [whole["process"][0], "0"]}))
    assert is_held(tmp_path / "cell")
    other.kill()
    other.join()
    assert not is_held(tmp_path / "cell")


def test_another_process_of_the_same_number_is_not_the_owner(tmp_path):
    """A cell held for ever by a process that has by chance the number of one that is gone."""
    mine = claim(tmp_path)
    number, started = json.loads(mine.path.read_text())["process"]
    assert number == os.getpid() and not is_dead(mine.path)
    owner = {**json.loads(mine.path.read_text()), "process": [number, str(int(started) + 1)]}
    mine.path.write_text(json.dumps(owner))
    assert is_dead(mine.path) and claim(tmp_path) is not None


def test_a_released_claim_is_free(tmp_path):
    """A finished or failed cell that its own process still holds."""
    mine = claim(tmp_path)
    mine.release()
    assert not is_held(tmp_path)
    again = claim(tmp_path)
    assert again is not None and again.path == newest(tmp_path) != mine.path


def test_of_another_machine_only_the_age_counts(tmp_path):
    """A live run of another machine that is taken over, or a dead one that never is."""
    mine = claim(tmp_path)
    owner = {**json.loads(mine.path.read_text()), "machine": "elsewhere"}
    mine.path.write_text(json.dumps(owner))
    old = time.time() - STALE_SECONDS + 100
    os.utime(mine.path, (old, old))
    assert is_held(tmp_path) and claim(tmp_path) is None
    assert mine.touch() and mine.path.stat().st_mtime > old + 10
    old -= 200
    os.utime(mine.path, (old, old))
    theirs = claim(tmp_path)
    assert theirs is not None
    assert not mine.touch() and theirs.touch()  # the first owner sees that it has lost the cell
    mine.release()
    assert is_held(tmp_path)


def test_a_machine_without_proc_goes_by_age(tmp_path, monkeypatch):
    """No start times: every claim of this machine alive for ever, since none equals none."""
    monkeypatch.setattr(claims, "started", lambda pid: None)
    mine = claim(tmp_path)
    assert is_held(tmp_path)
    old = time.time() - STALE_SECONDS - 30
    os.utime(mine.path, (old, old))
    assert not is_held(tmp_path)


def test_a_claim_that_is_being_written_is_held(tmp_path):
    """A cell taken over since its claim was read while its child was written down in it; one that
    is held for ever since its owner was killed just then."""
    path = tmp_path / "claim-000007"
    for text in ("", '{"machine": "he'):
        path.write_text(text)
        assert is_held(tmp_path) and claim(tmp_path) is None
    old = time.time() - STALE_SECONDS - 30
    os.utime(path, (old, old))
    assert claim(tmp_path).path.name == "claim-000008"
