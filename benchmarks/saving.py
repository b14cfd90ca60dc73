"""How long a checkpoint holds up training, against how long it takes to write.

    python benchmarks/saving.py --out /a/disk/to/try

Of a model of the paper's size with its moments (4 GiB): the first checkpoint allocates the copy
that the later ones use again. Prints JSON.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from m3ae.config import Config, load_config
from m3ae.models import build_model
from m3ae.models.param_groups import param_groups
from m3ae.training.distributed import Processes
from m3ae.training.engine import Trainer
from m3ae.training.optim import build_optimizer
from m3ae.training.saving import Saver


class NoTokenizer:
    """Its files are a few hundred kilobytes."""

    def save_pretrained(self, folder: str) -> None:
        pass


def trainer_of(config: Config) -> Trainer:
    """A trainer after one step of gradients that are all 1e-3."""
    model = build_model(config)
    optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
    trainer = Trainer(model, optimizer, Processes(0, 0, 1, torch.device("cpu")), "fp32", None)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad()
    return trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--config", default="configs/pretrain/m3ae.yaml", help="whose model is saved")
    add("--out", type=Path, help="a folder on the disk to try; default: the system's temporary one")
    add("--saves", type=int, default=4, help="checkpoints, of which the first is told apart")
    args = parser.parse_args(argv)
    fresh = ["model.image_encoder.weights=null", "model.text_encoder.weights=null"]
    config = load_config(args.config, [*fresh, "train.keep_checkpoints=1"])
    run = Path(tempfile.mkdtemp(dir=args.out))
    try:
        saver, rows = Saver(run, trainer_of(config), config, NoTokenizer()), []
        for step in range(1, args.saves + 1):
            started = time.perf_counter()
            saver.save(step)
            held_up = time.perf_counter() - started
            with saver.trainer.still:  # where a step would wait that has its gradients at once
                copied = time.perf_counter() - started
            saver.wait()
            if error := saver.failure():
                raise error
            rows.append((held_up, copied, time.perf_counter() - started))
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(run)
    held_up, copied, whole = map(sorted, zip(*rows[1:], strict=True))
    middle = len(rows[1:]) // 2
    result = {
        "gib": round(size / 2**30, 2),
        "threads": torch.get_num_threads(),
        "seconds_held_up": [round(row[0], 2) for row in rows],
        "seconds_copied": [round(row[1], 2) for row in rows],
        "seconds_in_all": [round(row[2], 2) for row in rows],
        "held_up_of_all": round(held_up[middle] / whole[middle], 4),
        "copied_of_all": round(copied[middle] / whole[middle], 4),
    }
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
