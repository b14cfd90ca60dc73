"""A small fine-tuning on phantom questions."""

import json

import pytest

import run_finetune
from tests.conftest import SMALL
from tests.recipe import ROOT

FAST = """
data={image_px: 64, text_length: 24, workers: 0}
optim={lr: 2.0e-3, head_lr_scale: 2, fusion_lr_scale: 1}
train={epochs: 2, batch_global: 32, batch_per_process: 16, log_every: 2, checkpoint_every: 1}
eval={samples: 100}
""".strip().splitlines()


@pytest.fixture()
def tune(shards, questions, tmp_path):
    """Runs run_finetune for a small model on phantom questions; returns its exit code."""

    def run(*overrides: str, name: str = "run", config: str = "vqa_rad") -> int:
        sizes = [line for line in SMALL if line.startswith("model.")]
        return run_finetune.main(
            [
                "--config",
                str(ROOT / f"configs/finetune/{config}.yaml"),
                f"architecture={ROOT}/configs/pretrain/quickstart.yaml",
                f"architecture_set={json.dumps(sizes)}",
                *FAST,
                f"output={tmp_path / name}",
                f"data.train={questions}/train",
                f"data.test={questions}/test",
                f"data.tokenizer={shards}/tokenizer",
                *overrides,
            ]
        )

    return run
