"""Every file that the package reads, damaged at random: read, or a documented error that names it.

Not here: training's own state (state.json, optimizer.pt, ...), the corpora's files
(test_corpora.py), pickles of other programs (test_pickles.py).
"""

import csv
import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import save_file

from data_prep import roco_retrieval
from m3ae.config import load_config
from m3ae.corpora.chunks import Settings, _finished
from m3ae.corpora.items import Drops
from m3ae.corpora.papers import medicat_dois, roco_papers
from m3ae.corpora.questions import checked_rows
from m3ae.corpora.tables import cell, read_table
from m3ae.corpora.verification import find_problems, read_chunks
from m3ae.data.exclusions import image_names, read_exclusions
from m3ae.data.papers import pool_papers, read_papers
from m3ae.data.shards import Shards
from m3ae.data.texts import load_tokenizer
from m3ae.downstream.data import read_answers
from m3ae.downstream.model import read_facts
from m3ae.downstream.papers import pretrained_on
from m3ae.downstream.ranking import _resume
from m3ae.features import read_features
from m3ae.models.pretrained import read_pretrained
from m3ae.models.settings import check_settings
from m3ae.models.weight_files import read_weights
from m3ae.reports import parts
from m3ae.reports.pretraining import Run, write_report
from m3ae.scoring.predictions import read_predictions, read_trained_on, write_trained_on
from m3ae.tables.definition import read_table as read_definition
from m3ae.tables.forecast import _speeds
from tests.faults.offered import ALL, DAMAGE, accepted_or_refused, damaged, often
from tests.models.clips import HEADS, HIDDEN, PATCH, WIDTH
from tests.models.test_weight_files import clip_encoder
from tests.recipe import ROOT, golden_model
from tests.reports.test_pretraining import EVALUATION


class Reader(NamedTuple):
    """A valid file, and what reads it."""

    path: Path
    read: Callable[[], object]
    named: bool = True  # whether an error names the file: a config's may name the key alone


def everything(folder: Path) -> None:
    """All that a training reads of a split, each error of a row included."""
    split = Shards(folder)
    px, rows = split.manifest["px"], []
    for read in (split.text, split.text_key, split.tokens, split.fields):
        rows += [(read, row) for row in range(len(split))]
    rows += [(split.image_key, row) for row in range(split.num_images)]
    rows += [(lambda row: split.image(row, px), row) for row in range(split.num_images)]
    for read, row in rows:
        try:
            read(row)
        except (ValueError, OSError) as error:
            assert folder.name in str(error) and "\n" not in str(error), repr(error)


def split_readers(place: Path, questions: Path) -> dict[str, Reader]:
    folder = place / "corpus" / "test"
    shutil.copytree(questions / "test", folder)
    shard = next(folder.glob("shard-*"))
    image_files = folder / "images.json"
    image_files.write_text(json.dumps({key: f"{key}.png" for key in ("a", "b")}))
    return {
        "manifest": Reader(folder / "manifest.json", lambda: Shards(folder)),
        "shard": Reader(shard, lambda: everything(folder)),
        "chunks": Reader(folder / "chunks.json", lambda: read_chunks(folder)),
        "images_json": Reader(image_files, lambda: image_names(Shards(folder))),
    }


def list_readers(place: Path) -> dict[str, Reader]:
    answers, listed, papers = (place / name for name in ("answers.json", "out.txt", "papers.tsv"))
    answers.write_text(json.dumps({"strict": ["yes", "no"], "paper": ["yes", "no", "left"]}))
    listed.write_text("# of an audit\nROCO_1\twhy\nimages/b.png\n")
    papers.write_text("ROCO_1\tPMC1\nROCO_2\tPMC22\n")
    pools = place / "pool" / "papers.json"
    pools.parent.mkdir()
    pools.write_text(json.dumps({"pools": {"test": {"papers": {"a": "PMC1"}, "unknown": ["b"]}}}))
    trained = place / "trained-on.txt"
    write_trained_on(trained, "data/x", ["a/1", "b/2"], 3)
    licences = place / "radiology" / "licences.txt"
    licences.parent.mkdir()
    licences.write_text("ROCO_ID,NAME\nROCO_1,PMC1_a.jpg\n")
    keys = (str(place / "x"), None, "answer", "strict")
    return {
        "answers": Reader(answers, lambda: read_answers(*keys)),
        "exclusions": Reader(listed, lambda: read_exclusions(listed)),
        "papers": Reader(papers, lambda: read_papers(place / "test")),
        "pool_papers": Reader(pools, lambda: pool_papers(pools.parent / "test")),
        "trained_on": Reader(trained, lambda: read_trained_on(trained)),
        "licences": Reader(licences, lambda: roco_papers(licences.parent, Drops())),
    }


PREDICTIONS = [
    {"id": "a/1", "prediction": "yes", "answer": "yes", "type": "closed", "score": 0.5},
    {"id": "b/2", "prediction": "left ü", "answer": "right", "type": "open", "leaked": True},
]


def prediction_readers(place: Path) -> dict[str, Reader]:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PREDICTIONS)
    content = {"p.jsonl": lines.encode(), "p.jsonl.gz": gzip.compress(lines.encode(), mtime=0)}
    content["p.csv"] = b'id,prediction,answer,score\na/1,yes,no,0.5\nb/2,"a, b",no,1\n'
    for name, data in content.items():
        (place / name).write_bytes(data)
    return {name: Reader(p := place / name, lambda p=p: read_predictions(p)) for name in content}


def table_readers(place: Path) -> dict[str, Reader]:
    rows = [{"ID": f"R_{k}", "Caption": f'A "quoted", text {k}\nof ü'} for k in range(5)]
    with open(place / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["ID", "Caption"])
        writer.writeheader()
        writer.writerows(rows)
    (place / "t.csv.gz").write_bytes(gzip.compress((place / "t.csv").read_bytes(), mtime=0))
    (place / "t.tsv").write_text("ID\tCaption\nR\ta text\n")
    (place / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ["t.csv", "t.csv.gz", "t.tsv", "t.jsonl"]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        pass  # an extra
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), place / "t.parquet")
        names.append("t.parquet")

    def read(path: Path) -> None:
        for _, row in read_table(path, ("ID", "Caption"), Drops()):
            for name in ("ID", "Caption"):
                try:
                    cell(row, name)
                except ValueError:
                    pass  # a reason to count the row

    found = {name: Reader(p := place / name, lambda p=p: read(p)) for name in names}
    questions = place / "questions.json"
    asked = {"qid": 1, "image_name": "a.jpg", "question": "Is it?", "answer": "Yes"}
    questions.write_text(json.dumps([asked | {"answer_type": "CLOSED", "question_type": "X"}]))
    keys = ("image_name", "question", "answer_type", "question_type")
    found["questions"] = Reader(questions, lambda: checked_rows(questions, keys, Drops()))
    medicat = place / "medicat.jsonl"
    medicat.write_text(json.dumps({"pdf_hash": "a", "fig_uri": "b", "oa_info": {"doi": "c"}}))
    found["medicat"] = Reader(medicat, lambda: list(medicat_dois(medicat, Counter())))
    captions = place / "captions.txt"
    captions.write_text("ROCO_1\ta caption of words\n")
    found["captions"] = Reader(
        captions,
        lambda: roco_retrieval.read_pairs(roco_retrieval.caption_lines(captions), Drops()),
    )
    return found


def model_readers(place: Path, shards: Path) -> dict[str, Reader]:
    saved, tokenizer, facts = place / "saved", place / "tokenizer", place / "fine"
    golden_model().save_pretrained(saved)
    save_file({"a.b": np.zeros((2, 3), np.float32)}, saved / "model.safetensors")
    shutil.copytree(shards / "tokenizer", tokenizer)
    facts.mkdir()
    task = {"task": "vqa", "answers": ["yes", "no"], "head": {}}
    (facts / "downstream.json").write_text(json.dumps(task))
    features = place / "features.safetensors"
    save_file({"features": np.zeros((2, 3), np.float32)}, features, {"keys": '["a", "b"]'})
    parts = place / "parts"
    parts.mkdir()
    save_file({"a": np.zeros(2, np.float32)}, parts / "one.safetensors")
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    clip = place / "clip" / "config.json"
    clip.parent.mkdir()
    section = {"hidden_size": WIDTH, "patch_size": PATCH, "num_attention_heads": HEADS}
    section |= {"intermediate_size": HIDDEN, "hidden_act": "quick_gelu"}
    clip.write_text(json.dumps({"model_type": "clip", "vision_config": section}))
    encoder = clip_encoder().config
    ranking, scores = place / "ranking", np.zeros((2, 3), np.float32)
    ranking.mkdir()
    (ranking / "ranking.json").write_text(json.dumps({"images": "x"}))
    np.save(ranking / "scores-00000.npy", scores)

    def resume() -> object:
        return _resume(ranking, {"images": "x"}, [range(2)], 3)

    readers = {
        "safetensors": Reader(saved / "model.safetensors", lambda: read_pretrained(saved)),
        "config_json": Reader(saved / "config.json", lambda: read_pretrained(saved)),
        "facts": Reader(facts / "downstream.json", lambda: read_facts(facts)),
        "features": Reader(features, lambda: read_features(features)),
        "index": Reader(index, lambda: read_weights(parts)),
        "settings": Reader(clip, lambda: check_settings(encoder, str(clip.parent))),
        "ranking": Reader(ranking / "ranking.json", resume),
        "scores": Reader(ranking / "scores-00000.npy", resume),
    }
    for name in ("tokenizer.json", "tokenizer_config.json"):
        readers[name] = Reader(tokenizer / name, lambda: load_tokenizer(tokenizer), named=False)
    vocabulary = place / "bert"
    vocabulary.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    (vocabulary / "vocab.txt").write_text("\n".join(words))
    path = vocabulary / "vocab.txt"
    return readers | {"vocab.txt": Reader(path, lambda: load_tokenizer(vocabulary), named=False)}


def run_readers(place: Path) -> dict[str, Reader]:
    run, config = place / "run", ROOT / "configs/pretrain/quickstart.yaml"
    run.mkdir()
    (run / "config.yaml").write_text((config.parent / "m3ae.yaml").read_text())
    train = {"kind": "train", "step": 1, "samples": 8, "loss": 1.0, "samples_per_s": 3.0}
    (run / "log.jsonl").write_text(json.dumps(train) + '\n{"kind": "note", "step": 1}\n')
    (run / "evaluation.json").write_text('{"step": 1, "samples": 3}')
    (run / "environment.json").write_text('{"torch": "2"}')
    found = {
        name: Reader(run / name, lambda: Run(run))
        for name in ("config.yaml", "log.jsonl", "evaluation.json", "environment.json")
    }
    (run / "evaluation.json").write_text(json.dumps(EVALUATION))
    found["report"] = Reader(run / "evaluation.json", lambda: write_report(run))
    found["speeds"] = Reader(run / "log.jsonl", lambda: _speeds(run / "log.jsonl"))
    found["pretrained_on"] = Reader(run / "config.yaml", lambda: pretrained_on(str(run)))
    own = place / "own.yaml"
    own.write_text((ROOT / "configs/tables/4.yaml").read_text())
    found["table"] = Reader(own, lambda: read_definition(str(own)))
    copy = place / "copy.yaml"
    shutil.copytree(config.parent, place / "configs")
    copy = place / "configs" / config.name
    found["config"] = Reader(copy, lambda: load_config(copy), named=False)
    chunk = place / "chunk-00000.json"
    entry = {"digest": "x", "files": [], "images": 0, "dropped": {}}
    chunk.write_text(json.dumps(entry))
    settings = Settings("raw", 64, None, 3, None)
    found["chunk"] = Reader(chunk, lambda: _finished(place, 0, [], "x", settings))
    return found


SPLIT = ("manifest", "shard", "chunks", "images_json")
LISTS = ("answers", "exclusions", "papers", "pool_papers", "trained_on", "licences")
TABLES = ("t.csv", "t.csv.gz", "t.tsv", "t.jsonl", "t.parquet", "questions", "medicat", "captions")
MODELS = ("safetensors", "config_json", "facts", "features", "index", "settings", "ranking")
MODELS += ("scores", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
RUNS = ("config.yaml", "log.jsonl", "evaluation.json", "environment.json", "speeds")
RUNS += ("report", "pretrained_on", "table", "config", "chunk")
NAMES = (*SPLIT, *LISTS, "p.jsonl", "p.jsonl.gz", "p.csv", *TABLES, *MODELS, *RUNS)


@pytest.fixture(scope="module")
def readers(tmp_path_factory, shards, questions) -> dict[str, Reader]:
    place = tmp_path_factory.mktemp("readers")
    folders = [place / name for name in "abcdef"]
    for folder in folders:
        folder.mkdir()
    found = split_readers(folders[0], questions) | list_readers(folders[1])
    found |= prediction_readers(folders[2]) | table_readers(folders[3])
    return found | model_readers(folders[4], shards) | run_readers(folders[5])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_damaged(name, readers, monkeypatch):
    """A KeyError, a TypeError, a struct.error, an error that does not name the file."""
    monkeypatch.setattr(parts, "chart", lambda *args, **options: "")  # most of a report's time
    if name not in readers:
        pytest.skip("pyarrow, an extra, is not there")
    path, read, named = readers[name]
    content = path.read_bytes()
    read()

    @often
    @given(DAMAGE)
    def offered(damage):
        path.write_bytes(damaged(content, damage))
        accepted_or_refused(read, path, named)

    try:
        offered()
    finally:
        path.write_bytes(content)


def same(one: bytes, other: bytes) -> bool:
    """Whether two files say the same: JSON may have other white space."""
    try:
        return json.loads(one) == json.loads(other)
    except (ValueError, RecursionError):
        return one == other


@pytest.mark.skipif(not ALL, reason="the fixture's split is verified in tests/data_prep")
def test_verify_names_any_damage(readers):
    """Damage to a split that `verify` takes for sound."""
    folder = readers["shard"].path.parent
    assert not find_problems(folder)

    @often
    @given(DAMAGE)
    def offered(damage):
        for name in ("manifest", "shard", "chunks"):
            path = readers[name].path
            content = path.read_bytes()
            if not same(wrong := damaged(content, damage), content):
                path.write_bytes(wrong)
                try:
                    assert find_problems(folder), name
                finally:
                    path.write_bytes(content)

    offered()
