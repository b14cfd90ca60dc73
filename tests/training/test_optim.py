"""Parameter groups and learning rates against the reference's."""

import json
from itertools import pairwise

import pytest
import torch

from m3ae.config import load_config
from m3ae.models import M3AE
from m3ae.models.param_groups import param_groups
from m3ae.models.pretrained import convert_reference
from m3ae.training.optim import lr_at
from tests.recipe import GOLDEN, ROOT, tiny_config

RECORDED = json.loads((GOLDEN / "optimizer_base.json").read_text())
SHAPES = json.loads((GOLDEN / "reference_base.json").read_text())["key_patterns"]
PAPER = load_config(ROOT / "configs/pretrain/m3ae.yaml")


def ours_of(patterns: list[str]) -> set[str]:
    """Our names of a group of reference tensor patterns of the base model."""
    state = {
        pattern.replace("{i}", str(i)): torch.empty(SHAPES[pattern]["example_shape"], device="meta")
        for pattern in patterns
        for i in range(SHAPES[pattern]["count"])
        if pattern != "mim_head.decoder_pos_embed"
    }
    return set(convert_reference(state))


def test_groups_are_the_reference_s():
    """Catches a tensor with another learning rate or weight decay than in the published run."""
    with torch.device("meta"):
        model = M3AE(PAPER.model)
    ours = {group["name"]: set(group["names"]) for group in param_groups(model, PAPER.optim)}
    titles = {"base": "encoder", "heads": "head", "multi_modal": "fusion"}
    for recorded in RECORDED["groups"]:
        part, decay = recorded["what"].split(", ")
        expected = ours_of(recorded["name_patterns"])
        name = f"{titles[part]}, {decay}"
        assert ours.pop(name) == expected, name
        group = next(g for g in param_groups(model, PAPER.optim) if g["name"] == name)
        assert group["lr_scale"] == recorded["lr_multiplier"]
        assert group["weight_decay"] == recorded["weight_decay"]
        assert PAPER.optim.lr * group["lr_scale"] == pytest.approx(recorded["initial_lr"])
    assert not ours
    assert list(PAPER.optim.betas) == RECORDED["groups"][0]["betas"]
    assert PAPER.optim.eps == RECORDED["groups"][0]["eps"]


def test_schedule_is_the_reference_s():
    """Catches a warm-up or decay that is off by one step."""
    schedule = RECORDED["schedule"]
    assert len(schedule["steps"]) == 30
    for step, expected in zip(schedule["steps"], schedule["multiplier"], strict=True):
        assert lr_at(step, PAPER.train.steps, PAPER.optim) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("grouping", ["reference", "principled"])
@pytest.mark.parametrize("decoder", ["mlp", "transformer"])
def test_groups_hold_every_parameter_once(grouping, decoder):
    """Catches a parameter that no group trains, or that two do."""
    config = tiny_config(f"optim.param_groups={grouping}", f"model.mlm.decoder={decoder}")
    model = M3AE(config.model)
    names = [name for group in param_groups(model, config.optim) for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_principled_groups_spare_vectors_and_embeddings():
    """Catches decay on a norm, a bias or an embedding under the principled grouping."""
    config = tiny_config("optim.param_groups=principled")
    groups = {g["name"]: g["names"] for g in param_groups(M3AE(config.model), config.optim)}
    decayed = [
        name for title, names in groups.items() if not title.endswith("no decay") for name in names
    ]
    assert "image_encoder.patch_embedding.weight" in decayed
    assert not [n for n in decayed if "norm" in n or "bias" in n or "position_emb" in n]
    assert "fusion.type_embedding.weight" in groups["fusion, no decay"]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "power"])
def test_schedules_end_where_they_should(schedule):
    """Catches a schedule that does not reach end_lr_scale, or leaves [end, 1]."""
    config = tiny_config(f"optim.schedule={schedule}", "optim.end_lr_scale=0.1", "optim.power=2")
    rates = [lr_at(step, 100, config.optim) for step in range(101)]
    assert rates[0] == 0 and max(rates) == rates[10] == 1
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(rates[10:]))
