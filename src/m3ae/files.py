"""Files: written whole or not at all, read with a word on what is wrong."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def need(path: Path, what: str) -> Path:
    """The path itself; raises FileNotFoundError saying what should be there."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: not there; it should be {what}")
    return path


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write a JSON file so that it is either the old one or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=indent, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, the mark of bytes that were not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
