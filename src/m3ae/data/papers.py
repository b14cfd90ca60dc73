"""Which article each image of a prepared corpus is from: OUT/papers.tsv beside its splits.

A line is `image key<TAB>PMC id`; images that are not in it are of an unknown article, or of none.
"""

from pathlib import Path

from m3ae.files import need, read_json, read_text

PAPERS = "papers.tsv"
_HOW = "the articles that the corpus is from. data_prep/roco.py writes it, and medicat.py with \
--pmc-ids; for another corpus write `image key<TAB>PMC id`, a line an image, or an empty file \
where no image is from an article of PubMed Central"


def read_papers(folder: str | Path) -> dict[str, str]:
    """PMC id by image key, from the file beside a prepared split.

    Raises FileNotFoundError that says how to make it, ValueError naming a wrong line.
    """
    path = need(Path(folder).parent / PAPERS, _HOW)
    papers: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "utf-8-sig").split("\n"), start=1):
        key, tab, paper = line.partition("\t")
        if line and not (tab and paper.startswith("PMC") and paper[3:].isdecimal()):
            raise ValueError(f"{path}:{number}: not `image key<TAB>PMC id`: {line[:60]!r}")
        if line:
            papers[key] = paper
    return papers


def pool_papers(folder: str | Path) -> tuple[dict[str, str], int] | None:
    """PMC id by image key of a pool of data_prep/roco_retrieval.py, and how many are unknown.

    None where the split is no such pool, or its papers.json is not beside it.
    """
    path = Path(folder).parent / "papers.json"
    if not path.is_file():
        return None
    try:
        pool = read_json(path)["pools"].get(Path(folder).name)
        return pool and (dict(pool["papers"]), len(pool["unknown"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not of data_prep/roco_retrieval.py ({error})") from error
