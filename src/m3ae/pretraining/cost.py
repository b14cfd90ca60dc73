"""What a run will be, before it starts: data, steps, parameters, FLOPs, memory."""

import dataclasses
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from m3ae.config import Config, ModelConfig
from m3ae.data.datasets import Pairs
from m3ae.data.sampler import Plan
from m3ae.data.texts import max_scored
from m3ae.models import M3AE
from m3ae.models.layers import PostNormBlock, PreNormBlock
from m3ae.models.switches import wrap_blocks
from m3ae.training.precision import autocast


def facts(
    config: Config,
    pairs: Pairs,
    held_out: Pairs | None,
    plan: Plan,
    device: torch.device,
    precision: str,
) -> dict[str, object]:
    """Figures of a run, by name."""
    with torch.device("meta"):
        model = M3AE(config.model)
    model.freeze_unreached()
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    length, gib = config.data.text_length, 2**30
    micro = plan.batch_per_process
    activations = activation_bytes(config.model, length, micro, device, precision)
    untrained = sum(parameter.numel() for parameter in parameters) - trained
    held = trained * 16 + untrained * 4
    if config.train.shard:  # a share of all that, and the whole model for evaluation
        held = held / plan.processes + (trained + untrained) * 4
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
        # Weights, and of what is trained gradients and two moments, all in fp32.
        "memory_gib_weights_optimiser": round(held / gib, 2),
        "memory_gib_activations": round(activations / gib, 2),
    }


def activation_bytes(
    model: ModelConfig, text_length: int, pairs: int, device: torch.device, precision: str
) -> int:
    """Bytes that a micro-batch keeps for its backward pass, texts of full length.

    Counted, not computed: a forward pass of tensors without content, which asks the device's own
    kernels what they keep. With checkpointing, plus what the largest block keeps while it is
    computed again. `compile` keeps less.
    """
    switches = [dataclasses.replace(model, compile=False, activation_checkpointing=False)]
    if model.activation_checkpointing:
        switches.append(dataclasses.replace(switches[0], activation_checkpointing=True))
    totals, largest = [], 0
    for one in switches:
        with FakeTensorMode(), torch.device(device):
            network, batch = M3AE(one), meta_batch(one, text_length, pairs)
            network.freeze_unreached()
            wrap_blocks(network, one)
            kept = _Kept(network)
            with kept, autocast(device, precision):
                network(batch)
        totals.append(sum(kept.sizes.values()))
        largest = max(largest, kept.largest_block)
    return totals[-1] + (largest if model.activation_checkpointing else 0)


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Sizes of the storages that autograd keeps, parameters left out."""

    def __init__(self, network: nn.Module) -> None:
        self.sizes: dict[Any, int] = {}  # by storage, which is so kept alive and counted once
        self.largest_block = 0
        own = {parameter.untyped_storage() for parameter in network.parameters()}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage not in own:
                self.sizes[storage] = storage.nbytes()
            return tensor

        super().__init__(note, lambda tensor: tensor)
        for block in network.modules():
            if isinstance(block, PreNormBlock | PostNormBlock):
                block.register_forward_pre_hook(lambda *_: self._note_block(start=True))
                block.register_forward_hook(lambda *_: self._note_block(start=False))

    def _note_block(self, start: bool) -> None:
        total = sum(self.sizes.values())
        if start:
            self.before = total
        else:
            self.largest_block = max(self.largest_block, total - self.before)


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
