"""A trained model with its tokeniser and the meaning of its outputs, loaded for use."""

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m3ae.checkpoints import last_checkpoint
from m3ae.config import TEXT_TOKENS
from m3ae.data.shards import read_manifest
from m3ae.data.texts import load_tokenizer, most_tokens
from m3ae.downstream.arguments import PREFERRED
from m3ae.downstream.model import FACTS, build_fine_tuned, class_of, read_facts
from m3ae.models.m3ae import M3AE
from m3ae.models.pretrained import at_size, fine_tuned_heads, load_strictly, read_pretrained
from m3ae.strict_yaml import read_file
from m3ae.training.precision import resolve_precision

log = logging.getLogger("m3ae")


@dataclass
class Trained:
    """A model ready for use, in eval mode: `model` is a `Downstream` where there are `facts`."""

    folder: Path
    model: M3AE
    tokenizer: Any
    text_length: int
    facts: dict[str, Any]  # of downstream.json; {} for a pre-trained model
    protocol: str | None  # whose answers it may give

    @property
    def image_px(self) -> int:
        """The side of its images."""
        return self.model.config.image_encoder.image_px

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.model.pixel_mean.device

    @property
    def task(self) -> str | None:
        """vqa, classification, multilabel, retrieval, or None for a pre-trained model."""
        return self.facts.get("task")

    def need_fusion(self, what: str) -> None:
        """Raise ValueError where the model's head reads the encoders alone, past fusion."""
        if self.facts and self.model.reads == "encoders":
            own = "its head reads the encoders alone (head.reads: encoders), fusion is not trained"
            raise ValueError(f"{self.folder}: {own}; so {what}")

    @property
    def image(self) -> str:
        """`data.image` of its fine-tuning: own, or none (the question-only model)."""
        return self.facts.get("image", "own")

    @property
    def known(self) -> set[str] | None:
        """The answers that it may give; None: all."""
        known = (self.facts.get("known") or {}).get(self.protocol)
        return None if known is None else set(known)


def find_checkpoint(path: Path, protocol: str | None = None) -> Path:
    """The checkpoint that a run folder stands for; a checkpoint folder, or a hub id, is itself.

    Of a fine-tuning run it is the best epoch under `protocol` (default: the first there is of
    strict, image_disjoint, paper), of a pre-training run the last checkpoint. Raises
    FileNotFoundError that says what was looked for.
    """
    if path.is_file():
        raise FileNotFoundError(f"{path}: a file; give a run folder or a folder of save_pretrained")
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    # With protocol=both, a corpus whose protocols train on other rows has a run folder for each.
    places = {name: [path / f"best-{name}", path / name / f"best-{name}"] for name in PREFERRED}
    found = {name: place for name in PREFERRED for place in places[name] if place.is_dir()}
    if found and protocol not in (None, *found):
        has = ", ".join(found)
        raise FileNotFoundError(f"{path}: no best epoch under --protocol {protocol}; it has {has}")
    if found:
        return found[protocol or next(iter(found))]
    last = last_checkpoint(path)
    if not (last / "config.json").is_file():
        wrong = "neither a run (no best-PROTOCOL, no checkpoints) nor a checkpoint (no config.json)"
        raise FileNotFoundError(f"{path}: {wrong}")
    return last


def load_trained(
    path: Path, protocol: str | None = None, image_px: int | None = None, length: int | None = None
) -> Trained:
    """A fine-tuned or pre-trained model with its tokeniser, strictly, on the CPU.

    With another `image_px` than the model's, positions are resized as fine-tuning does, and the
    log says so. `length` of texts: default that of fine-tuning, else of pre-training (its
    config.yaml), else 64. Raises ValueError or FileNotFoundError naming what is wrong.
    """
    folder = find_checkpoint(path, protocol)
    config, state = read_pretrained(folder)
    heads = fine_tuned_heads(state)
    facts = (read_facts(folder) if heads else None) or {}
    px = config.image_encoder.image_px
    if image_px not in (None, px):
        config = at_size(config, image_px, state)
        log.info("%s: trained at %d px, positions resized to %d px", folder, px, image_px)
    if facts:
        model = build_fine_tuned(folder, config, facts)
    elif heads:
        hint = "which says what its outputs mean; give the run folder, or its best-PROTOCOL folder"
        raise ValueError(f"{folder}: has a {heads[0]} and no {FACTS}, {hint}")
    else:
        model = M3AE(config)
    load_strictly(model, state, str(folder))
    length = facts.get("text_length") if length is None else length
    most = most_tokens(config.text_encoder)
    length = _text_length(folder, most) if length is None else length
    if not 3 <= length <= most:
        raise ValueError(f"text length {length}: {folder} takes 3 to {most} tokens")
    chosen = _protocol(folder, facts.get("known") or {}, protocol)
    return Trained(folder, model.eval(), load_tokenizer(folder), length, facts, chosen)


def _protocol(folder: Path, known: dict[str, list[str]], asked: str | None) -> str | None:
    """The protocol whose answers count: asked for, of the folder's name, or the only one."""
    if known and asked not in (None, *known):
        wrong = f"knows no answers of --protocol {asked}, only of {', '.join(known)}"
        raise ValueError(f"{folder}: {wrong}")
    choices = (asked, folder.name.removeprefix("best-"), *PREFERRED)
    return next((name for name in choices if name in known), None)


def _text_length(folder: Path, most: int) -> int:
    """The text length of the training that wrote a checkpoint, else the paper's, or `most`."""
    for path in (folder / "config.yaml", folder.parent.parent / "config.yaml"):
        if path.is_file():
            data = read_file(path).get("data", {})
            if isinstance(data, dict) and isinstance(length := data.get("text_length"), int):
                return length
    length = min(TEXT_TOKENS, most)
    log.info("%s does not say its text length: %d tokens are taken", folder, length)
    return length


# ------------------------------------------------------------------------------ command line


def load_from(
    args: argparse.Namespace, data: str | None, text_length: int | None = None
) -> tuple[Trained, str]:
    """The model that those options name, on its device, and its precision.

    Raw shards at `data` have one image side, at which it is then loaded.
    """
    if args.batch < 1:
        raise ValueError(f"--batch {args.batch}: below 1")
    if args.task:
        class_of(args.task)  # imported, so that a model that names it can be loaded
    device = pick_device(args.device)
    model = find_checkpoint(Path(args.model), args.protocol)  # its mistakes before the data's
    manifest = read_manifest(Path(data)) if data else {"encoding": None}
    px = manifest["px"] if manifest["encoding"] == "raw" else None
    trained = load_trained(model, args.protocol, px, text_length)
    trained.model.to(device)
    return trained, resolve_precision(args.precision, device)


def pick_device(name: str | None) -> torch.device:
    """The device by name, else a GPU where there is one; ValueError if it cannot be used."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: cannot be used here ({reason})") from error
    return device
