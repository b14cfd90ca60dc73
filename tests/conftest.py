"""Fixtures: a small phantom corpus, prepared by the real scripts, once a session."""

import os
from pathlib import Path

if "M3AE_TEST_DEVICE" not in os.environ:  # before torch: these tests are about numbers of a CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from hypothesis import HealthCheck, settings

from data_prep import phantoms, roco, vqa_rad
from tests.recipe import ROOT

torch.set_num_threads(1)  # two wait for each other where the cores are shared

# A busy machine must not fail a test, nor an example that nobody's change has to do with: those of
# `make test` are the same in every run, those of `make test-long` (M3AE_RANDOM) others each time.
settings.register_profile(
    "ours",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="M3AE_RANDOM" not in os.environ,
)
settings.load_profile("ours")

SMALL = """
model.image_encoder={image_px: 64, patch_px: 16, width: 32, depth: 1, heads: 2}
model.text_encoder={vocab_size: 300, width: 32, depth: 1, heads: 2, mlp_width: 64}
model.fusion={width: 32, depth: 2, heads: 2}
model.mim={layer: 1, decoder_width: 32, decoder_heads: 2}
model.itm.group=2
train={batch_global: 8, batch_per_process: 8, log_every: 2, checkpoint_every: 4}
eval={every: 4, samples: 12, batch: 4, final_samples: 16, mask_draws: 1, pictures: 2}
optim.lr=1e-3
""".strip().splitlines()


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Prepared phantoms: 40 training pairs, 16 for testing, 64 px, a tokeniser of their own."""
    folder = tmp_path_factory.mktemp("phantoms")
    sizes = ["--train", "40", "--validation", "4", "--test", "16"]
    raw, out = folder / "raw", folder / "shards"
    assert phantoms.main(["--out", str(raw), "--layouts", "roco", "--workers", "1", *sizes]) == 0
    prepare = ["--raw", str(raw / "roco"), "--out", str(out), "--px", "64", "--workers", "0"]
    assert roco.main([*prepare, "--tokenizer", "train:300"]) == 0
    return out


@pytest.fixture(scope="session")
def questions(shards, tmp_path_factory) -> Path:
    """Prepared phantom questions in VQA-RAD's layout, 64 px, with the tokeniser of `shards`."""
    folder = tmp_path_factory.mktemp("questions")
    raw, out = folder / "raw", folder / "vqa_rad"
    sizes = ["--vqa", "24", "--workers", "1"]
    assert phantoms.main(["--out", str(raw), "--layouts", "vqa_rad", *sizes]) == 0
    prepare = ["--raw", str(raw / "vqa_rad"), "--out", str(out), "--px", "64", "--workers", "0"]
    assert vqa_rad.main([*prepare, "--tokenizer", str(shards / "tokenizer")]) == 0
    return out


@pytest.fixture()
def small_run(shards, tmp_path):
    """Arguments of run_pretrain for a small model on the phantoms; a run takes a second or two."""

    def arguments(*overrides: str, name: str = "run", steps: int = 8) -> list[str]:
        return [
            "--config",
            str(ROOT / "configs/pretrain/quickstart.yaml"),
            *SMALL,
            f"output={tmp_path / name}",
            f"train.steps={steps}",
            f"data.train=[{shards}/train]",
            f"data.valid=[{shards}/test]",
            f"data.tokenizer={shards}/tokenizer",
            *overrides,
        ]

    return arguments
