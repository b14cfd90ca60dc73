"""A small fine-tuning on phantom questions, and its end after a checkpoint."""

import json

import pytest

import run_finetune
from m3ae.training.saving import Saver
from tests.conftest import SMALL
from tests.recipe import ROOT

FAST = """
data={image_px: 64, text_length: 24, workers: 0}
optim={lr: 2.0e-3, head_lr_scale: 2, fusion_lr_scale: 1}
train={epochs: 2, batch_global: 32, batch_per_process: 16, log_every: 2, checkpoint_every: 1}
eval={samples: 100}
""".strip().splitlines()


def stop_after_saving(monkeypatch, times: int) -> None:
    """A run that is broken off after its checkpoint number `times` is written."""
    save, steps = Saver.save, []

    def save_and_stop(self, step):
        save(self, step)
        steps.append(step)
        if len(steps) == times:
            self.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(Saver, "save", save_and_stop)


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
