"""Configuration: YAML -> frozen dataclasses, strict.

`configs/pretrain/m3ae.yaml` holds every key with its meaning, unit and source; every other file
is `base:` plus what differs. No key has a default in code, so the file says it all. Nothing on
disk but YAML is read here: no data folder, no weights, no process count.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

Decoder = Literal["mlp", "transformer"]


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Section `model.image_encoder`."""

    weights: str | None
    kind: Literal["clip", "vit"]
    image_px: int
    patch_px: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    activation: Literal["gelu", "quick_gelu"]
    layer_norm_eps: float


@dataclass(frozen=True)
class TextEncoderConfig:
    """Section `model.text_encoder`."""

    weights: str | None
    kind: Literal["roberta", "bert"]
    vocab_size: int
    type_vocab_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    max_positions: int
    layer_norm_eps: float
    dropout: float
    attention_dropout: float
    pad_id: int


@dataclass(frozen=True)
class FusionConfig:
    """Section `model.fusion`."""

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    dropout: float
    attention_dropout: float
    layer_norm_eps: float


@dataclass(frozen=True)
class MLMConfig:
    """Section `model.mlm`."""

    weight: float
    ratio: float
    sampling: Literal["exact", "whole_word", "reference"]
    layer: int
    decoder: Decoder
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


@dataclass(frozen=True)
class MIMConfig:
    """Section `model.mim`."""

    weight: float
    ratio: float
    layer: int
    decoder: Decoder
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    normalise_target: bool


@dataclass(frozen=True)
class ITMConfig:
    """Section `model.itm`."""

    weight: float
    negatives: Literal["in_batch", "dataset"]
    group: int


@dataclass(frozen=True)
class ModelConfig:
    """Section `model`: all that the weights' shapes and the forward pass depend on."""

    share: bool
    compile: bool
    activation_checkpointing: bool
    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig
    fusion: FusionConfig
    mlm: MLMConfig
    mim: MIMConfig
    itm: ITMConfig


@dataclass(frozen=True)
class DataConfig:
    """Section `data`."""

    train: tuple[str, ...]
    train_weights: tuple[float, ...] | None
    valid: tuple[str, ...]
    tokenizer: str | None
    text_length: int
    workers: int


@dataclass(frozen=True)
class OptimConfig:
    """Section `optim`."""

    lr: float
    fusion_lr_scale: float
    head_lr_scale: float
    betas: tuple[float, ...]
    eps: float
    weight_decay: float
    param_groups: Literal["reference", "principled"]
    schedule: Literal["linear", "cosine", "power"]
    power: float
    end_lr_scale: float
    warmup_frac: float
    clip_norm: float | None


@dataclass(frozen=True)
class TrainConfig:
    """Section `train`."""

    steps: int
    batch_global: int
    batch_per_process: int
    precision: Literal["auto", "bf16", "fp16", "fp32"]
    threads: int | None
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int


@dataclass(frozen=True)
class EvalConfig:
    """Section `eval`."""

    every: int
    samples: int
    batch: int
    seed: int
    final_samples: int
    mask_draws: int
    attributes: dict[str, tuple[str, ...]]
    fine: tuple[str, ...]
    hard_negative_same: tuple[str, ...]
    pictures: int


@dataclass(frozen=True)
class Config:
    """A whole pre-training run."""

    seed: int
    output: str
    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig


# -------------------------------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """YAML whose `1e-5` is a float, whose only booleans are true and false, without duplicates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), list("tf"))


class _Dumper(yaml.SafeDumper):
    """Quotes also the words that `_Loader`, unlike YAML 1.1, reads as numbers, such as 1e5."""


_FLOAT = re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|nan)$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key, mark = loader.construct_object(key_node, deep=True), key_node.start_mark
        if not isinstance(key, str):
            raise ValueError(f"{mark.name}, line {mark.line + 1}: key {key!r} is no word")
        if key in seen:
            raise ValueError(f"{mark.name}, line {mark.line + 1}: duplicate key {key!r}")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _parse(text: str, name: str) -> Any:
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    """The file merged over its chain of `base:` files."""
    if path.resolve() in seen:
        raise ValueError(f"{path}: `base:` leads back to this file")
    if not path.is_file():
        raise FileNotFoundError(f"config {path} does not exist")
    content = _parse(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, got {type(content).__name__}")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ValueError(f"{path}: base: expected the name of a file, got {base!r}")
    return _merge(_read(path.parent / base, (*seen, path.resolve())), content)


def _merge(base: dict, top: dict) -> dict:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, its `base:` files and `key=value` overrides into a `Config`.

    Raises FileNotFoundError for a missing file, ValueError for an unknown, missing, duplicate or
    mistyped key (naming it and the nearest valid one) and for values that cannot work.
    """
    path = Path(path)
    content = _read(path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r} is not of the form key=value")
        parsed: Any = _parse(value, f"override {key}")
        for part in reversed(key.strip().split(".")):
            parsed = {part: parsed}
        content = _merge(content, parsed)
    if content.get("output", ...) is None:
        content["output"] = default_output(path)
    config = _build(Config, content, "")
    _check(config)
    return config


def default_output(path: Path) -> str:
    """Run folder of a config file: runs/<its path below configs/, without .yaml>."""
    parts = path.with_suffix("").parts
    below = parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:]
    return str(Path("runs", *below))


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    plain = _plain(dataclasses.asdict(config))
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def from_dict(cls: type, content: dict) -> Any:
    """A config dataclass (any section) from plain keys and values; as strict as `load_config`."""
    return _build(cls, content, "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


# ------------------------------------------------------------------------------------- checking


def _build(cls: type, content: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise ValueError(f"{where or 'config'}: expected a section, got {content!r}")
    hints = typing.get_type_hints(cls)
    for key in content:
        if key not in hints:
            raise ValueError(f"unknown key {where}{key}{_nearest(key, hints, where)}")
    missing = [where + key for key in hints if key not in content]
    if missing:
        raise ValueError(
            f"missing key {', '.join(missing)}: put `base:` at the top or set it"
        )
    return cls(**{key: _typed(content[key], hint, where + key) for key, hint in hints.items()})


def _nearest(key: str, valid: typing.Iterable[str], where: str) -> str:
    close = difflib.get_close_matches(str(key), list(valid), n=1, cutoff=0.5)
    return f"; did you mean {where}{close[0]}?" if close else f"; valid: {', '.join(valid)}"


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` checked against the annotation; an int is good for a float, nothing else bends."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where + ".")
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _typed(value, inner, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_typed(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a mapping, got {value!r}")
        return {str(key): _typed(item, arguments[1], f"{where}.{key}") for key, item in
                value.items()}  # fmt: skip
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def _check(config: Config) -> None:
    """Values that no run could work with; raises ValueError naming the key."""

    def require(holds: bool, message: str) -> None:
        if not holds:
            raise ValueError(message)

    model, train, optim = config.model, config.train, config.optim
    depth = model.fusion.depth
    for name in ("mlm", "mim"):
        section = getattr(model, name)
        require(0 < section.ratio < 1, f"model.{name}.ratio: {section.ratio} is not in (0, 1)")
        require(
            -1 <= section.layer <= depth,
            f"model.{name}.layer: {section.layer} is neither -1 nor in 0..fusion.depth ({depth})",
        )
    for name in ("mlm", "mim", "itm"):
        weight = getattr(model, name).weight
        require(weight >= 0, f"model.{name}.weight: {weight} is negative")
    weights = (model.mlm.weight, model.mim.weight, model.itm.weight)
    require(any(weights), "model: mlm.weight, mim.weight and itm.weight are all 0")
    require(model.itm.group >= 2, f"model.itm.group: {model.itm.group} is below 2")
    for key in ("steps", "batch_global", "batch_per_process", "log_every", "checkpoint_every"):
        require(getattr(train, key) >= 1, f"train.{key}: {getattr(train, key)} is below 1")
    require(
        train.batch_global % train.batch_per_process == 0,
        f"train.batch_global: {train.batch_global} is no multiple of train.batch_per_process "
        f"({train.batch_per_process})",
    )
    if model.itm.weight:
        require(
            train.batch_per_process % model.itm.group == 0,
            f"model.itm.group: {model.itm.group} does not divide train.batch_per_process "
            f"({train.batch_per_process})",
        )
        require(
            config.eval.batch % model.itm.group == 0,
            f"model.itm.group: {model.itm.group} does not divide eval.batch ({config.eval.batch})",
        )
    require(len(optim.betas) == 2, f"optim.betas: expected two numbers, got {optim.betas}")
    require(0 <= optim.warmup_frac <= 1, f"optim.warmup_frac: {optim.warmup_frac} not in [0, 1]")
    require(config.data.text_length >= 3, "data.text_length: below 3, no room for a word")
    require(bool(config.data.train), "data.train: no folder given")
    if config.data.train_weights is not None:
        require(
            len(config.data.train_weights) == len(config.data.train),
            f"data.train_weights: {len(config.data.train_weights)} numbers for "
            f"{len(config.data.train)} folders of data.train",
        )
