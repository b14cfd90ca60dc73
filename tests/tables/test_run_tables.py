"""run_tables.py: what it prints, what it submits, and a table from the first step to the report."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run_tables
from m3ae.downstream.model import Downstream
from m3ae.pretraining.cost import step_flops
from m3ae.tables import forecast
from tests.conftest import SMALL
from tests.end_to_end.conftest import FAST
from tests.recipe import ROOT
from tests.tables.conftest import outcomes, plan, said

TINY = ["--tables", "t", "--size", "tiny", "--seeds", "1", "--out", "out"]
OWN = """
title: mine
columns: {tiny: [mine]}
tasks:
  mine: {title: Mine, config: configs/finetune/tiny.yaml, protocols: [strict], parts: [overall]}
rows:
  none: {title: none, pretrain: null}
  one: {title: one, pretrain: configs/pretrain/tiny.yaml}
  two: {title: two, pretrain: [half]}
claims: [{above: two, below: none, part: overall, source: my guess}]
"""


@pytest.fixture()
def fresh(tmp_path, monkeypatch):
    """A clone without data."""
    for name in ("configs", "run_pretrain.py", "run_finetune.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --------------------------------------------------------------------------- what it would do


def test_dry_run_in_a_fresh_clone(fresh, capsys):
    """A dry run that needs data or a GPU, or does not say how to get what is lacking."""
    words = ["--tables", "4", "fig2", "3", "--size", "small", "--seeds", "1", "--rate", "0.1"]
    assert run_tables.main(["--dry-run", *words]) == 0
    text = capsys.readouterr().out
    cells = text.split("\n\n")[:-2]
    assert len(cells) == 12 + 2 * 14 + 2
    assert all(len(cell.strip().splitlines()) == 4 for cell in cells)
    assert len(
        re.findall(
            r"^  python run_(pretrain|finetune)\.py --config \S+ .*seed=0 output=runs/"
            r"tables/cells/small-\S+-s0-[0-9a-f]{10}$",
            text,
            re.M,
        )
    ) == len(cells)
    assert len(re.findall(r"^  lacks data/tables/", text, re.M)) == len(cells)
    assert "  evaluation alone, not counted, 0.0 GiB a process in" in text
    prepare = text[text.index("To prepare:") :]
    for name in ("pairs", "questions", "pool"):
        assert f"\n  data/tables/{name}: python data_prep/" in prepare
    assert "data/tables/classes" not in text
    assert re.search(r"\n42 cells, 0 finished\n[\d.]+ h in all .* at 0\.1 TFLOP/s \(given\)", text)
    assert not (fresh / "runs").exists()


def test_list(bench, capsys):
    """A list that runs something, or calls what is lacking finished."""
    assert run_tables.main([*TINY, "--list"]) == 0
    assert capsys.readouterr().out.count("  not run\n") == 4 and said("start") == []
    done = plan().all[0].folder(bench / "out")
    done.mkdir(parents=True)
    (done / "done.json").write_text("{}")
    shutil.rmtree("data/other")
    assert run_tables.main([*TINY, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and lines[0] == f"{done.name}  finished"
    assert sum(line.endswith("  data are lacking: data/other/test") for line in lines) == 3
    assert lines[-1] == "1 of 8 cells are finished"


@pytest.mark.parametrize(
    ("words", "said_then"),
    [
        (["--only", "nothing"], "--only nothing: no cell's name holds it; --list shows them"),
        (["--tables", "fig9"], "--tables fig9: none of t; or give a .yaml file"),
        (["--tables", "fig9.yaml"], "config fig9.yaml does not exist"),
        (["--size", "papre"], "--size papre: none of tiny"),
        (["--set-pretrain", "optim.rl=1"], "unknown key optim.rl; did you mean optim.lr?"),
        (["--set-finetune", "data.fractoin=1"], "did you mean data.fraction?"),
        (["--seeds", "0"], "--seeds and --jobs: at least 1"),
    ],
)
def test_mistakes(bench, capsys, words, said_then):
    """A traceback, or a night's work on something else, after a slip of the pen."""
    assert run_tables.main([*TINY, *words, "--list"]) == 1
    assert said_then in capsys.readouterr().err
    assert not (bench / "out").exists()


def test_from_another_folder(tmp_path, monkeypatch, capsys):
    """A list of tables that are not there instead of a word on where to start."""
    monkeypatch.chdir(tmp_path)
    assert run_tables.main(["--list"]) == 1
    assert "start this in the repository's folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ the work


def test_only_what_was_asked_for(bench):
    """`--only` that runs a fine-tuning without its pre-training, or all of them."""
    cell = plan().cells["t"]["half", "b"][0]
    assert run_tables.main([*TINY, "--only", cell.id]) == 0
    assert said("end") == [cell.init.id, cell.id]
    assert not (bench / "out/index.html").exists()


def test_a_failure_is_the_exit_status(bench, capsys):
    """A script that goes on after `run_tables.py && ...` though half of the table is not there."""
    (bench / "fail").write_text("tiny-half-s0")
    assert run_tables.main([*TINY, "--only", "half"]) == 1
    assert "3 of 3 cells are not finished because of failures" in capsys.readouterr().err


def test_slurm(bench, monkeypatch, capsys):
    """A script that no shell reads, whose fine-tunings do not wait, or whose jobs do nothing."""
    (bench / "bin").mkdir()
    for name, says in (
        ("sbatch", 'echo "$*" >> calls; echo "17;cluster"'),
        ("python", 'echo "$@"'),
    ):
        (bench / "bin" / name).write_text(f"#!/bin/bash\n{says}\n")
        (bench / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bench / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "argv", ["pytest", "of", "another"])
    assert run_tables.main([*TINY, "--slurm", "jobs.sh", "--set-finetune", "optim.lr=0.5"]) == 0
    assert "jobs.sh: 8 jobs. Submit them: bash jobs.sh" in capsys.readouterr().out
    assert subprocess.run(["bash", "-n", "jobs.sh"]).returncode == 0
    assert subprocess.run(["bash", "jobs.sh"], stdout=subprocess.DEVNULL).returncode == 0
    assert (bench / "calls").read_text().splitlines() == [
        "--parsable --array=0-1 jobs.sh",
        "--dependency=afterany:17 --array=2-7 jobs.sh",
    ]
    ids = []
    for task in range(8):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        done = subprocess.run(
            ["bash", str(bench / "jobs.sh")], capture_output=True, text=True, cwd="/"
        )
        words = shlex.split(done.stdout)
        assert words[:-2] == ["run_tables.py", *TINY, "--set-finetune", "optim.lr=0.5"]
        assert words[-2] == "--only"
        ids.append(words[-1])
    assert len(set(ids)) == 8 and all("--" not in name for name in ids[:2])
    assert run_tables.main([*words[1:-1], ids[0]]) == 0  # a job
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert run_tables.main([*words[1:-2], "--slurm=rest.sh"]) == 0  # what is left
    (bench / "calls").unlink()
    subprocess.run(["bash", "rest.sh"], stdout=subprocess.DEVNULL)
    assert (bench / "calls").read_text().splitlines()[0] == "--parsable --array=0-0 rest.sh"
    shutil.rmtree("data/asked")
    assert run_tables.main([*TINY, "--slurm", "jobs.sh"]) == 1
    assert "--slurm: prepare first data/asked/test, data/asked/train;" in capsys.readouterr().err


def test_a_table_of_ones_own(bench, capsys):
    """Ten lines that a user writes: a task of theirs, a config by its path."""
    (bench / "mine.yaml").write_text(OWN)
    words = ["--tables", "mine.yaml", *TINY[2:], "--only", "mine"]
    assert run_tables.main(words) == 0
    assert len(said("end")) == 5 and len(outcomes(bench / "out")) == 5
    assert run_tables.main(["--tables", "t", "mine.yaml", *TINY[2:], "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The columns `a` and `mine` differ by name alone.
    assert sum(line.endswith("  finished") for line in lines) == 5 and len(lines) == 9


def pages_in(out: Path) -> dict[Path, bytes]:
    """The report's files."""
    found = [path for path in out.rglob("*.*") if path.is_file()]
    runs = (out / "cells", out / "measured")
    return {path: path.read_bytes() for path in found if not set(runs) & set(path.parents)}


def test_from_the_first_step_to_the_report(shards, questions, bench):
    """Real runs that are run again for nothing, or whose second report is another; a finished run
    without predictions."""
    for name in ("run_pretrain.py", "run_finetune.py"):
        (bench / name).unlink()
        (bench / name).symlink_to(ROOT / name)
    (bench / "configs/tables/t.yaml").write_text(
        "title: one cell\ncolumns: {tiny: [a]}\nrows: {whole: {title: whole, pretrain: []}}\n"
    )
    words = [*TINY, "--set-pretrain", *SMALL, "train.steps=4", f"data.train=[{shards}/train]"]
    words += [f"data.valid=[{shards}/test]", f"data.tokenizer={shards}/tokenizer"]
    words += ["--set-finetune", *FAST, "train.epochs=1", f"data.train={questions}/train"]
    words += [f"data.test={questions}/test", f"data.tokenizer={shards}/tokenizer"]
    words += ["protocol=strict"]
    assert run_tables.main(words) == 0
    cells = sorted((bench / "out/cells").iterdir())
    assert len(cells) == 2 and all((cell / "done.json").is_file() for cell in cells)
    outputs = [(cell / "output.txt").read_bytes() for cell in cells]
    pages = pages_in(bench / "out")
    assert {path.suffix for path in pages} >= {".html", ".md", ".csv", ".tex"}
    assert b"whole" in pages[bench / "out/t/table.html"]
    for again in ([], ["--report-only"]):
        for path in pages:
            path.unlink()
        assert run_tables.main([*words, *again]) == 0
        assert pages_in(bench / "out") == pages
        assert [(cell / "output.txt").read_bytes() for cell in cells] == outputs
    logged = [json.loads(line) for line in (cells[1] / "log.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in logged) == 4


# --------------------------------------------------------------------------------- the forecast


def of(row: str, **changes):
    """A cell of the table `t`, with other values of `data`, `train` and the whole config."""
    cell = plan().cells["t"][row, "a"][0]
    config = cell.resolved
    for section in ("data", "train"):
        config = dataclasses.replace(
            config,
            **{section: dataclasses.replace(getattr(config, section), **changes.pop(section, {}))},
        )
    cell = dataclasses.replace(cell)
    vars(cell)["resolved"] = dataclasses.replace(config, **changes)
    return cell


@pytest.fixture()
def steps(bench, monkeypatch):
    """Every fine-tuning takes 12 steps an epoch."""
    monkeypatch.setattr("m3ae.tables.cells._rows", lambda config: 12 * config.train.batch_global)


def flops_a_text(cell) -> float:
    config = cell.resolved
    return forecast.flops_of(cell) / (12 * config.train.epochs * config.train.batch_global)


def test_flops_of_pretraining(bench):
    """Hours that are off by the backward pass, the batch or the steps."""
    cell = plan().cells["t"]["whole", "a"][0].init
    train, model = cell.resolved.train, cell.resolved.model
    wanted = step_flops(model, cell.resolved.data.text_length) * train.steps * train.batch_global
    assert forecast.flops_of(cell) == pytest.approx(wanted, rel=0.03)


def test_flops_of_finetuning(steps):
    """Hours of texts that are not read, of frozen encoders, of training that is not done."""
    whole, px = of("whole"), {"image_px": 144}
    architecture = forecast.architecture(whole)
    network = forecast._meta_model(architecture)
    assert isinstance(network, Downstream)
    trained = flops_a_text(whole)
    # 2 a weight and token forward and twice that backward; the attention products come on top.
    length, text = whole.resolved.data.text_length, network.text_encoder.blocks
    tokens = {"image_encoder": (36, network.image_encoder), "text_encoder": (length, text)}
    blocks = {
        name: 6 * count * sum(weight.numel() for weight in part.parameters())
        for name, (count, part) in tokens.items()
    }
    frozen = {name: flops_a_text(of("whole", train={"freeze": (name,)})) for name in tokens}
    for name in tokens:
        epochs = whole.resolved.train.epochs
        saved = (trained - frozen[name]) * 3 / (3 - 1 / epochs)  # encoded once in all epochs
        assert blocks[name] * 0.99 < saved < 1.5 * blocks[name]
    moved = {"augmentation": "resized_crop"}
    some = flops_a_text(of("whole", data=moved, train={"freeze": ("image_encoder",)}))
    assert frozen["image_encoder"] < some < trained  # its features change at every step
    few, many = (
        flops_a_text(of("whole", task="retrieval", data={**px, "false_texts": count}))
        for count in (1, 15)
    )
    assert 4 < many / few < 8  # 16 texts against 2, one image
    zero = of("whole", eval_only=True)
    assert zero.steps == 0 and forecast.flops_of(zero) == 0


def test_memory(steps, monkeypatch):
    """Memory in a precision that is not trained in, of optimiser states that there are not."""
    monkeypatch.setattr(forecast, "_device", lambda: torch.device("cpu"))
    whole = forecast.memory_gib(of("whole"))
    assert forecast.memory_gib(of("whole", train={"precision": "fp32"})) == whole  # auto, on a CPU
    half = forecast.memory_gib(of("whole", train={"precision": "bf16"}))
    frozen = forecast.memory_gib(of("whole", train={"freeze": ("image_encoder", "text_encoder")}))
    zero = forecast.memory_gib(of("whole", eval_only=True))
    assert whole > half > zero and whole > frozen > zero
    pretraining = plan().cells["t"]["whole", "a"][0].init
    weights = forecast._parameters(pretraining.resolved.model)
    assert forecast.memory_gib(pretraining) * 2**30 > 16 * weights
    count = sum(
        p.numel() for p in forecast._meta_model(forecast.architecture(of("whole"))).parameters()
    )
    assert zero * 2**30 == pytest.approx(4 * count)
    retrieval = of("whole", task="retrieval", data={"false_texts": 15})
    assert 4 < forecast.memory_gib(retrieval) / whole < 16
