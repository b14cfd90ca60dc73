"""The loop of both run scripts: batches, steps, log lines, the check that all was finite, speed."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from m3ae.config import OptimConfig
from m3ae.data.sampler import Plan
from m3ae.training.engine import Trainer, to_device
from m3ae.training.logs import RunLog, peak_memory_gib
from m3ae.training.optim import set_lr

# Dense bf16 FLOP/s of one device, by what its name contains (vendors' data sheets).
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A6000": 155e12}


@dataclass
class Loop:
    """`for step, batches in loop:` gives the micro-batches of a step and its number, from 1.

    The body trains on them, at the rates that are set, and then asks `due` before all else that it
    does (log lines, evaluation, checkpoints): that is in no speed, and raises ValueError naming
    samples where a loss or gradient is not finite.
    `sample_id` names a sample by the `index` of a batch.
    """

    trainer: Trainer
    loader: Iterable[dict[str, Tensor]]  # this process's micro-batches, from `step` on
    plan: Plan
    optim: OptimConfig
    step: int
    sample_id: Callable[[int], str]

    def __iter__(self) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
        trainer, steps = self.trainer, self.plan.steps
        first = trainer.processes.first
        trainer.model.train()
        batches = iter(self.loader)
        self._measure_anew()
        self.bar = tqdm(total=steps, initial=self.step, unit="step", disable=not first)
        with self.bar:
            while self.step < steps:
                started = time.perf_counter()
                self.batches = [next(batches) for _ in range(self.plan.accumulation)]
                self.waited += time.perf_counter() - started
                set_lr(trainer.optimizer, self.step, steps, self.optim)
                self.step += 1
                self.acted = False
                yield self.step, self.batches
                self.bar.update()
                if self.acted:
                    self._measure_anew()

    def due(self, *every: int) -> bool:
        """Whether something is, that is done at multiples of any of `every` steps and at the end.

        0 = at the end only.
        """
        due = self.step == self.plan.steps or any(n and self.step % n == 0 for n in every)
        if due:
            self.acted = True
            if self.trainer.failed.item():
                raise ValueError(self._not_finite())
        return due

    def log(self, run_log: RunLog, gflop: float | None = None) -> None:
        """A line of means since the last one, rates and speed; `gflop` = of a sample's step."""
        values = self.trainer.read()
        rates = {group["name"]: group["lr"] for group in self.trainer.optimizer.param_groups}
        samples, speed = self.step * self.plan.batch_global, self._speed(gflop)
        run_log.write("train", self.step, samples=samples, **values, lr=rates, **speed)
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}")

    def _measure_anew(self) -> None:
        self.since, self.waited, self.started = self.step, 0.0, time.perf_counter()

    def _speed(self, gflop: float | None) -> dict[str, float | None]:
        """Speed, waiting, use of the device's FLOP/s and memory since `_measure_anew`."""
        device = self.trainer.processes.device
        seconds = time.perf_counter() - self.started
        rate = (self.step - self.since) * self.plan.batch_global / seconds
        peak = peak_flops(device)
        known = peak is not None and gflop is not None
        return {
            "samples_per_s": rate,
            "seconds": seconds,
            "data_wait_s": self.waited,
            "mfu": rate * gflop * 1e9 / self.plan.processes / peak if known else None,
            "peak_memory_gib": peak_memory_gib(device),
        }

    def _not_finite(self) -> str:
        """One line that names the samples whose loss is not finite."""
        bad = []
        with torch.no_grad(), contextlib.suppress(RuntimeError):
            for batch in self.batches:
                batch = to_device(batch, self.trainer.processes.device)
                for key, value in self.trainer.model(batch, per_sample=True).items():
                    rows = (~torch.isfinite(value)).nonzero()[:, 0].tolist()
                    bad += [(key, int(batch["index"][row])) for row in rows]
        where = "; ".join(f"{key} of {self.sample_id(index)}" for key, index in bad[:5])
        where = where or "a gradient, or a sample of another process or an earlier step"
        return (
            f"a loss or gradient is not finite at or just before step {self.step} ({where}). "
            "Checkpoints up to then are kept; lower optim.lr, set optim.clip_norm or use "
            "train.precision=fp32"
        )


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a device; None where it is not known (a CPU, another GPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)
