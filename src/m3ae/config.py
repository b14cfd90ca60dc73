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

from m3ae.strict_yaml import build, dump, flat, is_finite, merge, parse, read

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
    device: Literal["auto", "cpu", "cuda"]
    tf32: bool
    deterministic: bool
    timeout_minutes: float
    skip_non_finite: int
    shard: bool
    threads: int | None
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    keep_every: int
    keep_best: bool
    on_save_error: Literal["stop", "continue"]
    tracker: Literal["trackio", "wandb"] | None


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
    init: str | None
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
    config = build(Config, read_with_overrides(path, overrides))
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
    return dump(dataclasses.asdict(config))


def require(holds: bool, message: str) -> None:
    """Raise ValueError with a message, which names the key, unless its value holds."""
    if not holds:
        raise ValueError(message)


# What numbers may be, by the last word of their key; of a list each of its numbers.
_RULES = (
    (
        "is below 1",
        lambda x: x >= 1,
        """steps epochs batch_global batch_per_process log_every checkpoint_every keep_checkpoints
        threads batch mask_draws false_texts top text_block image_blocks width heads patch_px
        image_px vocab_size type_vocab_size mlp_width max_positions decoder_width decoder_heads""",
    ),
    (
        "is negative",
        lambda x: x >= 0,
        """seed workers skip_non_finite keep_every every samples final_samples pictures weight depth
        decoder_depth pad_id lr fusion_lr_scale head_lr_scale end_lr_scale power weight_decay""",
    ),
    (
        "is not above 0",
        lambda x: x > 0,
        "eps layer_norm_eps mlp_ratio clip_norm timeout_minutes train_weights",
    ),
    (
        "is not in [0, 1)",
        lambda x: 0 <= x < 1,
        "dropout attention_dropout text_dropout image_dropout betas",
    ),
    ("is not in (0, 1)", lambda x: 0 < x < 1, "ratio held_out"),
    ("is not in (0, 1]", lambda x: 0 < x <= 1, "fraction crop_scale"),
    ("is not in [0, 1]", lambda x: 0 <= x <= 1, "warmup_frac"),
    ("is below -1", lambda x: x >= -1, "layer"),
    ("is below 2", lambda x: x >= 2, "group"),
    ("is below 3, no room for a word", lambda x: x >= 3, "text_length"),
)
_RULE_OF = {name: (wrong, holds) for wrong, holds, names in _RULES for name in names.split()}


def check_ranges(config: Any) -> None:
    """Raise ValueError naming the key of a number that no run could work with."""
    for key, value in flat(dataclasses.asdict(config)).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                wrong, holds = _RULE_OF[key.rpartition(".")[2]]
                require(is_finite(number) and holds(number), f"{key}: {number} {wrong}")


def check_run(config: Any) -> None:
    """What pre-training and fine-tuning ask alike."""
    check_ranges(config)
    train, betas = config.train, config.optim.betas
    size = train.batch_per_process
    wrong = f"{train.batch_global} is no multiple of train.batch_per_process ({size})"
    require(train.batch_global % size == 0, f"train.batch_global: {wrong}")
    require(len(betas) == 2, f"optim.betas: expected two numbers, got {betas}")


def _check(config: Config) -> None:
    """Values that no run could work with; raises ValueError naming the key."""
    check_run(config)
    model, data, train, evaluation = config.model, config.data, config.train, config.eval
    depth, group = model.fusion.depth, model.itm.group
    for name in ("mlm", "mim"):
        layer = getattr(model, name).layer
        wrong = f"{layer} is neither -1 nor in 0..fusion.depth ({depth})"
        require(layer <= depth, f"model.{name}.layer: {wrong}")
    weights = [getattr(model, name).weight for name in ("mlm", "mim", "itm")]
    require(any(weights), "model: mlm.weight, mim.weight and itm.weight are all 0")
    if model.itm.weight:
        sizes = {"train.batch_per_process": train.batch_per_process, "eval.batch": evaluation.batch}
        for key, size in sizes.items():
            require(size % group == 0, f"model.itm.group: {group} does not divide {key} ({size})")
    for key in ("fine", "text_only", "hard_negative_same"):
        for name in getattr(evaluation, key):
            known = name in evaluation.attributes
            require(known, f"eval.{key}: {name!r} is not among eval.attributes")
    require(bool(data.train), "data.train: no folder given")
    if data.train_weights is not None:
        given, folders = len(data.train_weights), len(data.train)
        wrong = f"{given} numbers for {folders} folders of data.train"
        require(given == folders, f"data.train_weights: {wrong}")
