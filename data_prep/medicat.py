r"""MedICaT -> shards of figures with their captions and inline references.

The corpus: the release's jsonl (s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl) with
`figures/` beside it. Kept are figures marked radiology; texts are the caption and the sentences
that refer to the figure. The split is the reference's: a seeded shuffle of the kept figures in
file order, before texts are looked at; the last N are test, the N before valid (N = 1,000). It puts
figures of one paper into different splits; --split-by paper shuffles papers instead, and valid and
test have N figures or a few more. With --pmc-ids OUT/papers.tsv names the article (PMC id) of each
figure, for the strict protocol of retrieval.

example: python data_prep/medicat.py --raw medicat/release --out data/medicat \
             --tokenizer roberta-base
"""

import argparse
import codecs
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3ae.command import run
from m3ae.corpora.items import Drops, Item, is_inside
from m3ae.corpora.papers import medicat_papers, write_papers
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.files import need

SEED = 42  # reference, data fact 21

Kept = tuple[int, str]  # a figure to keep: where its line begins, and its paper (pdf_hash)


def parse_line(line: bytes) -> dict[str, Any]:
    """One figure; raises ValueError where the line is no figure object."""
    # Bytes that are not UTF-8 become lone surrogates, which `prepare` drops text by text.
    row = json.loads(line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"))
    if not isinstance(row, dict):
        raise ValueError("not an object")
    for name in ("pdf_hash", "fig_uri"):
        value = row.get(name)
        if not isinstance(value, str) or "/" in value or not is_inside(value):
            raise ValueError(f"{name} is {value!r}")
    for name in ("s2_caption", "s2orc_caption"):
        if not isinstance(row.get(name), str | None):
            raise ValueError(f"{name} is not a string")
    references = row.get("s2orc_references") or []
    if not isinstance(references, list) or not all(isinstance(t, str | None) for t in references):
        raise ValueError("s2orc_references is not a list of strings")
    return row


@dataclass(frozen=True)
class Figures:
    """Items at some offsets of the jsonl, read one by one whenever they are run through."""

    metadata: Path
    offsets: list[int]

    def __iter__(self) -> Iterator[Item]:
        with open(self.metadata, "rb") as file:
            for offset in self.offsets:
                file.seek(offset)
                row = parse_line(file.readline())
                name = f"{row['pdf_hash']}_{row['fig_uri']}"
                path = self.metadata.parent / "figures" / name
                caption = row.get("s2_caption") or row.get("s2orc_caption")
                texts = (caption, *(row.get("s2orc_references") or ()))
                yield Item(name, path, tuple(filter(None, texts)))


def kept_figures(metadata: Path, everything: bool, drops: Drops) -> list[Kept]:
    """The figures to keep, in file order."""
    kept, offset = [], 0
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
                kept.append((start, row["pdf_hash"]))
            else:
                name = f"{row['pdf_hash']}_{row['fig_uri']}"
                drops.add("figure: not radiology (any split)", name)
    return kept


def split_figures(kept: list[Kept], held_out: int) -> dict[str, list[Kept]]:
    """The reference's split (data fact 21), by figure."""
    shuffled = kept.copy()
    random.Random(SEED).shuffle(shuffled)
    train, valid = len(kept) - 2 * held_out, len(kept) - held_out
    return {"train": shuffled[:train], "valid": shuffled[train:valid], "test": shuffled[valid:]}


def split_papers(kept: list[Kept], held_out: int) -> dict[str, list[Kept]]:
    """Whole papers, shuffled, fill test until it has `held_out` figures, then valid, then train."""
    papers: dict[str, list[Kept]] = {}
    for figure in kept:
        papers.setdefault(figure[1], []).append(figure)
    order = list(papers)
    random.Random(SEED).shuffle(order)
    parts: dict[str, list[Kept]] = {"train": [], "valid": [], "test": []}
    for paper in order:
        wanting = [name for name in ("test", "valid") if len(parts[name]) < held_out]
        parts[[*wanting, "train"][0]] += papers[paper]
    return parts


def split_kept(rule: str, kept: list[Kept], held_out: int) -> dict[str, list[Kept]]:
    """Each part in file order, empty ones left out. ValueError where train would be empty."""
    enough = 0 <= held_out and 2 * held_out < len(kept)
    parts = SPLIT_BY[rule](kept, held_out) if enough else {"train": []}
    if not parts["train"]:
        left = f"leaves none of {len(kept)} figures for train; give a smaller number"
        raise ValueError(f"--held-out {held_out} for valid and for test {left}")
    return {name: sorted(part) for name, part in parts.items() if part}


SPLIT_BY = {"figure": split_figures, "paper": split_papers}


def split_facts(parts: dict[str, list[Kept]]) -> dict[str, Any]:
    """For the report: figures and papers of each split, and papers with figures in two or three."""
    papers = {name: {paper for _, paper in part} for name, part in parts.items()}
    places = Counter(paper for found in papers.values() for paper in found)
    facts: dict[str, Any] = {"figures": {name: len(part) for name, part in parts.items()}}
    facts["papers"] = {name: len(found) for name, found in papers.items()}
    return facts | {"papers_in_two_splits": sum(count > 1 for count in places.values())}


def find_metadata(raw: Path) -> Path:
    """The only .jsonl file in the folder or in its `release`."""
    need(raw, "the MedICaT release")
    found = sorted(raw.glob("*.jsonl")) or sorted(raw.glob("release/*.jsonl"))
    if len(found) != 1:
        raise ValueError(f"{raw}: {len(found)} .jsonl files in it; name one with --metadata")
    return found[0]


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    metadata = need(args.metadata or find_metadata(args.raw), "MedICaT's jsonl")
    need(metadata.parent / "figures", "the folder of MedICaT's figures")
    drops, table = Drops(), args.pmc_ids and need(args.pmc_ids, "NCBI's PMC-ids.csv.gz")
    kept = kept_figures(metadata, args.all_figures, drops)
    parts = split_kept(args.split_by, kept, args.held_out)
    args.metadata = None  # found or named, it is the same corpus
    del args.pmc_ids  # nothing in the shards depends on it
    splits = {name: Figures(metadata, [at for at, _ in part]) for name, part in parts.items()}
    facts = {"corpus": {"split_by": args.split_by, **split_facts(parts)}}
    prepare(splits, {"train": drops}, args, source="MedICaT", facts=facts)
    if table:
        write_papers(args.out, medicat_papers(metadata, table, Counter()))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = corpus_parser(__doc__)
    add = parser.add_argument
    add("--metadata", type=Path, metavar="FILE", help="the jsonl, with figures/ beside it")
    size = "figures in valid, and in test (default: %(default)s, the paper's)"
    add("--held-out", type=int, default=1000, metavar="N", help=size)
    rule = "paper: no paper is in two splits, see above (default: %(default)s, the reference's)"
    add("--split-by", choices=SPLIT_BY, default="figure", help=rule)
    add("--all-figures", action="store_true", help="keep figures that are not radiology too")
    add("--pmc-ids", type=Path, metavar="FILE", help="NCBI's PMC-ids.csv or .csv.gz")
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
