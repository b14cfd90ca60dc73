"""The three arms: statistics, attribute words, and that an arm shows what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from m3ae.data.datasets import EvalBatches, Pairs
from m3ae.data.texts import load_tokenizer
from m3ae.models import build_model
from m3ae.pretraining.evaluation import (
    ThreeArms,
    another,
    arm_table,
    bootstrap,
    mim_arms,
    mlm_arms,
    only,
)
from m3ae.training.distributed import Processes
from tests.training.test_distributed import small_config

ALONE = Processes(0, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def setting(shards):
    """Model, held-out pairs and config; random weights large enough that every input matters."""
    config = small_config(shards, "eval.final_samples=0")
    pairs = Pairs([f"{shards}/test"], load_tokenizer(config.data.tokenizer), 24, 64)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model.eval(), pairs, config


def test_bootstrap_takes_the_texts_of_an_image_together():
    """Catches intervals over texts, too narrow where an image has many."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(100), 20)
    values = np.repeat(rng.integers(0, 2, 100), 20).astype(float)
    ones = np.ones(len(values))
    out = bootstrap(images, values, ones, seed=0)
    assert out["value"] == values.mean()
    assert out["high"] - out["low"] == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.2)


def test_gains_have_the_right_sign():
    """Catches a loss whose fall is reported as a loss of accuracy."""
    arrays = {"image": np.arange(50), "count": np.full(50, 2.0)}
    arrays |= {"loss_own": np.full(50, 1.0), "loss_other": np.full(50, 3.0)}
    arrays |= {"loss_none": np.full(50, 2.0)}
    table = arm_table(arrays, "loss", -1, seed=0)
    assert table["own"]["value"] == 0.5 and table["own"]["n"] == 100
    assert table["none - own"]["value"] == 0.5 and table["other - own"]["value"] == 1.0


def test_another_pair_has_another_image():
    """Catches an `other` arm that shows the pair's own image under another caption."""
    ids = np.array([4, 4, 7, 4, 9])
    rows = another({"text_ids": torch.zeros(5, 3)}, ids)
    assert (ids[rows] != ids).all()
    assert another({"text_ids": torch.zeros(2, 3)}, np.array([1, 1])).tolist() == [0, 1]


def test_arms_show_what_they_say(setting):
    """Catches an arm that shows the wrong image or text: against a loop, one pair at a time."""
    model, pairs, config = setting
    data = EvalBatches(pairs, config.model, 0, 8, 8)
    batch = data[0]
    ids = np.array([pairs[int(i)].image_id for i in batch["index"]])
    rows = another(batch, ids)
    with torch.no_grad(), only(model, "mlm"):
        arms = mlm_arms(model, batch, ids)
        for row in range(8):
            alone = {key: value[row : row + 1] for key, value in batch.items()}
            for arm, image in (
                ("own", batch["image"][row]),
                ("other", batch["image"][rows[row]]),
                ("none", torch.zeros(3, 64, 64)),
            ):
                out = model.outputs(alone | {"image": image[None]})
                right = out.mlm_logits.argmax(-1).eq(out.mlm_targets)[0]
                assert right.equal(arms[f"correct_{arm}"][row])
    with torch.no_grad(), only(model, "mim"):
        arms = mim_arms(model, batch, ids, pairs.special)
        assert arms["loss_own"].allclose(model(batch, per_sample=True)["mim_loss"])
        swapped = batch | {key: batch[key][rows] for key in ("text_ids", "text_keep")}
        assert arms["loss_other"].allclose(model(swapped, per_sample=True)["mim_loss"])
        assert not arms["loss_none"].allclose(arms["loss_own"])


def test_attribute_words_are_found(setting):
    """Catches attribute words that are missed, or found in another word."""
    model, pairs, config = setting
    arms = ThreeArms(model, pairs, config.eval, ALONE, "fp32")
    names = arms.attributes.names
    for index in range(len(pairs)):
        text, sample = pairs.text(index), pairs[index]
        said = arms.attributes.of_text(text)
        found = arms.attributes.of_tokens(sample)
        for number, name in enumerate(names):
            words = [
                w
                for w in text.lower().strip(".").replace(",", "").replace(":", "").split()
                if w in config.eval.attributes[name]
            ]
            assert said[name] == (words[0] if words else None)
            assert (found == number).sum() == len(words)


def test_hard_false_images_share_what_they_should(setting):
    """Catches hard negatives that are easy, or the same image as the true one."""
    model, pairs, config = setting
    same = dict(hard_negative_same=("modality",))
    hard = ThreeArms(model, pairs, replace(config.eval, **same), ALONE, "fp32")
    of_image = {pairs[i].image.tobytes(): pairs.text(i) for i in range(len(pairs))}
    false = 0
    for batch, samples in hard._hard_batches(hard._hard_pairs()):
        for sample, match in zip(samples, batch["itm_match"].tolist(), strict=True):
            own = hard.attributes.of_text(pairs.text(sample.index))
            shown = hard.attributes.of_text(of_image[sample.image.tobytes()])
            assert own["modality"] == shown["modality"]
            assert (own == shown) == match
            false += not match
    assert false > 0


def test_the_plain_step_is_evaluated_alike(setting):
    """Catches an evaluation that takes all positions of `share: false` for the scored ones."""
    model, pairs, config = setting
    found = []
    for model.share in (False, True):
        measures = ThreeArms(model, pairs, config.eval, ALONE, "fp32").run()["measures"]
        cells = {(name, arm): cell for name, arms in measures.items() for arm, cell in arms.items()}
        found.append({key: cell["value"] for key, cell in cells.items()})
    assert len(found[0]) > 10 and found[0] == pytest.approx(found[1], rel=1e-4, nan_ok=True)


def test_no_hard_false_image(setting):
    """A run that fails after its last step where no two texts alike differ in another attribute."""
    model, pairs, config = setting
    strict = replace(config.eval, hard_negative_same=tuple(config.eval.attributes))
    assert ThreeArms(model, pairs, strict, ALONE, "fp32").run()["itm"].keys() == {"random"}


def test_attributes_that_no_text_states(setting):
    """Catches a division by the number of attribute words where the held-out texts have none."""
    model, pairs, config = setting
    words = replace(config.eval, attributes={"kind": ("absent",)}, fine=(), text_only=())
    words = replace(words, hard_negative_same=())
    result = ThreeArms(model, pairs, words, ALONE, "fp32").run()
    assert "mlm_accuracy" in result["measures"] and "attributes" not in result
    assert "mlm_attribute_accuracy" not in result["measures"]
