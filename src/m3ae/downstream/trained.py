"""A trained model with its tokeniser and the meaning of its outputs, loaded for use."""

import argparse
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m3ae.config import TEXT_TOKENS
from m3ae.data.shards import read_manifest
from m3ae.data.texts import load_tokenizer
from m3ae.downstream.model import FACTS, HEADS, Downstream, last_checkpoint, read_facts
from m3ae.models.image_encoder import resize_positions
from m3ae.models.m3ae import M3AE
from m3ae.models.pretrained import check_state, read_pretrained
from m3ae.scoring.predictions import PROTOCOLS
from m3ae.strict_yaml import parse

log = logging.getLogger("m3ae")

PREFERRED = ("strict", "image_disjoint", "paper")  # whose best epoch is used, if none is asked for


@dataclass
class Trained:
    """A model ready for use, in eval mode: `model` is a `Downstream` where `facts` are given."""

    folder: Path
    model: M3AE
    tokenizer: Any
    image_px: int
    text_length: int
    facts: dict[str, Any] | None
    protocol: str | None  # whose answers it may give

    @property
    def task(self) -> str | None:
        """vqa, classification, retrieval, or None for a pre-trained model."""
        return self.facts["task"] if self.facts else None

    @property
    def image(self) -> str:
        """`data.image` of its fine-tuning: own, or none (the question-only model)."""
        return (self.facts or {}).get("image", "own")

    @property
    def known(self) -> set[str] | None:
        """The answers that it may give; None: all."""
        known = (self.facts or {}).get("known") or {}
        return set(known[self.protocol]) if self.protocol in known else None


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
    if protocol is not None and found and protocol not in found:
        raise FileNotFoundError(
            f"{path}: no best epoch under --protocol {protocol}; it has {', '.join(found)}"
        )
    if found:
        return found[protocol or next(iter(found))]
    last = last_checkpoint(path)
    if not (last / "config.json").is_file():
        raise FileNotFoundError(
            f"{path}: neither a run (no best-PROTOCOL and no checkpoints in "
            "it) nor a checkpoint (no config.json)"
        )
    return last


def load_trained(
    path: str | Path,
    protocol: str | None = None,
    image_px: int | None = None,
    text_length: int | None = None,
) -> Trained:
    """A fine-tuned or pre-trained model with its tokeniser, strictly, on the CPU.

    With another `image_px` than the model's, positions are resized as fine-tuning does, and the
    log says so. `text_length` default: that of fine-tuning, else of pre-training (its config.yaml),
    else 64. Raises ValueError or FileNotFoundError naming what is wrong.
    """
    folder = find_checkpoint(Path(path), protocol)
    config, state = read_pretrained(folder)
    facts = read_facts(folder)
    px = config.image_encoder.image_px
    if image_px is not None and image_px != px:
        image = dataclasses.replace(config.image_encoder, image_px=image_px)
        if image_px % image.patch_px:
            raise ValueError(
                f"{folder}: images of {image_px} px are no multiple of its patches of "
                f"{image.patch_px} px; prepare with --px {px}"
            )
        config = dataclasses.replace(config, image_encoder=image)
        name = "image_encoder.position_embedding"
        state[name] = resize_positions(state[name], image_px // image.patch_px)
        log.info("%s: trained at %d px, positions resized to %d px", folder, px, image_px)
        px = image_px
    if facts is None:
        heads = sorted({key.partition(".")[0] for key in state} & set(HEADS.values()))
        if heads:
            raise ValueError(
                f"{folder}: has a {heads[0]} and no {FACTS}, which says what its "
                "outputs mean; give the run folder, or its best-PROTOCOL folder"
            )
        model = M3AE(config)
    else:
        _check_facts(folder, facts)
        model = Downstream(config, facts["task"], len(facts["answers"]))
    check_state(model, state, str(folder))
    model.load_state_dict(state)
    model.eval()
    given = text_length if text_length is not None else (facts or {}).get("text_length")
    length = _text_length(folder) if given is None else given
    text = config.text_encoder
    most = text.max_positions - (text.pad_id + 1 if text.kind == "roberta" else 0)
    if not 3 <= length <= most:
        raise ValueError(f"text length {length}: {folder} takes 3 to {most} tokens")
    trained = Trained(folder, model, load_tokenizer(folder), px, length, facts, None)
    trained.protocol = _protocol(folder, facts, protocol)
    return trained


def _check_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Raise ValueError where downstream.json is not what `write_facts` writes."""
    answers = facts.get("answers")
    fine = facts.get("task") in HEADS and isinstance(answers, list)
    if not fine or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{folder / FACTS}: no task ({', '.join(HEADS)}) or no answer list in it")
    if not answers and facts["task"] != "retrieval":
        raise ValueError(f"{folder / FACTS}: an empty answer list")


def _protocol(folder: Path, facts: dict[str, Any] | None, asked: str | None) -> str | None:
    """The protocol whose answers count: asked for, of the folder's name, or the only one."""
    known = (facts or {}).get("known") or {}
    if asked is not None and known and asked not in known:
        raise ValueError(
            f"{folder}: knows no answers of --protocol {asked}, only of {', '.join(known)}"
        )
    named = folder.name.removeprefix("best-")
    choices = [name for name in (asked, named, *PREFERRED) if name in known]
    return choices[0] if choices else None


def _text_length(folder: Path) -> int:
    """The text length of the training that wrote a checkpoint, else the paper's."""
    for path in (folder / "config.yaml", folder.parent.parent / "config.yaml"):
        if path.is_file():
            data = parse(path.read_text(encoding="utf-8"), str(path)).get("data", {})
            if isinstance(length := data.get("text_length"), int):
                return length
    log.info("%s does not say its text length: %d tokens are taken", folder, TEXT_TOKENS)
    return TEXT_TOKENS


def shards_px(folder: str | Path, path: str | Path, protocol: str | None = None) -> int | None:
    """The image side that prepared images force on a model: raw shards have one; None: any."""
    find_checkpoint(Path(path), protocol)  # the model's mistakes first
    manifest = read_manifest(Path(folder))
    return manifest["px"] if manifest["encoding"] == "raw" else None


def pick_device(name: str | None) -> torch.device:
    """The device by name, else a GPU where there is one; ValueError if it cannot be used."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: cannot be used here ({reason})") from error
    return device


def add_model_arguments(parser: argparse.ArgumentParser, runs: str) -> None:
    """The options by which a command is given its model."""
    add = parser.add_argument
    add("--model", required=True, metavar="RUN", help=runs)
    add(
        "--protocol",
        choices=PROTOCOLS,
        help="whose best epoch, and whose answers (default: the "
        "first that the run has of " + ", ".join(PREFERRED) + ")",
    )
    add(
        "--precision",
        choices=("auto", "bf16", "fp16", "fp32"),
        default="auto",
        help="auto: bf16 on GPUs that have it, else fp16, fp32 on CPUs",
    )
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    add("--batch", type=int, default=32, metavar="N", help="rows a forward pass (default: 32)")
