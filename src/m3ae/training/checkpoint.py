"""Going on from a checkpoint that `saving` wrote, or a word why not."""

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from m3ae.checkpoints import newest_whole, read_state, step_of
from m3ae.config import to_yaml
from m3ae.data.contents import contents
from m3ae.data.sampler import DROPOUT, keyed
from m3ae.files import read_json_object
from m3ae.strict_yaml import flat, parse, read_file
from m3ae.training.distributed import Processes
from m3ae.training.engine import Trainer
from m3ae.training.sharding import copy_from, spread

log = logging.getLogger(__name__)

# 1: moments of queries, keys and values apart; 2: no digests
VERSION = 3
# What may differ between a run and its continuation: it changes the training by rounding at most
# (`model.share` also by the draws of dropout).
FREE_KEYS = """
output model.share model.compile model.activation_checkpointing data.workers
train.batch_per_process train.threads train.device train.tf32 train.deterministic
train.timeout_minutes train.skip_non_finite train.shard train.log_every
train.checkpoint_every train.keep_checkpoints train.keep_every train.keep_best train.on_save_error
train.tracker eval.every eval.pictures
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


def resume(run: Path, trainer: Trainer, config: Any) -> int:
    """Restore all from the run's newest whole checkpoint; returns the number of finished steps.

    The first process reads it; every process must call this. On another number of processes than
    wrote it the batches and the model go on, dropout's draws begin anew. Raises ValueError when the
    config is not the checkpoint's, or another host has a newer one.
    """
    processes = trainer.processes
    _check_hosts(run, processes)
    whole = processes.share(_read(run, trainer, config) if processes.first else None)
    if whole is None:
        return 0
    if not processes.first:
        trainer.model.load_state_dict(whole["model"])
    if trainer.shares is not None:
        copy_from(trainer.shares, trainer.model)
        whole["optimizer"] = _moments_spread(whole["optimizer"], trainer.optimizer)
    trainer.optimizer.load_state_dict(whole["optimizer"])
    trainer.scaler.load_state_dict(whole["scaler"])
    step, states = whole["step"], whole["random"]
    if len(states) == processes.count:
        state = tree_map_only(torch.Tensor, torch.Tensor.cpu, states[processes.rank])
        set_rng_state(state)
    else:
        said = "%d processes wrote it, %d go on: dropout's draws begin anew, batches do not"
        log.info(said, len(states), processes.count)
        torch.manual_seed(int(keyed(config.seed, DROPOUT, step, processes.rank).integers(2**62)))
    return step


def _check_hosts(run: Path, processes: Processes) -> None:
    """ValueError where a host has a newer checkpoint than the first process: ranks may move."""
    saved = newest_whole(run) if processes.local_rank == 0 else None
    steps = processes.gather(step_of(saved) if saved else 0)
    if steps[0] < max(steps):
        there = f"the host of process {steps.index(max(steps))} has step {max(steps)}"
        here = f"that of the first process step {steps[0]}"
        raise ValueError(f"{run}: {there}, {here}; give hosts one folder, or copy it there")


def _moments_spread(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state with what has the shape of its parameter in shares as that is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {
            name: spread(value, parameters[number]) if value.ndim else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return state | {"state": moments}


def _read(run: Path, trainer: Trainer, config: Any) -> dict[str, Any] | None:
    """All that is in the run's last checkpoint, its weights already in the model; None: no one."""
    if not (path := newest_whole(run)):
        return None
    state = read_state(path)
    if state.get("version") != VERSION:
        told = f"version {state.get('version')}, this code resumes {VERSION}"
        raise ValueError(f"{path}: {told}; init={path} output=... starts from its weights")
    check_same_config(path, config, state["step"])
    trainer.model.load_weights(path)
    whole = _tensors(path / "optimizer.pt")
    states = [_tensors(path / f"rng-{rank}.pt") for rank in range(state["processes"])]
    log.info("resuming from %s", path)
    return whole | {
        "step": state["step"],
        "random": states,
        "model": trainer.model.state_dict(),
    }


def _tensors(file: Path) -> Any:
    return torch.load(file, map_location="cpu", weights_only=True)


def finished(run: Path, config: Any, processes: Processes, steps: int = 0) -> bool:
    """Whether this very run has ended; raises ValueError if another one has in its folder.

    One that ended before `steps` is to go on, so it has not. The first process looks; every process
    must call this.
    """
    return processes.from_first(processes.first and _finished(run, config, steps))


def _finished(run: Path, config: Any, steps: int) -> bool:
    path = run / "evaluation.json"
    if not path.exists():
        return False
    done = read_json_object(path).get("step", 0)
    if done < steps:
        return False
    check_same_config(run, config, done)
    log.info("%s is finished; nothing to do (another output= starts a new run)", run)
    return True


def check_same_config(folder: Path, config: Any, step: int) -> None:
    """Raise ValueError listing the keys in which a config differs from a folder's config.yaml.

    FREE_KEYS, an end at or after `step` and where the same data lie may differ; each such change
    goes to the log.
    """
    path = folder / "config.yaml"
    old = flat(read_file(path))
    new = flat(parse(to_yaml(config), "config"))
    free = {*FREE_KEYS, *(["train.steps"] if new.get("train.steps", 0) >= step else [])}
    if "task" in new:  # fine-tuning: an epoch that is not evaluated cannot be selected
        free.remove("eval.every")
    differing = sorted(key for key in old | new if old.get(key) != new.get(key))
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder
    facts = run / "environment.json"
    there = read_json_object(facts) if facts.exists() else {}
    there, now = there.get("contents", {}), contents(config)
    free |= {key for key in differing if key in now and there.get(key) == now[key]}
    changes = {key: f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in differing}
    if changes.keys() - free:
        listed = ", ".join(text for key, text in changes.items() if key not in free)
        raise ValueError(f"{folder} was made with another config: {listed}; give another output=")
    if changes:
        log.info("changed since %s: %s", folder, ", ".join(changes.values()))
