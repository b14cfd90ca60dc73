"""AdamW's parameter groups and the learning rates (paper sec. 3.1; reference, facts 16 and 17).

torch's AdamW adds eps after bias correction and decays before the update, the reference's the other
way round: they differ only where gradients are near eps.
"""

import math
import re

import torch
from torch import nn

from m3ae.config import OptimConfig


def part_of(name: str, grouping: str) -> str:
    """encoder, head or fusion: the group whose learning rate a parameter has."""
    if "head." in name:
        return "head"
    if name.startswith("fusion.") and not (
        grouping == "reference" and name == "fusion.type_embedding.weight"
    ):
        return "fusion"
    return "encoder"  # the type embedding too, in the reference's grouping


def decays(name: str, parameter: nn.Parameter, grouping: str) -> bool:
    """Whether weight decay applies to a parameter."""
    if grouping == "principled":
        return parameter.ndim > 1 and not re.search(r"(word|position|type)_embedding", name)
    # The reference spares what is called "bias" or "LayerNorm.weight" (and two head norms), which
    # misses CLIP's ln_* weights, in the MIM decoder too, and the norms of downstream heads.
    if name.endswith(".bias"):
        return False
    if name.startswith(("text_encoder.", "fusion.")):
        return not name.endswith("norm.weight")
    return name not in ("mlm_head.norm.weight", "mim_head.norm.weight")


def param_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Trainable parameters in six groups: {encoder, head, fusion} x {decay, no decay}.

    Every parameter is in exactly one; groups without one are left out.
    """
    scales = {"encoder": 1.0, "head": config.head_lr_scale, "fusion": config.fusion_lr_scale}
    groups = []
    for part, scale in scales.items():
        for decay in (True, False):
            named = [
                (name, parameter)
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
                and part_of(name, config.param_groups) == part
                and decays(name, parameter, config.param_groups) == decay
            ]
            if named:
                groups.append(
                    {
                        "name": f"{part}, {'decay' if decay else 'no decay'}",
                        "names": [name for name, _ in named],
                        "params": [parameter for _, parameter in named],
                        "lr_scale": scale,
                        "weight_decay": config.weight_decay if decay else 0.0,
                    }
                )
    return groups


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `param_groups`, fused; its learning rates are set by `set_lr` every step."""
    groups = param_groups(model, config)
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
