"""What finished cells say: every table as a dictionary, which the report's pages are drawn from.

Nothing in it depends on when, where or how often cells were run: the same cells give the same
bytes. Our numbers and the published ones are fractions; paths are relative to OUT, those of
prepared splits as the config has them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m3ae.config import Config, load_config
from m3ae.tables.cells import Cell, flat
from m3ae.tables.definition import Claim, Published, Table, Task
from m3ae.tables.measured import PARTS, Files, Measures
from m3ae.tables.plan import Plan
from m3ae.tables.runner import is_done, why_not

NO_BASE = ("output", "seed")  # keys of a config that are no difference between rows


def collect(plan: Plan, out: Path) -> dict[str, dict[str, Any]]:
    """The content of each table by name.

    {"name", "title", "source", "note", "size", "seeds", "columns", "rows", "cells", "published",
    "claims", "figure", "differences"}. Raises ValueError where a finished run lacks a file, where
    questions are not as many as the published number counts, or where a part is not known.
    """
    measures = Measures(out)
    return {table.name: _table(plan, table, measures) for table in plan.tables}


def _table(plan: Plan, table: Table, measures: Measures) -> dict[str, Any]:
    tasks, cells = plan.tasks[table.name], plan.cells[table.name]
    kinds = {column: _kind(cells, column) for column in tasks}
    for column, task in tasks.items():
        for part in task.parts:
            _check_part(part, kinds[column], f"{table.name}: {column}: parts")
    entries = [
        _cell(row, column, protocol, cells[row, column], measures)
        for row in table.rows
        for column, task in tasks.items()
        for protocol in task.protocols
    ]
    by_place = {(e["row"], e["column"], e["protocol"]): e for e in entries}
    for entry in entries:
        _check_questions(table, tasks[entry["column"]].questions, entry, "its task")
    published = [_published(table, one, kinds, by_place) for one in table.published]
    return {
        "name": table.name,
        "title": table.title,
        "source": table.source,
        "note": table.note,
        "size": {"name": plan.name, "title": plan.size.title, "pretrain": plan.size.pretrain},
        "seeds": plan.seeds,
        "columns": {
            column: _column(task, kinds[column], cells[next(iter(table.rows)), column][0])
            for column, task in tasks.items()
        },
        "rows": {name: _row(plan, table, name) for name in table.rows},
        "cells": entries,
        "published": published,
        "claims": [
            _claim(table, claim, column, protocol, measures, cells)
            for claim in table.claims
            for column, task in tasks.items()
            for protocol in task.protocols
            if _known(claim.part, kinds[column])
        ],
        "figure": _figure(table, kinds),
        "differences": _differences(table, tasks, cells, measures.out),
    }


def _kind(cells: dict[tuple[str, str], list[Cell]], column: str) -> str:
    """vqa, classification or retrieval."""
    return next(some[0] for place, some in cells.items() if place[1] == column).resolved.kind


def _known(part: str, kind: str) -> str | None:
    """The part by the name that a kind of task has for it: of classes, overall is accuracy."""
    part = "accuracy" if (part, kind) == ("overall", "classification") else part
    return part if part in PARTS[kind] else None


def _check_part(part: str, kind: str, where: str) -> None:
    if part not in PARTS[kind]:
        known = ", ".join(PARTS[kind]) or "none"
        raise ValueError(f"{where}: {part!r} is none of {kind}'s: {known}")


def _column(task: Task, kind: str, cell: Cell) -> dict[str, Any]:
    found = {"title": task.title, "task": kind, "parts": task.parts, "protocols": task.protocols}
    found |= {"questions": task.questions, "pretrained": task.pretrained}
    return {**found, "test": cell.resolved.data.test}


def _row(plan: Plan, table: Table, name: str) -> dict[str, Any]:
    """A row; `config`: what its pre-training has other than the size's, `key: base -> row`."""
    row = asdict(table.rows[name])
    cells = (plan.cells[table.name][name, column][0] for column in plan.tasks[table.name])
    init = next((cell.init for cell in cells if cell.init is not None), None)
    row["config"] = None if init is None else _differing(plan, init)
    return row


def _differing(plan: Plan, cell: Cell) -> list[str]:
    base, row = (_values(one) for one in (load_config(plan.size.pretrain), cell.resolved))
    return [
        f"{key}: {json.dumps(base.get(key), ensure_ascii=False)} -> "
        f"{json.dumps(row.get(key), ensure_ascii=False)}"
        for key in sorted({**base, **row})
        if key not in NO_BASE and base.get(key) != row.get(key)
    ]


def _values(config: Config) -> dict[str, Any]:
    return flat(json.loads(json.dumps(asdict(config))))


def _cell(
    row: str, column: str, protocol: str, cells: Sequence[Cell], measures: Measures
) -> dict[str, Any]:
    """A row and column under a protocol: figures by part, from the seeds that are finished."""
    out = measures.out
    done = [cell for cell in cells if is_done(cell, out)]
    runs = [Files(cell, protocol, out) for cell in done]
    entry: dict[str, Any] = {"row": row, "column": column, "protocol": protocol}
    entry |= {"runs": len(runs), "of": len(cells)}
    entry["missing"] = [
        {"seed": cell.seed, "why": _why(cell, out)} for cell in cells if cell not in done
    ]
    entry["steps"] = _steps(cells)
    entry["sources"] = [_source(one) for one in runs]
    entry |= measures.measure(runs) if runs else {"parts": {}, "notes": []}
    seeds = [str(cell.seed) for cell in done]  # a part without questions has no values
    for figures in entry["parts"].values():
        for some in (figures, *figures["sides"].values()):
            some["values"] = dict(zip(seeds, some["values"], strict=False))
    return entry


def _why(cell: Cell, out: Path) -> str:
    """Why a cell is not finished, without the name of its pre-training, which has its seed."""
    return why_not(cell, out).replace(f" {cell.init.id}" if cell.init else "", "")


def _steps(cells: Sequence[Cell]) -> dict[str, Any]:
    """Optimiser steps by run: of fine-tuning they may differ by seed (labels of few images)."""
    pretraining = {cell.init.steps if cell.init else 0 for cell in cells}
    own = {steps for cell in cells if (steps := cell.steps) is not None}
    return {"pretraining": sorted(pretraining), "finetuning": sorted(own)}


def _source(one: Files) -> dict[str, Any]:
    """Where a run's numbers come from."""
    init = one.cell.init
    return {
        "seed": one.cell.seed,
        "cell": one.cell.id,
        "run": one.relative(one.cell.folder(one.out)),
        "pretraining": None if init is None else one.relative(init.folder(one.out)),
        "predictions": one.relative(one.own),
        "arms": {arm: one.relative(path) for arm, path in one.arms.items()},
    }


def _check_questions(
    table: Table, wanted: int | None, entry: dict[str, Any] | None, whose: str
) -> None:
    """ValueError where our rows are not as many as a published number counts."""
    if wanted is None or entry is None or not entry["parts"]:
        return
    counted = next(iter(entry["parts"].values()))["questions"]
    if counted != wanted:
        what = f"{table.name}: {entry['column']}, {entry['protocol']}"
        hint = "numbers over other questions do not belong in one column"
        raise ValueError(f"{what}: {whose} counts {wanted} questions, our rows {counted}; {hint}")


def _published(
    table: Table,
    one: Published,
    kinds: dict[str, str],
    by_place: dict[tuple[str, str, str], dict[str, Any]],
) -> dict[str, Any]:
    """A published entry, beside ours where a row and column of ours are what it is about."""
    whose = f"{one.name or one.row} ({one.source})"
    places = [by_place.get((row, one.column, one.protocol)) for row in table.rows]
    shown = places[0] is not None
    values = {}
    for part, value in one.values.items():
        if shown and _known(part, kinds[one.column]) is None:
            _check_part(part, kinds[one.column], f"{table.name}: published: {whose}")
        name = _known(part, kinds[one.column]) if shown else part
        values[name] = round(value / 100, 6)
    entry: dict[str, Any] = {**asdict(one), "values": values, "compared": {}, "shown": shown}
    if not shown:
        return entry
    for place in places:
        _check_questions(table, one.questions, place, whose)
    ours = by_place[one.row, one.column, one.protocol]["parts"] if one.row else {}
    for part, value in values.items():
        if ours and ours[part]["mean"] is not None:
            ends = ours[part]["interval"]
            inside = None if ends is None else ends[0] <= value <= ends[1]
            difference = ours[part]["mean"] - value
            entry["compared"][part] = {"difference": difference, "inside": inside}
    return entry


def _claim(
    table: Table,
    claim: Claim,
    column: str,
    protocol: str,
    measures: Measures,
    cells: dict[tuple[str, str], list[Cell]],
) -> dict[str, Any]:
    """An ordering on a column: above less below, of the seeds that both rows have finished."""
    out = measures.out
    pairs = list(zip(cells[claim.above, column], cells[claim.below, column], strict=True))
    done = [pair for pair in pairs if all(is_done(cell, out) for cell in pair)]
    found: dict[str, Any] = {**asdict(claim), "column": column, "protocol": protocol}
    found |= {"runs": len(done), "of": len(pairs), "difference": None, "interval": None, "p": None}
    if not done:
        rows = zip((claim.above, claim.below), pairs[0], strict=True)
        row, cell = next((row, cell) for row, cell in rows if not is_done(cell, out))
        why = f"{row}, seed {cell.seed}: {_why(cell, out)}"
        return {**found, "verdict": "not run", "why": why}
    ours, theirs = ([Files(pair[k], protocol, out) for pair in done] for k in (0, 1))
    part = _known(claim.part, ours[0].task)
    compared = measures.measure(ours, theirs)["parts"][part]["sides"]["against"]
    found |= {"difference": compared["difference"], "interval": compared["difference_interval"]}
    verdict, why = _verdict(found["interval"])
    return {**found, "p": compared["p"], "verdict": verdict, "why": why}


def _verdict(ends: Sequence[float] | None) -> tuple[str, str]:
    """What the interval of a difference says of an ordering."""
    if ends is None:
        return "not shown", "no interval: fewer than 20 images, or no question"
    if ends[0] > 0:
        return "holds", "the interval is above 0"
    if ends[1] < 0:
        return "does not hold", "the interval is below 0"
    return "not shown", "the interval contains 0"


def _figure(table: Table, kinds: dict[str, str]) -> dict[str, Any] | None:
    """The plot, and which part it shows of each column."""
    if table.figure is None:
        return None
    parts = {column: _known(table.figure.part, kind) for column, kind in kinds.items()}
    return {**asdict(table.figure), "parts": {c: part for c, part in parts.items() if part}}


def _differences(
    table: Table,
    tasks: dict[str, Task],
    cells: dict[tuple[str, str], list[Cell]],
    out: Path,
) -> dict[str, Any] | None:
    """Which files the sheets of pictures compare: those of the first seed that both have."""
    if (wanted := table.differences) is None:
        return None
    sheets, missing = [], []
    for column, task in tasks.items():
        pairs = list(zip(cells[wanted.here, column], cells[wanted.there, column], strict=True))
        pair = next((pair for pair in pairs if all(is_done(one, out) for one in pair)), None)
        if pairs[0][0].resolved.kind == "retrieval":
            continue
        for protocol in task.protocols:
            place = {"column": column, "protocol": protocol}
            if pair is None:
                lacking = next(cell for cell in pairs[0] if not is_done(cell, out))
                missing.append({**place, "why": _why(lacking, out)})
                continue
            here, there = (Files(cell, protocol, out) for cell in pair)
            paths = {"here": here.relative(here.own), "there": there.relative(there.own)}
            test = here.cell.resolved.data.test
            sheets.append({**place, "seed": here.cell.seed, **paths, "data": test})
    return {**asdict(wanted), "sheets": sheets, "missing": missing}
