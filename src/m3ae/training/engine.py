"""One training step and one evaluation, for pre-training and fine-tuning alike.

The engine knows no objective: a model gives a dict with `loss`; its `counts` the denominators.
"""

import contextlib
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from m3ae.training.distributed import Processes
from m3ae.training.precision import DTYPES, HalfWeights, autocast
from m3ae.training.sharding import copy_to, gathered

Arrays = dict[str, np.ndarray]


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on the device."""
    return {key: tensor.to(device, non_blocking=True) for key, tensor in batch.items()}


@dataclass
class Trainer:
    """What a step needs, and what it adds up between two log lines.

    `model` is the plain model, `parallel` what a step runs, wrapped as need be. With `shares`, a
    twin of the model of which each process has its part (`sharding.shard`), that one is trained,
    by an optimiser of its parameters, and `whole` brings the model up to date. Who holds `still`
    may read weights and moments: no step changes them until it is let go.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    processes: Processes
    precision: str
    clip_norm: float | None
    shares: nn.Module | None = None
    parallel: nn.Module = field(init=False)
    sums: dict[str, Tensor] = field(init=False, default_factory=dict)
    failed: Tensor = field(init=False)
    taken: Tensor = field(init=False)
    still: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.parallel = self.shares or self.model
        self.copies = contextlib.nullcontext
        if self.precision != "fp32" and not self.shares:
            self.copies = HalfWeights(self.model, DTYPES[self.precision]).in_place
        if self.processes.count > 1 and not self.shares:
            gpu = self.processes.device.type == "cuda"
            self.parallel = DistributedDataParallel(
                self.model,
                device_ids=[self.processes.local_rank] if gpu else None,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,  # they are constants
            )
        self.scaler = torch.amp.GradScaler(
            self.processes.device.type, enabled=self.precision == "fp16"
        )
        # 1 once a step was not finite. It stays 1 and no later step changes the weights, so they
        # are still those that failed when the host looks; reading it every step would stall a GPU.
        # With fp16 a gradient that overflows is no failure: its step is skipped, the scale halved.
        self.failed = torch.zeros((), device=self.processes.device)
        self.taken = torch.zeros((), device=self.processes.device)  # steps that did not fail

    def train_step(self, batches: list[dict[str, Tensor]]) -> None:
        """One optimiser step over this process's micro-batches of the step.

        Losses are divided by the units of the whole global batch, so any split over processes and
        micro-batches gives the same gradient.
        """
        device, count = self.processes.device, self.processes.count
        batches = [to_device(batch, device) for batch in batches]
        totals = self._totals(batches)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with self._gradients_summed(last), self.copies():
                with autocast(device, self.precision):
                    losses = self.parallel(batch, totals=totals)
                # DDP averages over processes, but the totals already are everybody's.
                self.scaler.scale(losses["loss"] * count).backward()
            self._add({key: value.detach() for key, value in losses.items()})
            self.processes.stop.beat()
        self.scaler.unscale_(self.optimizer)
        trained = self.shares or self.model
        parameters = [p for p in trained.parameters() if p.grad is not None]
        norm = gathered(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        finite = torch.isfinite(norm)
        self._check(finite)
        # The optimiser itself leaves everything as it is where this is 1 (as the scaler's own step
        # would, but that knows of no failure).
        self.optimizer.found_inf = torch.maximum(self.failed, (~finite).float())
        with self.still:
            self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad()
        ones = torch.ones((), device=device)
        self._add({"grad_norm": norm.where(finite, 0), "steps": ones, "finite": finite * ones})

    def whole(self) -> nn.Module:
        """The plain model with the weights of now; every process must call it."""
        if self.shares:
            copy_to(self.shares, self.model)
        return self.model

    def _gradients_summed(self, last: bool) -> contextlib.AbstractContextManager:
        """Over the processes in the backward pass of a step's last micro-batch alone."""
        if self.shares:
            self.shares.set_requires_gradient_sync(last)
        elif self.processes.count > 1 and not last:
            return self.parallel.no_sync()
        return contextlib.nullcontext()

    def _totals(self, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        counts = [self.model.counts(batch) for batch in batches]
        names = list(counts[0])
        totals = torch.stack([sum(count[name] for count in counts) for name in names])
        totals = self.processes.sum(totals)
        return dict(zip(names, totals.unbind(), strict=True))

    def _check(self, finite_norm: Tensor) -> None:
        """Note on the device whether this step was finite; all processes agree."""
        finite = torch.isfinite(self.sums["loss"])
        if self.precision != "fp16":
            finite = finite & finite_norm
        self.failed = self.processes.sum(torch.maximum(self.failed, (~finite).float())).clamp(max=1)
        self.taken = self.taken + (1 - self.failed)

    def _add(self, values: dict[str, Tensor]) -> None:
        for key, value in values.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def read(self) -> dict[str, float | None]:
        """Means over the steps since the last call: losses, accuracies, gradient norm.

        With fp16 also `skipped_steps`, those whose gradient overflowed (in no norm), and
        `loss_scale`. Every process must call it; it waits for the device.
        """
        shared = ("grad_norm", "steps", "finite")  # the same in all; the rest is own batches'
        names = sorted(key for key in self.sums if key not in shared)
        summed = self.processes.sum(torch.stack([self.sums[name].double() for name in names]))
        values = dict(zip(names, summed.tolist(), strict=True))
        steps = self.sums["steps"].item()
        out = {key: value / steps for key, value in values.items() if key.endswith("loss")}
        out |= accuracies(values)
        finite = self.sums["finite"].item()
        out["grad_norm"] = self.sums["grad_norm"].item() / finite if finite else None
        if self.precision == "fp16":
            out |= {"skipped_steps": int(steps - finite), "loss_scale": self.scaler.get_scale()}
        self.sums = {}
        return out


def accuracies(values: dict[str, float]) -> dict[str, float]:
    """`{name}_correct / {name}_count` for every objective that counts correct units."""
    names = [key.removesuffix("_correct") for key in values if key.endswith("_correct")]
    return {f"{n}_accuracy": values[f"{n}_correct"] / max(1.0, values[f"{n}_count"]) for n in names}


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module, batches: Collection[dict[str, Tensor]], processes: Processes, precision: str
) -> Arrays:
    """Per-sample sums over a fixed set: arrays (samples,) by key, `index` sorted, no duplicates.

    Every process must call it, each with its own batches. StoppedError as `Processes.go_on`.
    """
    rows = []
    with evaluating(model):
        for batch in processes.rounds(batches):
            batch = to_device(batch, processes.device)
            with autocast(processes.device, precision):
                sums = model(batch, per_sample=True)
            sums["index"] = batch["index"]
            rows.append({key: value.cpu().numpy() for key, value in sums.items()})
    joined = join_arrays(rows, processes)
    _, first = np.unique(joined["index"], return_index=True)  # a sample counts once
    return {key: array[first] for key, array in joined.items()}


def join_arrays(rows: list[Arrays], processes: Processes) -> Arrays:
    """One array a key over the rows (batches) of all processes; every process must call it."""
    everyone = [row for their_rows in processes.gather(rows) for row in their_rows]
    return {key: np.concatenate([row[key] for row in everyone]) for key in everyone[0]}


def summarise(arrays: Arrays, loss_weights: dict[str, float]) -> dict[str, float]:
    """Means of `evaluate`'s arrays: `{name}_loss`, `{name}_accuracy`, `loss`, `samples`."""
    sums = {key: float(array.sum()) for key, array in arrays.items()}
    out = {f"{n}_loss": sums[f"{n}_loss"] / max(1.0, sums[f"{n}_count"]) for n in loss_weights}
    out["loss"] = sum(weight * out[f"{name}_loss"] for name, weight in loss_weights.items())
    return out | accuracies(sums) | {"samples": len(arrays["index"])}
