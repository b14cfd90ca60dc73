"""The pools of image-text retrieval on ROCO, and the papers that they share with other corpora."""

import gzip
import json
import random
from pathlib import Path

import pytest

from data_prep import medicat, roco, roco_retrieval
from m3ae.data.papers import read_papers
from m3ae.data.shards import Shards
from tests.data_prep.test_corpora import SMALL, dropped, figure, save_image, texts_of, write_medicat

SIZES = {"train": 31, "validation": 23, "test": 19}


def write_roco(raw: Path, sizes: dict[str, int] = SIZES, images: bool = True) -> None:
    """Some captions too short, some lines without two columns; the figure's paper is PMC{k % 10}
    in train, PMC{k} in validation and PMC{k + 5} in test."""
    number = 0
    for split, size in sizes.items():
        base = raw / split / "radiology"
        (base / "images").mkdir(parents=True, exist_ok=True)
        captions, links, licences = [], [], ["ROCO_ID,PMC_ID,CC"]
        for k in range(size):
            key, number = f"ROCO_{number:05d}", number + 1
            paper = f"PMC{k % 10 if split == 'train' else k + 5 * (split == 'test')}"
            caption = " Too short." if k % 6 == 5 else f"  Caption\u00a0no.   {k} of {split}."
            captions.append(f"{key}\t{caption}" + ("\tthird" if k % 7 == 6 else ""))
            archive = f"wget -r ftp://host/pub/{paper}.tar.gz -P /path/to/Dir"
            if k % 2 or split == "train":
                licences.append(f"{key},{paper}_fig-g01.jpg,CC BY")
            if k % 2 == 0:
                links.append(f"{key}\t{archive}\tfig-g01.jpg")
            if images:
                save_image(base / "images" / f"{key}.jpg", number)
        text = "\n" + "\n".join([*captions[:4], "", *captions[4:]]) + "\n\n"
        (base / "captions.txt").write_text(text)
        (base / "dlinks.txt").write_text("".join(f"{line}\r\n" for line in links))
        (base / "licences.txt").write_text("\n".join(licences))


def slow_pools(raw: Path, wanted: int, splits=("train", "validation", "test")) -> dict[str, list]:
    """The rule once more, as it reads: the module's generator, one line at a time."""
    random.seed(42)
    pools = {}
    for split in splits:
        with open(raw / split / "radiology" / "captions.txt") as file:
            lines = file.read().strip().split("\n")
        random.shuffle(lines)
        kept = []
        while lines and len(kept) < wanted:
            words = lines.pop(0).strip().split("\t")
            if len(words) == 2 and len(words[1].split()) >= 3:
                kept.append((words[0], " ".join(words[1].split())))
        pools[split] = kept
    return pools


def run(tmp_path: Path, *more: str, out: str = "out") -> int:
    return roco_retrieval.main(
        ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / out), "--pool", "8", *SMALL, *more]
    )


def test_pools_are_the_references(tmp_path):
    """Another pool than the published one's: another order of reading, lines counted or not."""
    raw = tmp_path / "raw"
    write_roco(raw)
    pools = slow_pools(raw, 8)
    gone = pools["test"][3][0]  # missing only after the pool is full, so the pool is one short
    (raw / "test" / "radiology" / "images" / f"{gone}.jpg").unlink()
    assert run(tmp_path) == 0
    for name, split in (("valid", "validation"), ("test", "test")):
        shards = Shards(tmp_path / "out" / name)
        wanted = {key: [caption] for key, caption in pools[split] if key != gone}
        assert texts_of(shards) == wanted and len(wanted) == 8 - (split == "test")
        # The order of the walk too, as --limit takes the first.
        assert [shards.image_key(j) for j in range(shards.num_images)] == list(wanted)
    everything = slow_pools(raw, 99)
    for name, split in (("train", "train"), ("valid_full", "validation"), ("test_full", "test")):
        shards = Shards(tmp_path / "out" / name)
        wanted = {key: [caption] for key, caption in sorted(everything[split]) if key != gone}
        assert texts_of(shards) == wanted
        assert [shards.image_key(j) for j in range(shards.num_images)] == list(wanted)
    drops = dropped(Shards(tmp_path / "out" / "train"))
    assert drops == {"line: not two columns": 5, "line: fewer than 3 words": 5}


def test_pools_depend_on_the_splits_before(tmp_path, capsys):
    """--split test, or a folder without train, gives a pool of its own."""
    raw = tmp_path / "raw"
    write_roco(raw)
    alone = slow_pools(raw, 8, ("validation",))["validation"]
    assert run(tmp_path, "--split", "valid") == 0
    found = texts_of(Shards(tmp_path / "out" / "valid"))
    assert (
        found == {k: [c] for k, c in slow_pools(raw, 8)["validation"]} != {k: [c] for k, c in alone}
    )
    assert not (tmp_path / "out" / "train").exists()
    (raw / "train").rename(raw / "gone")
    assert run(tmp_path, out="o") == 1
    assert "the pools depend on the lines of all three captions.txt" in capsys.readouterr().err


def test_shared_papers(tmp_path):
    """A paper of a pool left in the pre-training corpora, or one taken out for nothing."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_roco(raw)
    assert run(tmp_path) == 0
    facts = json.loads((out / "papers.json").read_text())
    pools = slow_pools(raw, 8)
    number = {"train": 0, "validation": 31, "test": 54}
    for name, split in (("valid", "validation"), ("test", "test")):
        papers = {
            key: f"PMC{int(key[5:]) - number[split] + 5 * (split == 'test')}"
            for key, _ in pools[split]
        }
        pool = facts["pools"][name]
        assert pool["papers"] == papers and pool["unknown"] == [] and pool["in_medicat"] is None
        assert pool["in_roco_train"] == [k for k in papers if int(papers[k][3:]) < 10]
        counts = facts["corpus"]["pools"][name]
        assert counts == {
            "pairs": 8,
            "papers": 8,
            "unknown": 0,
            "in_medicat": None,
            "in_roco_train": len(pool["in_roco_train"]),
        }
        assert 0 < len(pool["in_roco_train"]) < 8
    report = json.loads((out / "report.json").read_text())
    assert report["corpus"] == facts["corpus"]
    lists = {p.name: p.read_text().splitlines() for p in out.glob("*.txt")}
    assert {name: len(lines) for name, lines in lists.items()} == report["corpus"]["exclude"]
    assert set(lists) == {"train_papers_in_pools.txt", "train_papers_in_full_pools.txt"}

    # Pre-training without the listed figures shares no paper with the pools.
    more = ["--raw", str(raw), "--out", str(tmp_path / "pretrain"), "--split", "train"]
    exclude = ["--exclude", str(out / "train_papers_in_pools.txt")]
    assert roco.main([*more, *exclude, *SMALL]) == 0
    kept = set(texts_of(Shards(tmp_path / "pretrain" / "train")))
    in_pools = {paper for n in ("valid", "test") for paper in facts["pools"][n]["papers"].values()}
    everything = {key for key, _ in slow_pools(raw, 99)["train"]}
    ours = {key for key in everything if f"PMC{int(key[5:]) % 10}" not in in_pools}
    assert kept & everything == ours and 0 < len(ours) < len(everything)


def test_papers_shared_with_medicat(tmp_path):
    """DOIs in another case or as addresses not joined, or a figure listed that shares nothing."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_roco(raw)
    dois = {"PMC3": "10.1/ABC", "PMC99": "10.1/other", "PMC20": "10.1/full", "PMC4": ""}
    table = tmp_path / "PMC-ids.csv.gz"
    with gzip.open(table, "wt", encoding="utf-8-sig") as file:
        file.write("Journal Title,DOI,PMCID,PMID\n")
        file.writelines(f'"A journal, its title",{dois[p]},{p},1\n' for p in dois)
        file.write("cut\n")
    said = ["10.1/abc", "10.1/other", None, "https://doi.org/10.1/FULL", "10.1/ABC "]
    rows = [figure(k, oa_info=doi and {"doi": doi}) for k, doi in enumerate(said)]
    write_medicat(tmp_path / "medicat", [*rows, b"{cut", figure(9, oa_info={"doi": 5})])
    jsonl = tmp_path / "medicat" / "figures.jsonl"
    assert run(tmp_path, "--medicat", str(jsonl), "--pmc-ids", str(table)) == 0
    facts = json.loads((out / "papers.json").read_text())
    assert facts["corpus"]["medicat"] == {
        "pmc_ids_rows": 5,
        "pmc_ids_rows_malformed": 1,
        "pool_papers_in_table": 3,
        "pool_papers_with_doi": 2,
        "medicat_lines": 7,
        "medicat_lines_malformed": 2,
        "medicat_figures_without_doi": 1,
    }
    names = [f"{row['pdf_hash']}_{row['fig_uri']}" for row in rows]
    full = (out / "medicat_papers_in_full_pools.txt").read_text().splitlines()
    assert full == [
        f"{names[0]}\tpaper PMC3 is in valid_full",
        full[1],
        f"{names[4]}\tpaper PMC3 is in valid_full",
    ]
    assert full[1].startswith(f"{names[3]}\tpaper PMC20 is in ")
    pools = facts["pools"]
    in_full = {
        key: pools[name]["papers"][key]
        for name in ("valid_full", "test_full")
        for key in pools[name]["in_medicat"]
    }
    assert set(in_full.values()) == {"PMC3", "PMC20"}
    small = {
        f"{pools[n]['papers'][key]} is in {n}"
        for n in ("valid", "test")
        for key in pools[n]["in_medicat"]
    }
    listed = (out / "medicat_papers_in_pools.txt").read_text().splitlines()
    assert {line.split("\tpaper ")[1] for line in listed} == small

    # medicat.py leaves the listed figures out, by these names.
    more = ["--raw", str(tmp_path / "medicat"), "--out", str(tmp_path / "m"), "--held-out", "0"]
    exclude = ["--exclude", str(out / "medicat_papers_in_full_pools.txt")]
    assert medicat.main([*more, *exclude, *SMALL]) == 0
    assert dropped(Shards(tmp_path / "m" / "train"))["image: in the --exclude list"] == 3

    # Without --medicat the lists would be of an earlier run.
    assert run(tmp_path) == 0
    assert not list(out.glob("medicat*")) and (out / "train_papers_in_pools.txt").exists()


def test_unknown_and_doubled_papers(tmp_path):
    """An image of an unknown paper counted as disjoint, without a word."""
    raw = tmp_path / "raw"
    write_roco(raw, images=False)
    save_image(raw / "test" / "radiology" / "images" / "ROCO_00054.jpg", 1)
    base = raw / "test" / "radiology"
    (base / "licences.txt").unlink()
    lines = ["ROCO_00054\twget x/PMC9.tar.gz\ta.jpg", "ROCO_00054\twget x/PMC8.tar.gz\ta.jpg", "x"]
    (base / "dlinks.txt").write_text("\n".join(lines))
    assert run(tmp_path, "--split", "test_full") == 0
    facts = json.loads((tmp_path / "out" / "papers.json").read_text())
    pool = facts["pools"]["test_full"]
    assert pool["papers"] == {"ROCO_00054": "PMC9"} == {k: "PMC9" for k in pool["in_roco_train"]}
    assert (
        len(pool["unknown"])
        == pool["pairs"] - 1
        == facts["corpus"]["pools"]["test_full"]["unknown"]
    )
    drops = facts["corpus"]["papers_dropped"]
    assert {reason: entry["count"] for reason, entry in drops.items()} == {
        "papers: no file of them": 1,
        "papers: line without PMC id": 1,
        "papers: two PMC ids, the first one used": 1,
    }


@pytest.mark.parametrize(
    "more, message",
    [
        (["--pool", "0"], "--pool 0"),
        (["--medicat", "x"], "--medicat and --pmc-ids go together"),
        (["--medicat", "x", "--pmc-ids", "no.csv"], "no.csv: not there; it should be NCBI's"),
        (["--medicat", "no.jsonl", "--pmc-ids", "ids.csv"], "no column 'DOI'; it has PMID, PMCID"),
        (["--medicat", "x", "--pmc-ids", "cut.csv.gz"], "cut.csv.gz: "),
        (["--split", "valid_ful"], "--split valid_ful: the corpus has train, valid"),
    ],
)
def test_mistakes(tmp_path, capsys, monkeypatch, more, message):
    """A traceback for a wrong option or table."""
    write_roco(tmp_path / "raw", images=False)
    monkeypatch.chdir(tmp_path)
    Path("ids.csv").write_text("PMID,PMCID\n")
    Path("cut.csv.gz").write_bytes(gzip.compress(b"DOI,PMCID\n" * 99)[:30])
    assert run(tmp_path, *more) == 1
    assert message in capsys.readouterr().err


def test_articles_of_pretraining_corpora(tmp_path, capsys):
    """Retrieval that cannot be run strictly, as roco.py or medicat.py names no article."""
    raw = tmp_path / "raw"
    write_roco(raw)
    assert roco.main(["--raw", str(raw), "--out", str(tmp_path / "roco"), *SMALL]) == 0
    known, keys = read_papers(tmp_path / "roco" / "train"), slow_pools(raw, 99)["train"]
    assert {key: known[key] for key, _ in keys} == {k: f"PMC{int(k[5:]) % 10}" for k, _ in keys}

    rows = [figure(k, oa_info=doi and {"doi": doi}) for k, doi in enumerate(["10.1/A", None])]
    write_medicat(tmp_path / "medicat", rows)
    table = tmp_path / "PMC-ids.csv"
    table.write_text("PMCID,DOI\nPMC7,10.1/a\nPMC8,10.1/b\n")
    more = ["--raw", str(tmp_path / "medicat"), "--out", str(tmp_path / "m"), "--held-out", "0"]
    assert medicat.main([*more, *SMALL, "--pmc-ids", str(tmp_path / "no.csv")]) == 1
    assert "no.csv: not there; it should be NCBI's" in capsys.readouterr().err
    assert medicat.main([*more, *SMALL]) == 0 and not (tmp_path / "m" / "papers.tsv").exists()
    assert medicat.main([*more, *SMALL, "--pmc-ids", str(table)]) == 0  # the shards as they are
    assert "already prepared" in capsys.readouterr().out
    name = f"{rows[0]['pdf_hash']}_{rows[0]['fig_uri']}"
    assert read_papers(tmp_path / "m" / "train") == {name: "PMC7"}
