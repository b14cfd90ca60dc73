"""Several processes, several micro-batches: the same gradient as one process with one batch."""

import itertools
import os
import socket

import pytest
import torch

from m3ae.config import Config, load_config
from m3ae.data.datasets import Pairs, TrainBatches
from m3ae.data.sampler import Order, Plan
from m3ae.data.texts import load_tokenizer
from m3ae.models import build_model
from m3ae.models.param_groups import param_groups
from m3ae.training.distributed import Processes, join_processes
from m3ae.training.engine import Trainer
from m3ae.training.optim import build_optimizer, set_lr
from tests.conftest import SMALL
from tests.recipe import ROOT

ALONE = Processes(0, 0, 1, torch.device("cpu"))
OBJECTIVES = ("mlm", "mim", "itm")
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(OBJECTIVES, n)]


class Capture(torch.optim.SGD):
    """Keeps the gradients that a step would have used."""

    def step(self) -> None:
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def small_config(shards, *overrides: str) -> Config:
    settings = [*SMALL, f"data.train=[{shards}/train]", f"data.tokenizer={shards}/tokenizer"]
    return load_config(ROOT / "configs/pretrain/quickstart.yaml", [*settings, *overrides])


def batches_of(config: Config, processes: Processes, micro: int, step: int) -> list[dict]:
    """This process's micro-batches of a step with a global batch of 8."""
    pairs = Pairs(config.data.train, load_tokenizer(config.data.tokenizer), 24, 64)
    plan = Plan(len(pairs), 2, 8, micro, processes.count)
    order = Order(pairs.sizes, None, config.seed)
    data = TrainBatches(pairs, order, plan, config.model, config.seed, processes.rank)
    return [data[step * plan.accumulation + i] for i in range(plan.accumulation)]


def gradients(processes: Processes, shards, micro: int, sampling: str) -> dict[str, torch.Tensor]:
    config = small_config(shards, f"model.mlm.sampling={sampling}")
    model = build_model(config).double()  # rounding in float32 would hide, or feign, an error
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    optimizer = Capture([p for _, p in named], lr=0.1)
    trainer = Trainer(model, optimizer, processes, "fp32", None)
    trainer.train_step(batches_of(config, processes, micro, step=0))
    return dict(zip([name for name, _ in named], optimizer.seen, strict=True))


def train_subset(processes: Processes, shards, subset: tuple[str, ...]) -> list:
    """Two steps, accumulated twice, of some objectives -> what is logged, the weights after."""
    off = [f"model.{name}.weight=0" for name in OBJECTIVES if name not in subset]
    config = small_config(shards, *off)
    model = build_model(config)
    optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
    trainer = Trainer(model, optimizer, processes, "fp32", 1.0)
    for step in range(2):
        set_lr(optimizer, step + 10, 20, config.optim)
        trainer.train_step(batches_of(config, processes, 2, step))
    assert not trainer.failed
    return [trainer.read(), {key: value.clone() for key, value in model.state_dict().items()}]


def _worker(rank: int, port: int, shards, folder) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with join_processes(1) as processes:
        for sampling, micro in itertools.product(("exact", "reference"), (4, 2)):
            found = gradients(processes, shards, micro, sampling)
            torch.save(found, folder / f"{sampling}-{micro}-{rank}.pt")
        for subset in SUBSETS:
            trained = train_subset(processes, shards, subset)
            torch.save(trained, folder / f"{'-'.join(subset)}-{rank}.pt")


@pytest.fixture(scope="module")
def two_processes(shards, tmp_path_factory):
    """What two Gloo processes computed, in files."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (port, shards, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("sampling", ["exact", "reference"])
def test_gradient_does_not_depend_on_the_split(two_processes, shards, sampling):
    """Catches averaging losses by process or micro-batch instead of by scored tokens."""
    whole = gradients(ALONE, shards, 8, sampling)
    others = {"1 x 2 accumulated 4 times": gradients(ALONE, shards, 2, sampling)}
    for micro, rank in itertools.product((4, 2), (0, 1)):
        path = two_processes / f"{sampling}-{micro}-{rank}.pt"
        others[f"process {rank} of 2 x {micro}"] = torch.load(path, weights_only=True)
    for title, other in others.items():
        for name, gradient in whole.items():
            scale = gradient.norm().clamp(min=1e-6)  # key biases: zero but for rounding
            assert (other[name] - gradient).norm() / scale < 1e-5, (title, name)


@pytest.mark.parametrize("subset", SUBSETS, ids="-".join)
def test_every_subset_trains_on_two_processes(two_processes, subset):
    """Catches a parameter that no loss reaches left in DDP, and processes drifting apart."""
    (values, first), (other, second) = (
        torch.load(two_processes / f"{'-'.join(subset)}-{rank}.pt", weights_only=True)
        for rank in (0, 1)
    )
    assert values == other
    assert {f"{name}_loss" for name in subset} <= values.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
