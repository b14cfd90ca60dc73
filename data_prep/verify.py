"""Check prepared splits: every checksum, offset, key, text, token id and image.

With --repair, a damaged split becomes an unfinished preparation (SPLIT.partial) that lacks nothing
but its damaged parts (chunks of at most 768 images). The command that prepared it, which is
printed, then makes these again from the raw corpus and nothing else; the result has the same bytes
as before the damage. A lost manifest.json is made again too, as long as chunks.json is sound.

example: python data_prep/verify.py data/roco
         python data_prep/verify.py data/roco/train --repair
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from m3ae.command import exit_status
from m3ae.corpora.prepare import command, partial_folder, reopen
from m3ae.corpora.verification import find_problems, read_chunks
from m3ae.files import file_sha256, need


def split_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a split, else the splits in it, finished ones."""
    marks = ("manifest.json", "chunks*.json")  # one of them may be lost
    need(folder, "a prepared corpus or split")
    if any(path for mark in marks for path in folder.glob(mark)):
        return [folder]
    found = {path.parent for mark in marks for path in folder.glob(f"*/{mark}")}
    found = {split for split in found if split.suffix != ".partial"}
    if not found:
        raise FileNotFoundError(f"{folder}: no split in it (no */manifest.json)")
    return sorted(found)


def damaged_files(split: Path, problems: list[tuple[str, str]]) -> set[str]:
    """Names of the shards that are not what chunks.json says; the manifest may be lost.

    Raises ValueError or FileNotFoundError where making shards again would not help.
    """
    files = [file for chunk in read_chunks(split)["chunks"] for file in chunk["files"]]
    beyond = [message for name, message in problems if not name]
    if beyond:
        raise ValueError(f"{beyond[0]}; no damage that a repair could undo")
    names = {name for name, _ in problems}
    if not names & {"manifest.json", "chunks.json"}:
        return names
    return {
        file["name"]
        for file in files
        if not (split / file["name"]).is_file()
        or file_sha256(split / file["name"]) != file["sha256"]
    }


def repair(split: Path, problems: list[tuple[str, str]]) -> None:
    """Make a damaged split unfinished, and say how to finish it."""
    split = split.absolute()
    broken = damaged_files(split, problems)
    record = read_chunks(split)
    lost, chunks = reopen(split, record, broken)
    facts = record["facts"]
    print(
        f"    now {partial_folder(split)}: {lost} of {chunks} chunks to make again, by the\n"
        f"    command that prepared it (SCRIPT: the one for {facts['source']}):\n"
        f"    {command(facts, split.parent)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 sound (or ready to be made again), 1 problems."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="DIR", help="prepared corpora or splits"
    )
    parser.add_argument(
        "--repair", action="store_true", help="turn damaged splits into unfinished ones"
    )
    args = parser.parse_args(argv)

    def body() -> None:
        left = []
        for split in [split for given in args.folders for split in split_folders(given)]:
            problems = find_problems(split)
            print(f"{split}: {f'{len(problems)} problems' if problems else 'sound'}")
            for _, message in problems:
                print(f"    {message}")
            if problems and args.repair:
                try:
                    repair(split, problems)
                except (ValueError, OSError) as error:
                    print(f"    not repaired: {error}")
                    left += [str(error)]
            else:
                left += [message for _, message in problems]
        if left:
            hint = "" if args.repair else "; --repair makes damaged parts again"
            raise ValueError(f"{len(left)} problems, first: {left[0]}{hint}")

    return exit_status(body)


if __name__ == "__main__":
    sys.exit(main())
