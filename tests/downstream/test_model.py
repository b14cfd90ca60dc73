"""The model of fine-tuning: the recorded numbers, where its weights come from, errors."""

import dataclasses
import json
import re

import pytest
import torch

from m3ae.downstream.config import PAPER_HEAD, FinetuneConfig, HeadConfig, load_finetune_config
from m3ae.downstream.model import HEADS, Downstream, read_facts, write_facts
from m3ae.downstream.starting import build_downstream, read_init
from m3ae.models import M3AE
from m3ae.models.heads import AnswerHead, start_answer_head
from m3ae.models.param_groups import part_of
from tests.models.test_weight_files import cached
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
    """A fine-tuned folder whose weights are not those that were saved."""
    model = build("vqa", released, eval_only=True)
    model.save_pretrained(tmp_path / "tuned")
    write_facts(tmp_path / "tuned", task="vqa", field="label", answers=names("vqa"))
    made = config("vqa", init=str(tmp_path / "tuned"), eval_only=True)
    again = build_downstream(made, read_init(made), names("vqa"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert json.loads((tmp_path / "tuned" / "downstream.json").read_text())["task"] == "vqa"


PAIR = ("image", "text_ids", "text_keep")
ENCODERS = HeadConfig(
    **(dataclasses.asdict(PAPER_HEAD) | {"reads": "both", "image_blocks": (1, 2), "width": 8})
)


def fine_tuned(folder, task: str, head: HeadConfig = PAPER_HEAD) -> Downstream:
    """A model of a task with weights of its own, saved as fine-tuning saves it."""
    model = Downstream(golden_model().config, task, CLASSES[task], head).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder)
    answers = [] if task == "retrieval" else names(task)
    write_facts(folder, task=task, field="label", answers=answers, head=dataclasses.asdict(head))
    return model


@torch.no_grad()
@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("vqa", PAPER_HEAD),
        ("vqa", ENCODERS),
        ("classification", PAPER_HEAD),
        ("retrieval", PAPER_HEAD),
    ],
)
def test_a_fine_tuned_folder_in_python(task, head, place, tmp_path, monkeypatch, caplog):
    """Its card's own line raises; a head lost, or another's; a hub id's facts never looked for."""
    folder = cached(tmp_path, monkeypatch) if place == "hub" else tmp_path / "tuned"
    model = fine_tuned(folder, task, head)
    source = "someone/model" if place == "hub" else folder
    batch = {key: golden_batch()[key] for key in PAIR}
    with caplog.at_level("INFO"):
        backbone = M3AE.from_pretrained(source).eval()
    assert f"dropped {HEADS[task]}" in caplog.text
    assert backbone.state_dict().keys() == {
        key for key in model.state_dict() if not key.startswith(HEADS[task])
    }
    for ours, theirs in zip(
        vars(backbone.encode_pair(*batch.values())).values(),
        vars(model.encode_pair(*batch.values())).values(),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    whole = Downstream.from_pretrained(source).eval()
    assert whole.task == task and whole.head_config == model.head_config
    if task == "retrieval":
        batch |= {key: batch[key][:, None] for key in PAIR[1:]}
    assert torch.equal(whole.scores(batch), model.scores(batch))
    assert read_facts(source)["task"] == task
    made = config(task, init=str(source), eval_only=True, head=head)
    data = dataclasses.replace(made.data, field="label")
    made = dataclasses.replace(made, data=data)
    again = build_downstream(made, read_init(made), read_facts(source)["answers"])
    assert torch.equal(again.eval().scores(batch), model.scores(batch))


def test_the_card_of_a_fine_tuned_folder(tmp_path):
    """A card whose own line of code does not give the model that it is the card of."""
    for model, folder in (
        (fine_tuned(tmp_path / "tuned", "vqa"), tmp_path / "tuned"),
        (M3AE.from_pretrained(pretrained(tmp_path)), tmp_path / "pretrained"),
    ):
        card = (folder / "README.md").read_text()
        (lines,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        found: dict = {}
        exec(lines.replace("this folder", str(folder)), found)
        assert type(found["model"]) is type(model)
        assert found["model"].state_dict().keys() == model.state_dict().keys()


def test_folders_that_are_not_fine_tuned(tmp_path):
    """A pre-trained folder given a new head, or facts of another program."""
    folder = pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"pretrained: no downstream\.json in it"):
        Downstream.from_pretrained(folder)
    fine_tuned(tmp_path / "tuned", "vqa")
    write_facts(tmp_path / "tuned", task="vqa", answers=names("vqa")[:3])
    with pytest.raises(ValueError, match=r"vqa_head\.3\.\w+ is \(11,.* in the file, \(3,"):
        Downstream.from_pretrained(tmp_path / "tuned")
    write_facts(tmp_path / "tuned", task="poetry", answers=[])
    with pytest.raises(ValueError, match=r"downstream\.json: no task \(vqa, classification, multi"):
        Downstream.from_pretrained(tmp_path / "tuned")
