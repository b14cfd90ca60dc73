"""The model card of a finished pre-training: what it learned from, and its held-out measures."""

from pathlib import Path
from typing import Any

from m3ae.checkpoints import CARD
from m3ae.config import Config
from m3ae.data.shards import read_manifest
from m3ae.files import write_text
from m3ae.models.card import NOT_STATED, card_of
from m3ae.models.m3ae import M3AE

ARMS = {"own": "own", "none": "none", "other": "another's"}


def write_pretrained_card(
    folder: Path, model: M3AE, config: Config, result: dict[str, Any]
) -> None:
    """README.md of the last checkpoint `folder`; result: what goes to evaluation.json."""
    sources = ", ".join(read_manifest(Path(place))["source"] for place in config.data.train)
    places = ", ".join(f"`{place}`" for place in config.data.train)
    data = f"Pre-trained on {sources} ({places}) for {result['step']} steps of "
    data += f"{config.train.batch_global} pairs, seed {config.seed}."
    if "protocol" in result:
        data += f" Held out: {', '.join(f'`{place}`' for place in config.data.valid)}."
    text = card_of(model, True, data=data, numbers=_numbers(result))
    write_text(folder / CARD, text)


def _numbers(result: dict[str, Any]) -> str:
    """A table of measures by arm, with intervals."""
    if "measures" not in result:
        return NOT_STATED
    lines = ["| measure | " + " | ".join(f"{arm} image or text" for arm in ARMS.values()) + " |"]
    lines.append("|---" * (1 + len(ARMS)) + "|")
    for name, measure in result["measures"].items():
        cells = [_value(measure.get(arm)) for arm in ARMS]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    for name, entry in (result.get("itm") or {}).items():
        if isinstance(entry, dict):
            lines.append(f"| itm accuracy, {name} false images | {_value(entry)} | | |")
    return "\n".join([*lines, "", result["protocol"]])


def _value(entry: dict[str, float] | None) -> str:
    if entry is None:
        return ""
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
