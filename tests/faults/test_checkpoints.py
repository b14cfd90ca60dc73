"""A checkpoint cut at any byte of its writing, or altered at any place."""

import os
import random
import shutil
import signal
import time

import pytest
import torch

import run_pretrain
from m3ae.checkpoints import DamagedError, check_folder, checkpoints, newest_whole, step_of
from m3ae.training.engine import Trainer
from m3ae.training.optim import build_optimizer
from m3ae.training.saving import Saver
from tests.faults.runs import end_of
from tests.recipe import tiny_config
from tests.training.test_distributed import ALONE

CUTS, PLACES = 56, 5


class Weights(torch.nn.Module):
    """A model of 40 MB, whose checkpoint takes long enough to be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = torch.nn.Parameter(torch.randn(10_000_000))

    def save_pretrained(self, path, tokenizer, state) -> None:
        from safetensors.torch import save_file

        save_file(state, path / "model.safetensors")


class Words:
    """A tokeniser of one file."""

    def save_pretrained(self, folder: str) -> None:
        with open(f"{folder}/tokenizer.json", "w") as file:
            file.write("{}")


@pytest.fixture()
def saver(tmp_path):
    model = Weights()
    group = {"name": "all", "params": list(model.parameters()), "lr_scale": 1.0}
    config = tiny_config("train.keep_checkpoints=2")
    trainer = Trainer(model, build_optimizer([group], config.optim), ALONE, "fp32", None)
    model.numbers.grad = torch.ones_like(model.numbers)
    trainer.optimizer.step()
    return Saver(tmp_path, trainer, config, Words())


def written(run, step: int) -> int:
    """Bytes of a checkpoint that is being written."""
    part = run / f"checkpoints/step-{step:08d}.part"
    try:
        return sum(file.stat().st_size for file in os.scandir(part))
    except FileNotFoundError:  # not yet, or no longer
        return 0


@pytest.mark.parametrize("where", ["in the background", "at the end"])
def test_cut_at_any_byte(saver, tmp_path, measured, where):
    """Half a checkpoint under the name of a whole one, or an older one that is gone with it."""
    saver.save(1)
    saver.wait()
    before, whole = end_of(tmp_path), checkpoints(tmp_path)[0]
    size = sum(path.stat().st_size for path in whole.iterdir())
    chance, found, left = random.Random(0), [0, 0], set()
    for number in range(CUTS):
        step = 2 + number
        child = os.fork()
        if child == 0:
            with torch.no_grad():
                saver.trainer.model.numbers.fill_(step)
            saver.save(step)
            while where == "in the background" and saver.thread.is_alive():
                sum(range(1000))  # the training goes on
            saver.wait()
            os._exit(0)
        # Some cuts after the last byte: in the digests, the sync, the change of names.
        offset = chance.uniform(0, 1.2) * size
        running = (0, 0)
        while written(tmp_path, step) < min(offset, 0.99 * size) and running == (0, 0):
            running = os.waitpid(child, os.WNOHANG)
        if offset > size:
            time.sleep(chance.uniform(0, 1))
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        newest = newest_whole(tmp_path)
        kept = end_of(tmp_path)
        if step_of(newest) == step:
            found[1] += 1
            assert (kept["numbers"] == step).all()
            shutil.rmtree(newest)
        else:
            found[0] += 1
            assert all(torch.equal(kept[key], value) for key, value in before.items())
        left.add(len(list((tmp_path / "checkpoints").iterdir())))
    measured(
        f"SIGKILL at a byte of a checkpoint, {where}",
        CUTS,
        f"0 bad loads: {found[0]} times "
        f"the one before, {found[1]} times the whole new one; at most {max(left)} folders",
    )
    assert found[0] > CUTS // 2 and max(left) <= 3


def test_one_byte(small_run, tmp_path, measured):
    """A file whose digest nobody compares, a field that a flipped byte hides."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    folder, tries, chance = checkpoints(tmp_path / "run")[-1], 0, random.Random(0)
    names = sorted(path.name for path in folder.iterdir() if path.name != "README.md")
    for name in names:
        data = (folder / name).read_bytes()
        places = {0, len(data) - 1, *(chance.randrange(len(data)) for _ in range(PLACES))}
        if name == "state.json":
            places = set(range(len(data)))
        for place in places:
            altered = bytearray(data)
            altered[place] ^= 1 << chance.randrange(8)
            (folder / name).write_bytes(altered)
            with pytest.raises(DamagedError, match="damaged"):
                check_folder(folder)
            tries += 1
        (folder / name).write_bytes(data)
    check_folder(folder)
    measured("one byte altered in a file of a checkpoint", tries, f"0 of {len(names)} files loaded")
