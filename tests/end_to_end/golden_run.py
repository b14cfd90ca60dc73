"""The run whose losses and shards no refactoring may move, and the recording of them.

    python -m tests.end_to_end.golden_run

writes tests/golden/run.json again. Do that only for a change that is meant to change numbers, and
say in its commit why they changed. Losses that move need a VERSION raised (see `refusal`): by it
the finished cells of run_tables.py are known to be of other code. Shards that move need none, since
a cell knows its data by their digests.
"""

import hashlib
import importlib
import json
import math
import sys
import tempfile
from pathlib import Path

import torch

import run_finetune
import run_pretrain
from data_prep import phantoms, roco, vqa_rad
from m3ae.training.logs import read_log
from tests.recipe import GOLDEN, ROOT

RECORD = GOLDEN / "run.json"
ROOMS = ("data", "models", "training", "pretraining", "downstream", "scoring")
STEPS = 20
SIZES = "--train 64 --validation 4 --test 16 --vqa 40 --workers 1 --layouts roco vqa_rad".split()


def prepare(folder: Path) -> None:
    """The phantoms' raw corpora and their shards, below `folder`."""
    assert phantoms.main(["--out", str(folder / "raw"), *SIZES]) == 0
    common = ["--px", "144", "--workers", "0", "--tokenizer"]
    raw, out = ["--raw", str(folder / "raw/roco")], ["--out", str(folder / "shards")]
    assert roco.main([*raw, *out, *common, "train:400"]) == 0
    raw, out = ["--raw", str(folder / "raw/vqa_rad")], ["--out", str(folder / "questions")]
    assert vqa_rad.main([*raw, *out, *common, str(folder / "shards/tokenizer")]) == 0


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every shard, list of answers and vocabulary."""
    paths = [*folder.glob("*/*/*.safetensors"), *folder.glob("*/answers.json")]
    paths += folder.glob("shards/tokenizer/tokenizer.json")
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
    }


def losses(folder: Path) -> dict[str, list[float]]:
    """The first losses of quickstart.yaml, and of a fine-tuning of that model."""
    pairs = [f"data.train=[{folder}/shards/train]", f"data.valid=[{folder}/shards/test]"]
    tokenizer = f"data.tokenizer={folder}/shards/tokenizer"
    run, tuned = folder / "run", folder / "tuned"
    often = [f"train={{log_every: 1, checkpoint_every: {STEPS}}}"]
    small = ["eval={every: 0, samples: 16, final_samples: 16, mask_draws: 1, batch: 16}"]
    arguments = [*pairs, tokenizer, *often, *small, f"output={run}", f"train.steps={STEPS}"]
    config = str(ROOT / "configs/pretrain/quickstart.yaml")
    assert run_pretrain.main(["--config", config, *arguments]) == 0
    rows = [f"data.train={folder}/questions/train", f"data.test={folder}/questions/test"]
    # `paper` trains on all rows, so no rule on what to leave out touches these losses.
    arguments = [*rows, tokenizer, *often, f"output={tuned}", f"init={run}", "protocol=paper"]
    config = str(ROOT / "configs/finetune/quickstart.yaml")
    assert run_finetune.main(["--config", config, *arguments, "train.epochs=2"]) == 0
    logs = {"pretrain": read_log(run, "train"), "finetune": read_log(tuned, "train")}
    return {name: [line["loss"] for line in lines[:STEPS]] for name, lines in logs.items()}


def machine() -> dict[str, str]:
    """What the last bits of a loss depend on: torch, its kernels, the CPU's instructions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "torch": torch.__version__.partition("+")[0],
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "flags": hashlib.sha256(flags.encode()).hexdigest()[:16],
    }


def versions() -> dict[str, int]:
    """VERSION of every room whose change can change a run's numbers."""
    return {room: importlib.import_module(f"m3ae.{room}").VERSION for room in ROOMS}


def record() -> dict[str, object]:
    """Prepare, run, and return all that `RECORD` holds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        facts = {"machine": machine(), "versions": versions(), "files": digests(Path(name))}
        return facts | {"losses": losses(Path(name))}


def refusal(old: dict, new: dict) -> str | None:
    """Why a record may not take the place of `old`; None where it may.

    Its losses moved, by more than the 1e-3 that another machine may cause, and no version rose.
    """
    had = old["versions"]
    if any(version > had.get(room, version) for room, version in new["versions"].items()):
        return None
    exact = old["machine"] == new["machine"]
    moved = [name for name in old["losses"] if not same(old, new, name, exact)]
    if not moved:
        return None
    where = ", ".join(f"src/m3ae/{room}" for room in ROOMS)
    what = f"the losses of {' and '.join(moved)} moved and no version was raised"
    return f"{what}; raise VERSION in __init__.py of the room that changed ({where}), record again"


def same(old: dict, new: dict, name: str, exact: bool) -> bool:
    """Whether two records have the same losses of a run, to the last bit or to 1e-3."""
    pairs = zip(old["losses"][name], new["losses"][name], strict=True)
    return all(a == b or (not exact and math.isclose(a, b, rel_tol=1e-3)) for a, b in pairs)


def main() -> None:
    """Record, or exit with the reason why not."""
    new = record()
    if why := refusal(json.loads(RECORD.read_text(encoding="utf-8")), new):
        sys.exit(why)
    RECORD.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
