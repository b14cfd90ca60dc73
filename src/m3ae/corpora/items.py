"""What a corpus is parsed into: images with their texts, and a count of what was left out."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

_EXAMPLES = 20


class Stored(Protocol):
    """An image inside another file; cheap to pickle."""

    name: str

    def read_bytes(self) -> bytes:
        """The encoded image."""


@dataclass(frozen=True, slots=True)
class Item:
    """An image with its texts. `image_id`: its file below --raw, by which lists may name it too.

    `fields`: nothing, or for each text (a question) its task fields, JSON-able; among them
    `question_id`, by which the text's key ends.
    """

    key: str
    image: Path | Stored
    texts: tuple[str, ...]
    image_id: str = ""
    fields: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.fields and len(self.fields) != len(self.texts):
            raise ValueError(f"{self.key}: {len(self.texts)} texts, {len(self.fields)} fields")

    @property
    def names(self) -> tuple[str, ...]:
        """What exclusion lists may name it by: its key and, if that is another name, its file."""
        return (self.key,) if self.image_id in ("", self.key) else (self.key, self.image_id)


@dataclass
class Drops:
    """What was left out or remarkable: a count and the first examples for each reason."""

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count one more; the first 20 examples of a reason are kept."""
        self.counts[reason] += count
        known = self.examples.setdefault(reason, [])
        if len(known) < _EXAMPLES:
            # Undecodable bytes of a file come as lone surrogates, which no file can be given.
            known.append(example.encode("utf-8", "backslashreplace").decode())

    def merge(self, other: dict[str, Any], remark: str = "") -> None:
        """Add what another one's `as_dict` holds, with `remark` after each reason."""
        for reason, entry in other.items():
            reason += remark
            self.counts[reason] += entry["count"]
            known = self.examples.setdefault(reason, [])
            known += entry["examples"][: _EXAMPLES - len(known)]

    def as_dict(self) -> dict[str, Any]:
        """Reason -> count and examples, sorted by reason."""
        counted = sorted(self.counts.items())
        return {why: {"count": count, "examples": self.examples[why]} for why, count in counted}


def is_inside(name: str) -> bool:
    """Whether a file name from a corpus stays below the folder that it is joined to."""
    parts = PurePosixPath(name).parts
    outside = name.startswith("/") or ".." in parts or "\\" in name or ":" in name
    return bool(parts) and not outside and "\0" not in name
