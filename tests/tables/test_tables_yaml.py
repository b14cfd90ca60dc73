"""configs/tables/: every table, what it names, and the numbers of others in it."""

import re
from pathlib import Path

import pytest
import torch

import verify_released
from m3ae.config import load_config
from m3ae.downstream.config import load_finetune_config
from m3ae.models.m3ae import M3AE
from m3ae.tables.cells import folders_of
from m3ae.tables.definition import Size, Source, Task, names, read_shared, read_table
from m3ae.tables.plan import pretraining
from tests.recipe import ROOT

PARTS = {
    "vqa": {"open", "closed", "overall"},
    "classification": {"accuracy", "macro_f1"},
    "retrieval": {f"{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)},
}
OPEN_CLOSED = {451: (179, 272), 1061: (645, 416)}  # VQA-RAD and SLAKE


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def tables():
    return [read_table(name) for name in names()]


def config_of(row, size):
    config, overrides = pretraining(row, size, ())
    return load_config(config, overrides)


def task_config(task):
    """As a cell has it, some pre-training in the place of the row's."""
    init = ["init=runs/some"] if task.pretrained else []
    given = [text.replace("{seed}", "0") for text in task.set]
    return load_finetune_config(task.config, [*init, *given])


def published():
    return [(table, entry) for table in tables() for entry in table.published]


def test_every_table_is_there():
    """A table of the issue that is missing, or one without rows or columns."""
    wanted = "1 2 3 4 fig2 fig3 masking decoders sharing itm few_labels released"
    assert set(wanted.split()) <= set(names())
    assert all(table.rows and table.columns for table in tables())


def test_every_row_builds_at_every_size():
    """An ablation that does not exist, or that only one size can take (k = 6 of 3 layers)."""
    sizes = read_shared("sizes", Size)
    seen = set()
    for table in tables():
        assert set(table.columns) <= set(sizes)
        for name in table.columns:
            rows = [row for row in table.rows.values() if row.pretrain is not None]
            models = [config_of(row, sizes[name]).model for row in rows]
            assert len(set(map(repr, models))) == len(rows) or table.name == "3_strict", table.name
            for model in models:
                if repr(model) not in seen:
                    seen.add(repr(model))
                    with torch.device("meta"):
                        M3AE(model)


def test_rows_are_what_they_say():
    """A size whose own ratios, layer, depth or dropout make a row something else than its title."""
    sizes = read_shared("sizes", Size)
    for size in ("paper", "small"):
        for row in read_table("masking").rows.values():
            model = config_of(row, sizes[size]).model
            assert (model.mim.ratio, model.mlm.ratio) == (row.x, row.y)
        for row in read_table("fig2").rows.values():
            assert config_of(row, sizes[size]).model.mim.layer == row.x
        for row in read_table("decoders").rows.values():
            model = config_of(row, sizes[size]).model
            said = dict(part.split(": ") for part in row.title.removesuffix(" (M3AE)").split("; "))
            for words, part in ((said["images"], model.mim), (said["words"], model.mlm)):
                depth = re.search(r"\d+", words)
                assert part.decoder == words.partition(",")[0].lower()
                assert depth is None or int(depth[0]) == part.decoder_depth
        plain, shared = (
            config_of(read_table("sharing").rows[k], sizes[size]).model for k in ("plain", "shared")
        )
        assert (plain.share, shared.share) == (False, True)
        assert plain.text_encoder.dropout == plain.fusion.dropout == 0.1


def test_every_task_loads():
    """A column whose config, protocol or parts do not fit what the run writes."""
    used = {name for table in tables() for some in table.columns.values() for name in some}
    tasks = read_shared("tasks", Task)
    assert used <= set(tasks)
    for name, task in tasks.items():
        config = task_config(task)
        both = ("paper", "strict")
        assert task.protocols == (both if config.protocol == "both" else (config.protocol,)), name
        assert set(task.parts) <= PARTS[config.task], name
        assert task.pretrained == (config.init == "runs/some"), name


def test_every_folder_says_how_it_is_made():
    """A folder that a run lacks and no line says how to prepare; a script that does not exist."""
    sources = read_shared("data", Source)
    configs = [task_config(task) for task in read_shared("tasks", Task).values()]
    sizes = read_shared("sizes", Size)
    configs += [load_config(size.pretrain) for size in sizes.values()]
    configs += [
        config_of(row, sizes[size])
        for table in tables()
        for size in table.columns
        for row in table.rows.values()
    ]
    for folder in {folder for config in configs for folder in folders_of(config)}:
        place = Path(folder)
        if place.parts[0] == "data":
            assert any(place.is_relative_to(name) for name in sources), folder
    for name, source in sources.items():
        scripts = re.findall(r"data_prep/\w+\.py", source.prepare)
        assert all((ROOT / script).is_file() for script in scripts)
        assert scripts or name == "data/released"
        assert not scripts or f"--out {name} " in f"{source.prepare} "


def test_published_numbers_fit_their_columns():
    """A number under a wrong column, of other questions (VQA-Med-2019 over 500), or twice."""
    seen = set()
    for table, entry in published():
        tasks = read_shared("tasks", Task) | (table.tasks or {})
        task = tasks[entry.column]
        assert entry.protocol in task.protocols
        assert set(entry.values) <= set(task.parts)
        assert task.questions is None or entry.questions == task.questions
        assert entry.source and entry.how
        key = (table.name, entry.column, entry.row or entry.name)
        assert key not in seen
        seen.add(key)


def test_published_parts_give_their_total():
    """A digit copied wrongly: open and closed together must be about what stands over all."""
    checked = 0
    for table, entry in published():
        values = entry.values
        if {"open", "closed", "overall"} <= set(values):
            open_, closed = OPEN_CLOSED[entry.questions]
            total = (open_ * values["open"] + closed * values["closed"]) / (open_ + closed)
            assert total == pytest.approx(values["overall"], abs=0.1), (table.name, entry)
            checked += 1
    assert checked > 20


def test_published_recalls_rise():
    """R@5 below R@1: two columns of the paper's table exchanged."""
    for _, entry in published():
        for way in ("t2i", "i2t"):
            recalls = [
                entry.values[f"{way}_r{k}"] for k in (1, 5, 10) if f"{way}_r{k}" in entry.values
            ]
            assert recalls == sorted(recalls)


def test_released_percentages_are_verify_released_s_counts():
    """Two places that expect other numbers of the authors' checkpoints."""
    sources = {
        "vqa_rad_released": "VQA-RAD",
        "slake_released": "SLAKE",
        "vqa_med_2019_released": "VQA-Med-2019, questions",
        "melinda_released": "MELINDA",
    }
    table = read_table("released")
    for column, source in sources.items():
        questions, rights = verify_released.EXPECTED[source]
        percents = [100 * right / questions for right in rights] if questions else rights
        found = [sum(e.values.values()) for e in table.published if e.column == column and e.name]
        assert sorted(round(x, 1) for x in percents) == sorted(found)


def test_percentages_alone_are_compared_as_counts():
    """MELINDA's checkpoints passed over in silence, since its number of rows is not published."""
    assert verify_released.compare([398, 390, 388], 500, "MELINDA", None) == [0, 0, 0]
    assert verify_released.compare([388, 398, 380], 500, "MELINDA", None) == [-2, 0, -8]
