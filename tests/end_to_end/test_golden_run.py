"""A refactoring may move no number: the first losses and the shards of phantoms are recorded."""

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
