"""Splits that are begun, not finished: where they lie, and how a finished one becomes one again."""

import os
import re
import shlex
from collections.abc import Container
from pathlib import Path
from typing import Any

from m3ae.corpora.chunks import chunk_path
from m3ae.files import write_json

CHUNK_IMAGES = "chunk_images"  # how many, in options.json and chunks.json


def decisive(facts: dict[str, Any]) -> dict[str, Any]:
    """What of a manifest must be the same for a split to be continued or left as it is."""
    more = {"source": facts["source"], "kind": facts["kind"]}
    more["tokenizer"] = facts["tokenizer"] and facts["tokenizer"]["fingerprint"]
    return facts["options"] | more


def partial_folder(final: Path) -> Path:
    """Where a split is until it is finished."""
    return final.with_name(final.name + ".partial")


def chunk_images(record: dict[str, Any]) -> int | None:
    """Images a chunk of a finished split; None where it is of an earlier version and one chunk."""
    chunks = record["chunks"]
    return record.get(CHUNK_IMAGES) or (chunks[0]["images"] if len(chunks) > 1 else None)


def reopen(
    final: Path, record: dict[str, Any], broken: Container[str], numbers: Container[int] = ()
) -> tuple[int, int]:
    """Turn a finished split into a begun one without some chunks.

    Those that have a file in `broken`, or whose number is in `numbers`. `record`: of
    `verification.read_chunks`. Returns the numbers of these chunks and of all. The preparation
    command then makes them again; where this is interrupted, it can be repeated.
    """
    partial = partial_folder(final)
    if partial.exists():
        message = f"{partial}: an unfinished preparation of {final.name} is in the way"
        raise ValueError(f"{message}; finish it elsewhere or delete it")
    lost, size = 0, chunk_images(record)
    options = decisive(record["facts"]) | ({CHUNK_IMAGES: size} if size else {})
    write_json(final / "options.json", options)
    for index, chunk in enumerate(record["chunks"]):
        path = chunk_path(final, index)
        if index in numbers or any(file["name"] in broken for file in chunk["files"]):
            path.unlink(missing_ok=True)
            lost += 1
        else:
            write_json(path, chunk)
    (final / "manifest.json").unlink(missing_ok=True)  # no split any more, whatever happens next
    os.replace(final, partial)
    return lost, len(record["chunks"])


def command(facts: dict[str, Any], out: Path) -> str:
    """The preparation command of a split as far as its manifest, which keeps no paths, tells."""
    words = ["python data_prep/SCRIPT.py --raw RAW --out", shlex.quote(str(out))]
    options = facts["options"] | {"tokenizer": facts["tokenizer"] and facts["tokenizer"]["name"]}
    for name, value in sorted(options.items()):
        if value is None or value is False:
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        plain = [re.sub(r" [0-9a-f]{16}$", "", str(part)) for part in values]  # a file's digest
        words += [f"--{name.replace('_', '-')}", *map(shlex.quote, plain)]
    return " ".join(words)
