"""A refactoring may move no number: the first losses and the shards of phantoms are recorded."""

import copy
import json

import pytest

from tests.end_to_end import golden_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("golden")
    golden_run.prepare(place)
    return place


@pytest.fixture(scope="module")
def recorded():
    return json.loads(golden_run.RECORD.read_text())


def test_shards_are_those_recorded(folder, recorded):
    """Any change of a byte of the phantoms, their transform, tokens, order or answer lists."""
    assert golden_run.digests(folder) == recorded["files"]


def test_losses_are_those_recorded(folder, recorded):
    """Any change of a mask, weight, rate or order; to the last bit on the machine of the record."""
    losses = golden_run.losses(folder)
    if golden_run.machine() == recorded["machine"]:
        assert losses == recorded["losses"]
    for name, values in recorded["losses"].items():
        assert losses[name] == pytest.approx(values, rel=1e-3)


def test_versions_are_those_recorded(recorded):
    """A version raised without a new record: the next change of a loss would pass unseen by it."""
    assert golden_run.versions() == recorded["versions"]


def test_losses_that_moved_are_not_recorded_without_a_version(recorded):
    """Finished cells of run_tables.py taken for those of code whose numbers are others."""
    for name in ("pretrain", "finetune"):
        moved = copy.deepcopy(recorded)
        moved["losses"][name][7] *= 1 + 1e-6
        said = golden_run.refusal(recorded, moved)
        assert f"losses of {name} moved" in said and "raise VERSION" in said
        elsewhere = {"machine": {"torch": "another"}}
        assert golden_run.refusal(recorded, moved | elsewhere) is None
        moved["losses"][name][7] *= 1.01
        assert golden_run.refusal(recorded, moved | elsewhere)
        for room, version in recorded["versions"].items():
            assert golden_run.refusal(recorded, moved | {"versions": {room: version}})
            assert golden_run.refusal(recorded, moved | {"versions": {room: version + 1}}) is None
    assert golden_run.refusal(recorded, copy.deepcopy(recorded)) is None
    # Shards that moved alone: a cell knows its data by their digests.
    assert golden_run.refusal(recorded, recorded | {"files": {}}) is None
