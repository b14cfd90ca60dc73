r"""ROCO (radiology part, original layout) -> shards to fine-tune and evaluate retrieval on.

Captions alone, no inline references. Written are:

    train                   all pairs
    valid, test             the reference's pools: the first 2,000 usable lines of captions.txt
                            after the reference's shuffle
    valid_full, test_full   all pairs of the two splits
    papers.json             the paper (PMC id) of each pool's images, and which of these papers
                            ROCO's train split has figures of too (and, with --medicat, MedICaT)
    train_papers_in_pools.txt, train_papers_in_full_pools.txt      and medicat_papers_...
                            the figures of such papers, as --exclude lists for roco.py and
                            medicat.py: a model pre-trained without them has seen no paper of a pool

ROCO is split by figure, so most papers with several figures are in several splits. MedICaT names
papers by DOI; NCBI's table of PMC ids (PMC-ids.csv.gz) joins them.

example: python data_prep/roco_retrieval.py --raw roco-dataset/data --out data/roco_retrieval \
             --tokenizer roberta-base --medicat medicat/release/FIGURES.jsonl \
             --pmc-ids PMC-ids.csv.gz
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m3ae.command import exit_status
from m3ae.corpora.items import Drops, Item, is_inside
from m3ae.corpora.papers import medicat_papers, roco_papers
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.stored import SPLIT_NAMES
from m3ae.files import is_unicode, need, write_json

POOLS = ("valid", "test")
FULL = ("valid_full", "test_full")
SEED = 42  # the reference's
MIN_WORDS = 3


class Pair(NamedTuple):
    """An image's id, e.g. ROCO_00001, and its caption."""

    key: str
    caption: str


def caption_lines(path: Path) -> list[str]:
    """The file's lines as the reference takes them, blank ones inside too."""
    need(path, "ROCO's captions")
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    return text.strip().split("\n")


def shuffle_lines(lines: dict[str, list[str]]) -> dict[str, list[str]]:
    """Lines of train, valid and test, shuffled one after the other by one generator.

    So what a split's order is depends on the lengths of those before it.
    """
    generator = random.Random(SEED)
    shuffled = {split: lines[split].copy() for split in SPLIT_NAMES}
    for some in shuffled.values():
        generator.shuffle(some)
    return shuffled


def read_pairs(lines: Iterable[str], drops: Drops, limit: int | None = None) -> list[Pair]:
    """The usable lines, at most `limit`.

    Only the reference's conditions decide which lines count towards the limit. An id that cannot
    be a file below images/ is left out afterwards, as a missing image is.
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
    return {
        "pairs": len(pairs),
        "papers": known,
        "unknown": [pair.key for pair in pairs if pair.key not in papers],
        "in_roco_train": [key for key in known if known[key] in train],
        "in_medicat": None if medicat is None else [k for k in known if known[k] in medicat],
    }


def pool_counts(pool: dict[str, Any]) -> dict[str, Any]:
    """The lengths of `pool_facts`."""
    lengths = {what: ids if isinstance(ids, int | None) else len(ids) for what, ids in pool.items()}
    return {**lengths, "papers": len(set(pool["papers"].values()))}


def exclusions(figures: dict[str, str], pools: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of an --exclude list: the figures (PMC id by name) whose paper is in one of the pools.

    figure<TAB>why.
    """
    papers = {name: set(pool["papers"].values()) for name, pool in pools.items()}
    lines = []
    for figure, paper in figures.items():
        places = [name for name in papers if paper in papers[name]]
        if places:
            lines.append(f"{figure}\tpaper {paper} is in {', '.join(places)}")
    return lines


def find_folders(raw: Path) -> dict[str, Path]:
    """The radiology folder of each split; all are needed, for the shuffle runs through them."""
    why = "the pools depend on the lines of all three captions.txt, which the hub's copies lack"
    folders = {}
    for split, names in SPLIT_NAMES.items():
        found = [raw / name / "radiology" for name in names]
        folders[split] = next((path for path in found if path.is_dir()), found[0])
        need(folders[split], f"ROCO's {split} split in the original layout: {why}")
    return folders


def read_splits(
    folders: dict[str, Path], pool: int, dropped: dict[str, Drops]
) -> dict[str, list[Pair]]:
    """Pairs of train, the pools and the full pools."""
    lines = {split: caption_lines(path / "captions.txt") for split, path in folders.items()}
    shuffled = shuffle_lines(lines)
    pairs = {"train": read_pairs(lines["train"], dropped["train"])}
    for name, full in zip(POOLS, FULL, strict=True):
        pairs[name] = read_pairs(shuffled[name], dropped[name], pool)
        pairs[full] = read_pairs(lines[name], dropped[full])
    return pairs


def find_shared(
    folders: dict[str, Path],
    pairs: dict[str, list[Pair]],
    medicat: Path | None,
    pmc_ids: Path | None,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str] | None], dict[str, Any]]:
    """What the pools share with ROCO's train split and with MedICaT.

    Returns `pool_facts` by pool, the exclusion lists by file name (None without MedICaT), and
    counts for the report.
    """
    drops, joined, figures = Drops(), Counter(), None
    papers = {split: roco_papers(path, drops) for split, path in folders.items()}
    train = {p.key: papers["train"][p.key] for p in pairs["train"] if p.key in papers["train"]}
    if medicat and pmc_ids:
        wanted = {paper for name in POOLS for paper in papers[name].values()}
        figures = medicat_papers(medicat, pmc_ids, joined, wanted)
    ours, theirs = set(train.values()), None if figures is None else set(figures.values())
    pools = {
        name: pool_facts(pairs[name], papers[name.removesuffix("_full")], ours, theirs)
        for name in (*POOLS, *FULL)
    }
    lists: dict[str, list[str] | None] = {}
    for suffix, names in (("pools", POOLS), ("full_pools", FULL)):
        some = {name: pools[name] for name in names}
        lists[f"train_papers_in_{suffix}.txt"] = exclusions(train, some)
        lists[f"medicat_papers_in_{suffix}.txt"] = (
            None if figures is None else exclusions(figures, some)
        )
    count, known = len(pairs["train"]), len(train)
    facts = {
        "pools": {name: pool_counts(pool) for name, pool in pools.items()},
        "train": {"pairs": count, "papers": len(ours), "unknown": count - known},
        "exclude": {name: len(lines) for name, lines in lists.items() if lines is not None},
        "medicat": dict(joined),
        "papers_dropped": drops.as_dict(),
    }
    return pools, lists, {"corpus": facts}


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    need(args.raw, "the ROCO corpus")
    if args.pool < 1:
        raise ValueError(f"--pool {args.pool}: it should have at least one pair")
    if (args.medicat is None) != (args.pmc_ids is None):
        raise ValueError(
            "--medicat and --pmc-ids go together: MedICaT names papers by DOI, ROCO by PMC id, and "
            "NCBI's PMC-ids.csv.gz joins them"
        )
    folders = find_folders(args.raw)
    dropped = {name: Drops() for name in ("train", *POOLS, *FULL)}
    pairs = read_splits(folders, args.pool, dropped)
    items = {}
    for name, found in pairs.items():
        images = folders[name.removesuffix("_full")] / "images"
        if name in (args.split or pairs):
            need(images, "the folder of ROCO's images (see its fetch script)")
        items[name] = [Item(key, images / f"{key}.jpg", (caption,)) for key, caption in found]
    pools, lists, facts = find_shared(folders, pairs, args.medicat, args.pmc_ids)
    del args.medicat, args.pmc_ids  # nothing in the shards depends on them
    # It refuses an OUT of other options; only then may the other files be written.
    prepare(items, dropped, args, source="ROCO retrieval", facts=facts)
    write_json(args.out / "papers.json", {"pools": pools, **facts})
    for name, lines in lists.items():
        if lines is not None:
            text = "".join(f"{line}\n" for line in lines)
            (args.out / name).write_text(text, encoding="utf-8")
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
    args = parser.parse_args(argv)
    return exit_status(lambda: make_shards(args))


if __name__ == "__main__":
    sys.exit(main())
