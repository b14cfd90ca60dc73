"""Runs of two processes, each in a folder of its own, as on two hosts that share no disk."""

import json
import runpy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import run_pretrain
from m3ae.training.logs import read_log
from tests.faults.runs import Forked

HALF = ["train.batch_per_process=4", "eval.batch=4"]


def two(tmp_path: Path, arguments: list[str], main: Callable = run_pretrain.main) -> list[str]:
    """What each of two processes says; `output` is relative to a folder of its own."""
    said = [tmp_path / f"said-{rank}" for rank in range(2)]
    for path in said:
        path.unlink(missing_ok=True)
    codes = Forked(main, arguments, 2, hosts=tmp_path).wait()
    said = [path.read_text() for path in said]
    assert codes == [0, 0], said
    return said


def run_file(path: str, _: list[str]) -> int:
    """A file of Python, as a program."""
    runpy.run_path(path, run_name="__main__")
    return 0


def interrupted(run: Path, into: Path) -> None:
    """A copy of a finished run of eight steps as it was after the checkpoint of the fourth."""
    shutil.copytree(run, into)
    shutil.rmtree(into / "checkpoints/step-00000008")
    (into / "evaluation.json").unlink()


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run, "train")]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints/step-00000008/model.safetensors")


@pytest.fixture()
def whole(small_run, tmp_path) -> Path:
    """A run of one process that nothing interrupted."""
    assert run_pretrain.main(small_run(name="whole")) == 0
    return tmp_path / "whole"


def test_other_numbers_of_processes(small_run, whole, tmp_path):
    """A run that cannot go on where there are more or fewer GPUs, other batches there, or hosts
    that each look for a checkpoint on a disk of their own."""
    interrupted(whole, tmp_path / "host-0/run")
    said, other = two(tmp_path, small_run(*HALF, "output=run"))
    assert "1 processes wrote it, 2 go on: dropout's draws begin anew, batches do not" in said
    assert "train.batch_per_process (8 there, 4 now)" in said and "processes wrote" not in other
    run = tmp_path / "host-0/run"
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5) and len(losses(run)) == 4
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(run)[name], tensor, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "host-1/run/checkpoints").exists()
    state = json.loads((run / "checkpoints/step-00000008/state.json").read_text())
    assert state["processes"] == 2
    # And back, from a checkpoint of two.
    shutil.rmtree(run / "checkpoints/step-00000004")
    (run / "evaluation.json").unlink()
    assert run_pretrain.main(small_run("output=" + str(run), steps=10)) == 0
    assert read_log(run, "train")[-1]["step"] == 10


def test_shares(small_run, tmp_path):
    """Weights in shares whose gradients are summed twice or not, clipped share by share, saved in
    part, or evaluated as they were at the start."""
    given = [*HALF, "optim.clip_norm=0.05", "train.batch_per_process=2", "model.itm.group=2"]
    two(tmp_path, small_run(*given, "output=whole"))
    said, _ = two(tmp_path, small_run(*given, "output=shares", "train.shard=true"))
    place = tmp_path / "host-0"
    assert losses(place / "shares") == pytest.approx(losses(place / "whole"), rel=1e-5)
    for kind, key in (("eval", "mlm_loss"), ("train", "mlm_loss"), ("train", "grad_norm")):
        one, other = (
            [line[key] for line in read_log(place / name, kind)] for name in ("whole", "shares")
        )
        assert one == pytest.approx(other, rel=1e-5 if key == "mlm_loss" else 1e-4)
    for name, tensor in weights(place / "whole").items():
        torch.testing.assert_close(weights(place / "shares")[name], tensor, rtol=1e-4, atol=1e-5)
    # A checkpoint is the same file whether or not there were shares.
    for name, shard in (("shares", "false"), ("whole", "true")):
        interrupted(place / name, place / f"{name}-on")
        said, _ = two(tmp_path, small_run(*given, f"output={name}-on", f"train.shard={shard}"))
        assert "train.shard" in said
        assert losses(place / f"{name}-on") == pytest.approx(losses(place / "whole"), rel=1e-5)


def test_shares_of_one_process(small_run, capsys):
    """A switch that does nothing without a word."""
    assert run_pretrain.main(small_run("train.shard=true")) == 2
    assert "train.shard: true needs several processes" in capsys.readouterr().err


PARTS = """
import json, sys
import torch
from m3ae.training.distributed import join_processes
from tests.training.test_loop import loop_of, steps_of
with join_processes(1, "cpu") as processes:
    # Rows that the processes of a host compute in turn.
    object.__setattr__(processes, "local_count", 2)
    object.__setattr__(processes, "local_rank", processes.rank)
    own = torch.arange(5)[processes.rank :: 2, None].expand(-1, 3).bfloat16()
    whole = processes.on_host({"x": own.contiguous()}, 5)["x"]
    assert whole.dtype == torch.bfloat16 and whole.tolist() == [[i] * 3 for i in range(5)]
    processes.wait()
    if processes.first:
        whole[4] = 7
    processes.wait()
    assert whole[4].tolist() == [7, 7, 7], "a copy a process"
    lone = processes.on_host({"x": own[:1].contiguous()} if processes.first else {}, 1)["x"]
    assert lone.tolist() == [[0, 0, 0]]
    # A loss that is not finite on the second process alone.
    values = [1.0, 1.0, float("nan") if processes.rank else 1.0, 1.0, 1.0, 1.0]
    for skip in (0, 1):
        loop = loop_of(values, processes=processes)
        loop.skip, numbers, said = skip, [], None
        try:
            for step in steps_of(loop):
                numbers.append(loop.trainer.model.number.item())
                loop.due(6)
        except ValueError as error:
            said = str(error)
        print(json.dumps([skip, numbers, said]), file=sys.stderr)
"""


def test_parts(tmp_path):
    """Frozen features that every process of a host keeps; a failed step of one process that the
    others do not learn of, do not name, or do not skip."""
    (tmp_path / "parts.py").write_text(PARTS)
    said = two(tmp_path, [], partial(run_file, str(tmp_path / "parts.py")))
    found = [
        [json.loads(line) for line in text.splitlines() if line.startswith("[")] for text in said
    ]
    assert found[0] == found[1]
    (_, stopped, error), (_, skipped, nothing) = found[0]
    assert "not finite at step 3 (it_loss of sample-2)" in error and nothing is None
    assert stopped[2] == stopped[1] == stopped[5] and skipped[2] == skipped[1]
    assert skipped[5] > skipped[3] > skipped[2]
