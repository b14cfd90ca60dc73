"""Checkpoints: folders that hold all that the next step depends on.

    checkpoints/step-00002000/
        model.safetensors, config.json, tokeniser   what model.save_pretrained writes
        optimizer.pt, rng-0.pt, rng-1.pt, ...        tensors and plain values (weights_only)
        state.json                                   step, processes, format
        config.yaml                                  the resolved config

A folder is written under a temporary name, synced and renamed: it is whole or not there.
"""

import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3ae.config import to_yaml
from m3ae.files import checkpoints
from m3ae.strict_yaml import flat, parse
from m3ae.training.engine import Trainer

log = logging.getLogger(__name__)

VERSION = 2  # 1: moments of queries, keys and values apart
# What may differ between a run and its continuation: it changes the training by rounding at most
# (`model.share` also by the draws of dropout).
FREE_KEYS = """
output model.share model.compile model.activation_checkpointing data.workers
train.threads train.device train.tf32 train.deterministic train.timeout_minutes
train.log_every train.checkpoint_every train.keep_checkpoints eval.every eval.pictures
""".split()


def rng_state() -> dict[str, Any]:
    """Every global random state of this process, as tensors and plain values."""
    version, keys, gauss = random.getstate()
    name, words, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": [version, list(keys), gauss],
        "numpy": [name, torch.from_numpy(words.astype(np.int64)), position, has_gauss, cached],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))


def save_checkpoint(run: Path, step: int, trainer: Trainer, config: Any, tokenizer: Any) -> Path:
    """Write the checkpoint of `step` finished steps; every process must call it."""
    processes = trainer.processes
    final = run / "checkpoints" / f"step-{step:08d}"
    part = final.with_name(final.name + ".part")
    if processes.first:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    processes.wait()
    torch.save(rng_state(), part / f"rng-{processes.rank}.pt")
    if processes.first:
        trainer.model.save_pretrained(part, tokenizer)
        rest = {"optimizer": trainer.optimizer, "scaler": trainer.scaler}
        rest = {name: holder.state_dict() for name, holder in rest.items()}
        torch.save(rest, part / "optimizer.pt")
        (part / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        state = {"version": VERSION, "step": step, "processes": processes.count}
        (part / "state.json").write_text(json.dumps(state) + "\n", encoding="utf-8")
    processes.wait()
    if processes.first:
        for file in [*part.iterdir(), part]:
            _sync(file)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(part, final)
        _sync(final.parent)
        for old in checkpoints(run)[: -config.train.keep_checkpoints]:
            shutil.rmtree(old)
    processes.wait()
    return final


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resume(run: Path, trainer: Trainer, config: Any) -> int:
    """Restore all from the run's last checkpoint, if any; returns the number of finished steps.

    Raises ValueError when the config or the number of processes is not the checkpoint's.
    """
    if not (saved := checkpoints(run)):
        return 0
    path, processes = saved[-1], trainer.processes
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["version"] != VERSION:
        told = f"version {state['version']}, this code resumes {VERSION}"
        raise ValueError(f"{path}: {told}; init={path} output=... starts from its weights")
    if state["processes"] != processes.count:
        counts = f"written by {state['processes']} processes, this run has {processes.count}"
        raise ValueError(f"{path} was {counts}; start as many, or give another output=")
    check_same_config(path, config, state["step"])
    trainer.model.load_weights(path)
    rest = torch.load(path / "optimizer.pt", map_location=processes.device, weights_only=True)
    trainer.optimizer.load_state_dict(rest["optimizer"])
    trainer.scaler.load_state_dict(rest["scaler"])
    set_rng_state(torch.load(path / f"rng-{processes.rank}.pt", weights_only=True))
    log.info("resuming from %s", path)
    return state["step"]


def finished(run: Path, config: Any, steps: int = 0) -> bool:
    """Whether this very run has ended; raises ValueError if another one has in its folder.

    One that ended before `steps` is to go on, so it has not.
    """
    path = run / "evaluation.json"
    if not path.exists():
        return False
    done = json.loads(path.read_text(encoding="utf-8")).get("step", 0)
    if done < steps:
        return False
    check_same_config(run, config, done)
    log.info("%s is finished; nothing to do (another output= starts a new run)", run)
    return True


def check_same_config(folder: Path, config: Any, step: int) -> None:
    """Raise ValueError listing the keys in which a config differs from a folder's config.yaml.

    FREE_KEYS and an end at or after `step` may differ; each such change goes to the log.
    """
    path = folder / "config.yaml"
    old = flat(parse(path.read_text(encoding="utf-8"), str(path)))
    new = flat(parse(to_yaml(config), "config"))
    free = {*FREE_KEYS, *(["train.steps"] if new.get("train.steps", 0) >= step else [])}
    if "task" in new:  # fine-tuning: an epoch that is not evaluated cannot be selected
        free.remove("eval.every")
    differing = sorted(key for key in old | new if old.get(key) != new.get(key))
    changes = {key: f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in differing}
    if changes.keys() - free:
        listed = ", ".join(text for key, text in changes.items() if key not in free)
        raise ValueError(f"{folder} was made with another config: {listed}; give another output=")
    if changes:
        log.info("changed since %s: %s", folder, ", ".join(changes.values()))
