"""run_pretrain from the command line: a run, its files, resuming, mistakes."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

import run_pretrain
from m3ae.config import load_config
from m3ae.data.shards import Shards
from m3ae.models import M3AE, build_model
from m3ae.training.logs import read_log
from tests.recipe import ROOT


def test_a_run_writes_what_it_promises(small_run, tmp_path):
    """Catches a run folder that lacks a file, or an evaluation without one of its measures."""
    assert run_pretrain.main(small_run()) == 0
    run = tmp_path / "run"
    for name in ("config.yaml", "environment.json", "log.jsonl", "evaluation.json", "report.html"):
        assert (run / name).stat().st_size > 0, name
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step-00000004",
        "step-00000008",
    ]
    assert len(list((run / "pictures").glob("*.png"))) == 3
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["samples"] == 16
    assert {"mlm_accuracy", "mlm_attribute_accuracy", "mim_loss"} <= evaluation["measures"].keys()
    assert {"random", "hard"} <= evaluation["itm"].keys()
    train = read_log(run, "train")
    assert [entry["step"] for entry in train] == [2, 4, 6, 8]
    assert {"loss", "lr", "grad_norm", "samples_per_s", "data_wait_s", "mfu"} <= train[0].keys()
    assert [entry["step"] for entry in read_log(run, "eval")] == [0, 4, 8]
    model = M3AE.from_pretrained(run / "checkpoints" / "step-00000008")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["fusion"]["width"] == 32
    assert model.config.fusion.width == 32


def test_a_finished_run_is_left_alone(small_run, tmp_path, capsys):
    """Catches a second start that overwrites a result."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    before = (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns
    assert run_pretrain.main(small_run(steps=4)) == 0
    assert "is finished" in capsys.readouterr().err
    assert (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns == before


def test_a_finished_run_of_another_config_is_an_error(small_run, tmp_path, capsys):
    """Another seed, rate or earlier end in a finished run's folder answered with "is finished"."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    before = (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns
    assert run_pretrain.main(small_run("seed=7", "optim.lr=2e-3", "data.workers=1", steps=2)) == 2
    message = capsys.readouterr().err
    for key in ("optim.lr (0.001 there, 0.002 now)", "seed (0 there, 7 now)", "train.steps (4"):
        assert key in message
    assert "workers" not in message and "is finished" not in message
    assert run_pretrain.main(small_run("data.workers=1", steps=4)) == 0
    assert "is finished" in capsys.readouterr().err
    assert (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns == before


def states(folder):
    weights = load_file(folder / "model.safetensors")
    rest = torch.load(folder / "optimizer.pt", weights_only=True)
    moments = rest["optimizer"]["state"]
    return weights, {(k, n): t for k, state in moments.items() for n, t in state.items()}


def test_a_killed_run_goes_on_bitwise(small_run, tmp_path):
    """Catches anything that a checkpoint forgets: dropout's random state, order, moments."""
    settings = ["train.threads=1", "model.fusion.dropout=0.1", "train.checkpoint_every=3"]
    settings += ["model.text_encoder.attention_dropout=0.1", "train.log_every=3"]
    assert run_pretrain.main(small_run(*settings, name="whole", steps=12)) == 0
    arguments = small_run(*settings, name="killed", steps=12)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "run_pretrain.py", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (killed / "checkpoints" / "step-00000006").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "evaluation.json").exists(), "the run was over before it was killed"
    assert run_pretrain.main(arguments) == 0
    for one, two in zip(
        states(tmp_path / "whole/checkpoints/step-00000012"),
        states(killed / "checkpoints/step-00000012"),
        strict=True,
    ):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    logs = [read_log(tmp_path / name, "train") for name in ("whole", "killed")]
    assert [e["loss"] for e in logs[0]] == [e["loss"] for e in logs[1]]


def test_deterministic_algorithms(small_run, tmp_path):
    """A switch that is read and forgotten, or that the step cannot run under."""
    given = ["train.deterministic=true", "train.tf32=false"]
    try:
        assert run_pretrain.main(small_run(*given, steps=2)) == 0
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cuda.matmul.allow_tf32
        assert run_pretrain.main(small_run(name="other", steps=2)) == 0
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    finally:
        torch.use_deterministic_algorithms(False)
    logs = [read_log(tmp_path / name, "train") for name in ("run", "other")]
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]


def held_out(folder) -> float:
    return read_log(folder, "eval")[0]["mlm_loss"]


def test_a_run_that_starts_from_another(small_run, tmp_path, capsys):
    """Another recipe that starts from fresh weights, from moments of the old one, or with a head of
    other sizes that is filled in part; a tokeniser that is not the one of the weights; a
    fine-tuning control that does not begin where its pre-training did."""
    assert run_pretrain.main(small_run(steps=8, name="first")) == 0
    first = tmp_path / "first"
    mine = small_run(f"init={first}", "data.tokenizer=null", "optim.lr=0", steps=2, name="second")
    other = ["model.itm.weight=0", "model.mim={decoder: mlp, layer: 2}"]
    assert run_pretrain.main([*mine, *other]) == 0
    said = capsys.readouterr().err
    assert f"{first}: not in it, or of other sizes, so begun anew: mim_head" in said
    assert f"{first}: not used here: itm_head" in said
    before = load_file(first / "checkpoints/step-00000008/model.safetensors")
    after = load_file(tmp_path / "second/checkpoints/step-00000002/model.safetensors")
    kept = {key for key in after if not key.startswith("mim_head.")}
    assert all(torch.equal(before[key], after[key]) for key in kept) and len(kept) > 50
    assert held_out(tmp_path / "second") == read_log(first, "eval")[-1]["mlm_loss"]
    assert (tmp_path / "second/checkpoints/step-00000002/tokenizer.json").is_file()
    control = build_model(load_config(tmp_path / "second/config.yaml")).state_dict()
    assert all(torch.equal(before[key], control[key]) for key in kept)
    wrong = small_run(f"init={first}", "model.fusion.width=48", name="third")
    assert run_pretrain.main([*wrong, "model.fusion.heads=2"]) == 2
    assert "in the file, " in capsys.readouterr().err
    assert run_pretrain.main(small_run("init=nowhere/x/y", name="fourth")) == 2
    assert "nowhere/x/y does not exist" in capsys.readouterr().err


def test_another_config_does_not_resume(small_run, tmp_path, capsys):
    """Catches a run that goes on with other settings than it began with."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    longer = small_run("optim.lr=2e-3", "data.workers=1", steps=6)
    assert run_pretrain.main(longer) == 2
    message = capsys.readouterr().err
    assert "optim.lr (0.001 there, 0.002 now)" in message and "workers" not in message
    assert run_pretrain.main(small_run("data.workers=1", steps=6)) == 0


def test_a_checkpoint_of_an_older_version(small_run, tmp_path, capsys):
    """A traceback about the sizes of an optimiser, and no way on."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    last = tmp_path / "run/checkpoints/step-00000004"
    (last / "state.json").write_text('{"version": 2, "step": 4, "processes": 1}')
    assert run_pretrain.main(small_run(steps=6)) == 2
    message = f"version 2, this code resumes 3; init={last} output=... starts from its weights"
    assert message in capsys.readouterr().err
    assert run_pretrain.main(small_run(f"init={last}", steps=2, name="on")) == 0


def test_a_damaged_checkpoint(small_run, tmp_path, capsys):
    """A traceback of a library, weights of a file that a disk altered, or a fresh start: whatever
    file it is, the run goes on from the checkpoint before, and says why."""
    every = ["train.checkpoint_every=2", "train.keep_checkpoints=9", "train.log_every=1"]
    assert run_pretrain.main(small_run(*every, steps=6)) == 0
    run, losses = tmp_path / "run", {}
    (run / "evaluation.json").unlink()
    last = run / "checkpoints/step-00000006"
    for number, name in enumerate(("model.safetensors", "optimizer.pt", "rng-0.pt", "state.json")):
        data = bytearray((last / name).read_bytes())
        data[len(data) * (number % 5) // 5] ^= 1 << number % 8
        (last / name).write_bytes(data)
        capsys.readouterr()
        assert run_pretrain.main(small_run(*every, steps=6)) == 0
        said = capsys.readouterr().err
        assert f"{last / name}: damaged (" in said and "step-00000004" in said, name
        losses[name] = [line["loss"] for line in read_log(run, "train")]
        (run / "evaluation.json").unlink()
    assert len({tuple(values) for values in losses.values()}) == 1 and len(losses) == 4
    for folder in (run / "checkpoints").iterdir():
        (folder / "rng-0.pt").unlink()
    assert run_pretrain.main(small_run(*every, steps=6)) == 2
    assert f"{run}/checkpoints: all are damaged" in capsys.readouterr().err
    assert run_pretrain.main(small_run(*every, f"init={run}", steps=6, name="other")) == 2


def test_overrides_before_and_after_options(small_run, tmp_path, capsys):
    """key=value behind an option taken for an unknown argument."""
    config, *overrides = small_run("optim.lr=3e-4")[1:]
    split = [*overrides[:4], "--config", config, *overrides[4:8], "--print-config", *overrides[8:]]
    assert run_pretrain.main(split) == 0
    assert yaml.safe_load(capsys.readouterr().out)["optim"]["lr"] == 3e-4


def test_a_dry_run_looks_at_the_weights(small_run, tmp_path, capsys):
    """Weights of other sizes, or none, that are found out when the queue gives the GPUs."""
    assert run_pretrain.main(small_run(steps=2, name="first")) == 0
    good = small_run(f"init={tmp_path}/first", name="second")
    assert run_pretrain.main([*good, "--dry-run"]) == 0
    assert run_pretrain.main([*good, "model.fusion.width=64", "--dry-run"]) == 2
    assert "by the config" in capsys.readouterr().err
    gone = small_run("model.image_encoder.weights=/nowhere/clip.pt", name="third")
    assert run_pretrain.main([*gone, "--dry-run"]) == 2
    assert "/nowhere/clip.pt" in capsys.readouterr().err


def test_switches_may_change_on_resuming(small_run, capsys):
    """A run that cannot go on with less memory or other threads, or does not say that it did."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    changed = ["model.activation_checkpointing=true", "model.share=false", "train.threads=1"]
    capsys.readouterr()
    assert run_pretrain.main(small_run(*changed, steps=6)) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "changed since" in line]
    assert "model.activation_checkpointing (False there, True now)" in line
    assert "model.share (True there, False now)" in line
    assert "train.threads (None there, 1 now)" in line and "optim" not in line


def test_data_may_move_before_a_run_goes_on(small_run, shards, tmp_path, capsys):
    """A run that ends for good since its data lie elsewhere now, or that goes on with others."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    shutil.copytree(shards, tmp_path / "moved")
    moved = [f"data.train=[{tmp_path}/moved/train]", f"data.valid=[{tmp_path}/moved/test]"]
    moved.append(f"data.tokenizer={tmp_path}/moved/tokenizer")
    assert run_pretrain.main(small_run(*moved, steps=6)) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "changed since" in line]
    assert "data.train" in line and "data.valid" in line and "data.tokenizer" in line
    other = [moved[0].replace("/train]", "/test]"), *moved[1:]]
    assert run_pretrain.main(small_run(*other, steps=8)) == 2
    message = capsys.readouterr().err
    assert "made with another config: data.train (" in message and "data.valid" not in message


def test_a_loss_that_is_not_finite_stops_the_run(small_run, tmp_path, capsys):
    """Catches training on after a NaN, and a message that does not say where."""
    assert run_pretrain.main(small_run("optim.lr=1e38", "optim.clip_norm=null")) == 2
    message = capsys.readouterr().err
    assert "not finite" in message and "ROCO_" in message and "optim.lr" in message
    assert message.count("error:") == 1
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    for folder in kept:
        assert all(t.isfinite().all() for t in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.mlm.ration=0.2", "did you mean model.mlm.ratio"),
        ("optim.lr=fast", "optim.lr: expected float"),
        ("data.train=[nowhere]", "nowhere"),
        ("data.tokenizer=null", "data.tokenizer"),
        ("data.tokenizer=/nowhere", "tokeniser /nowhere"),
        ("model.text_encoder.weights=/nowhere", "/nowhere does not exist"),
        ("model.text_encoder.vocab_size=10", "vocab_size: 10 is too small"),
        ("model.image_encoder.image_px=96", "prepare with --px 96"),
        ("train.batch_per_process=3", "train.batch_per_process"),
        ("model.itm.group=3", "model.itm.group"),
        ("model.text_encoder.pad_id=1", "pad_id"),
    ],
)
def test_mistakes_end_in_one_line(small_run, tmp_path, capsys, override, says):
    """Catches a traceback, or a message that does not name the key or file."""
    assert run_pretrain.main(small_run(override)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and says in errors[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_dry_run_and_print_config(small_run, tmp_path, capsys):
    """Catches a dry run that trains, or a printed config that does not load."""
    assert run_pretrain.main(["--print-config", *small_run()]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert run_pretrain.main(["--dry-run", "--config", str(tmp_path / "printed.yaml")]) == 0
    assert "gflop per sample" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(small_run, tmp_path, precision):
    """Catches a type that autocast does not carry, or a scaler that is not unscaled."""
    assert run_pretrain.main(small_run(f"train.precision={precision}", steps=4)) == 0
    losses = [entry["loss"] for entry in read_log(tmp_path / "run", "train")]
    assert run_pretrain.main(small_run(name="full", steps=4)) == 0
    full = [entry["loss"] for entry in read_log(tmp_path / "full", "train")]
    assert losses == pytest.approx(full, rel=0.02) and losses != full


def test_excluded_images_are_not_trained_on(small_run, shards, tmp_path, capsys):
    """data.exclude that is read and then forgotten."""
    listed = [Shards(shards / "train").image_key(row) for row in range(10)]
    (tmp_path / "exclude.txt").write_text("".join(f"{key}\tin a test set\n" for key in listed))
    excluded = f"data.exclude=[{tmp_path}/exclude.txt]"
    assert run_pretrain.main([*small_run(excluded), "--dry-run"]) == 0
    assert re.search(r"training pairs +30\n", capsys.readouterr().err)
