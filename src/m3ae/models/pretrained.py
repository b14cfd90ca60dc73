"""Weights from elsewhere and our own files: CLIP, plain ViT, RoBERTa, BERT, reference checkpoints.

Every name map is a table of rules. A tensor that no rule takes is an error, as is a parameter of
ours that no tensor fills and a shape that differs. What a family may drop is named in its table
and listed in the log when it happens.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from m3ae.checkpoints import check_folder, last_checkpoint
from m3ae.config import Architecture
from m3ae.files import one_line, read_json_object, replacing, write_json
from m3ae.models.card import card_of
from m3ae.models.heads import HEADS
from m3ae.models.image_encoder import ImageEncoder, resize_positions
from m3ae.models.layers import sincos_2d
from m3ae.models.name_maps import IMAGE_FAMILIES, REFERENCE, TEXT_FAMILIES, Family, Rules
from m3ae.models.settings import check_settings
from m3ae.models.text_encoder import TextEncoder
from m3ae.models.weight_files import (
    State,
    find_file,
    read_checkpoint,
    read_safetensors,
    read_weights,
    unwrapped,
)
from m3ae.strict_yaml import build

log = logging.getLogger(__name__)


def convert_names(state: Mapping, rules: Rules, source: str) -> tuple[State, list[str]]:
    """Rename by the first rule that matches a whole name -> `joined` tensors, names dropped.

    Raises ValueError naming the tensors that no rule takes.
    """
    compiled = [(re.compile(pattern), name) for pattern, name in rules]
    out: State = {}
    dropped, unknown = [], []
    for key, tensor in state.items():
        found = [(m, name) for pattern, name in compiled if (m := pattern.fullmatch(key))]
        match, name = found[0] if found else (None, None)
        if match is None:
            unknown.append(key)
        elif name is None:
            dropped.append(key)
        else:
            out[match.expand(name)] = tensor
    if unknown:
        raise ValueError(f"{source}: no place for {_some(unknown)}")
    return joined(out), dropped


def joined(state: Mapping[str, Tensor]) -> State:
    """Queries, keys and values held apart, as one matrix; for cross-attention keys and values.

    So are our own files of before there was one product. What is one already stays as it is.
    """
    out = dict(state)
    for key in state:
        if not (match := re.fullmatch(r"(.*?(cross_)?attention\.)value\.(weight|bias)", key)):
            continue
        parts = ["key", "value"] if match[2] else ["query", "key", "value"]
        apart = [f"{match[1]}{name}.{match[3]}" for name in parts]
        if all(name in out for name in apart):
            whole = f"{match[1]}{'_'.join(parts)}.{match[3]}"
            out[whole] = torch.cat([out.pop(name) for name in apart])
    return out


def convert_reference(state: Mapping[str, Any]) -> State:
    """A reference checkpoint (its `state_dict`, or the checkpoint around it) under our names.

    Drops exactly the tensors the reference never uses: CLIP's text embeddings and final LayerNorm,
    the text encoder's pooler and position ids, and the fixed MIM position table after checking that
    it equals ours. Downstream heads are kept. Raises ValueError for any other tensor.
    """
    state = unwrapped(state, "reference checkpoint")
    positions = state.get("mim_head.decoder_pos_embed")
    if positions is not None:
        ours = sincos_2d(positions.shape[-1], math.isqrt(positions.shape[-2] - 1))
        same_size = positions.numel() == ours.numel()
        if not (same_size and torch.allclose(positions.float().view_as(ours), ours, atol=1e-5)):
            raise ValueError("mim_head.decoder_pos_embed is not the fixed sine-cosine table")
    out, _ = convert_names(state, REFERENCE, "reference checkpoint")
    if "mim_head.mask_token" in out:
        out["mim_head.mask_token"] = out["mim_head.mask_token"].flatten()
    return out


# ------------------------------------------------------------------------------------- encoders


def load_image_encoder(encoder: ImageEncoder, source: str) -> None:
    """Fill an image encoder from a hub id, folder or file of its family; positions are resized.

    Raises ValueError when the file is of another family or its sizes, or the settings in a
    config.json beside it, differ from the config's.
    """
    _, state, rules, beside = _find_encoder(source, IMAGE_FAMILIES[encoder.kind])
    converted, unused = convert_names(state, rules, source)
    for key in [key for key in converted if key.endswith(".scale")]:
        scale, layer = converted.pop(key), key.removesuffix(".scale")
        converted[f"{layer}.weight"] = converted[f"{layer}.weight"] * scale[:, None]
        converted[f"{layer}.bias"] = converted[f"{layer}.bias"] * scale
    if lacking := sorted({"class_token", "position_embedding"} - converted.keys()):
        raise ValueError(f"{source}: lacks {_some(lacking)}")
    converted["class_token"] = converted["class_token"].flatten()
    positions = converted["position_embedding"]
    positions = positions.view(-1, positions.shape[-1])
    if converted.pop("distillation_token", None) is not None:  # its position follows CLS's
        positions = torch.cat([positions[:1], positions[2:]])
        unused.append("distillation_token")
    converted["position_embedding"] = resize_positions(positions, encoder.grid)
    _fill(encoder, converted, source, beside + unused)
    check_settings(encoder.config, source)  # after the shapes, which name a tensor


def load_text_encoder(encoder: TextEncoder, source: str) -> None:
    """Fill a text encoder from a hub id, folder or file of a RoBERTa or BERT; strict likewise."""
    prefix, state, rules, beside = _find_encoder(source, TEXT_FAMILIES)
    if prefix in ("roberta.", "bert.") and prefix != f"{encoder.kind}.":
        found = f"its tensors begin with {prefix!r}"
        raise ValueError(f"{source}: {found}, the config's text_encoder.kind is {encoder.kind!r}")
    state = {  # older files call LayerNorm's weight and bias gamma and beta
        key.replace(".gamma", ".weight").replace(".beta", ".bias"): tensor
        for key, tensor in state.items()
    }
    converted, unused = convert_names(state, rules, source)
    _fill(encoder, converted, source, beside + unused)
    check_settings(encoder.config, source)


def _find_encoder(source: str, families: Sequence[Family]) -> tuple[str, State, Rules, list[str]]:
    """Where in the weights of `source` an encoder of these families stands.

    Returns its prefix, its tensors without it, their rules, and the names beside it. Raises
    ValueError where there is none, or where something beside it belongs to no such file.
    """
    state = read_weights(source)
    places = [(family, prefix) for family in families for prefix in family.prefixes]
    counts = [_matches(state, family.rules, prefix) for family, prefix in places]
    if not any(counts):
        wrong = f"no weights of this kind: {_some(list(state))}"
        raise ValueError(f"{source}: {wrong}; does the config's kind fit the file?")
    # Without a prefix the text tower of a CLIP looks like its image tower.
    best = max(range(len(places)), key=lambda k: (bool(counts[k] and places[k][1]), counts[k]))
    family, prefix = places[best]
    beside = [key for key in state if not key.startswith(prefix)]
    if strange := [key for key in beside if not re.fullmatch(family.beside, key)]:
        raise ValueError(f"{source}: beside the encoder stand {_some(strange)}")
    inside = {key.removeprefix(prefix): x for key, x in state.items() if key.startswith(prefix)}
    return prefix, inside, family.rules, beside


def _matches(state: State, rules: Rules, prefix: str) -> int:
    """How many of the tensors below a prefix have a place of ours."""
    kept = "|".join(f"(?:{pattern})" for pattern, name in rules if name is not None)
    whole = re.compile(f"{re.escape(prefix)}(?:{kept})")
    return sum(whole.fullmatch(key) is not None for key in state)


def _fill(module: nn.Module, state: State, source: str, dropped: list[str]) -> None:
    """Strict load, less blocks beyond the module's depth; what was dropped goes to the log."""
    depth = len(module.blocks)
    beyond = [key for key in state if (m := re.match(r"blocks\.(\d+)", key)) and int(m[1]) >= depth]
    state = {key: tensor for key, tensor in state.items() if key not in beyond}
    if dropped or beyond:
        parts = {
            re.match(r"((embeddings|visual|blocks)\.)?[^.]+", key)[0] for key in dropped + beyond
        }
        log.info("%s: dropped %s", source, ", ".join(sorted(parts)))
    load_strictly(module, state, source)


def load_strictly(module: nn.Module, state: State, source: str) -> None:
    """Fill a module; raise ValueError unless `state` has its names and shapes exactly."""
    ours = module.state_dict()
    missing, extra = sorted(ours.keys() - state.keys()), sorted(state.keys() - ours.keys())
    if missing or extra:
        parts = [f"lacks {_some(missing)}"] if missing else []
        parts += [f"has no place for {_some(extra)}"] if extra else []
        raise ValueError(f"{source}: {' and '.join(parts)}; do the config's sizes fit the file?")
    for key, tensor in ours.items():
        there, here = tuple(state[key].shape), tuple(tensor.shape)
        if there != here:
            raise ValueError(f"{source}: {key} is {there} in the file, {here} by the config")
    module.load_state_dict(state)


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ------------------------------------------------------------------------------------- a start


def start_from(model: nn.Module, init: str) -> None:
    """Fill a model from a run folder, a checkpoint folder, a hub id or a file of the reference.

    Encoders and fusion must have its sizes; positions are resized to its images. A head that is not
    in `init` with the same sizes keeps its initial weights, one that has no use here is left out;
    both are said. Optimiser, steps and random states begin anew. Raises ValueError or
    FileNotFoundError naming what does not fit.
    """
    if Path(init).is_file():
        state = convert_reference(read_checkpoint(init))
    else:
        state = read_pretrained(last_checkpoint(Path(init)))[1]
    name, ours = "image_encoder.position_embedding", model.state_dict()
    if name in state:
        state[name] = resize_positions(state[name], model.image_encoder.grid)
    found, own = _heads(state), _heads(ours)
    same = {head for head in own if _shapes(own[head]) == _shapes(found.get(head, {}))}
    if new := sorted(own.keys() - same):
        log.info("%s: not in it, or of other sizes, so begun anew: %s", init, ", ".join(new))
    if unused := sorted(found.keys() - own.keys()):
        log.info("%s: not used here: %s", init, ", ".join(unused))
    body = {key: tensor for key, tensor in state.items() if "head." not in key}
    heads = [found[head] if head in same else own[head] for head in own]
    for head in heads:
        body |= head
    load_strictly(model, body, init)


def _heads(state: State) -> dict[str, State]:
    """Each head's tensors, by its name."""
    heads: dict[str, State] = {}
    for key, tensor in state.items():
        if "head." in key:
            heads.setdefault(key.partition(".")[0], {})[key] = tensor
    return heads


def at_size(model: Architecture, image_px: int, state: State | None = None) -> Architecture:
    """The same sizes for images of another side, to which the positions in `state` are resized.

    Raises ValueError if the patches do not fill it.
    """
    image = dataclasses.replace(model.image_encoder, image_px=image_px)
    if image_px % image.patch_px:
        wrong = f"images of {image_px} px are no multiple of the patch's {image.patch_px} px"
        own = f"the model's own {model.image_encoder.image_px} px"
        raise ValueError(f"{wrong}; give {own} (data.image_px, or --px in preparing)")
    if state is not None:
        name = "image_encoder.position_embedding"
        state[name] = resize_positions(state[name], image_px // image.patch_px)
    return dataclasses.replace(model, image_encoder=image)


def heads_in(state: State) -> set[str]:
    """The names of the heads whose tensors these are among."""
    return {key.partition(".")[0] for key in state if "head." in key}


def fine_tuned_heads(state: State) -> list[str]:
    """The names of those of fine-tuning."""
    return sorted(heads_in(state) & set(HEADS.values()))


def without_heads(state: State, source: str) -> State:
    """The tensors less those of fine-tuning's heads, which the log names."""
    if heads := fine_tuned_heads(state):
        log.info("%s: dropped %s: of a fine-tuned model the backbone", source, ", ".join(heads))
    return {key: tensor for key, tensor in state.items() if key.partition(".")[0] not in heads}


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


# ------------------------------------------------------------------------------------- our own

# Older files hold them: how the model was computed in training, which is no part of what it is.
_SWITCHES = ("share", "compile", "activation_checkpointing")


def save_pretrained(
    model: nn.Module, path: str | Path, tokenizer: Any = None, state: State | None = None
) -> None:
    """Write model.safetensors, config.json, README.md and the tokeniser into folder `path`.

    state: a copy of the model's `state_dict` on the CPU, to be written instead of what it has now.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    if state is None:
        state = {k: tensor.detach().cpu().contiguous() for k, tensor in model.state_dict().items()}
    with replacing(path / "model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    config = {"format": "m3ae", "version": 1, "model": dataclasses.asdict(model.config)}
    write_json(path / "config.json", config, indent=2)
    (path / "README.md").write_text(card_of(model, tokenizer is not None), encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save_pretrained(str(path))


def read_pretrained(path_or_hub_id: str | Path) -> tuple[Architecture, State]:
    """Config and weights of a folder that `save_pretrained` wrote, or of such a hub repository.

    ValueError where a file of a checkpoint is not the one that was written.
    """
    check_folder(Path(path_or_hub_id))
    place = find_file(path_or_hub_id, "config.json")
    if place is None:
        wrong = "has no config.json: not a folder of save_pretrained"
        if Path(path_or_hub_id).is_file():
            wrong = "is a file: python -m m3ae.convert makes a folder of it"
        raise FileNotFoundError(f"{path_or_hub_id} {wrong}")
    config = read_json_object(place)
    made = config.get("format"), config.get("version")
    if made != ("m3ae", 1):
        found = f"format {made[0]!r}, version {made[1]!r}"
        raise ValueError(f"{place}: {found}; expected 'm3ae', 1")
    section = config.get("model")
    if not isinstance(section, dict):
        raise ValueError(f"{place}: no section model in it")
    section = {key: value for key, value in section.items() if key not in _SWITCHES}
    try:
        architecture = build(Architecture, section)
    except ValueError as error:
        raise ValueError(f"{place}: {one_line(error)}") from error
    weights = find_file(path_or_hub_id, "model.safetensors")
    if weights is None:
        raise FileNotFoundError(f"{path_or_hub_id}/model.safetensors does not exist")
    try:
        return architecture, joined(read_safetensors(weights))
    except RuntimeError as error:  # parts of a matrix that do not fit one another
        raise ValueError(f"{weights}: {one_line(error)}") from error
