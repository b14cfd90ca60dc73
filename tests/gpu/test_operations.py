"""The operations of a step as a GPU would be given them, and what they predict."""

import dataclasses

import pytest

from benchmarks.roofline import GPUS, fused, predict, seconds
from m3ae.config import load_config
from m3ae.pretraining.cost import step_flops
from m3ae.pretraining.operations import Operation, trace_step
from tests.recipe import ROOT, tiny_config

PAPER = ROOT / "configs/pretrain/m3ae.yaml"
RANDOM = ("model.image_encoder.weights=null", "model.text_encoder.weights=null")


def paper(*overrides: str):
    return load_config(str(PAPER), [*RANDOM, *overrides])


def test_launches_of_the_papers_step():
    """A step that launches so much that a GPU waits for the host at 32 pairs."""
    operations = trace_step(paper(), 32, 64, "bf16")
    assert len(operations) <= 3000
    assert sum(one.name == "_to_copy" for one in operations) <= 420  # activations alone
    assert len(trace_step(paper(), 32, 64, "bf16", copies=False)) > len(operations) + 700


def test_what_is_traced_is_what_runs():
    """Operations left out or counted twice: products of another model, a pass without gradients."""
    found = {}
    for name in ("false", "true"):
        config = tiny_config(f"model.share={name}")
        operations = trace_step(config, 8, config.data.text_length, "fp32")
        kinds = ("products", "attention")
        found[name] = sum(one.flop for one in operations if one.group in kinds) / 8
        # The GPU's attention computes its scores twice, nothing else differs.
        wanted = step_flops(config.model, config.data.text_length)
        assert wanted <= found[name] < 1.05 * wanted
    assert found["true"] < found["false"]


def add(number: int, reads: list[int], group: str = "elementwise and sums", name: str = "add"):
    sizes = tuple((read, 100) for read in reads)
    return Operation(name, group, 0.0, True, sizes, ((number, 100),))


def test_neighbours_are_one_kernel():
    """A fused kernel that reads what it made itself, or forgets what a product reads later."""
    steps = [add(1, [0]), add(2, [1, 9]), add(3, [2], "products", "mm"), add(4, [1]), add(5, [4])]
    first, product, last = fused(steps)
    assert {key for key, _ in first.reads} == {0, 9} and {key for key, _ in first.writes} == {1, 2}
    assert product.name == "mm"
    assert {key for key, _ in last.reads} == {1} and {key for key, _ in last.writes} == {5}


@pytest.mark.parametrize(
    "flop, size, bound", [(1e12, 10, "arithmetic"), (0, 10**9, "memory"), (0, 10, "launch")]
)
def test_what_bounds_an_operation(flop, size, bound):
    """A bound that is another one; a step whose host is never the slower."""
    one = Operation("mm", "products", flop, True, ((0, size),), ())
    gpu = GPUS["h200"]
    time, found = seconds(one, gpu)
    assert found == bound
    if bound == "arithmetic":
        assert time == pytest.approx(1e12 / (0.7 * 989e12))
        single = dataclasses.replace(one, half=False)
        assert seconds(single, gpu)[0] == pytest.approx(1e12 / (0.7 * 67e12))
    result = predict([one] * 10, gpu, 4, host_us=8.0)
    host = bound == "launch"
    assert (result["bound_by"] == "host") == host
    assert result["step_ms"] == pytest.approx(max(0.08, 1e4 * time), abs=0.06)
