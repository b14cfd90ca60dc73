"""Retrieval under strict: no article of the pool was in pre-training."""

import gzip
import json
from collections import Counter

import pytest

import run_pretrain
from data_prep import medicat, roco, roco_retrieval
from m3ae.corpora.papers import medicat_papers, write_papers, write_roco_papers
from m3ae.data.papers import pool_papers, read_papers
from m3ae.data.shards import Shards
from m3ae.downstream.papers import pretrained_on
from m3ae.scoring.predictions import read_predictions
from tests.data_prep.test_corpora import SMALL as TINY
from tests.data_prep.test_corpora import figure, write_medicat
from tests.data_prep.test_roco_retrieval import write_roco
from tests.end_to_end.conftest import tune  # noqa: F401  (fixture)


@pytest.fixture()
def corpora(shards, tmp_path):
    """Generated ROCO: `roco` to pre-train on, `pools` to retrieve from, with shared articles."""
    raw = tmp_path / "raw"
    write_roco(raw)
    more = ["--px", "64", "--workers", "0", "--tokenizer", str(shards / "tokenizer")]
    assert roco.main(["--raw", str(raw), "--out", str(tmp_path / "roco"), *more]) == 0
    pools = ["--raw", str(raw), "--out", str(tmp_path / "pools"), "--pool", "8", *more]
    assert roco_retrieval.main(pools) == 0
    (tmp_path / "roco" / "papers.tsv").unlink(missing_ok=True)
    return tmp_path


def test_shared_articles_are_refused(corpora, small_run, tune, capsys):  # noqa: F811
    """A strict recall on articles that pre-training has read; a check that passes unasked."""

    def pretrain(name: str, *more: str) -> None:
        pairs = f"data.train=[{corpora}/roco/train]"
        assert run_pretrain.main(small_run(pairs, *more, name=name, steps=2)) == 0

    def retrieve(init: str, *more: str) -> int:
        splits = [f"data.{split}={corpora}/pools/{split}" for split in ("train", "valid", "test")]
        config = {"name": f"of_{init}_{len(more)}", "config": "roco_retrieval"}
        own = ["data.augmentation=none", "data.false_texts=2", "train.epochs=1"]
        return tune(f"init={corpora}/{init}", *splits, *own, *more, **config)

    pretrain("shared")
    assert retrieve("shared") == 2
    assert "roco/papers.tsv: not there" in (err := capsys.readouterr().err) and "roco.py" in err
    write_roco_papers(corpora / "raw", corpora / "roco")
    assert retrieve("shared") == 2
    err = capsys.readouterr().err
    pool, known = pool_papers(corpora / "pools/test")[0], read_papers(corpora / "roco/train")
    split = Shards(corpora / "roco/train")
    keys = [split.image_key(j) for j in range(split.num_images)]
    seen = [key for key in keys if known[key] in pool.values()]
    assert 0 < len(seen) < len(keys)
    assert f"pre-trained on {len(seen)} images of {corpora}/roco/train" in err
    assert f"{seen[0]} ({known[seen[0]]}, as " in err
    listed = corpora / "pools/train_papers_in_pools.txt"
    assert str(listed) in err and not (corpora / "of_shared_0").exists()
    assert retrieve("shared", "protocol=paper") == 0

    pretrain("apart", f"data.exclude=[{listed}]")
    assert retrieve("apart") == 0
    entry = json.loads((corpora / "of_apart_0/evaluation.json").read_text())["strict"]
    left = [key for key in keys if key not in listed.read_text()]
    assert entry["articles"] == {
        "images": 8,
        "articles": 8,
        "unknown_images": 0,
        "pretrained_on": {
            f"{corpora}/roco/train": {"images": len(left), "unknown_images": 0},
        },
    }
    assert entry["pool"] == "test" and entry["same"] == "text"
    ranks = read_predictions(corpora / "of_apart_0/ranks-strict.jsonl")
    assert {row["image"] for row in ranks} == set(pool)


def test_what_pretraining_read(tmp_path):
    """A check that passes where nothing says what was read, or stops at a fine-tuned model."""
    assert pretrained_on(None) == []
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    for folder in (run / "checkpoints" / "step-00000002", tuned / "best-strict"):
        folder.mkdir(parents=True)
    (run / "config.yaml").write_text("data: {train: [a, b], exclude: [x.txt]}\n")
    (tuned / "config.yaml").write_text(f"task: retrieval\ninit: {run}\n")
    wanted = [("a", ("x.txt",)), ("b", ("x.txt",))]
    for init in (run, tuned / "best-strict"):
        assert pretrained_on(str(init)) == wanted
    (run / "released.ckpt").write_text("")
    for init in (run / "released.ckpt", tmp_path / "gone"):
        with pytest.raises(ValueError, match=r"no config\.yaml says .* protocol=paper"):
            pretrained_on(str(init))


def test_papers_of_medicat(tmp_path):
    """Names that are not the image keys of the shards, or DOIs in another case not joined."""
    said = ["10.1/ABC", "https://doi.org/10.1/FULL", None, "10.1/unknown"]
    rows = [figure(k, oa_info=doi and {"doi": doi}) for k, doi in enumerate(said)]
    write_medicat(tmp_path / "raw", rows)
    more = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--held-out", "0"]
    assert medicat.main([*more, *TINY]) == 0
    table = tmp_path / "PMC-ids.csv.gz"
    with gzip.open(table, "wt") as file:
        file.write("PMCID,DOI\nPMC1,10.1/abc\nPMC2,10.1/Full\nPMC3,\nPMC4,10.1/other\n")
    facts = Counter()
    write_papers(tmp_path / "out", medicat_papers(tmp_path / "raw" / "figures.jsonl", table, facts))
    split = Shards(tmp_path / "out" / "train")
    known = read_papers(split.folder)
    assert [known.get(split.image_key(j)) for j in range(4)] == ["PMC1", "PMC2", None, None]
    assert facts["medicat_figures_without_doi"] == 1 and facts["pmc_ids_rows"] == 4


def test_a_file_of_papers_that_is_none(tmp_path):
    """A line that is skipped, so that its image is taken for one of no article."""
    (tmp_path / "papers.tsv").write_text("a.jpg\tPMC1\nb.jpg PMC2\n")
    with pytest.raises(ValueError, match=r"papers\.tsv:2: not `image key"):
        read_papers(tmp_path / "train")
    (tmp_path / "papers.tsv").write_text("")
    assert read_papers(tmp_path / "train") == {}
    (tmp_path / "papers.json").write_text("[]")
    with pytest.raises(ValueError, match="not of data_prep/roco_retrieval"):
        pool_papers(tmp_path / "test")
    raw = tmp_path / "raw"
    write_roco(raw, {"train": 4, "test": 4}, images=False)
    lines = (raw / "test/radiology/licences.txt").read_text() + "\nROCO_00000,PMC77_a.jpg,CC\n"
    (raw / "test/radiology/licences.txt").write_text(lines)
    with pytest.raises(ValueError, match="ROCO_00000 is of PMC0, in another split PMC77"):
        write_roco_papers(raw, tmp_path)
