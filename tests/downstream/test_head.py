"""The head of pooled encoder features: a slow twin, gradients, standardisation, loss, errors."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from m3ae.downstream.config import HeadConfig, load_finetune_config
from m3ae.downstream.model import Downstream
from m3ae.downstream.predictions import probabilities
from m3ae.downstream.starting import build_downstream, read_init
from m3ae.models.heads import EncoderHead, start_answer_head
from m3ae.models.param_groups import part_of
from tests.downstream.test_model import config, names
from tests.recipe import ROOT, golden_batch

HEAD = HeadConfig("encoders", (1, 2), 24, 0.1, 0.5, 0.3, "cross_entropy")


def build(task: str = "vqa", **changes) -> Downstream:
    """The golden-size model (2 image blocks) under such a head, at random means and scales."""
    made = config(task, head=dataclasses.replace(HEAD, **changes))
    model = build_downstream(made, read_init(made), names(task))
    if isinstance(model.head, EncoderHead):
        torch.manual_seed(0)
        for name, buffer in model.head.named_buffers():
            buffer.copy_(torch.rand_like(buffer) + name.endswith("scale"))
        with torch.no_grad():
            model.head.last.weight.mul_(20)  # so that inputs tell
    return model.eval()


def inputs() -> dict[str, torch.Tensor]:
    """The golden pairs with answers, one of which is not in the list."""
    batch = {key: golden_batch()[key] for key in ("image", "text_ids", "text_keep")}
    return batch | {"target": torch.tensor([0, 1, -1, 2])}


def gelu(x: np.ndarray) -> np.ndarray:
    return x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x)


@torch.no_grad()
@pytest.mark.parametrize("reads", ["encoders", "both"])
@pytest.mark.parametrize("blocks", [(1,), (1, 2), None])
def test_logits_equal_a_slow_twin(reads, blocks):
    """Another block, padding in the mean of the words, CLS among the patches, the last block
    before its LayerNorm, an input not standardised, a product or the poolers left out."""
    model, batch = build(reads=reads, image_blocks=blocks), inputs()
    states = []
    for block in model.image_encoder.blocks:
        block.register_forward_hook(lambda *args: states.append(args[2]))
    model.image_encoder(model.normalise(batch["image"]))
    states[-1] = model.image_encoder.norm_post(states[-1])
    words = model.text_encoder(batch["text_ids"], batch["text_keep"])
    pair = model.encode_pair(batch["image"], batch["text_ids"], batch["text_keep"])
    values = {key: x.double().numpy() for key, x in model.head.state_dict().items()}
    expected = []
    for row in range(4):
        kept = [words[row, k] for k in range(words.shape[1]) if batch["text_keep"][row, k]]
        text = torch.stack(kept).double().numpy().mean(axis=0)
        image = []
        for number in blocks or (2,):
            tokens = states[number - 1][row].double().numpy()
            image += [tokens[0], tokens[1:].mean(axis=0)]
        text = (text - values["text_mean"]) / values["text_scale"]
        image = (np.concatenate(image) - values["image_mean"]) / values["image_scale"]
        t = gelu(values["text.weight"] @ text + values["text.bias"])
        v = gelu(values["image.weight"] @ image + values["image.bias"])
        read = [t, v, t * v]
        if reads == "both":
            x = values["fused.0.weight"] @ pair.pooled[row].double().numpy()
            x += values["fused.0.bias"]
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
            read.append(gelu(x * values["fused.1.weight"] + values["fused.1.bias"]))
        expected.append(values["last.weight"] @ np.concatenate(read) + values["last.bias"])
    expected = np.stack(expected)
    assert expected.std() > 0.1
    assert model.scores(batch).numpy() == pytest.approx(expected, abs=2e-5)


@torch.no_grad()
def test_the_encoders_output_keeps_its_bits():
    """Features of several blocks from another computation than the ordinary one."""
    model = build()
    image = model.normalise(inputs()["image"])
    first, last = model.image_encoder.states(image, (1, 2))
    assert torch.equal(last, model.image_encoder(image)) and not torch.equal(first, last)
    (alone,) = model.image_encoder.states(image, [1])
    assert torch.equal(alone, first)


@pytest.mark.parametrize("reads", ["encoders", "both"])
@pytest.mark.parametrize("blocks", [(1,), (1, 2)])
def test_gradients_reach_what_is_read(reads, blocks):
    """A parameter that trains without being read (weight decay would move it, several processes
    would wait for its gradient), one that is read and frozen, or the head at the encoders' rate."""
    model = build(reads=reads, image_blocks=blocks)
    model(inputs())["loss"].backward()
    unread = {
        name
        for name, _ in model.named_parameters()
        if name.startswith("fusion.")
        or (
            name.startswith(("image_encoder.blocks.1.", "image_encoder.norm_post"))
            and blocks[-1] == 1
        )
    }
    unread = unread if reads == "encoders" else set()
    assert set(model.unreached()) == unread
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (name not in unread), name
        assert (part_of(name, "principled") == "head") == name.startswith("vqa_head."), name


def test_standardised_over_all_rows():
    """A standard deviation over n - 1, so of a single image none; or a feature without variance
    divided by its rounding."""
    head = EncoderHead(3, 2, 4, 5)
    text, image = torch.tensor([[1.0, 5, 0], [3, 5, 1]]), torch.tensor([[2.0, 3]])
    head.standardise(text, image)
    assert head.text_mean.tolist() == [2, 5, 0.5] and head.text_scale.tolist() == [1, 1, 0.5]
    assert head.image_mean.tolist() == [2, 3] and head.image_scale.tolist() == [1, 1]


def test_dropout_trains_alone():
    """Rates that stay on in evaluation, or that are read and forgotten."""
    model, batch = build(), inputs()
    model.eval()
    assert torch.equal(model.scores(batch), model.scores(batch))
    model.train()
    assert not torch.equal(model.scores(batch), model.scores(batch))
    rates = [getattr(model.head, name).p for name in ("text_dropout", "image_dropout", "dropout")]
    assert rates == [0.1, 0.5, 0.3]


@torch.no_grad()
@pytest.mark.parametrize("reads", ["fusion", "encoders"])
def test_cross_entropy_of_questions(reads):
    """The paper's loss in spite of head.loss, an unknown answer that counts as the last one, or
    the chance of each answer alone in the predictions."""
    model, batch = build(reads=reads), inputs()
    chances = model.scores(batch).double().softmax(dim=1)
    wanted = [-math.log(chances[row, target]) for row, target in enumerate((0, 1))]
    losses = model(batch, per_sample=True)["vqa_loss"].tolist()
    assert losses[:2] == pytest.approx(wanted, rel=1e-5) and losses[2] == 0
    said = probabilities(model.scores(batch).numpy(), model.exclusive)
    assert said == pytest.approx(chances.numpy(), abs=1e-6)
    assert not build(loss="binary").exclusive and build("classification", loss="binary").exclusive


def test_a_head_started_at_the_prior():
    """Log odds where one answer of all is right: the first chances would not be the frequencies."""
    head = EncoderHead(3, 2, 4, 3)
    start_answer_head(head, torch.tensor([6, 3, 0]), exclusive=True)
    chances = head.last.bias.softmax(dim=0)
    assert chances.tolist() == pytest.approx([6.5 / 10.5, 3.5 / 10.5, 0.5 / 10.5])
    start_answer_head(head, torch.tensor([6, 3, 0]))
    assert head.last.bias.sigmoid().tolist() == pytest.approx([0.65, 0.35, 0.05])


def test_heads_that_cannot_be():
    """A block that is not there taken for the last, features in another order than asked for, or a
    retrieval whose head reads no fusion."""
    with pytest.raises(ValueError, match=r"head.image_blocks: there is no block 3; .* 1 to 2"):
        build(image_blocks=(1, 3))

    def load(*more: str) -> None:
        load_finetune_config(
            ROOT / "configs/finetune/finetune.yaml", ["head.reads=encoders", *more]
        )

    for blocks in ("[]", "[0, 1]", "[2, 1]", "[1, 1]"):
        with pytest.raises(ValueError, match=r"head\.image_blocks"):
            load(f"head.image_blocks={blocks}")
    with pytest.raises(ValueError, match=r"head.dropout: 1.0 is not in \[0, 1\)"):
        load("head.dropout=1.0")
    with pytest.raises(ValueError, match=r"head\.width"):
        load("head.width=0")
    with pytest.raises(ValueError, match=r"head\.reads: encoders is not for retrieval"):
        load("task=retrieval", "eval.metric=loss", "data.valid=valid")
