r"""WebDataset tars of images with texts -> shards.

--raw is a folder, or a pattern in quotes ("tars/train-*.tar"). Tars in it become split `train` (or
--as-split NAME); those of its folders train, valid (or val, validation), test and so on a split
each. A sample is KEY.jpg (or .png, .webp, ...) and KEY.txt; with --field NAME the text is NAME of
KEY.json: a text, a list of texts, or NAME of each object in a list. Members that are links, lead
elsewhere or occur twice, and samples without image or text, are left out and counted; nothing is
unpacked.

example: python data_prep/from_webdataset.py --raw tars --out data/mine --tokenizer roberta-base
         python data_prep/from_webdataset.py --raw "tars/0*.tar" --field caption --out data/mine
"""

import argparse
import glob
import re
from collections.abc import Sequence
from pathlib import Path

from m3ae.command import run
from m3ae.corpora.items import Drops
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.stored import SPLIT_OF
from m3ae.corpora.tar_files import to_items


def find_tars(raw: Path, name: str) -> dict[str, dict[str, Path]]:
    """The tars by split and, in it, by their path below --raw without the suffix.

    Raises ValueError or FileNotFoundError where there are none, or a split's are in two places.
    """
    if not raw.is_dir():
        paths = [raw] if raw.is_file() else [Path(path) for path in sorted(glob.glob(str(raw)))]
        if not paths:
            raise FileNotFoundError(f"{raw}: no folder, and no file has such a name")
        return {name: by_name(paths)}
    splits: dict[str, dict[str, Path]] = {}
    if found := sorted(raw.glob("*.tar")):
        splits[name] = by_name(found)
    for folder in sorted(path for path in raw.iterdir() if path.is_dir()):
        if found := sorted(folder.glob("*.tar")):
            split = SPLIT_OF.get(folder.name, folder.name)
            if split in splits or not re.fullmatch(r"\w[\w-]*", split) or split == "tokenizer":
                raise ValueError(f"{folder}: split {split} is there twice, or no name of a split")
            splits[split] = by_name(found)
    if not splits:
        hint = ".tar.gz: unpack them with gunzip" if list(raw.glob("**/*.tar.gz")) else "no *.tar"
        raise FileNotFoundError(f"{raw}: {hint}")
    return splits


def by_name(paths: Sequence[Path]) -> dict[str, Path]:
    """The tars by file name without .tar; with their folder where two have one name."""
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        stems = [f"{path.parent.name}-{path.stem}" for path in paths]
    return dict(zip(stems, paths, strict=True))


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    dropped, splits, unread = {}, {}, {}
    for split, tars in find_tars(args.raw, args.as_split).items():
        dropped[split] = Drops()
        splits[split], unread[split] = to_items(tars, dropped[split], args.field, args.lines)
        if not splits[split]:
            lost = {reason: entry["count"] for reason, entry in dropped[split].as_dict().items()}
            raise ValueError(f"{args.raw}: split {split} has no usable sample: {lost}")
    facts = {"members_not_read": unread} if any(unread.values()) else None
    prepare(splits, dropped, args, source="WebDataset tars", facts=facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    add("--field", metavar="NAME", help="of KEY.json, which is the text (default: KEY.txt)")
    lines = "each line of a .txt is a text of its own, as data_prep/to_webdataset.py writes several"
    add("--lines", action="store_true", help=lines)
    name = "split of the tars that are in no folder of --raw (default: %(default)s)"
    add("--as-split", default="train", metavar="NAME", help=name)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
