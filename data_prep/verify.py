"""Check prepared splits: every checksum, offset, key, text, token id and image.

example: python data_prep/verify.py data/roco
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from m3ae.data.prepare import need, run
from m3ae.data.shards import verify


def split_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a split, else the splits in it."""
    if (need(folder, "a prepared corpus or split") / "manifest.json").exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/manifest.json"))
    if not found:
        raise FileNotFoundError(f"{folder}: no split in it (no */manifest.json)")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 sound, 1 problems."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR",
                        help="prepared corpora or splits")  # fmt: skip
    args = parser.parse_args(argv)

    def body() -> None:
        problems = []
        for folder in [split for given in args.folders for split in split_folders(given)]:
            found = verify(folder)
            print(f"{folder}: {'sound' if not found else f'{len(found)} problems'}")
            print(*(f"    {problem}" for problem in found), sep="\n", end="\n" if found else "")
            problems += found
        if problems:
            raise ValueError(f"{len(problems)} problems, first: {problems[0]}")

    return run(body)


if __name__ == "__main__":
    sys.exit(main())
