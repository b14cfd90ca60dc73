"""The loop of both run scripts: batches, steps, log lines, the check that all was finite, speed."""

import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from m3ae.data.sampler import Plan
from m3ae.training.failures import SampleId, explain, random_state
from m3ae.training.logs import RunLog, peak_memory_gib
from m3ae.training.optim import set_lr
from m3ae.training.saving import Saver
from m3ae.training.stopping import StoppedError

log = logging.getLogger(__name__)

# Dense bf16 FLOP/s of one device, by what its name contains (vendors' data sheets).
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A6000": 155e12}


@dataclass
class Loop:
    """`for step, batches in loop:` gives the micro-batches of a step and its number, from 1.

    Inside `with loop:`, at whose end all that was saved is on the disk. A signal that asks the run
    to end makes it StoppedError, after the checkpoint of the last step. Where nothing goes on for
    `train.timeout_minutes` the process ends (see `Stop.watched`).
    The body trains on them, at the rates that are set, and then asks `due` before all else that it
    does (log lines, evaluation, checkpoints): that is in no speed, and raises ValueError naming
    samples where a loss or gradient is not finite.
    `sample_id` names a sample by the `index` of a batch. With `train.skip_non_finite` a step that
    is not finite changes nothing, is noted in the log with its samples, and the run goes on, so
    many times; that costs a wait for the device at every step.
    """

    saver: Saver
    loader: DataLoader  # this process's micro-batches from `step` on; its data set holds all
    plan: Plan
    step: int
    sample_id: SampleId

    def __post_init__(self) -> None:
        self.trainer, config = self.saver.trainer, self.saver.config
        self.optim, self.train, self.skip = config.optim, config.train, config.train.skip_non_finite

    def __enter__(self) -> "Loop":
        processes = self.trainer.processes
        title = f"process {processes.rank} of {processes.count} on {socket.gethostname()}"
        self.watch = processes.stop.watched(self.train.timeout_minutes, title)
        self.watch.__enter__()
        processes.stop.stage = "loop"
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        saver, processes = self.saver, self.trainer.processes
        processes.stop.stage = "end"
        self.watch.__exit__(None, None, None)
        if kind is StoppedError:
            self._check_finite()
            if saver.saved != self.step:
                saver.save(self.step)
        if kind in (None, StoppedError):
            saver.wait()
            if error := saver.failure():
                raise error
            processes.wait()  # while the first one writes: torchrun ends all with the first to end
        if kind is StoppedError:
            log.info("asked to end: step %d is saved, the same command goes on", self.step)
        processes.stop.stage = "outside"

    def __iter__(self) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
        trainer, steps = self.trainer, self.plan.steps
        first = trainer.processes.first
        trainer.model.train()
        batches = iter(self.loader)
        self.skipped, self.notes = 0, []
        self._look()
        self._measure_anew()
        self.bar = tqdm(total=steps, initial=self.step, unit="step", disable=not first)
        with self.bar:
            while self.step < steps:
                started = time.perf_counter()
                micro = [next(batches) for _ in range(self.plan.accumulation)]
                self.waited += time.perf_counter() - started
                set_lr(trainer.optimizer, self.step, steps, self.optim)
                self.step += 1
                self.acted, sums = False, trainer.sums
                trainer.sums = dict(sums)
                self.states.append(random_state(trainer.processes.device))
                yield self.step, micro
                if self.skip and trainer.failed.item():
                    self._skip(sums)
                self.bar.update()
                self._check_saved()
                trainer.processes.go_on()
                if self.acted:
                    self._measure_anew()

    def due(self, *every: int) -> bool:
        """Whether something is, that is done at multiples of any of `every` steps and at the end.

        0 = at the end only.
        """
        due = due_at(self.step, self.plan.steps, *every)
        if due:
            self.acted = True
            self._check_finite()
        return due

    def _check_finite(self) -> None:
        if self.trainer.failed.item() and not self.skip:
            raise ValueError(self._not_finite())
        self._look()

    def _check_saved(self) -> None:
        """OSError where a checkpoint could not be written, and that is to stop the run."""
        if error := self.saver.failure():
            if self.train.on_save_error == "stop" or self.step == self.plan.steps:
                raise error
            log.error("%s; the run goes on (train.on_save_error)", error)
            self.notes.append((self.step, str(error)))

    def log(self, run_log: RunLog, gflop: float | None = None) -> None:
        """A line of means since the last one, rates and speed; `gflop` = of a sample's step."""
        values = self.trainer.read()
        for step, said in self.notes:
            run_log.write("note", step, message=said)
        self.notes = []
        rates = {group["name"]: group["lr"] for group in self.trainer.optimizer.param_groups}
        samples, speed = self.step * self.plan.batch_global, self._speed(gflop)
        run_log.write("train", self.step, samples=samples, **values, lr=rates, **speed)
        if values["loss"] is not None:
            self.bar.set_postfix_str(f"loss {values['loss']:.3f}")

    def _look(self) -> None:
        """Until the next look a failed step is one of those that begin now."""
        self.seen, self.states = self.step, []
        self.trainer.taken.zero_()

    def _skip(self, sums: dict[str, Tensor]) -> None:
        """Go on after a failed step as if it had not been; `sums`: the trainer's before it."""
        said = self._not_finite()
        self.skipped += 1
        if self.skipped > self.skip:
            raise ValueError(said)
        said = f"skipped, {self.skipped} of at most {self.skip}: {said}"
        log.warning(said)
        self.notes.append((self.step, said))
        self.trainer.sums = sums
        self.trainer.failed.zero_()
        self._look()

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
        """One line that names the step and the samples; every process must call it."""
        step = self.seen + int(self.trainer.taken.item())  # finished ones before it
        items = range(step * self.plan.accumulation, (step + 1) * self.plan.accumulation)
        batches = [self.loader.dataset[item] for item in items]
        where = explain(self.trainer, batches, self.states[step - self.seen], self.sample_id)
        return (
            f"a loss or gradient is not finite at step {step + 1} ({where}). It changed no weight. "
            "Lower optim.lr, set optim.clip_norm or use train.precision=fp32; a change of these "
            "needs init=CHECKPOINT output=OTHER. train.skip_non_finite=N goes on without such steps"
        )


def due_at(step: int, steps: int, *every: int) -> bool:
    """Whether a step is a multiple of any of `every` (0: of none), or the last of `steps`."""
    return step == steps or any(n and step % n == 0 for n in every)


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a device; None where it is not known (a CPU, another GPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in _PEAKS.items() if known in name), None)
