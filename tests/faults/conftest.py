"""Runs that take long enough to be hit, and a file of what was measured.

The full number of tries; the default suite has a sample of the same (tests/test_faults.py).
"""

import json
import os
import time
from pathlib import Path

import pytest

from tests.conftest import SMALL
from tests.end_to_end.conftest import FAST
from tests.recipe import ROOT

EVERY, EPOCHS = 20, 8
REPORT = Path("runs/faults.jsonl")

os.environ.setdefault("M3AE_FAULT_TRIES", "2000")


@pytest.fixture()
def long_run(small_run):
    """Arguments of run_pretrain for 200 steps, evaluated and saved every 20."""

    def arguments(*overrides: str, name: str = "run") -> list[str]:
        often = [
            f"train.checkpoint_every={EVERY}",
            "train.keep_checkpoints=20",
            "eval.samples=100",
            f"eval.every={EVERY}",
            "train.log_every=1",
        ]
        dropout = ["model.fusion.dropout=0.1", "model.text_encoder.attention_dropout=0.1"]
        return small_run(*often, *dropout, *overrides, name=name, steps=200)

    return arguments


@pytest.fixture()
def long_tune(shards, questions, tmp_path):
    """Arguments of run_finetune, eight epochs of seven steps."""

    def arguments(*overrides: str, name: str = "run") -> list[str]:
        sizes = [line for line in SMALL if line.startswith("model.")]
        return [
            "--config",
            str(ROOT / "configs/finetune/vqa_rad.yaml"),
            f"architecture={ROOT}/configs/pretrain/quickstart.yaml",
            f"architecture_set={json.dumps(sizes)}",
            *FAST,
            "train.log_every=1",
            f"train.epochs={EPOCHS}",
            "train.keep_checkpoints=20",
            "eval.samples=100",
            f"output={tmp_path / name}",
            f"data.train={questions}/train",
            f"data.test={questions}/test",
            f"data.tokenizer={shards}/tokenizer",
            *overrides,
        ]

    return arguments


@pytest.fixture()
def measured(request):
    """Note a row of the fault table: what was tried, how often, what came out."""
    started = time.monotonic()

    def note(fault: str, tries: int, result: str) -> None:
        REPORT.parent.mkdir(exist_ok=True)
        seconds = round(time.monotonic() - started)
        row = {"fault": fault, "tries": tries, "result": result, "seconds": seconds}
        with open(REPORT, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row)

    return note
