"""A cell: one run of a table, and its identity: what alone can change its numbers.

The identity is (kind, resolved config, data, code, seed). Comments, the order of keys, workers,
logging, checkpoints and output do not count; of data the digests of its manifests do, of code the
VERSION of each room that a run's numbers pass through.
"""

import dataclasses
import hashlib
import importlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from m3ae.config import Config, load_config
from m3ae.data.contents import content_of, stamp
from m3ae.downstream.config import FinetuneConfig, load_finetune_config
from m3ae.downstream.selection import training_rows
from m3ae.strict_yaml import flat

ROOMS = {
    "pretrain": ("data", "models", "training", "pretraining"),
    "finetune": ("scoring", "data", "models", "training", "downstream"),
}
PRETRAINING = "PRETRAINING"  # stands in a resolved config for the folder of the cell's own
# Keys of a resolved config that change no number but by rounding.
FREE = {
    "pretrain": """output model.compile model.activation_checkpointing data.workers train.threads
        train.device train.tf32 train.deterministic train.timeout_minutes train.skip_non_finite
        train.shard train.log_every train.checkpoint_every train.keep_checkpoints train.keep_every
        train.keep_best train.on_save_error train.tracker eval.every eval.pictures""",
    "finetune": """output model.compile model.activation_checkpointing data.workers train.threads
        train.device train.tf32 train.deterministic train.timeout_minutes train.skip_non_finite
        train.log_every train.checkpoint_every train.keep_checkpoints train.keep_every
        train.on_save_error train.tracker eval.top eval.samples eval.text_block
        eval.question_only architecture architecture_set init""",
}


@dataclass(frozen=True)
class Cell:
    """One run; `name` is for people, `digest` is the identity."""

    kind: str
    name: str
    config: str
    overrides: tuple[str, ...]
    seed: int
    init: "Cell | None" = None
    # Steps of a pre-training that fine-tuning alone is to take besides its own.
    more_steps: int = 0

    @cached_property
    def resolved(self) -> Config | FinetuneConfig:
        """The config, without init and output; ValueError or FileNotFoundError as its loader."""
        load = load_config if self.kind == "pretrain" else load_finetune_config
        given = [*self.overrides, f"seed={self.seed}"]
        if self.init is not None:
            given.append(f"init={PRETRAINING}")
        return load(self.config, [*given, *self._longer(load(self.config, given))])

    def _longer(self, config: Config | FinetuneConfig) -> list[str]:
        """Overrides by which fine-tuning takes `more_steps`, evaluated as often as without."""
        if not self.more_steps or lacking_folders(config):
            return []
        epochs = config.train.epochs
        per_epoch = math.ceil(_rows(config) / config.train.batch_global)
        longer = epochs + math.ceil(self.more_steps / per_epoch)
        every = {
            "eval.every": config.eval.every,
            "train.checkpoint_every": config.train.checkpoint_every,
        }
        scaled = [f"{key}={max(1, value * longer // epochs)}" for key, value in every.items()]
        return [f"train.epochs={longer}", *scaled]

    @cached_property
    def lacks(self) -> list[str]:
        """What is not there yet, its pre-training's part included."""
        config = self.resolved
        own = lacking_folders(config)
        if self.init is not None:
            own += self.init.lacks
        elif self.kind == "finetune" and config.init is None:
            start = load_config(config.architecture, config.architecture_set).model
            weights = [start.image_encoder.weights, start.text_encoder.weights]
            own += [path for path in weights if path and content_of(path) is None]
        return list(dict.fromkeys(own))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that its numbers follow from."""
        config = self.resolved
        values = flat(json.loads(json.dumps(asdict(config))))
        free = set(FREE[self.kind].split())
        # Which folder it is does not count, what is in it does, and what it is read as.
        contents = data_of(config)
        identity = {
            "kind": self.kind,
            "seed": self.seed,
            "config": {
                key: _with_contents(value, contents)
                for key, value in sorted(values.items())
                if key not in free and value is not None  # so a new key, null, changes nothing
            },
            "code": {room: version_of(room) for room in ROOMS[self.kind]},
        }
        if self.kind == "finetune":
            identity["start"] = self._start(config)
        return identity

    def _start(self, config: FinetuneConfig) -> Any:
        """What the weights begin as: a pre-training's digest, a file's, or an architecture."""
        if self.init is not None:
            return self.init.digest
        if config.init is not None and not Path(config.init).is_file():
            return content_of(config.init)
        start = load_config(config.architecture, config.architecture_set)
        model = json.loads(json.dumps(asdict(start.model)))
        for switch in ("share", "compile", "activation_checkpointing"):
            model.pop(switch)
        if config.init is not None:  # a released file has tensors alone, no sizes
            return {"model": model, "file": content_of(config.init)}
        for name in ("image_encoder", "text_encoder"):
            model[name]["weights"] = content_of(model[name]["weights"])
        return {"model": model, "seed": start.seed}

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the identity."""
        text = json.dumps(self.identity, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def id(self) -> str:
        """Name of its folder."""
        return f"{self.name}-s{self.seed}-{self.digest[:10]}"

    def folder(self, out: Path) -> Path:
        """Its run folder: that of the same identity, whatever row it was first run for."""
        own = out / "cells" / self.id
        if own.is_dir():
            return own
        same = sorted(own.parent.glob(f"*-s{self.seed}-{self.digest[:10]}"))
        return same[0] if same else own

    def config_of_run(self, out: Path) -> Config | FinetuneConfig:
        """The config that its command gives: as `resolved`, with init and output."""
        words = self.command(out)
        load = load_config if self.kind == "pretrain" else load_finetune_config
        place = words.index("--config") + 1
        return load(words[place], words[place + 1 :])

    def command(self, out: Path, launcher: str = "python") -> list[str]:
        """The exact command, as words."""
        script = "run_pretrain.py" if self.kind == "pretrain" else "run_finetune.py"
        words = [*launcher.split(), script, "--config", self.config, *self.overrides]
        if self.more_steps:
            base = load_finetune_config(self.config, [*self.overrides, f"seed={self.seed}"])
            words += self._longer(base) or ["train.epochs=?"]
        if self.init is not None:
            words.append(f"init={self.init.folder(out)}")
        return [*words, f"seed={self.seed}", f"output={self.folder(out)}"]

    @property
    def steps(self) -> int | None:
        """Optimiser steps of this run alone; None where they follow from data that are lacking."""
        config = self.resolved
        if self.kind == "pretrain":
            return config.train.steps
        if config.eval_only:
            return 0
        if lacking_folders(config):
            return None
        return config.train.epochs * math.ceil(_rows(config) / config.train.batch_global)


def lacking_folders(config: Config | FinetuneConfig) -> list[str]:
    """Prepared folders and files of a config that are not there."""
    return [path for path, found in data_of(config).items() if found is None]


def splits_of(config: Config | FinetuneConfig) -> list[str]:
    """Prepared splits and lists that a run reads, in a fixed order."""
    data = config.data
    if isinstance(config, Config):
        return [*data.train, *data.valid, *(data.exclude or ())]
    return [path for path in (data.train, data.valid, data.test, data.answers) if path]


def folders_of(config: Config | FinetuneConfig) -> list[str]:
    """`splits_of`, then what may also be a hub id: tokenizer, weights."""
    if isinstance(config, Config):
        model = config.model
        start = [config.init, model.image_encoder.weights, model.text_encoder.weights]
    else:
        start = [config.init] if config.init != PRETRAINING else []
    return [*splits_of(config), *filter(None, [config.data.tokenizer, *start])]


def data_of(config: Config | FinetuneConfig) -> dict[str, str | None]:
    """Digest of each of `folders_of`, None where it is not there."""
    splits = splits_of(config)
    return {
        path: content_of(path) if path not in splits or Path(path).exists() else None
        for path in folders_of(config)
    }


def version_of(room: str) -> int:
    """The room's VERSION."""
    return importlib.import_module(f"m3ae.{room}").VERSION


def _with_contents(value: Any, contents: dict[str, str | None]) -> Any:
    """A config's value, a path (or paths) of `data_of` replaced by the digest of what is there."""
    if isinstance(value, list):
        return [_with_contents(one, contents) for one in value]
    return contents.get(value, value) if isinstance(value, str) else value


def _rows(config: FinetuneConfig) -> int:
    """`training_rows`, counted once for all cells of the same rows."""
    seed = config.seed if config.data.fraction < 1 else 0
    same = dataclasses.replace(config, seed=seed, init=None, output="", eval_only=False)
    return _counted(same, stamp(Path(config.data.train)))


@cache
def _counted(config: FinetuneConfig, _: tuple[int, int]) -> int:
    return training_rows(config)


def quoted(values: Sequence[str]) -> str:
    """A YAML list of texts, as an override takes it."""
    return json.dumps(list(values))
