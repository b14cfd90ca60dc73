"""SLAKE's files in their official form, with the blank answer, and a released head of 222."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import run_finetune
from data_prep import slake
from m3ae.data.shards import Shards
from m3ae.data.texts import assemble, encode, load_tokenizer, special_ids
from m3ae.downstream.config import load_finetune_config
from m3ae.downstream.data import read_splits
from m3ae.models.heads import AnswerHead
from m3ae.models.pretrained import convert_reference
from m3ae.scoring.predictions import read_predictions
from tests.end_to_end.test_verify_released import tokenizer_of_the_golden_model
from tests.recipe import ROOT, TINY, golden_model, golden_state

SIZES = {"train": 4919, "validate": 1053, "test": 1061}
BLANK = 1622  # the qid of the official train.json


def write_slake(raw) -> None:
    """642 images, English and Chinese questions; 221 English answers and a blank one."""
    rng, qid = np.random.default_rng(0), 0
    for number in range(642):
        place = raw / "imgs" / f"xmlab{number}"
        place.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / "source.jpg")
    for split, size in SIZES.items():
        rows = []
        for number in range(size):
            answer = f"w{number % 221}" if split == "train" else f"w{number * 7 % 221}"
            row = {
                "img_id": number % 642,
                "img_name": f"xmlab{number % 642}/source.jpg",
                "question": f"What is case {number % 10}?",
                "answer": " " if qid == BLANK else answer,
                "q_lang": "en",
                "location": "Lung",
                "modality": "CT",
                "answer_type": "CLOSED" if number % 3 == 0 and qid != BLANK else "OPEN",
                "base_type": "vqa",
                "content_type": ("Organ", "Size", "Plane")[number % 3],
                "triple": ["vhead", "_", "_"],
                "qid": qid,
            }
            rows += [row, row | {"qid": 20_000 + qid, "q_lang": "zh", "answer": "是"}]
            qid += 1
        (raw / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slake")
    write_slake(folder / "raw")
    tokenizer_of_the_golden_model(folder / "tokenizer", ["What is case 0123456789?"])
    sizes = ["--px", "64", "--workers", "0"]
    assert slake.main(["--raw", str(folder / "raw"), "--out", str(folder / "out"), *sizes]) == 0
    return folder


def test_the_blank_answer_is_a_class(prepared):
    """A list of 221, in which every label after the blank one is another output of the head."""
    splits = {name: Shards(prepared / "out" / name) for name in ("train", "valid", "test")}
    assert [len(split) for split in splits.values()] == list(SIZES.values())
    answers = json.loads((prepared / "out/answers.json").read_text())
    assert len(answers["paper"]) == len(answers["reference_order"]) == 222
    assert len(answers["train"]) == 221 and "" not in answers["train"]
    place = answers["reference_order"].index("")
    assert place == 221 and answers["reference_order"][:2] == ["w0", "w1"]
    report = json.loads((prepared / "out/report.json").read_text())
    blank = {name: counts["blank_answers"] for name, counts in report["corpus"].items()}
    assert blank == {"train": 1, "valid": 0, "test": 0}
    (row,) = [k for k in range(4919) if splits["train"].fields(k)["label"] == ""]
    fields = splits["train"].fields(row)
    assert fields["question_id"] == str(BLANK) and fields["blank_answer"] is True
    assert "blank_answer" not in splits["train"].fields(0)


def settings(prepared, output) -> list[str]:
    sizes = [line for line in TINY if line.startswith("model.")]
    shards = prepared / "out"
    return [
        "--config",
        str(ROOT / "configs/finetune/slake.yaml"),
        f"architecture={ROOT}/configs/pretrain/m3ae.yaml",
        f"architecture_set={sizes}",
        *(f"data.{name}={shards}/{name}" for name in ("train", "valid", "test")),
        f"data.tokenizer={prepared}/tokenizer",
        "data={image_px: 64, text_length: 16, workers: 0, augmentation: none}",
        "eval.samples=20",
        f"output={output}",
    ]


def test_a_released_head(prepared, tmp_path):
    """A released checkpoint refused for a head of 222, or read with its outputs one off; the first
    of several answers of which the model is all but certain (logits above 17)."""
    state = golden_state(heads=True)
    draw = torch.Generator().manual_seed(1)
    last = max(key for key in state if key.startswith("vqa_head.") and key.endswith(".weight"))
    weight = torch.randn(222, state[last].shape[1], generator=draw)
    state |= {last: weight, last.replace("weight", "bias"): torch.randn(222, generator=draw)}
    torch.save({"state_dict": state}, prepared / "seed0.ckpt")
    given = [f"init={prepared}/seed0.ckpt", "eval_only=true", "protocol=paper", "eval.batch=64"]
    assert run_finetune.main([*settings(prepared, tmp_path / "run"), *given]) == 0
    found = {row["id"]: row for row in read_predictions(tmp_path / "run/predictions-paper.jsonl")}
    assert len(found) == 1061
    order = json.loads((prepared / "out/answers.json").read_text())["reference_order"]
    model, head = golden_model(), AnswerHead(96, 222)
    own = {k: v for k, v in convert_reference(state).items() if k.startswith("vqa_head.")}
    head.load_state_dict({key.removeprefix("vqa_head."): value for key, value in own.items()})
    tokenizer, test = load_tokenizer(prepared / "tokenizer"), Shards(prepared / "out/test")
    for row in range(12):
        ids, words = assemble(
            *map(np.array, encode(tokenizer, [test.text(row)])[0]), 16, special_ids(tokenizer)
        )
        keep = torch.arange(16)[None] < int((words >= 0).sum()) + 2
        image = torch.from_numpy(test.image(int(test.image_of_text[row]), 64))[None]
        with torch.no_grad():
            pooled = model.encode_pair(image, torch.from_numpy(ids)[None], keep).pooled
        assert found[test.text_key(row)]["prediction"] == order[int(head(pooled).argmax())]


def test_strict_leaves_it_out(prepared, tmp_path):
    """A blank answer that `strict` trains on or may give; one run of `both` for other rows."""
    path, *overrides = settings(prepared, tmp_path / "run")[1:]
    config = load_finetune_config(path, [*overrides, "protocol=both"])
    tokenizer = load_tokenizer(prepared / "tokenizer")
    ids, known = {}, {}
    for one in run_finetune.runs_of(config):
        rules = run_finetune.read_protocols(one, one.protocol)
        splits, _, answers = read_splits(one, tokenizer, rules)
        ids[one.protocol], known[one.protocol] = set(splits["train"].ids()), answers[one.protocol]
    train = Shards(prepared / "out/train")
    (blank,) = [train.text_key(k) for k in range(4919) if not train.fields(k)["answer"]]
    assert blank in ids["paper"] and ids["strict"] == ids["paper"] - {blank}
    assert len(known["paper"]) == 222 and known["strict"] == known["paper"] - {""}
