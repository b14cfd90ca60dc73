"""Which article (PMC id) each figure of ROCO and of MedICaT is from.

ROCO's own files name PMC ids; MedICaT names DOIs, which NCBI's PMC-ids.csv.gz joins.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3ae.corpora.items import Drops
from m3ae.corpora.roco_files import LICENCES, LINKS, figures
from m3ae.corpora.tables import read_lines, read_table
from m3ae.data.papers import PAPERS
from m3ae.files import is_unicode, need, write_text


def roco_papers(folder: Path, drops: Drops) -> dict[str, str]:
    """PMC id by ROCO id of a split's radiology folder, from licences.txt, else dlinks.txt."""
    papers: dict[str, str] = {}
    for file in (LICENCES, LINKS):
        if not (folder / file).exists():
            drops.add("papers: no file of them", f"{folder.parent.name}/{file}")
        for where, key, figure in figures(folder, file):
            paper = re.match(r"(PMC[0-9]+)_", figure)
            if paper is None:
                drops.add("papers: line without PMC id", where)
            elif papers.setdefault(key, paper[1]) != paper[1]:
                drops.add("papers: two PMC ids, the first one used", where)
    return papers


def plain_doi(doi: str) -> str:
    """A DOI in lower case without the address before it."""
    return re.sub(r"^(https?://(dx\.)?doi\.org/|doi:\s*)", "", doi.strip().lower())


def papers_by_doi(
    table: Path, facts: Counter, papers: set[str] | None = None, dois: set[str] | None = None
) -> dict[str, str]:
    """PMC id by DOI from NCBI's table (csv, gzipped or not): of these papers, or these DOIs."""
    found, drops = {}, Drops()
    for _, row in read_table(need(table, "NCBI's PMC-ids.csv.gz"), ("DOI", "PMCID"), drops):
        facts["pmc_ids_rows"] += 1
        doi, paper = plain_doi(row["DOI"]), row["PMCID"]
        if papers is not None and paper in papers:
            facts["pool_papers_in_table"] += 1
            facts["pool_papers_with_doi"] += bool(doi)
        if doi and (paper in papers if dois is None else doi in dois):
            found[doi] = paper
    if malformed := drops.counts.total():
        facts["pmc_ids_rows"] += malformed
        facts["pmc_ids_rows_malformed"] += malformed
    return found


def medicat_dois(metadata: Path, facts: Counter) -> Iterator[tuple[str, str]]:
    """Name of each of MedICaT's figures, as its image key has it, and the DOI of its article."""
    for _, line in read_lines(need(metadata, "MedICaT's jsonl")):
        facts["medicat_lines"] += 1
        try:
            row = json.loads(line)
            name = f"{row['pdf_hash']}_{row['fig_uri']}"
            about = row.get("oa_info") or {}
            doi = plain_doi(about.get("doi") or about.get("doi_url") or "")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            facts["medicat_lines_malformed"] += 1
            continue
        if not doi:
            facts["medicat_figures_without_doi"] += 1
        elif name.isprintable():
            yield name, doi


def medicat_papers(
    metadata: Path, table: Path, facts: Counter, papers: set[str] | None = None
) -> dict[str, str]:
    """PMC id by figure of MedICaT: of all that NCBI's table knows, or of these papers."""
    if papers is not None:
        by_doi = papers_by_doi(table, facts, papers)
        figures: Any = medicat_dois(metadata, facts)
    else:
        figures = list(medicat_dois(metadata, facts))
        by_doi = papers_by_doi(table, facts, dois={doi for _, doi in figures})
    return {name: by_doi[doi] for name, doi in figures if doi in by_doi}


def write_papers(out: Path, papers: dict[str, str]) -> None:
    """Write OUT/papers.tsv, which strict retrieval reads (`m3ae.data.papers`); none if empty."""
    lines = [f"{key}\t{paper}\n" for key, paper in papers.items() if is_unicode(key)]
    if lines:
        write_text(out / PAPERS, "".join(lines))
    print(f"{out / PAPERS}: {len(lines)} images" if lines else f"no article known: no {PAPERS}")


def write_roco_papers(raw: Path, out: Path) -> None:
    """`write_papers` of ROCO's original layout, all splits; ValueError for an id of two papers."""
    papers: dict[str, str] = {}
    for folder in sorted(raw.glob("*/radiology")):
        for key, paper in roco_papers(folder, Drops()).items():
            if papers.setdefault(key, paper) != paper:
                raise ValueError(f"{folder}: {key} is of {paper}, in another split {papers[key]}")
    write_papers(out, papers)
