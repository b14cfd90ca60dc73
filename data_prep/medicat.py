r"""MedICaT -> shards of figures with their captions and inline references.

The corpus: the release's jsonl (s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl) with
`figures/` beside it. Kept are figures marked radiology; texts are the caption and the sentences
that refer to the figure. The split is the reference's: a seeded shuffle of the kept figures in
file order, before texts are looked at; the last N are test, the N before valid (N = 1,000).

example: python data_prep/medicat.py --raw medicat/release --out data/medicat \
             --tokenizer roberta-base
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3ae.data.prepare import Drops, Item, add_arguments, need, prepare, run

SEED = 42  # reference, data fact 21


def parse_line(line: bytes) -> dict[str, Any]:
    """One figure; raises ValueError where the line is no figure object."""
    # Bytes that are not UTF-8 become lone surrogates, which `prepare` drops text by text.
    row = json.loads(line.decode("utf-8", "surrogateescape"))
    if not isinstance(row, dict):
        raise ValueError("not an object")
    for name in ("pdf_hash", "fig_uri"):
        if not isinstance(row.get(name), str) or not row[name] or "/" in row[name]:
            raise ValueError(f"{name} is {row.get(name)!r}")
    return row


def figure_texts(row: dict[str, Any]) -> tuple[str, ...]:
    """Caption (of S2, else S2ORC) and inline references."""
    caption = row.get("s2_caption") or row.get("s2orc_caption")
    references = row.get("s2orc_references") or []
    return tuple(text for text in (caption, *references) if isinstance(text, str) and text)


@dataclass(frozen=True)
class Figures:
    """Items at some offsets of the jsonl, read one by one whenever they are run through."""

    metadata: Path
    offsets: tuple[int, ...]

    def __iter__(self) -> Iterator[Item]:
        with open(self.metadata, "rb") as file:
            for offset in self.offsets:
                file.seek(offset)
                row = parse_line(file.readline())
                name = f"{row['pdf_hash']}_{row['fig_uri']}"
                path = self.metadata.parent / "figures" / name
                yield Item(name, path, figure_texts(row), image_id=path.stem)


def kept_offsets(metadata: Path, everything: bool, drops: Drops) -> list[int]:
    """Where the lines of the figures to keep begin, in file order."""
    offsets, offset = [], 0
    with open(metadata, "rb") as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if not line.strip():
                continue
            try:
                row = parse_line(line)
            except (ValueError, RecursionError) as error:
                drops.add("line: not a figure (any split)", f"{metadata.name}:{number}: {error}")
                continue
            if everything or row.get("radiology") is True:
                offsets.append(start)
            else:
                name = f"{row['pdf_hash']}_{row['fig_uri']}"
                drops.add("figure: not radiology (any split)", name)
    return offsets


def split_offsets(offsets: list[int], held_out: int) -> dict[str, tuple[int, ...]]:
    """The reference's split; each part in file order. Raises ValueError where nothing is left."""
    if held_out < 0 or len(offsets) <= 2 * held_out:
        raise ValueError(f"--held-out {held_out} for valid and for test leaves none of "
                         f"{len(offsets)} figures to train on; give a smaller number")
    shuffled = offsets.copy()
    random.Random(SEED).shuffle(shuffled)
    train, valid = len(offsets) - 2 * held_out, len(offsets) - held_out
    parts = {"train": shuffled[:train], "valid": shuffled[train:valid], "test": shuffled[valid:]}
    return {name: tuple(sorted(part)) for name, part in parts.items() if part}


def find_metadata(raw: Path) -> Path:
    """The only .jsonl file in the folder or in its `release`."""
    need(raw, "the MedICaT release")
    found = sorted(raw.glob("*.jsonl")) or sorted(raw.glob("release/*.jsonl"))
    if len(found) != 1:
        raise ValueError(f"{raw}: {len(found)} .jsonl files in it; name one with --metadata")
    return found[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    add = parser.add_argument
    add("--metadata", type=Path, metavar="FILE", help="the jsonl, with figures/ beside it")
    add("--held-out", type=int, default=1000, metavar="N",
        help="figures in valid, and in test (default: %(default)s, the paper's)")  # fmt: skip
    add("--all-figures", action="store_true", help="keep figures that are not radiology too")
    args = parser.parse_args(argv)

    def body() -> None:
        metadata = args.metadata or find_metadata(args.raw)
        need(metadata, "MedICaT's jsonl")
        need(metadata.parent / "figures", "the folder of MedICaT's figures")
        drops = Drops()
        offsets = kept_offsets(metadata, args.all_figures, drops)
        parts = split_offsets(offsets, args.held_out)
        args.metadata = None  # found or named, it is the same corpus
        splits = {name: Figures(metadata, part) for name, part in parts.items()}
        prepare(splits, {"train": drops}, args, source="MedICaT")

    return run(body)


if __name__ == "__main__":
    sys.exit(main())
