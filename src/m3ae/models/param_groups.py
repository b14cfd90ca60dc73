"""Which parameters have which learning rate and weight decay (reference, fact 16)."""

import re

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
            named = {
                name: parameter
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
                and part_of(name, config.param_groups) == part
                and decays(name, parameter, config.param_groups) == decay
            }
            title = f"{part}, {'decay' if decay else 'no decay'}"
            group = {"name": title, "names": list(named), "params": list(named.values())}
            group |= {"lr_scale": scale, "weight_decay": config.weight_decay if decay else 0.0}
            groups += [group] if named else []
    return groups
