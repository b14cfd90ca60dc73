"""A step on fake tensors of a GPU: no wait for the host, no CPU tensor, the intended dtypes."""

import itertools

import pytest
import torch

from m3ae.config import ModelConfig
from m3ae.downstream.model import Downstream
from m3ae.downstream.ranking import TextBlock, score_block
from m3ae.models import M3AE
from m3ae.pretraining.cost import meta_batch
from tests.gpu.fake import fake_cuda, summary, watched
from tests.recipe import tiny_config

OBJECTIVES = ("mlm", "mim", "itm")
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(OBJECTIVES, n)]
# Computed in float32 whatever the precision: by autocast's rules, or since we ask for it.
EXACT = ("native_layer_norm", "_log_softmax", "nll_loss_forward", "mse_loss", "_softmax")
LENGTH, PAIRS = 16, 8


def model_config(*overrides: str) -> ModelConfig:
    return tiny_config(*overrides).model


def without(subset: tuple[str, ...]) -> list[str]:
    return [f"model.{name}.weight=0" for name in OBJECTIVES if name not in subset]


def step(config: ModelConfig, precision: str, plant=lambda model, batch: None):
    """Losses, sums of an evaluation and counts, and what was computed in which dtypes."""
    with fake_cuda():
        model, batch = M3AE(config), meta_batch(config, LENGTH, PAIRS)
        batch["image"] = batch["image"].to(torch.uint8)
        with watched(precision) as found:
            plant(model, batch)
            counts = model.counts(batch)
            totals = torch.stack(list(counts.values())).unbind()
            losses = model(batch, dict(zip(counts, totals, strict=True)))
            with torch.no_grad():
                sums = model.eval()(batch, per_sample=True)
    return losses, sums, counts, found.dtypes


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("negatives", ["in_batch", "dataset"])
@pytest.mark.parametrize("share", ["true", "false"])
def test_a_step(precision, negatives, share):
    """A step that waits for the host, or a loss, norm or softmax in 16 bit."""
    config = model_config(f"model.itm.negatives={negatives}", f"model.share={share}")
    losses, sums, counts, dtypes = step(config, precision)
    assert summary([losses, sums, counts]) == {(torch.float32, "cuda"), (torch.int64, "cuda")}
    for name in EXACT:
        assert dtypes.get(name, {torch.float32}) == {torch.float32}, name
    half = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    assert dtypes["native_layer_norm"] and dtypes["addmm"] == {half}


@pytest.mark.parametrize("subset", SUBSETS, ids="-".join)
@pytest.mark.parametrize("decoders", [("mlp", "transformer"), ("transformer", "mlp")])
def test_every_subset_and_decoder(subset, decoders):
    """A branch of the step that nobody tries and that waits for the host."""
    words, images = decoders
    given = [f"model.mlm.decoder={words}", f"model.mim.decoder={images}"]
    losses, *_ = step(model_config(*without(subset), *given), "bf16")
    assert {name for name in OBJECTIVES if f"{name}_loss" in losses} == set(subset)


@pytest.mark.parametrize("task", ["vqa", "classification", "retrieval"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_fine_tuning(task, precision):
    """Likewise in fine-tuning, where the right answer may be -1: in no list."""
    config = model_config()
    with fake_cuda():
        model, batch = Downstream(config, task, 7), meta_batch(config, LENGTH, PAIRS)
        batch = {name: batch[name] for name in ("image", "text_ids", "text_keep")}
        batch["target"] = torch.zeros(PAIRS, dtype=torch.int64)
        if task == "retrieval":
            for name in ("text_ids", "text_keep"):
                batch[name] = batch[name][:, None].expand(-1, 3, -1)
        with watched(precision) as found:
            losses = model(batch, model.counts(batch))
    assert summary(losses) <= {(torch.float32, "cuda"), (torch.int64, "cuda")}
    for name in (*EXACT, "binary_cross_entropy_with_logits"):
        assert found.dtypes.get(name, {torch.float32}) == {torch.float32}, name


def test_cached_retrieval():
    """A ranking of a pool that waits for the host at every pair."""
    config = model_config()
    with fake_cuda():
        model = Downstream(config, "retrieval", 1).eval()
        width, keep = config.fusion.width, torch.ones(5, LENGTH, dtype=torch.bool)
        texts = [TextBlock(torch.arange(5), torch.zeros(5, LENGTH, width), keep)]
        images = torch.zeros(2, 1 + model.image_encoder.grid**2, width)
        with torch.no_grad(), watched("bf16"):
            scores = score_block(model, model.head, images, texts)
    assert summary(scores) == {(torch.float32, "cuda")} and scores.shape == (2, 5)


def read(model, batch):
    batch["itm_match"].sum().item()


def mask(model, batch):
    batch["text_ids"][batch["text_keep"]]


def cpu_index(model, batch):
    batch["image"][torch.tensor([0, 1], device="cpu")]


def cpu_table(model, batch):
    model.pixel_mean = model.pixel_mean.cpu()


def copied(model, batch):
    torch.tensor(8, device=batch["image"].device)


@pytest.mark.parametrize("plant", [read, mask, cpu_index, cpu_table, copied])
def test_planted_faults_are_found(plant):
    """Tests that would pass whatever the step does."""
    with pytest.raises(Exception, match=r"meet|local_scalar|nonzero|item"):
        step(model_config(), "bf16", plant)
