"""A plan of three columns and five rows on small prepared corpora, and runs that nobody made."""

import json
import random
from pathlib import Path

from data_prep import phantoms, table
from m3ae.data.questions import read_questions
from m3ae.data.shards import Shards
from m3ae.tables.cells import Cell
from m3ae.tables.definition import read_table
from m3ae.tables.plan import Plan, make_plan
from tests.recipe import ROOT

SIZES = """
tiny:
  title: tiny & made up
  pretrain: configs/pretrain/tiny.yaml
  launcher: python
"""
PRETRAIN = """
base: {root}/configs/pretrain/quickstart.yaml
data: {{train: [{s}/train], valid: [{s}/test], tokenizer: {t}}}
"""
ABLATIONS = {
    "losses_mim": "model: {mlm: {weight: 0.0}, itm: {weight: 0.0}}",
    "layer_1": "model: {mim: {layer: 1}}",
    "more_pairs": "data: {train: [data/more/train]}",
}
TASKS = """
questions:
  title: Questions
  config: {root}/configs/finetune/vqa_rad.yaml
  set: [data.train={q}/train, data.test={q}/test, data.tokenizer={t}, protocol=both]
  protocols: [paper, strict]
  parts: [open, closed, overall]
classes:
  title: Classes
  config: {root}/configs/finetune/small_classes.yaml
  set: [data.train={c}/train, data.valid=null, data.test={c}/test, data.tokenizer={t}]
  protocols: [strict]
  parts: [accuracy, macro_f1]
pool:
  title: Pool
  config: {root}/configs/finetune/small_retrieval.yaml
  set: [data.train={s}/train, data.valid={s}/test, data.test={s}/test, data.tokenizer={t}]
  protocols: [strict]
  parts: [t2i_r1, t2i_r5, t2i_r10, i2t_r1, i2t_r5, i2t_r10]
"""
TABLE = """
title: "Table 0: 100 % of $ & _underscores_ | {{braces}}"
source: "nobody 2022, table 0"
note: "a note with # ~ ^ \\\\ < > [brackets]"
columns: {{tiny: [questions, classes, pool], other: [elsewhere]}}
rows:
  none: {{title: no pre-training, pretrain: null}}
  half: {{title: "MIM_only [½]", pretrain: [losses_mim], x: 1, y: 1}}
  whole: {{title: M3AE, pretrain: [], x: 2, y: 1}}
  later: {{title: later, pretrain: [layer_1], x: 2, y: 2}}
  more: {{title: more pairs, pretrain: [more_pairs]}}
published:
  - {{row: whole, column: questions, protocol: paper, questions: {n},
     values: {{overall: 60.3, open: 0.5}}, source: "nobody 2022, table 0", how: "one run?"}}
  - {{row: null, name: "R&D_50%", column: classes, protocol: strict,
     values: {{overall: 79.2}}, source: s, how: re-run}}
  - {{row: whole, column: elsewhere, protocol: paper,
     values: {{overall: 12.34}}, source: "table 9"}}
claims:
  - {{above: whole, below: none, part: overall, source: sec. 4}}
  - {{above: none, below: whole, part: overall, source: the other way}}
  - {{above: half, below: none, part: overall, source: two seeds}}
  - {{above: later, below: whole, part: overall, source: not run}}
figure: {{kind: {kind}, x: "layer", y: "depth", part: overall}}
differences: {{here: whole, there: none, part: overall, most: 2}}
"""
SKILL = {"none": 0.2, "half": 0.25, "whole": 0.7}


def classes_of(folder: Path, tokenizer: Path) -> Path:
    """Classes of 140 phantoms."""
    options = ["--layouts", "tables", "--tables", "140", "--px", "64", "--workers", "1"]
    assert phantoms.main(["--out", str(folder), *options]) == 0
    made = ["--table", str(folder / "tables/classes.csv"), "--raw", str(folder / "tables/images")]
    made += ["--out", str(folder / "out"), "--px", "64", "--workers", "0", "--classes"]
    assert table.main([*made, "plane", "--tokenizer", str(tokenizer)]) == 0
    return folder / "out"


def plan_in(folder: Path, corpora: dict[str, Path], kind: str = "line", **changes: str) -> Plan:
    """Write configs/tables into a folder, which is to be the current one, and read the plan.

    corpora: q, c, s and t: prepared questions, classes, pairs and a tokeniser.
    """
    tables, ablations = folder / "configs/tables", folder / "configs/pretrain/ablations"
    tables.mkdir(parents=True, exist_ok=True)
    ablations.mkdir(parents=True, exist_ok=True)
    for name, keys in ABLATIONS.items():
        (ablations / f"{name}.yaml").write_text(f"base: ../tiny.yaml\n{keys}\n")
    given = {"root": ROOT, "kind": kind, "n": len(Shards(corpora["q"] / "test")), **corpora}
    (folder / "configs/pretrain/tiny.yaml").write_text(PRETRAIN.format(**given))
    (tables / "sizes.yaml").write_text(SIZES.format(**given))
    (tables / "tasks.yaml").write_text(TASKS.format(**given))
    text = TABLE.format(**given)
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tables / "0.yaml").write_text(text)
    return make_plan([read_table("0")], "tiny", 3)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def finish(plan: Plan, out: Path) -> None:
    """Make up every run but those of the rows `later` and `more`, and half's last seed."""
    for (row, _), cells in plan.cells["0"].items():
        for cell in cells:
            if row in SKILL and (row, cell.seed) != ("half", 2):
                make_up(cell, SKILL[row], out)


def make_up(cell: Cell, skill: float, out: Path) -> None:
    """The files of a finished run whose answers are right by chance."""
    folder, config, rng = cell.folder(out), cell.resolved, random.Random(cell.id)
    data = config.data
    if config.task == "retrieval":
        write_jsonl(folder / "ranks-strict.jsonl", ranks(data.test, skill, rng))
    else:
        asked, train = (read_questions(split, data.field) for split in (data.test, data.train))
        said = sorted({row.get("label", row["answer"]) for row in asked})
        for protocol in ("paper", "strict") if config.task == "vqa" else ("strict",):
            place = folder / protocol if config.task == "vqa" else folder
            for arm, right in (("", skill), ("-other", 0.1), ("-none", 0.2)):
                rows = [
                    {**row, "prediction": row.get("label", row["answer"])}
                    if rng.random() < right
                    else {**row, "prediction": rng.choice(said)}
                    for row in asked
                ]
                write_jsonl(place / f"predictions-{protocol}{arm}.jsonl", rows)
            known = train[:: 1 + cell.seed]
            listed = [f"# {data.train}: {len(known)} of {len(train)} rows"]
            listed += [row["id"] for row in known]
            (place / "trained_on.txt").write_text("\n".join([*listed, ""]))
    (folder / "done.json").write_text("{}")


def ranks(split: str, skill: float, rng: random.Random) -> list[dict]:
    shards = Shards(split)
    pool = shards.num_images
    return [
        {
            "id": shards.text_key(k),
            "image": shards.image_key(int(shards.image_of_text[k])),
            "way": way,
            "rank": 1 if rng.random() < skill else rng.randint(1, pool),
            "pool": pool,
        }
        for k in range(len(shards))
        for way in ("t2i", "i2t")
    ]
