"""Whether a retrieval pool is of articles that pre-training has seen, joined by PMC id."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from m3ae.data.exclusions import image_keys, listed, read_exclusions
from m3ae.data.papers import pool_papers, read_papers
from m3ae.data.shards import Shards
from m3ae.downstream.config import FinetuneConfig
from m3ae.strict_yaml import read_file

log = logging.getLogger(__name__)


def check_disjoint(config: FinetuneConfig) -> dict[str, Any] | None:
    """Raise ValueError where the pre-training of `init` had images of an article of `data.test`.

    Else returns how many images and articles were compared, those of unknown articles apart.
    None, and a warning, for a pool without articles: images of one's own need not be of any, and
    `paper`, which asks for no check, would count identical captions as wrong.
    """
    pool = pool_papers(config.data.test)
    if pool is None:
        reason = "no papers.json of data_prep/roco_retrieval.py names its articles"
        unchecked = "not checked whether pre-training has seen them"
        log.warning("%s: %s: %s", config.data.test, reason, unchecked)
        return None
    papers, unknown = pool
    wanted = set(papers.values())
    facts = {"images": len(papers) + unknown, "articles": len(wanted), "unknown_images": unknown}
    corpora = {}
    for folder, exclude in pretrained_on(config.init):
        split, known = Shards(folder), read_papers(folder)
        left_out, _ = listed(split, read_exclusions(*exclude))
        keys = np.array(image_keys(split), dtype=object)[~left_out]
        seen = [key for key in keys if known.get(key) in wanted]
        if seen:
            raise ValueError(_overlap(config.data.test, folder, known[seen[0]], seen, papers))
        lost = sum(key not in known for key in keys)
        if known and lost == len(keys):
            raise ValueError(f"{folder}: the papers.tsv beside it names none of its images")
        corpora[folder] = {"images": len(keys), "unknown_images": lost}
        compared = folder, config.data.test, lost, len(keys)
        log.info("%s: has no article of %s; %d of its %d images are of an unknown one", *compared)
    return facts | {"pretrained_on": corpora}


def _overlap(pool: str, folder: str, paper: str, seen: list[str], papers: dict[str, str]) -> str:
    name = "full_pools" if pool.endswith("_full") else "pools"
    lists = [str(path) for path in sorted(Path(pool).parent.glob(f"*_papers_in_{name}.txt"))]
    lists = lists or f"the lists *_papers_in_{name}.txt of data_prep/roco_retrieval.py"
    mate = next(key for key in papers if papers[key] == paper)
    wrong = f"init was pre-trained on {len(seen)} images of {folder} whose articles are in {pool}"
    hint = f"Pre-train with data.exclude={lists}, or use protocol=paper"
    return f"protocol strict: {wrong} too, e.g. {seen[0]} ({paper}, as {mate}). {hint}"


def pretrained_on(init: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """Folders that a run's pre-training read, each with its exclusion lists; [] without one.

    Of a fine-tuned model: those of its own `init`. Raises ValueError where nothing says it.
    """
    if init is None:
        return []
    places = [] if Path(init).is_file() else [Path(init), Path(init).parent]
    path = next((p / "config.yaml" for p in places if (p / "config.yaml").is_file()), None)
    if path is None:
        wrong = "no config.yaml says what it was pre-trained on, to be compared with the pool"
        raise ValueError(f"init={init}: {wrong}; give the run's folder, or protocol=paper")
    saved = read_file(path)
    try:
        if "task" in saved:
            return pretrained_on(saved["init"])
        excluded = tuple(saved["data"]["exclude"] or ())
        return [(folder, excluded) for folder in saved["data"]["train"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the config of a run ({error!r})") from error
