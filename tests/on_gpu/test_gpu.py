"""What only a GPU can show: `make test-gpu`. The suite runs none of it."""

import contextlib
import shutil

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import run_pretrain
from benchmarks.step import random_batch
from m3ae.config import load_config
from m3ae.data.datasets import trim
from m3ae.models import build_model
from m3ae.models.param_groups import param_groups
from m3ae.pretraining.cost import activation_bytes
from m3ae.training.distributed import Processes
from m3ae.training.engine import Trainer
from m3ae.training.logs import read_log
from m3ae.training.optim import build_optimizer, set_lr
from tests.end_to_end.test_pretrain import states
from tests.recipe import ROOT, tiny_config

PRECISIONS = ["bf16", "fp16", "fp32"]


def trainer_of(config, device, precision: str) -> Trainer:
    model = build_model(config).to(device)
    optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
    alone = Processes(0, 0, 1, device)
    return Trainer(model, optimizer, alone, precision, config.optim.clip_norm)


def train(config, device, precision: str, steps: int, pairs: int = 8) -> list[float]:
    """Losses of some steps on two batches in turn."""
    trainer, found = trainer_of(config, device, precision), []
    batches = [trim(random_batch(config, pairs, 12, seed)) for seed in range(2)]
    for step in range(steps):
        set_lr(trainer.optimizer, step + 1, steps, config.optim)
        trainer.train_step([batches[step % 2]])
        found.append(trainer.read()["loss"])
    return found


@contextlib.contextmanager
def no_waiting(device):
    """An error where the host waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("negatives", ["in_batch", "dataset"])
def test_a_step_waits_for_nothing(device, precision, negatives):
    """`.item()`, a boolean mask or a pageable copy in the step; an unfused attention."""
    config = tiny_config(f"model.itm.negatives={negatives}", "optim.clip_norm=1.0")
    trainer = trainer_of(config, device, precision)
    batch = trim(random_batch(config, 8, None, 0))
    if negatives == "dataset":
        batch["negative_image"] = batch["image"]
        batch["itm_negative_rows"] = (~batch["itm_match"]).nonzero()[:, 0]
        del batch["itm_image"]
    if device.type == "cuda":
        batch = {key: value.pin_memory() for key, value in batch.items()}
    trainer.train_step([batch])
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    fused += [SDPBackend.CUDNN_ATTENTION] if device.type == "cuda" else [SDPBackend.MATH]
    with no_waiting(device), sdpa_kernel(fused):
        for _ in range(3):
            trainer.train_step([batch])
    assert trainer.failed.item() == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precisions_agree(device, precision):
    """Losses that drift from float32's: a sum, norm or softmax in 16 bit."""
    config = tiny_config("optim.lr=1e-3", "optim.warmup_frac=0.1")
    exact, half = (train(config, device, name, 60) for name in ("fp32", precision))
    assert exact[-1] < 0.8 * exact[0]
    assert half[:15] == pytest.approx(exact[:15], rel=0.02)
    assert sum(half) == pytest.approx(sum(exact), rel=0.03)  # later steps part, as of two seeds


def test_compiled_is_eager(device):
    """Kernels that compute something else than what they replace."""
    torch._dynamo.reset()
    plain = train(tiny_config(), device, "fp32", 10)
    compiled = train(tiny_config("model.compile=true"), device, "fp32", 10)
    torch._dynamo.reset()
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_a_run_goes_on_bitwise(device, small_run, tmp_path):
    """With train.deterministic: another bit after an interruption."""
    given = [f"train.device={device.type}", "train.deterministic=true", "model.fusion.dropout=0.1"]
    try:
        assert run_pretrain.main(small_run(*given, name="whole")) == 0
        assert run_pretrain.main(small_run(*given, name="again")) == 0
        shutil.rmtree(tmp_path / "again/checkpoints/step-00000008")
        (tmp_path / "again/evaluation.json").unlink()
        assert run_pretrain.main(small_run(*given, name="again")) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    last = "checkpoints/step-00000008"
    ends = [states(tmp_path / name / last) for name in ("whole", "again")]
    for one, two in zip(*ends, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    logs = [[x["loss"] for x in read_log(tmp_path / n, "train")] for n in ("whole", "again")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("pairs", [8, 24])
def test_memory_is_as_estimated(device, pairs, precision):
    """An estimate that lets a run end for want of memory, or asks for twice the GPUs."""
    if device.type == "cpu":
        pytest.skip("a rehearsal: the allocator of a CPU keeps no peak")
    paper = ROOT / "configs/pretrain/m3ae.yaml"
    weights = [f"model.{name}_encoder.weights=null" for name in ("image", "text")]
    config = load_config(paper, [*weights, "model.itm.group=8"])
    trainer = trainer_of(config, device, precision)
    batch = random_batch(config, pairs, None, 0)
    for _ in range(2):
        trainer.train_step([batch])
    torch.cuda.reset_peak_memory_stats()
    trainer.train_step([batch])
    held = 16 * sum(p.numel() for p in trainer.model.parameters())
    estimate = held + activation_bytes(config.model, 64, pairs, device, precision)
    assert torch.cuda.max_memory_allocated() == pytest.approx(estimate, rel=0.15)
