"""The same model as the published one: every recorded number of the reference.

Tolerance: 1e-5 relative, or ten times what float32 lost against float64 in the recording.
"""

import json
import math
from functools import cache

import pytest
import torch

from m3ae.models import M3AE
from m3ae.models.heads import AnswerHead, RetrievalHead, start_retrieval_head
from m3ae.models.image_encoder import resize_positions
from m3ae.models.losses import classification_loss, vqa_loss
from m3ae.models.param_groups import param_groups
from m3ae.models.pretrained import convert_reference
from m3ae.training.optim import build_optimizer, lr_at
from tests.recipe import (
    GOLDEN,
    close,
    golden,
    golden_batch,
    golden_model,
    golden_state,
    recorded_error,
    tiny_config,
)

OBJECTIVES = ("mlm", "mim", "itm")
STREAMS = ("text", "image")


def outputs(name: str) -> torch.Tensor | list[torch.Tensor]:
    return golden()["outputs"][name]


def second_pairing() -> dict[str, torch.Tensor]:
    """The golden batch with the recorded second order of matches."""
    match = torch.tensor([True, True, False, False])[golden()["inputs"]["itm_perm2"]]
    return golden_batch() | {"itm_match": match}


def encoded(model: M3AE, which: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoders give in one of the reference's passes: text, image."""
    batch = golden_batch()
    image, ids = batch["image"], batch["text_ids"]
    kept = None
    if which == "mlm":
        ids = batch["mlm_ids"]
    elif which == "mim":
        kept = model.kept(batch)
    elif which == "itm":
        image = torch.where(batch["itm_match"][:, None, None, None], image, batch["negative_image"])
    return model.text_encoder(ids, batch["text_keep"]), model.image_encoder(image, kept)


def states(model: M3AE, which: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both streams after each fusion layer of a pass, what enters first."""
    text, image = encoded(model, which)
    text, image = model.fusion.enter_text(text), model.fusion.enter_image(image)
    return model.fusion.run(text, image, golden_batch()["text_keep"], 0, model.fusion.depth)


# ------------------------------------------------------------------------------ features


@torch.no_grad()
@pytest.mark.parametrize("which", ["infer", *OBJECTIVES])
def test_encoders(which):
    """A transposed weight, another activation, eps, LayerNorm place, position or patch order."""
    text, image = encoded(golden_model(), which)
    for name, ours in (("text", text), ("image", image)):
        key = f"{which}.{name}_encoder_out"
        close(ours, outputs(key), recorded_error(key), key)


@torch.no_grad()
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("which", ["infer", *OBJECTIVES])
def test_every_fusion_layer(which, stream):
    """Sequential instead of parallel streams, a missing mask, swapped types, another eps."""
    key = f"{which}.fusion_{stream}_layers"
    pairs = states(golden_model(), which)[1:]
    assert len(pairs) == len(outputs(key)) == 4
    for layer, (pair, wanted) in enumerate(zip(pairs, outputs(key), strict=True)):
        close(pair[STREAMS.index(stream)], wanted, recorded_error(key), f"{key}[{layer}]")


@torch.no_grad()
def test_encode_pair():
    """Poolers in the wrong order, without tanh, or on another token."""
    batch, model = golden_batch(), golden_model()
    pair = model.encode_pair(batch["image"], batch["text_ids"], batch["text_keep"])
    for ours, name in ((pair.text, "text"), (pair.image, "image"), (pair.pooled, "cls")):
        key = f"infer.multi_modal_{name}_feats"
        close(ours, outputs(key), recorded_error(key), key)
    pooled = golden_model().fusion.pool(*states(golden_model(), "itm")[-1])
    close(pooled, outputs("itm_cls_feats"), recorded_error("itm_cls_feats"), "itm_cls_feats")


@torch.no_grad()
def test_mim_features_at_layer_k():
    """Layer k off by one, or the last layer where k is meant."""
    model = golden_model()
    pairs = states(model, "mim")
    for index, stream in enumerate(STREAMS):
        for layer, key in (
            (model.mim_layer, f"mim_{stream}_feats_at_layer_k"),
            (-1, f"mim_final_{stream}_feats"),
        ):
            close(pairs[layer][index], outputs(key), recorded_error(key), key)


@torch.no_grad()
def test_attention_maps():
    """Maps of another layer, stream or head order; padding that is attended to."""
    model, maps, batch = golden_model(), [], golden_batch()
    keep = batch["text_keep"]
    pair = model.encode_pair(batch["image"], batch["text_ids"], keep, maps)
    wanted = golden()["attentions"]
    assert len(maps) == 2 * model.fusion.depth
    for layer, (text, image) in enumerate(states(model, "infer")[:-1]):
        own: list[torch.Tensor] = []
        model.fusion.text_layers[layer].attention(text, keep, maps=own)
        model.fusion.image_layers[layer].attention(image, maps=own)
        for index, name in enumerate(("text2image_attns", "image2text_attns")):
            itself, cross = wanted[name][layer]
            close(own[index], itself, 0, f"{name}[{layer}] self")
            close(maps[2 * layer + index], cross, 0, f"{name}[{layer}] cross")
    key = "infer.multi_modal_cls_feats"  # the slow twin that gives maps computes the same
    close(pair.pooled, outputs(key), recorded_error(key), key)


# ------------------------------------------------------------------------------ heads, losses


@torch.no_grad()
@pytest.mark.parametrize("share", [True, False])
def test_logits(share):
    """Another head LayerNorm eps, un-shuffling, pixel order, or rows of the wrong positions."""
    batch = golden_batch()
    out = golden_model(share).outputs(batch)
    logits = outputs("mlm_logits")
    if share:
        rows = [logits[row][labels != -100] for row, labels in enumerate(batch["mlm_labels"])]
        scored = out.mlm_targets != -100
        close(out.mlm_logits[scored], torch.cat(rows), recorded_error("mlm_logits"), "mlm")
        wanted = batch["mlm_labels"][batch["mlm_labels"] != -100]
        assert torch.equal(out.mlm_targets[scored], wanted)
    else:
        close(out.mlm_logits, logits, recorded_error("mlm_logits"), "mlm")
    removed = batch["patch_order"][:, 4:, None].expand(-1, -1, 768)
    for ours, key in ((out.mim_pixels, "mim_logits"), (out.mim_targets, "mim_labels")):
        close(ours, outputs(key).gather(1, removed), recorded_error(key), key)
    close(out.itm_logits, outputs("itm_logits"), recorded_error("itm_logits"), "itm")


def test_patch_order():
    """Another number or choice of kept patches, or another way back to their places."""
    batch = golden_batch()
    kept = golden_model().kept(batch)
    assert torch.equal(batch["patch_order"].argsort(dim=1), outputs("mim_ids_restore"))
    removed = torch.ones(4, 16).scatter(1, kept, 0)
    assert torch.equal(removed, outputs("mim_mask"))


@torch.no_grad()
@pytest.mark.parametrize("share", [True, False])
def test_losses(share):
    """Any difference in the three objectives, their weights or their denominators."""
    model = golden_model(share)
    ours = model(golden_batch())
    for name in OBJECTIVES:
        key = f"{name}_loss"
        close(ours[key], outputs(key), recorded_error(key), key)
    close(ours["loss"], outputs("total_loss"), 0, "total_loss")
    for name in ("mlm", "itm"):
        accuracy = ours[f"{name}_correct"] / ours[f"{name}_count"]
        close(accuracy, outputs(f"{name}_accuracy"), 0, f"{name}_accuracy")
    wanted = {"mlm": int((golden_batch()["mlm_labels"] != -100).sum()), "mim": 48, "itm": 4}
    assert {name: int(ours[f"{name}_count"]) for name in OBJECTIVES} == wanted


@torch.no_grad()
@pytest.mark.parametrize("share", [True, False])
def test_second_pairing(share):
    """Matches and false images out of step: right only for labels in their original order."""
    batch, model = second_pairing(), golden_model(share)
    assert torch.equal(batch["itm_match"].float(), outputs("itm_perm2_labels"))
    close(model.outputs(batch).itm_logits, outputs("itm_perm2_logits"), 4e-6, "itm_perm2_logits")
    close(model(batch)["itm_loss"], outputs("itm_perm2_loss"), 0, "itm_perm2_loss")


# ------------------------------------------------------------------------------ gradients


def apart(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Queries, keys and values of one product under names of their own, as in the reference."""
    out = {}
    for name, tensor in state.items():
        path, _, kind = name.rpartition(".")
        path, _, last = path.rpartition(".")
        parts = last.split("_") if last in ("query_key_value", "key_value") else [last]
        for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            out[f"{path}.{part}.{kind}" if path else name] = piece
    return out


@cache
def our_names() -> dict[str, list[str]]:
    """The reference's tensor names -> ours, of tensors with a gradient; key biases left out."""
    names = {}
    for key, shape in golden()["keys_and_shapes"].items():
        if key in golden()["grad_norms"]:
            ours = convert_reference({key: torch.empty(shape, device="meta")})
            names[key] = [name for name in apart(ours) if not name.endswith("key.bias")]
    return {key: ours for key, ours in names.items() if ours}


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("objective", ["loss", *OBJECTIVES])
def test_gradient_norms(objective, share):
    """A detached branch, a gradient counted twice, or a loss scaled by batch or process count."""
    model = golden_model(share)
    model.zero_grad()
    losses = model(golden_batch())
    losses["loss" if objective == "loss" else f"{objective}_loss"].backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    grads = apart(grads)
    record = golden()
    record = (
        record["grad_norms"]
        if objective == "loss"
        else record["grad_norms_per_objective"][objective]
    )
    names = our_names()
    reached = {name for key in record for name in names.get(key, [])}
    assert reached == {name for name in grads if not name.endswith("key.bias")}
    assert len(reached) > 150
    keys = [key for key in record if key in names]
    ours = [
        math.sqrt(sum(float(grads[name].double().square().sum()) for name in names[key]))
        for key in keys
    ]
    off = {
        key: (norm, record[key])
        for key, norm in zip(keys, ours, strict=True)
        if not math.isclose(norm, record[key], rel_tol=1e-5, abs_tol=1e-8)
    }
    assert not off


def test_no_reference_tensor_without_gradient_gets_one():
    """A parameter that is dead in the reference and alive here, or the other way round."""
    model = golden_model()
    dropped = [name for name in golden()["params_without_grad"] if "head." not in name]
    state = {key: value for key, value in golden_state().items() if key in dropped}
    assert convert_reference(state) == {}
    covered = {name for names in our_names().values() for name in names}
    ours = {name for name in apart(dict(model.named_parameters())) if not name.endswith("key.bias")}
    assert covered == ours


def test_optimiser_steps():
    """Another grouping, decay, learning rate by group, warm-up off by one, or betas."""
    record = json.loads((GOLDEN / "optim_steps.json").read_text())
    config = tiny_config(f"optim.lr={record['learning_rate']}")
    model = M3AE(config.model)
    model.load_state_dict(convert_reference(golden_state()))
    groups = param_groups(model, config.optim)
    optimizer, scales = build_optimizer(groups, config.optim), [g["lr_scale"] for g in groups]
    batch = golden_batch()
    torch.manual_seed(0)
    for step, wanted in enumerate(record["steps"]):
        factor = config.optim.lr * lr_at(step, record["max_steps"], config.optim)
        lrs = [factor * scale for scale in scales]
        assert lrs == pytest.approx(wanted["lrs"], rel=1e-9)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
        loss = model(batch)["loss"]
        assert loss.item() == pytest.approx(wanted["loss"], rel=1e-4), f"step {step}"
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ------------------------------------------------------------------------------ positions


def test_position_resize():
    """Antialiasing, aligned corners, or a resized CLS row."""
    record = golden()["clip_pos_embed_interpolation"]
    close(resize_positions(record["before"], 4), record["after_64"], 0, "9 -> 16 patches")
    table = convert_reference(golden_state())["image_encoder.position_embedding"]
    wanted = golden()["finetune_96"]["positional_embedding"]
    close(resize_positions(table, 6), wanted, 0, "16 -> 36 patches")


@torch.no_grad()
def test_fine_tuning_at_another_size():
    """Anything but the position embedding that depends on the image size."""
    record, batch = golden()["finetune_96"], golden_batch()
    model = M3AE(tiny_config("model.image_encoder.image_px=96").model)
    state = convert_reference(golden_state())
    table = resize_positions(state["image_encoder.position_embedding"], 6)
    model.load_state_dict(state | {"image_encoder.position_embedding": table})
    pair = model.eval().encode_pair(record["image"], batch["text_ids"], batch["text_keep"])
    close(
        pair.pooled,
        record["multi_modal_cls_feats"],
        recorded_error("infer.multi_modal_cls_feats"),
        "pooled",
    )


# ------------------------------------------------------------------------------ fine-tuning


def downstream(name: str) -> dict[str, torch.Tensor]:
    state = convert_reference(golden_state(heads=True))
    return {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}


@torch.no_grad()
def pooled() -> torch.Tensor:
    batch = golden_batch()
    return golden_model().encode_pair(batch["image"], batch["text_ids"], batch["text_keep"]).pooled


@torch.no_grad()
def test_vqa():
    """Another head, a loss that is a plain mean, or soft targets treated as classes."""
    record = golden()["vqa"]
    head = AnswerHead(96, 11)
    head.load_state_dict(downstream("vqa_head."))
    logits = head(pooled())
    close(logits, record["logits"], 3e-5, "logits")
    close(vqa_loss(logits, record["targets"]).mean(), record["loss"], 0, "loss")
    close(vqa_loss(logits, record["targets_2"]).mean(), record["loss_2"], 0, "loss_2")


@torch.no_grad()
def test_classification():
    """The VQA loss where cross-entropy belongs, or another head."""
    record = golden()["cls"]
    head = AnswerHead(96, 7)
    head.load_state_dict(downstream("cls_head."))
    logits = head(pooled())
    close(logits, record["logits"], 3e-5, "logits")
    close(classification_loss(logits, record["labels"]).mean(), record["loss"], 0, "loss")


@torch.no_grad()
def test_retrieval():
    """The head started from the "no match" row, or the true text at another column."""
    record, batch, model = golden()["irtr"], golden_batch(), golden_model()
    head = RetrievalHead(96)
    start_retrieval_head(head, model.itm_head)
    close(head.weight, record["irtr_head_weight"], 0, "weight")
    close(head.bias, record["irtr_head_bias"], 0, "bias")
    inputs = record["inputs"]
    columns = []
    for text in ("text", "false_text_0", "false_text_1", "false_text_2"):
        keep = inputs[f"{text}_masks"].bool()
        columns.append(head(model.encode_pair(batch["image"], inputs[f"{text}_ids"], keep).pooled))
    scores = torch.cat(columns, dim=1)
    close(scores, record["scores"], 3e-5, "scores")
    true = torch.zeros(len(scores), dtype=torch.int64)  # the true text stands first
    close(classification_loss(scores, true).mean(), record["loss"], 0, "loss")
    head.weight.add_(1)
    assert not torch.equal(head.weight, model.itm_head.classes.weight[1:])  # a copy, not a view


@torch.no_grad()
def test_retrieval_scores_of_all_pairs():
    """Rows and columns exchanged when every image meets every text."""
    record, model = golden("golden_tiny_recall"), golden_model()
    head = RetrievalHead(96)
    head.load_state_dict({"weight": record["irtr_head_weight"], "bias": record["irtr_head_bias"]})
    ids, keep = record["recall_text_ids"], record["recall_text_masks"].bool()
    rows = [
        head(model.encode_pair(image.expand(len(ids), -1, -1, -1), ids, keep).pooled)[:, 0]
        for image in record["image"][:, None]
    ]
    close(torch.stack(rows), record["scores"], 3e-5, "scores")
