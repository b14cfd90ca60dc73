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
import csv
import gzip
import json
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from m3ae.command import exit_status
from m3ae.corpora.items import Drops, Item, is_inside
from m3ae.corpora.prepare import add_arguments, prepare
from m3ae.corpora.tables import read_lines
from m3ae.files import is_unicode, need, write_json

SPLITS = {"train": ("train",), "valid": ("validation", "val"), "test": ("test",)}
POOLS = ("valid", "test")
FULL = ("valid_full", "test_full")
SEED = 42  # the reference's
MIN_WORDS = 3

# ------------------------------------------------------------------ pools


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
    shuffled = {split: lines[split].copy() for split in SPLITS}
    for split in SPLITS:
        generator.shuffle(shuffled[split])
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


# ------------------------------------------------------------------ papers


def read_papers(folder: Path, drops: Drops) -> dict[str, str]:
    """PMC id by ROCO id, from licences.txt and, where that has none, dlinks.txt."""
    papers: dict[str, str] = {}
    for name, separator, pattern in (
        ("licences.txt", ",", r"(PMC[0-9]+)_"),
        ("dlinks.txt", "\t", r".*\b(PMC[0-9]+)\.tar\.gz\b"),
    ):
        if not (folder / name).exists():
            drops.add("papers: no file of them", f"{folder.parent.name}/{name}")
            continue
        for number, line in read_lines(folder / name):
            columns = line.split(separator)
            paper = re.match(pattern, columns[1].strip()) if len(columns) > 1 else None
            where = f"{name}:{number}: {line[:60]}"
            if paper is None:
                if columns[0] != "ROCO_ID":
                    drops.add("papers: line without PMC id", where)
            elif papers.setdefault(columns[0].strip(), paper[1]) != paper[1]:
                drops.add("papers: two PMC ids, the first one used", where)
    return papers


def plain_doi(doi: str) -> str:
    """A DOI in lower case without the address before it."""
    return re.sub(r"^(https?://(dx\.)?doi\.org/|doi:\s*)", "", doi.strip().lower())


def papers_by_doi(table: Path, wanted: set[str], facts: Counter) -> dict[str, str]:
    """PMC id by DOI for the wanted PMC ids, from NCBI's table (csv, gzipped or not)."""
    found: dict[str, str] = {}
    opener: Any = gzip.open if need(table, "NCBI's PMC-ids.csv.gz").suffix == ".gz" else open
    try:
        with opener(table, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as f:
            reader = csv.reader(f)
            header = next(reader, [])
            for name in ("DOI", "PMCID"):
                if name not in header:
                    raise ValueError(
                        f"{table}: no column {name!r}; it has {', '.join(header) or 'none'}"
                    )
            doi, paper = header.index("DOI"), header.index("PMCID")
            for row in reader:
                facts["pmc_ids_rows"] += 1
                if len(row) != len(header):
                    facts["pmc_ids_rows_malformed"] += 1
                elif row[paper] in wanted:
                    facts["pool_papers_in_table"] += 1
                    facts["pool_papers_with_doi"] += bool(row[doi].strip())
                    found[plain_doi(row[doi])] = row[paper]
    except (csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{table}: {error}; download it again") from error
    found.pop("", None)
    return found


def medicat_figures(metadata: Path, by_doi: dict[str, str], facts: Counter) -> dict[str, str]:
    """PMC id by figure (its file name) of MedICaT's figures from papers in `by_doi`."""
    figures: dict[str, str] = {}
    for _, line in read_lines(need(metadata, "MedICaT's jsonl")):
        facts["medicat_lines"] += 1
        try:
            row = json.loads(line)
            name = f"{row['pdf_hash']}_{row['fig_uri']}"
            about = row.get("oa_info") or {}
            doi = about.get("doi") or about.get("doi_url") or ""
            doi = plain_doi(doi)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            facts["medicat_lines_malformed"] += 1
            continue
        if not doi:
            facts["medicat_figures_without_doi"] += 1
        elif doi in by_doi and name.isprintable():
            figures[name] = by_doi[doi]
    return figures


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
    ids = {
        what: pool[what] if pool[what] is None else len(pool[what])
        for what in ("unknown", "in_roco_train", "in_medicat")
    }
    return {"pairs": pool["pairs"], "papers": len(set(pool["papers"].values())), **ids}


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


# ------------------------------------------------------------------ command


def find_folders(raw: Path) -> dict[str, Path]:
    """The radiology folder of each split; all are needed, for the shuffle runs through them."""
    folders = {}
    for split, names in SPLITS.items():
        found = [raw / name / "radiology" for name in names]
        folders[split] = next((path for path in found if path.is_dir()), found[0])
        need(
            folders[split],
            f"ROCO's {split} split in the original layout: the pools depend on "
            "the lines of all three captions.txt, which the hub's copies lack",
        )
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
    drops, joined = Drops(), Counter()
    papers = {split: read_papers(path, drops) for split, path in folders.items()}
    known = papers["train"]
    train = {pair.key: known[pair.key] for pair in pairs["train"] if pair.key in known}
    figures = None
    if medicat and pmc_ids:
        wanted = {paper for name in POOLS for paper in papers[name].values()}
        figures = medicat_figures(medicat, papers_by_doi(pmc_ids, wanted, joined), joined)
    theirs = None if figures is None else set(figures.values())
    pools = {
        name: pool_facts(
            pairs[name], papers[name.removesuffix("_full")], set(train.values()), theirs
        )
        for name in (*POOLS, *FULL)
    }
    lists = {
        f"{corpus}_papers_in_{suffix}.txt": None
        if found is None
        else exclusions(found, {name: pools[name] for name in names})
        for suffix, names in (("pools", POOLS), ("full_pools", FULL))
        for corpus, found in (("train", train), ("medicat", figures))
    }
    facts = {
        "pools": {name: pool_counts(pool) for name, pool in pools.items()},
        "train": {
            "pairs": len(pairs["train"]),
            "papers": len(set(train.values())),
            "unknown": len(pairs["train"]) - len(train),
        },
        "exclude": {name: len(lines) for name, lines in lists.items() if lines is not None},
        "medicat": dict(joined),
        "papers_dropped": drops.as_dict(),
    }
    return pools, lists, {"corpus": facts}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    add = parser.add_argument
    add(
        "--pool",
        type=int,
        default=2000,
        metavar="N",
        help="pairs in valid, and in test (default: %(default)s, the reference's)",
    )
    add("--medicat", type=Path, metavar="FILE", help="MedICaT's jsonl, to list shared papers")
    add("--pmc-ids", type=Path, metavar="FILE", help="NCBI's PMC-ids.csv or .csv.gz")
    args = parser.parse_args(argv)

    def body() -> None:
        need(args.raw, "the ROCO corpus")
        if args.pool < 1:
            raise ValueError(f"--pool {args.pool}: it should have at least one pair")
        if (args.medicat is None) != (args.pmc_ids is None):
            raise ValueError(
                "--medicat and --pmc-ids go together: MedICaT names papers by DOI, "
                "ROCO by PMC id, and NCBI's PMC-ids.csv.gz joins them"
            )
        folders = find_folders(args.raw)
        dropped = {name: Drops() for name in ("train", *POOLS, *FULL)}
        pairs = read_splits(folders, args.pool, dropped)
        items = {}
        for name, found in pairs.items():
            images = folders[name.removesuffix("_full")] / "images"
            if name in (args.split or pairs):
                need(images, "the folder of ROCO's images (see its fetch script)")
            items[name] = [
                Item(pair.key, images / f"{pair.key}.jpg", (pair.caption,)) for pair in found
            ]
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

    return exit_status(body)


if __name__ == "__main__":
    sys.exit(main())
