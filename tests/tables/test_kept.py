"""Kept reports: a copy that can be published, and those of docs/results, counted again."""

import csv
import gzip
import json

import pytest

from m3ae.reports.tables import write_pages
from m3ae.tables.keep import keep
from m3ae.tables.results import collect
from tests.recipe import ROOT
from tests.tables import made_up

KEPT = ROOT / "docs/results/tables"


def kept_rows(path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def lines_of(table) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text().splitlines()))


def fraction_right(rows: list[dict], part: str) -> float:
    chosen = [row for row in rows if part in ("overall", "accuracy", row.get("type"))]
    hits = [row["right"] if "right" in row else row["prediction"] == row["label"] for row in chosen]
    return sum(hits) / len(hits)


def test_a_copy_has_the_numbers_and_no_texts(questions, shards, tmp_path, monkeypatch):
    """A published report with a corpus's questions in it, dead links, or other numbers."""
    monkeypatch.chdir(tmp_path)
    tokenizer = shards / "tokenizer"
    classes = made_up.classes_of(tmp_path / "raw", tokenizer)
    corpora = {"q": questions, "c": classes, "s": shards, "t": tokenizer}
    plan, out, to = made_up.plan_in(tmp_path, corpora), tmp_path / "out", tmp_path / "kept"
    made_up.finish(plan, out)
    results = collect(plan, out)
    write_pages(results, out)
    write_pages(keep(results, out, to), to)
    first, second = (lines_of(folder / "0/table.csv") for folder in (out, to))
    for ours, theirs in zip(first, second, strict=True):
        assert {**ours, "source": ""} == {**theirs, "source": ""}
    for path in (to / "predictions").iterdir():
        for row in kept_rows(path):
            assert not row.keys() & {"question", "answer", "top"}, path
    assert "cells/" not in (to / "0/table.html").read_text()
    result = json.loads((to / "0/result.json").read_text())
    for entry in result["cells"]:
        for source in entry["sources"]:
            assert all(
                (to / path).is_file() for path in [source["predictions"], *source["arms"].values()]
            )


@pytest.mark.parametrize(
    "table", sorted(KEPT.glob("*/table.csv")), ids=lambda path: path.parent.name
)
def test_numbers_in_the_docs_are_those_of_the_predictions(table):
    """A number of docs/results/tables that its kept predictions do not give.

    Counts with no code of the report. Intervals and blind baselines rest on more than these files:
    tests/reports/test_tables.py counts those again.
    """
    lines, means = lines_of(table), {}
    for line in lines:
        place = line["row"], line["column"], line["protocol"], line["part"]
        if line["kind"] == "own" and line["mean"]:
            runs = [kept_rows(KEPT / path) for path in line["source"].split()]
            values = [fraction_right(rows, line["part"]) for rows in runs]
            assert float(line["mean"]) == pytest.approx(sum(values) / len(values), abs=1e-9), line
            assert int(line["n"]) == len(values) and float(line["low"]) <= float(line["mean"])
            means[place] = float(line["mean"]), len(values)
        elif line["kind"] in ("other", "none") and line["mean"]:
            runs = [
                kept_rows(KEPT / path.replace(".jsonl.gz", f"-{line['kind']}.jsonl.gz"))
                for path in line["source"].split()
            ]
            values = [fraction_right(rows, line["part"]) for rows in runs]
            assert float(line["mean"]) == pytest.approx(sum(values) / len(values), abs=1e-9), line
    for line in lines:
        if line["kind"].startswith("ordering") and line["mean"]:
            rows = line["row"].split(" - ")
            where = line["column"], line["protocol"], line["part"]
            above, below = (means[row, *where] for row in rows)
            if above[1] == below[1] == int(line["n"]):
                assert float(line["mean"]) == pytest.approx(above[0] - below[0], abs=1e-9), line
            low, high = float(line["low"]), float(line["high"])
            verdict = "holds" if low > 0 else "does not hold" if high < 0 else "not shown"
            assert line["kind"] == f"ordering: {verdict}"
    assert means
