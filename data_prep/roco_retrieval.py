r"""ROCO (radiology part, original layout) -> shards to fine-tune and evaluate retrieval on.

Captions alone, no inline references. Written are:

    train                   all pairs
    valid, test             the reference's pools: the first 2,000 usable lines of captions.txt
                            after the reference's shuffle
    valid_full, test_full   all pairs of the two splits
    papers.json             the paper (PMC id) of each pool's images, and which of these papers
                            ROCO's train split has figures of too (and, with --medicat, MedICaT)
    {train,medicat}_papers_in_{pools,full_pools}.txt
                            these figures, as --exclude lists for roco.py and medicat.py: a model
                            pre-trained without them has seen no paper of a pool

ROCO is split by figure, so most papers with several figures are in several splits. MedICaT names
papers by DOI; NCBI's table of PMC ids (PMC-ids.csv.gz) joins them.

example: python data_prep/roco_retrieval.py --raw roco-dataset/data --out data/roco_retrieval \
             --tokenizer roberta-base --medicat medicat/release/FIGURES.jsonl \
             --pmc-ids PMC-ids.csv.gz
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m3ae.command import run
from m3ae.corpora.items import Drops, Item, is_inside
from m3ae.corpora.papers import medicat_papers, roco_papers
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.roco_files import image_files, image_id
from m3ae.corpora.stored import SPLIT_NAMES
from m3ae.files import is_unicode, need, write_json, write_text

POOLS = ("valid", "test")
FULL = ("valid_full", "test_full")
SEED = 42  # the reference's
MIN_WORDS = 3


class Pair(NamedTuple):
    """An image's id, e.g. ROCO_00001, and its caption."""

    key: str
    caption: str


Pairs = dict[str, list[Pair]]  # of train, the pools and the full pools


def caption_lines(path: Path) -> list[str]:
    """The file's lines as the reference takes them, blank ones inside too."""
    need(path, "ROCO's captions")
    return path.read_text("utf-8-sig", "surrogateescape").strip().split("\n")


def shuffle_lines(lines: dict[str, list[str]]) -> dict[str, list[str]]:
    """Lines of train, valid and test: one generator shuffles all, so the lengths decide too."""
    generator = random.Random(SEED)
    shuffled = {split: lines[split].copy() for split in SPLIT_NAMES}
    for part in shuffled.values():
        generator.shuffle(part)
    return shuffled


def read_pairs(lines: Iterable[str], drops: Drops, limit: int | None = None) -> list[Pair]:
    """The usable lines, at most `limit`, towards which the reference's conditions alone count.

    An id that cannot be a file below images/ is left out afterwards, as a missing image is.
    """
    found: list[Pair] = []
    for line in lines:
        if limit is not None and len(found) >= limit:
            break
        columns = line.strip().split("\t")
        if len(columns) != 2:
            drops.add("line: not two columns", line[:60])
        elif len(columns[1].split()) < MIN_WORDS:
            drops.add(f"line: fewer than {MIN_WORDS} words", line[:60])
        else:
            found.append(Pair(*columns))
    pairs = []
    for pair in found:
        if is_inside(pair.key) and is_unicode(pair.key):
            pairs.append(pair)
        else:
            drops.add("line: id leads elsewhere or is not UTF-8", pair.key[:60])
    return pairs


def pool_facts(
    pairs: list[Pair], papers: dict[str, str], train: set[str], medicat: set[str] | None
) -> dict[str, Any]:
    """Papers of a pool's images, and the ids of those whose paper another corpus has too."""
    known = {pair.key: papers[pair.key] for pair in pairs if pair.key in papers}
    unknown = [pair.key for pair in pairs if pair.key not in papers]
    facts: dict[str, Any] = {"pairs": len(pairs), "papers": known, "unknown": unknown}
    facts["in_roco_train"] = [key for key in known if known[key] in train]
    found = None if medicat is None else [key for key in known if known[key] in medicat]
    return facts | {"in_medicat": found}


def pool_counts(pool: dict[str, Any]) -> dict[str, Any]:
    """The lengths of `pool_facts`."""
    lengths = {what: ids if isinstance(ids, int | None) else len(ids) for what, ids in pool.items()}
    return {**lengths, "papers": len(set(pool["papers"].values()))}


def exclusions(figures: dict[str, str], pools: dict[str, dict[str, Any]]) -> list[str]:
    """Lines FIGURE<TAB>WHY for --exclude: figures (PMC id by name) whose paper is in a pool."""
    papers = {name: set(pool["papers"].values()) for name, pool in pools.items()}
    lines = []
    for figure, paper in figures.items():
        if places := [name for name in papers if paper in papers[name]]:
            lines.append(f"{figure}\tpaper {paper} is in {', '.join(places)}")
    return lines


def find_folders(raw: Path) -> dict[str, Path]:
    """The radiology folder of each split; all are needed, for the shuffle runs through them."""
    why = "the pools depend on the lines of all three captions.txt, which the hub's copies lack"
    folders = {}
    for split, names in SPLIT_NAMES.items():
        first, *others = (raw / name / "radiology" for name in names)
        what = f"ROCO's {split} split in the original layout: {why}"
        folders[split] = need(first, what, *others)
    return folders


def read_splits(folders: dict[str, Path], pool: int, dropped: dict[str, Drops]) -> Pairs:
    """The pairs of each, by the usable lines."""
    lines = {split: caption_lines(path / "captions.txt") for split, path in folders.items()}
    shuffled = shuffle_lines(lines)
    pairs = {"train": read_pairs(lines["train"], dropped["train"])}
    for name, full in zip(POOLS, FULL, strict=True):
        pairs[name] = read_pairs(shuffled[name], dropped[name], pool)
        pairs[full] = read_pairs(lines[name], dropped[full])
    return pairs


def find_shared(
    folders: dict[str, Path], pairs: Pairs, args: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str] | None], dict[str, Any]]:
    """What the pools share with ROCO's train split and with MedICaT.

    Returns `pool_facts` by pool, the exclusion lists by file name (None without MedICaT), and
    counts for the report.
    """
    drops, joined, figures = Drops(), Counter(), None
    papers = {split: roco_papers(path, drops) for split, path in folders.items()}
    train = {p.key: papers["train"][p.key] for p in pairs["train"] if p.key in papers["train"]}
    if args.medicat:
        wanted = {paper for name in POOLS for paper in papers[name].values()}
        figures = medicat_papers(args.medicat, args.pmc_ids, joined, wanted)
    ours, theirs = set(train.values()), None if figures is None else set(figures.values())
    pools = {}
    for name in (*POOLS, *FULL):
        of_split = papers[name.removesuffix("_full")]
        pools[name] = pool_facts(pairs[name], of_split, ours, theirs)
    lists: dict[str, list[str] | None] = {}
    for suffix, names in (("pools", POOLS), ("full_pools", FULL)):
        listed_pools = {name: pools[name] for name in names}
        lists[f"train_papers_in_{suffix}.txt"] = exclusions(train, listed_pools)
        listed = None if figures is None else exclusions(figures, listed_pools)
        lists[f"medicat_papers_in_{suffix}.txt"] = listed
    count, known = len(pairs["train"]), len(train)
    facts: dict[str, Any] = {"pools": {name: pool_counts(pool) for name, pool in pools.items()}}
    facts["train"] = {"pairs": count, "papers": len(ours), "unknown": count - known}
    facts["exclude"] = {name: len(lines) for name, lines in lists.items() if lines is not None}
    facts |= {"medicat": dict(joined), "papers_dropped": drops.as_dict()}
    return pools, lists, {"corpus": facts}


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    need(args.raw, "the ROCO corpus")
    if args.pool < 1:
        raise ValueError(f"--pool {args.pool}: it should have at least one pair")
    if (args.medicat is None) != (args.pmc_ids is None):
        why = "MedICaT names papers by DOI, ROCO by PMC id; NCBI's PMC-ids.csv.gz joins them"
        raise ValueError(f"--medicat and --pmc-ids go together: {why}")
    folders = find_folders(args.raw)
    dropped = {name: Drops() for name in ("train", *POOLS, *FULL)}
    pairs = read_splits(folders, args.pool, dropped)
    items = {}
    for name, found in pairs.items():
        images = folders[name.removesuffix("_full")] / "images"
        if name in (args.split or pairs):
            need(images, "the folder of ROCO's images (see its fetch script)")
            files = image_files(images.parent, [pair.key for pair in found])
        else:
            files = {pair.key: f"{pair.key}.jpg" for pair in found}  # not read
        items[name] = [
            Item(key, images / files[key], (text,), image_id(images.parent, key, files[key]))
            for key, text in found
        ]
    pools, lists, facts = find_shared(folders, pairs, args)
    del args.medicat, args.pmc_ids  # nothing in the shards depends on them
    # It refuses an OUT of other options; only then may the other files be written.
    prepare(items, dropped, args, source="ROCO retrieval", facts=facts)
    write_json(args.out / "papers.json", {"pools": pools, **facts})
    for name, lines in lists.items():
        if lines is not None:
            write_text(args.out / name, "".join(f"{line}\n" for line in lines))
        elif (args.out / name).exists():
            print(f"{args.out / name}: removed, as there is no --medicat")
            (args.out / name).unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    size = "pairs in valid, and in test (default: %(default)s, the reference's)"
    add("--pool", type=int, default=2000, metavar="N", help=size)
    add("--medicat", type=Path, metavar="FILE", help="MedICaT's jsonl, to list shared papers")
    add("--pmc-ids", type=Path, metavar="FILE", help="NCBI's PMC-ids.csv or .csv.gz")
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
