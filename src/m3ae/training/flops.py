"""Floating-point operations of a step, counted on the model itself without running it."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from m3ae.config import ModelConfig
from m3ae.data.texts import max_scored
from m3ae.models import M3AE

# Dense bf16 FLOP/s of one device, by a part of its name (vendors' data sheets).
_PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A6000": 155e12}


def step_flops(
    model: ModelConfig, text_length: int, pairs: int = 8, backward: bool = True
) -> float:
    """FLOP a pair of a training step (2 a multiply-add), texts of full length.

    Counted on the meta device: no memory, no arithmetic. `pairs` must be a multiple of itm.group.
    """
    pairs = max(pairs, model.itm.group)
    with torch.device("meta"):
        network = M3AE(model)
        batch = meta_batch(model, text_length, pairs)
    unreached = set(network.unreached())
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in unreached)
    counter = FlopCounterMode(display=False)
    with counter:
        losses = network(batch)
        if backward:
            losses["loss"].backward()
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


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a device; None where it is not known (a CPU, another GPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)
