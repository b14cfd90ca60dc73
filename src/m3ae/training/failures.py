"""Which samples, and what of them, were not finite: the failed step run again as it was."""

from collections.abc import Callable

import torch
from torch import Tensor

from m3ae.training.engine import Trainer, to_device
from m3ae.training.precision import autocast

SHOWN = 5
SampleId = Callable[[int], str]


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """What dropout will draw next from, on the host and on a GPU."""
    gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), gpu


def explain(
    trainer: Trainer,
    batches: list[dict[str, Tensor]],
    state: tuple[Tensor, Tensor | None],
    sample_id: SampleId,
) -> str:
    """What of a step that failed is not finite, on any process; every process must call it.

    batches: this process's of that step. state: `random_state` before it. The weights must still be
    those of that step. Losses of single samples are named, else the first gradient that is not
    finite with the samples of its micro-batch.
    """
    device = trainer.processes.device
    trainer.whole()
    now = random_state(device)
    _set(state, device)
    found = _losses(trainer, batches, sample_id)
    if not any(trainer.processes.gather(bool(found))):
        _set(state, device)
        found = _gradients(trainer, batches, sample_id)
    _set(now, device)
    everyone = [line for lines in trainer.processes.gather(found) for line in lines]
    rest = f" and {len(everyone) - SHOWN} more" if len(everyone) > SHOWN else ""
    return "; ".join(everyone[:SHOWN]) + rest or "what, it did not show again"


def _set(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    host, gpu = state
    torch.set_rng_state(host)
    if gpu is not None:
        torch.cuda.set_rng_state(gpu, device)


def _losses(trainer: Trainer, batches: list[dict[str, Tensor]], sample_id: SampleId) -> list[str]:
    found = []
    for batch in batches:
        batch = to_device(batch, trainer.processes.device)
        with torch.no_grad(), autocast(trainer.processes.device, trainer.precision):
            sums = trainer.model(batch, per_sample=True)
        for key, value in sums.items():
            rows = (~torch.isfinite(value)).nonzero()[:, 0].tolist()
            found += [f"{key} of {sample_id(int(batch['index'][row]))}" for row in rows]
    return found


def _gradients(
    trainer: Trainer, batches: list[dict[str, Tensor]], sample_id: SampleId
) -> list[str]:
    found = []
    for batch in batches:
        batch = to_device(batch, trainer.processes.device)
        with autocast(trainer.processes.device, trainer.precision):
            losses = trainer.model(batch, trainer.model.counts(batch))
        losses["loss"].backward()
        bad = [
            name
            for name, parameter in trainer.model.named_parameters()
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
        ]
        trainer.model.zero_grad()
        if bad:
            ids = [sample_id(int(index)) for index in batch["index"]]
            among = ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")
            found.append(f"gradient of {bad[0]} ({len(bad)} in all) among {among}")
    return found
