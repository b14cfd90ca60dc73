"""What a run will be, before it starts: data, steps, parameters, FLOPs, memory."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from m3ae.config import Architecture, Config, ModelConfig
from m3ae.data.datasets import Pairs
from m3ae.data.sampler import Plan
from m3ae.data.texts import max_scored
from m3ae.models import M3AE

# Bytes an activation value costs a block, by token and width, in 16 bit, with fused attention
# (Korthikanti et al. 2022, "Reducing Activation Recomputation", eq. 1 without its attention term).
ACTIVATION_BYTES = 34


def facts(
    config: Config, pairs: Pairs, held_out: Pairs | None, plan: Plan, precision: str
) -> dict[str, object]:
    """Figures of a run, by name."""
    with torch.device("meta"):
        model = M3AE(config.model)
    model.freeze_unreached()
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    length, gib = config.data.text_length, 2**30
    activations = activation_bytes(config.model, length, precision) * plan.batch_per_process
    return {
        "run": config.output,
        "training_pairs": len(pairs),
        "held_out_pairs": 0 if held_out is None else len(held_out),
        "steps": plan.steps,
        "epochs": round(plan.epochs, 2),
        "batch_global": plan.batch_global,
        "processes": plan.processes,
        "accumulation": plan.accumulation,
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trained_parameters": trained,
        "gflop_per_sample": round(step_flops(config.model, length) / 1e9, 3),
        "memory_gib_weights_optimiser": round(trained * 16 / gib, 2),
        "memory_gib_activations_estimate": round(activations / gib, 2),
    }


def activation_bytes(model: Architecture, text_length: int, precision: str) -> float:
    """Rough bytes of activations a pair, all three objectives on."""
    image, text, fusion = model.image_encoder, model.text_encoder, model.fusion
    patches = (image.image_px // image.patch_px) ** 2
    kept = int(patches * (1 - model.mim.ratio))
    values = (patches + kept) * image.width * image.depth
    values += 2 * text_length * text.width * text.depth
    layers = 2 * fusion.depth + model.mim.layer
    values += (patches + text_length) * fusion.width * layers * 1.5  # self- and cross-attention
    return values * ACTIVATION_BYTES * (2 if precision == "fp32" else 1)


def step_flops(model: ModelConfig, text_length: int) -> float:
    """FLOP a pair of a training step (2 a multiply-add), texts of full length.

    Counted on the meta device: no memory, no arithmetic.
    """
    pairs = max(8, model.itm.group)
    with torch.device("meta"):
        network = M3AE(model)
        batch = meta_batch(model, text_length, pairs)
    network.freeze_unreached()
    counter = FlopCounterMode(display=False)
    with counter:
        network(batch)["loss"].backward()
    return counter.get_total_flops() / pairs


def meta_batch(model: ModelConfig, text_length: int, pairs: int) -> dict[str, torch.Tensor]:
    """The shapes of a batch, on the current device."""
    image = model.image_encoder
    scored = max_scored(text_length, model.mlm.ratio, model.mlm.sampling) or text_length
    integers = torch.zeros(pairs, text_length, dtype=torch.int64)
    batch = {
        "image": torch.zeros(pairs, 3, image.image_px, image.image_px),
        "text_ids": integers,
        "text_keep": torch.ones(pairs, text_length, dtype=torch.bool),
        "mlm_ids": integers,
        "mlm_labels": integers,
        "mlm_positions": torch.zeros(pairs, scored, dtype=torch.int64),
        "mlm_targets": torch.zeros(pairs, scored, dtype=torch.int64),
        "patch_order": torch.zeros(pairs, (image.image_px // image.patch_px) ** 2).long(),
        "itm_match": torch.ones(pairs, dtype=torch.bool),
    }
    if model.itm.negatives == "in_batch":
        return batch | {"itm_image": torch.zeros(pairs, dtype=torch.int64)}
    rows = torch.zeros(pairs - pairs // 2, dtype=torch.int64)
    return batch | {"negative_image": batch["image"], "itm_negative_rows": rows}
