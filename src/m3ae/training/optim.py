"""AdamW and the learning rates (paper sec. 3.1; reference, fact 17).

torch's AdamW adds eps after bias correction and decays before the update, the reference's the other
way round: they differ only where gradients are near eps.
"""

import math

import torch

from m3ae.config import OptimConfig


def build_optimizer(groups: list[dict], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW, fused, over parameter groups with an `lr_scale`; `set_lr` sets their rates."""
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def lr_at(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate of step `step` (from 0) of `steps`, as a multiple of the group's.

    Linear warm-up over warmup_frac of the steps from 0, then linear, cosine or power decay to
    end_lr_scale.
    """
    warmup = int(steps * config.warmup_frac)
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    left = {
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "power": (1 - progress) ** config.power,
    }[config.schedule]
    return config.end_lr_scale + (1 - config.end_lr_scale) * left


def set_lr(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> None:
    """Set every group's learning rate for a step: a pure function of the step."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr * group["lr_scale"] * lr_at(step, steps, config)
