"""Check prepared splits: every checksum, offset, key, text, token id and image.

With --repair, a damaged split becomes an unfinished preparation (SPLIT.partial) that lacks nothing
but its damaged parts (chunks of at most 3,072 images). The command that prepared it, which is
printed, then makes these again, to the same bytes as before the damage. A lost manifest.json is
made again too, as long as chunks.json is sound.

example: python data_prep/verify.py data/roco
         python data_prep/verify.py data/roco/train --repair
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m3ae.command import parser_for, run
from m3ae.corpora.reopening import command, partial_folder, reopen
from m3ae.corpora.verification import find_problems, read_chunks, split_folders
from m3ae.files import file_sha256, one_line


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
    wanted = {split / file["name"]: file["sha256"] for file in files}
    return {p.name for p, sha in wanted.items() if not p.is_file() or file_sha256(p) != sha}


def repair(split: Path, problems: list[tuple[str, str]]) -> None:
    """Make a damaged split unfinished, and say how to finish it."""
    split = split.absolute()
    broken, record = damaged_files(split, problems), read_chunks(split)
    (lost, chunks), facts = reopen(split, record, broken), record["facts"]
    print(f"    now {partial_folder(split)}: {lost} of {chunks} chunks to make again, by the")
    print(f"    command that prepared it (SCRIPT: the one for {facts['source']}):")
    print(f"    {command(facts, split.parent)}")


def check(args: argparse.Namespace) -> None:
    """Print what is found; raises ValueError where problems are left."""
    left = []
    for split in [split for given in args.folders for split in split_folders(given)]:
        problems = find_problems(split)
        print(f"{split}: {f'{len(problems)} problems' if problems else 'sound'}")
        for _, message in problems:
            print(f"    {one_line(message)}")
        if problems and args.repair:
            try:
                repair(split, problems)
            except (ValueError, OSError) as error:
                print(f"    not repaired: {one_line(error)}")
                left += [str(error)]
        else:
            left += [message for _, message in problems]
    if left:
        hint = "" if args.repair else "; --repair makes damaged parts again"
        raise ValueError(f"{len(left)} problems, first: {left[0]}{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 sound (or ready to be made again), 1 problems."""
    parser = parser_for(__doc__)
    add, what = parser.add_argument, "prepared corpora or splits"
    add("folders", type=Path, nargs="+", metavar="DIR", help=what)
    add("--repair", action="store_true", help="turn damaged splits into unfinished ones")
    return run(check, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
