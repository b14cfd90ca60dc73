"""What shapes do not say of an encoder, heads and activation, against the config.json beside it."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m3ae.config import ImageEncoderConfig, TextEncoderConfig
from m3ae.files import read_json_object
from m3ae.models.weight_files import find_file

log = logging.getLogger(__name__)

# model_type of transformers -> kind of ours.
_KINDS = {
    **dict.fromkeys(("clip", "clip_vision_model"), "clip"),
    **dict.fromkeys(("vit", "deit", "dinov2", "vit_mae", "vit_msn"), "vit"),
    **dict.fromkeys(("roberta", "camembert", "xlm-roberta"), "roberta"),
    "bert": "bert",
}
_UNSEEN = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # by no shape
Ours = dict[str, tuple[str, Any]]  # their name -> our name and value


def check_settings(config: ImageEncoderConfig | TextEncoderConfig, source: str) -> None:
    """Raise ValueError naming each setting in which the config differs from the weights' own.

    Compared is the config.json (or open_clip_config.json) of a folder or hub id; a file has none.
    Depth and image size may differ (see `load_image_encoder`). What is not said is logged.
    """
    if Path(source).is_file():
        return
    image = isinstance(config, ImageEncoderConfig)
    path = find_file(source, "config.json", *(["open_clip_config.json"] if image else []))
    if path is None:
        log.info("%s: no config.json in it: heads and activation are the config's", source)
        return
    ours = _of_image(config) if image else _of_text(config)
    section = "image_encoder" if image else "text_encoder"
    content = read_json_object(path)
    try:
        open_clip = "model_cfg" in content
        theirs = _of_open_clip(content) if open_clip else _of_transformers(content, image)
        kind = _KINDS.get(theirs("model_type"), config.kind)
    except (AttributeError, TypeError, KeyError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: not a model's settings ({error!r})") from error
    wrong = [] if kind == config.kind else [f"kind is {kind!r} there, {config.kind!r} here"]
    for name, (own, value) in ours.items():
        if (there := theirs(name)) is not None and there != value:
            wrong.append(f"{name} is {there!r} there, {value!r} here ({own})")
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}; change the config's {section}")
    if unsaid := [name for name in _UNSEEN if theirs(name) is None]:
        log.info("%s does not say %s: taken from the config", path, ", ".join(unsaid))


def _of_image(config: ImageEncoderConfig) -> Ours:
    return {
        "hidden_size": ("width", config.width),
        "num_attention_heads": ("heads", config.heads),
        "intermediate_size": ("width * mlp_ratio", int(config.width * config.mlp_ratio)),
        "patch_size": ("patch_px", config.patch_px),
        "hidden_act": ("activation", config.activation),
        "layer_norm_eps": ("layer_norm_eps", config.layer_norm_eps),
    }


def _of_text(config: TextEncoderConfig) -> Ours:
    return {
        "vocab_size": ("vocab_size", config.vocab_size),
        "type_vocab_size": ("type_vocab_size", config.type_vocab_size),
        "hidden_size": ("width", config.width),
        "num_attention_heads": ("heads", config.heads),
        "intermediate_size": ("mlp_width", config.mlp_width),
        "max_position_embeddings": ("max_positions", config.max_positions),
        "layer_norm_eps": ("layer_norm_eps", config.layer_norm_eps),
        "pad_token_id": ("pad_id", config.pad_id),
        "hidden_act": ("of every text encoder", "gelu"),
        "position_embedding_type": ("of every text encoder", "absolute"),
        "is_decoder": ("of every text encoder", False),
    }


def _of_transformers(content: dict[str, Any], image: bool) -> Callable[[str], Any]:
    """A config.json's settings by name, what it leaves out as the class of its model has it."""
    section = content.get("vision_config" if image else "text_config") or content
    default = None
    if "model_type" in section:
        from transformers import CONFIG_MAPPING  # takes seconds

        if section["model_type"] in CONFIG_MAPPING:
            default = CONFIG_MAPPING[section["model_type"]]()
    return lambda name: section.get(name, getattr(default, name, None))


def _of_open_clip(content: dict[str, Any]) -> Callable[[str], Any]:
    """The same of open_clip's, whose towers of its own have heads of `head_width` channels."""
    model = content["model_cfg"]
    vision = {"width": 768, "patch_size": 16, "head_width": 64} | model.get("vision_cfg", {})
    if "timm_model_name" in vision:  # which stands for its settings
        return lambda name: None
    found = {"model_type": "clip", "hidden_size": vision["width"]}
    found["patch_size"] = vision["patch_size"]
    found["num_attention_heads"] = vision["width"] // vision["head_width"]
    found["hidden_act"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return found.get
