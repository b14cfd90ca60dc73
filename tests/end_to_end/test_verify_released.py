"""verify_released on a checkpoint in the released format, its weights by the golden recipe."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import verify_released
from data_prep import vqa_rad
from m3ae import convert, predict
from m3ae.data.shards import Shards
from m3ae.data.texts import assemble, encode, load_tokenizer, special_ids, train_wordpiece
from m3ae.models.heads import AnswerHead
from m3ae.models.pretrained import convert_reference
from m3ae.scoring.predictions import read_predictions, write_predictions
from tests.recipe import ROOT, TINY, golden_model, golden_state

LABELS = ["yes", "liver", "2", "lung", "axial", "mr", "no", "left", "cyst", "ct", "brain"]


def tokenizer_of_the_golden_model(folder, texts):
    """A tokeniser of at most 200 entries whose padding is id 1, as RoBERTa's."""
    train_wordpiece(texts, 150, folder)
    path = folder / "tokenizer.json"
    swap = {0: 1, 1: 0}
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word: swap.get(k, k) for word, k in vocabulary.items()}
    for token in content.get("added_tokens", []):
        token["id"] = swap.get(token["id"], token["id"])
    path.write_text(json.dumps(content))
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "[PAD]",
                "unk_token": "[UNK]",
                "cls_token": "[CLS]",
                "sep_token": "[SEP]",
                "mask_token": "[MASK]",
            }
        )
    )
    tokenizer = load_tokenizer(folder)
    assert tokenizer.pad_token_id == 1 and len(tokenizer) <= 200
    return tokenizer


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Folder with raw and prepared questions, a tokeniser and a released checkpoint."""
    folder = tmp_path_factory.mktemp("released")
    raw, rng = folder / "raw", np.random.default_rng(0)
    (raw / "images").mkdir(parents=True)
    rows = {"train": [], "test": []}
    for number in range(33):
        split = "train" if number < len(LABELS) else "test"
        label = LABELS[number] if split == "train" else LABELS[number % 4]
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            raw / "images" / f"synpic{number}.png"
        )
        rows[split].append(
            {
                "qid": number,
                "image_name": f"synpic{number}.png",
                "answer": label,
                "question": f"what is seen in case {number}",
                "phrase_type": "freeform",
                "answer_type": "CLOSED" if label in ("yes", "no") else "OPEN",
            }
        )
    for split, content in rows.items():
        (raw / f"{split}set.json").write_text(json.dumps(content))
    texts = [row["question"] for row in rows["train"]]
    tokenizer_of_the_golden_model(folder / "tokenizer", texts)
    prepare = ["--raw", str(raw), "--out", str(folder / "shards"), "--px", "64", "--workers", "0"]
    assert vqa_rad.main(prepare) == 0
    content = {"state_dict": golden_state(heads=True), "hyper_parameters": {"seed": 0}}
    torch.save(content, folder / "seed0.ckpt")
    return folder


def by_hand(folder) -> list[dict]:
    """Predictions without the code under test: pair by pair, answers in the order of LABELS."""
    state = convert_reference(golden_state(heads=True))
    head = AnswerHead(96, len(LABELS))
    head.load_state_dict(
        {
            key.removeprefix("vqa_head."): value
            for key, value in state.items()
            if key.startswith("vqa_head.")
        }
    )
    model, tokenizer = golden_model(), load_tokenizer(folder / "tokenizer")
    test, rows = Shards(folder / "shards" / "test"), []
    for i in range(len(test)):
        ids, words = assemble(
            *map(np.array, encode(tokenizer, [test.text(i)])[0]), 16, special_ids(tokenizer)
        )
        keep = torch.arange(16)[None] < int((words >= 0).sum()) + 2
        image = torch.from_numpy(test.image(int(test.image_of_text[i]), 64))[None]
        with torch.no_grad():
            pooled = model.encode_pair(image, torch.from_numpy(ids)[None], keep).pooled
            rows.append(
                {
                    "id": test.text_key(i),
                    "prediction": LABELS[int(head(pooled).argmax())],
                    "answer": test.fields(i)["answer"],
                }
            )
    return rows


@pytest.fixture()
def verify(released, tmp_path):
    """Runs verify_released with these arguments; returns its exit code."""
    sizes = [line for line in TINY if line.startswith("model.")]

    def run(*arguments: str) -> int:
        shards = released / "shards"
        return verify_released.main(
            [
                "--config",
                str(ROOT / "configs/finetune/vqa_rad.yaml"),
                "--out",
                str(tmp_path / "out"),
                "--checkpoints",
                str(released / "seed0.ckpt"),
                *arguments,
                "--set",
                f"architecture={ROOT}/configs/pretrain/m3ae.yaml",
                f"architecture_set={sizes}",
                f"data.train={shards}/train",
                f"data.test={shards}/test",
                f"data.tokenizer={released}/tokenizer",
                "eval.samples=100",
                "data={image_px: 64, text_length: 16, workers: 0}",
            ]
        )

    return run


def test_item_by_item(released, verify, tmp_path, capsys):
    """Answers in another order than the released outputs, another head, another preprocessing."""
    rows = by_hand(released)
    assert len({row["prediction"] for row in rows}) > 1
    right = sum(row["prediction"] == row["answer"] for row in rows)
    write_predictions(tmp_path / "theirs.jsonl", rows)
    expected = ["--expected", str(right), "--predictions", str(tmp_path / "theirs.jsonl")]
    assert verify(*expected) == 0
    assert f"{right} of 22 right, +0 against expected, 0 items differ" in capsys.readouterr().out


def test_what_differs_is_named(released, verify, tmp_path, capsys):
    """A verification that passes whatever comes out."""
    rows = by_hand(released)
    right = sum(row["prediction"] == row["answer"] for row in rows)
    other = next(label for label in LABELS if label != rows[3]["prediction"])
    rows[3] = rows[3] | {"prediction": other}
    write_predictions(tmp_path / "theirs.jsonl", rows)
    theirs = ["--predictions", str(tmp_path / "theirs.jsonl")]
    assert verify("--expected", str(right + 1), *theirs) == 1
    out = capsys.readouterr()
    assert "-1 against expected, 1 items differ" in out.out and "not as expected" in out.err
    record = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert [entry["id"] for entry in record[0]["differing"]] == [rows[3]["id"]]


def test_converted_it_answers_the_same(released, verify, tmp_path):
    """A folder whose answers are not the checkpoint's, a card whose numbers are not."""
    rows = by_hand(released)
    right = sum(row["prediction"] == row["answer"] for row in rows)
    assert verify("--expected", str(right)) == 0
    config = ["--config", str(ROOT / "configs/pretrain/m3ae.yaml"), "--task", "vqa"]
    sizes = [line for line in TINY if line.startswith(("model.", "data.text_length"))]
    tokenizer = ["--tokenizer", str(released / "tokenizer"), "--set", *sizes]
    numbers = ["--evaluation", str(tmp_path / "out" / "0-seed0" / "evaluation.json")]
    meaning = ["--answers", str(released / "shards" / "answers.json"), "--data", "VQA-RAD"]
    file, folder = str(released / "seed0.ckpt"), str(tmp_path / "folder")
    assert convert.main([file, folder, *config, *meaning, *numbers, *tokenizer]) == 0
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "Fine-tuned on VQA-RAD. Protocols are named with the numbers." in card
    percent = rf"{100 * right / len(rows):.2f} \["  # with its interval
    assert re.search(rf"\n    protocol paper.*\n(    .*\n)*    overall .* {percent}", card)
    test, out = str(released / "shards" / "test"), tmp_path / "predictions.jsonl"
    assert predict.main(["--model", folder, "--data", test, "--out", str(out)]) == 0
    found = {row["id"]: row["prediction"] for row in read_predictions(out)}
    assert found == {row["id"]: row["prediction"] for row in rows}


def test_published_numbers_are_taken_by_rank():
    """Checkpoints given in another order than the published percentages."""
    assert verify_released.compare([346, 349, 347], 451, "VQA-RAD", None) == [0, 0, 0]
    assert verify_released.compare([340, 349, 347], 451, "VQA-RAD", None) == [-6, 0, 0]
    assert verify_released.compare([5], 22, "VQA-RAD", None) == [None]
    with pytest.raises(ValueError, match="--expected: 2 numbers for 1"):
        verify_released.compare([5], 22, "VQA-RAD", [1, 2])
