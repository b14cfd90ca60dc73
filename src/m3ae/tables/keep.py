"""A copy of a report that can be published: with its predictions, without texts of a corpus."""

import copy
from pathlib import Path
from typing import Any

from m3ae.scoring.predictions import (
    Row,
    complete,
    is_right,
    read_predictions,
    reference,
    write_predictions,
)

RANKS = ("id", "image", "way", "rank", "pool")


def keep(results: dict[str, dict[str, Any]], out: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Copy the predictions of OUT that results rest on to `folder`; returns results that say so.

    A row keeps what identifies it, what was predicted and whether that is right; of classes also
    the right one, which macro-F1 needs. Run folders are not linked; there are no picture sheets.
    """
    kept = copy.deepcopy(results)
    for result in kept.values():
        result["differences"] = None
        for entry in result["cells"]:
            task = result["columns"][entry["column"]]["task"]
            for source in entry["sources"]:
                source |= {"run": None, "pretraining": None}
                own = {"predictions": source["predictions"], **source["arms"]}
                new = {arm: f"predictions/{_name(source, path)}" for arm, path in own.items()}
                for arm, path in own.items():
                    _copy(out / path, folder / new[arm], task, entry["protocol"])
                source["predictions"] = new.pop("predictions")
                source["arms"] = new
    return kept


def _name(source: dict[str, Any], path: str) -> str:
    return f"{source['cell']}-{Path(path).stem.partition('-')[2]}.jsonl.gz"


def _copy(path: Path, to: Path, task: str, protocol: str) -> None:
    if to.is_file():  # of another table; a cell's name says all that its predictions follow from
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    rows = complete(read_predictions(path), str(path))
    write_predictions(to, [_slim(row, task, protocol) for row in rows])


def _slim(row: Row, task: str, protocol: str) -> Row:
    if task == "retrieval":
        return {key: row[key] for key in RANKS}
    names = (
        ("id", "image", "type", "prediction") if task == "vqa" else ("id", "image", "prediction")
    )
    slim = {key: row[key] for key in names if key in row}
    return slim | (
        {"right": is_right(row, protocol)} if task == "vqa" else {"label": reference(row)}
    )
