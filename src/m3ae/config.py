"""Configuration: YAML -> frozen dataclasses, strict.

`configs/pretrain/m3ae.yaml` holds every key with its meaning, unit and source; every other file
is `base:` plus what differs. No key has a default in code, so the file says it all. Nothing on
disk but YAML is read here: no data folder, no weights, no process count.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from m3ae.strict_yaml import build, dump, merge, parse, read

TEXT_TOKENS = 64  # the paper's text length, special tokens included
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
class Architecture:
    """What a model is: its weights' shapes and its losses; the `config.json` of a saved one."""

    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig
    fusion: FusionConfig
    mlm: MLMConfig
    mim: MIMConfig
    itm: ITMConfig


@dataclass(frozen=True)
class Switches:
    """How any model's blocks are computed; the results are the same but for rounding."""

    compile: bool
    activation_checkpointing: bool


@dataclass(frozen=True)
class ModelConfig(Architecture, Switches):
    """Section `model` of a pre-training: what the model is, and how it is computed."""

    share: bool


def architecture_of(model: Architecture) -> Architecture:
    """What a model is, less how it is computed where that was given too."""
    names = [field.name for field in dataclasses.fields(Architecture)]
    return Architecture(**{name: getattr(model, name) for name in names})


@dataclass(frozen=True)
class DataConfig:
    """Section `data`."""

    train: tuple[str, ...]
    train_weights: tuple[float, ...] | None
    exclude: tuple[str, ...] | None
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
    text_only: tuple[str, ...]
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


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, its `base:` files and `key=value` overrides into a `Config`.

    Raises FileNotFoundError for a missing file, ValueError for an unknown, missing, duplicate or
    mistyped key (naming it and the nearest valid one) and for values that cannot work.
    """
    config = build(Config, read_with_overrides(path, overrides), "")
    _check(config)
    return config


def read_with_overrides(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The merged content of a config file; a null `output` becomes the file's default one."""
    path = Path(path)
    content = read(path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r} is not of the form key=value")
        parsed: Any = parse(value, f"override {key}")
        for part in reversed(key.strip().split(".")):
            parsed = {part: parsed}
        content = merge(content, parsed)
    if content.get("output", ...) is None:
        content["output"] = default_output(path)
    return content


def default_output(path: Path) -> str:
    """Run folder of a config file: runs/<its path below configs/, without .yaml>."""
    parts = path.with_suffix("").parts
    below = parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:]
    return str(Path("runs", *below))


def to_yaml(config: Any) -> str:
    """The resolved config as YAML that `load_config` reads back."""
    return dump(_plain(dataclasses.asdict(config)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


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
    for key in ("fine", "text_only", "hard_negative_same"):
        for name in getattr(config.eval, key):
            require(
                name in config.eval.attributes,
                f"eval.{key}: {name!r} is not among eval.attributes",
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
