"""The model of fine-tuning: the recorded numbers, where its weights come from, errors."""

import dataclasses
import json

import pytest
import torch

from m3ae.downstream.config import FinetuneConfig, load_finetune_config
from m3ae.downstream.model import build_downstream, read_init, write_facts
from m3ae.models import M3AE
from m3ae.models.heads import AnswerHead, start_answer_head
from m3ae.models.param_groups import part_of
from tests.recipe import (
    ROOT,
    TINY,
    close,
    golden,
    golden_batch,
    golden_model,
    golden_state,
    recorded_error,
)

SETS = [line for line in TINY if line.startswith("model.")]
CLASSES = {"vqa": 11, "classification": 7, "retrieval": 1}


def config(task: str = "vqa", **changes) -> FinetuneConfig:
    """The paper's fine-tuning at the size of the golden model."""
    metric = {"vqa": "overall", "classification": "accuracy", "retrieval": "loss"}[task]
    made = load_finetune_config(
        ROOT / "configs/finetune/finetune.yaml",
        [f"task={task}", f"eval.metric={metric}", "data={image_px: 64, valid: valid}"],
    )
    architecture = str(ROOT / "configs/pretrain/m3ae.yaml")
    changes = {"architecture": architecture, "architecture_set": tuple(SETS)} | changes
    return dataclasses.replace(made, **changes)


def names(task: str) -> list[str]:
    return [f"answer {k}" for k in range(CLASSES[task])]


@pytest.fixture()
def released(tmp_path):
    """A checkpoint in the format that the authors publish, hyper-parameters and all."""
    path = tmp_path / "released.ckpt"
    content = {"state_dict": golden_state(heads=True), "epoch": 3, "hyper_parameters": {"c": {}}}
    torch.save(content, path)
    return str(path)


def build(task, init, **changes):
    made = config(task, init=init, **changes)
    return build_downstream(made, read_init(made), names(task)).eval()


@torch.no_grad()
@pytest.mark.parametrize("task", ["vqa", "classification"])
def test_a_released_checkpoint_gives_the_recorded_numbers(released, task):
    """Another head taken, its layers exchanged, or a loss that is another mean."""
    record = golden()[{"vqa": "vqa", "classification": "cls"}[task]]
    model = build(task, released, eval_only=True)
    batch = {key: golden_batch()[key] for key in ("image", "text_ids", "text_keep")}
    if task == "vqa":
        batch["target"] = record["targets"].argmax(dim=1)
        single = (record["targets"].sum(dim=1) == 1) & (record["targets"].amax(dim=1) == 1)
    else:
        batch["target"], single = record["labels"], torch.ones(len(record["labels"]))
    close(model.scores(batch), record["logits"], 3e-5, "logits")
    if single.all():
        close(model(batch)["loss"], record["loss"], 0, "loss")


@torch.no_grad()
def test_a_released_retrieval_checkpoint(released):
    """Scores of the ITM head, or the true text not at column 0."""
    record, model = golden()["irtr"], build("retrieval", released, eval_only=True)
    texts = ("text", "false_text_0", "false_text_1", "false_text_2")
    ids = torch.stack([record["inputs"][f"{text}_ids"] for text in texts], dim=1)
    keep = torch.stack([record["inputs"][f"{text}_masks"].bool() for text in texts], dim=1)
    image = golden_batch()["image"]
    target = torch.zeros(len(image), dtype=torch.int64)
    batch = {"image": image, "text_ids": ids, "text_keep": keep, "target": target}
    close(model.scores(batch), record["scores"], 3e-5, "scores")
    close(model(batch)["loss"], record["loss"], 0, "loss")


@torch.no_grad()
def test_another_image_size(released):
    """Positions cut or repeated instead of resized."""
    changed = dataclasses.replace(config("vqa").data, image_px=96)
    model = build("vqa", released, eval_only=True, data=changed)
    batch = golden_batch()
    image = golden()["finetune_96"]["image"]
    pair = model.encode_pair(image, batch["text_ids"], batch["text_keep"])
    close(
        pair.pooled,
        golden()["finetune_96"]["multi_modal_cls_feats"],
        recorded_error("infer.multi_modal_cls_feats"),
        "pooled",
    )


def test_fine_tuning_starts_with_a_new_head_by_seed(released, tmp_path):
    """The released head trained on, a head that is the same for all seeds, or another encoder."""
    first, again = build("vqa", released), build("vqa", released)
    other = build("vqa", released, seed=1)
    head = first.vqa_head[0].weight
    assert torch.equal(head, again.vqa_head[0].weight)
    assert not torch.equal(head, other.vqa_head[0].weight)
    assert head.std().item() == pytest.approx(0.02, rel=0.05)
    ours = golden_model().state_dict()
    for name, tensor in first.state_dict().items():
        if not name.startswith("vqa_head."):
            assert torch.equal(tensor, ours[name]), name
    # Retrieval alone does not start anew: from the "match" row.
    retrieval = build("retrieval", released)
    close(retrieval.retrieval_head.weight, golden()["irtr"]["irtr_head_weight"], 0, "head")


def test_every_parameter_is_trained_and_grouped():
    """A parameter frozen by pre-training's rules, or a downstream head with the encoders' rate."""
    for task, head in (("vqa", "vqa_head"), ("classification", "cls_head")):
        made = config(task)
        model = build_downstream(made, read_init(made), names(task))
        groups = {name: part_of(name, "reference") for name, _ in model.named_parameters()}
        assert {part for name, part in groups.items() if name.startswith(head)} == {"head"}
        assert not [name for name in groups if name.startswith(("mlm_", "mim_", "itm_"))]
        batch = {key: golden_batch()[key] for key in ("image", "text_ids", "text_keep")}
        batch["target"] = torch.tensor([0, 1, -1, 2])
        model(batch)["loss"].backward()
        zero = [name for name, p in model.named_parameters() if p.grad is None]
        assert not zero


def test_a_head_started_at_the_prior():
    """The bias of another answer; one that never occurs at minus infinity."""
    head = AnswerHead(8, 3)
    start_answer_head(head, torch.tensor([6, 3, 0]))
    share = head[-1].bias.sigmoid()
    assert share.tolist() == pytest.approx([0.65, 0.35, 0.05])


def test_the_loss_does_not_depend_on_the_split_into_micro_batches():
    """A loss divided by the micro-batch instead of the global one; an unknown answer left out."""
    made = config("vqa")
    model = build_downstream(made, read_init(made), names("vqa")).eval()
    batch = {key: golden_batch()[key] for key in ("image", "text_ids", "text_keep")}
    batch["target"] = torch.tensor([0, 1, -1, 2])
    whole = model(batch)
    totals = model.counts(batch)
    halves = [{key: value[rows] for key, value in batch.items()} for rows in ([0, 1], [2, 3])]
    losses = [model(half, totals=totals)["loss"] for half in halves]
    assert sum(losses).item() == pytest.approx(whole["loss"].item(), rel=1e-6)
    per_sample = model(batch, per_sample=True)
    assert per_sample["vqa_loss"].mean().item() == pytest.approx(whole["loss"].item(), rel=1e-6)
    assert totals["vqa"] == 4


def pretrained(tmp_path, name="pretrained") -> str:
    """A folder of `save_pretrained` with all three pre-training heads."""
    golden_model().save_pretrained(tmp_path / name)
    return str(tmp_path / name)


def test_from_a_folder_of_pretraining(tmp_path):
    """Sizes taken from the architecture though the folder has its own."""
    made = config("vqa", init=pretrained(tmp_path), architecture="does/not/exist.yaml")
    model = build_downstream(made, read_init(made), names("vqa"))
    ours = golden_model().state_dict()
    assert torch.equal(
        model.state_dict()["fusion.text_pooler.weight"], ours["fusion.text_pooler.weight"]
    )


def test_what_no_evaluation_can_use(tmp_path, released):
    """An evaluation that goes on with a fresh head, or with the answers of another list."""
    folder = pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no vqa_head in it.*itm_head"):
        build("vqa", folder, eval_only=True)
    made = config("vqa", init=released, eval_only=True)
    with pytest.raises(ValueError, match=r"has 11 answers, the data gives 5"):
        build_downstream(made, read_init(made), names("vqa")[:5])
    model = build("vqa", released, eval_only=True)
    model.save_pretrained(tmp_path / "tuned")
    facts = {"task": "vqa", "field": "label", "answers": names("vqa")}
    write_facts(tmp_path / "tuned", **facts)
    made = config("vqa", init=str(tmp_path / "tuned"), eval_only=True)
    build_downstream(made, read_init(made), names("vqa"))
    with pytest.raises(ValueError, match=r"another answer list .*answer 10"):
        build_downstream(made, read_init(made), [*names("vqa")[:10], "other"])
    with pytest.raises(ValueError, match="fine-tuned for field 'label', the config says 'i_meth'"):
        data = dataclasses.replace(made.data, field="i_meth")
        changed = dataclasses.replace(made, data=data)
        build_downstream(changed, read_init(changed), names("vqa"))


def test_init_that_cannot_be(tmp_path):
    """A missing checkpoint that trains from scratch instead, or a run without one yet."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no whole checkpoint"):
        read_init(config(init=str(tmp_path / "run")))
    with pytest.raises(FileNotFoundError, match=r"does not exist"):
        read_init(config(init=str(tmp_path / "nothing")))
    data = dataclasses.replace(config().data, image_px=70)
    with pytest.raises(ValueError, match=r"70 px are no multiple of the patch's 16 px.*image_px"):
        read_init(config(data=data))
    no_itm = {key: value for key, value in golden_state().items() if not key.startswith("itm")}
    torch.save(no_itm, tmp_path / "no_itm.ckpt")
    with pytest.raises(ValueError, match="no itm_head in it, from which retrieval starts"):
        build("retrieval", str(tmp_path / "no_itm.ckpt"))
    damaged = golden_state() | {"vision_encoder.visual.conv1.weight": torch.zeros(1, 3, 16, 16)}
    torch.save(damaged, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match=r"patch_embedding.weight is"):
        build("vqa", str(tmp_path / "damaged.ckpt"))


def test_saved_and_loaded_again(tmp_path, released):
    """A fine-tuned folder that the plain model loads as if it were pre-trained."""
    model = build("vqa", released, eval_only=True)
    model.save_pretrained(tmp_path / "tuned")
    write_facts(tmp_path / "tuned", task="vqa", field="label", answers=names("vqa"))
    made = config("vqa", init=str(tmp_path / "tuned"), eval_only=True)
    again = build_downstream(made, read_init(made), names("vqa"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert json.loads((tmp_path / "tuned" / "downstream.json").read_text())["task"] == "vqa"
    with pytest.raises(ValueError, match="vqa_head"):
        M3AE.from_pretrained(tmp_path / "tuned")
