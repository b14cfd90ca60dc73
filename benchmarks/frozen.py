"""Fine-tuning steps: all parameters, frozen encoders, and frozen ones encoded once, in one run.

    python benchmarks/frozen.py                       the base model at 384 px, CPU, some minutes
    python benchmarks/frozen.py --config C --pairs 32 --length 24 --px 84 --precision bf16

Random weights and pairs, 500 answers, texts of full length, whole steps with AdamW; the three take
turns, and the smallest time of each counts. `frozen` is `train.freeze=[image_encoder,
text_encoder]` where nothing is kept (as for retrieval, or images under augmentation).
`encoded_once` reads the features from the batch, as m3ae.downstream.frozen gives them; encoding
itself is left out: it is done once a run, at `encode_s` a pair. Prints JSON.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from m3ae.config import load_config
from m3ae.downstream.model import Downstream, at_size
from m3ae.models.param_groups import param_groups
from m3ae.training.distributed import Processes
from m3ae.training.engine import Trainer
from m3ae.training.optim import build_optimizer, set_lr
from m3ae.training.precision import DTYPES, autocast

ANSWERS = 500
ENCODERS = ("image_encoder", "text_encoder")


def main(argv: list[str] | None = None) -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent.parent / "configs/pretrain/m3ae.yaml"
    parser.add_argument("--config", default=str(default), help="of pre-training: sizes, optimiser")
    parser.add_argument("--px", type=int, default=384, help="side of the images")
    parser.add_argument("--length", type=int, default=32, help="tokens of a text")
    parser.add_argument("--pairs", type=int, default=8, help="of a step")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    weights = ["model.image_encoder.weights=null", "model.text_encoder.weights=null"]
    config = load_config(args.config, [*weights, *args.overrides])
    alone = Processes(0, 0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    batch = {
        "image": torch.randint(0, 256, (args.pairs, 3, args.px, args.px), dtype=torch.uint8),
        "text_ids": torch.randint(
            5, config.model.text_encoder.vocab_size, (args.pairs, args.length)
        ),
        "text_keep": torch.ones(args.pairs, args.length, dtype=torch.bool),
        "target": torch.randint(0, ANSWERS, (args.pairs,)),
    }

    ways: dict[str, tuple[Trainer, dict[str, torch.Tensor]]] = {}
    encode_s = 0.0
    for name in ("whole", "frozen", "encoded_once"):
        model = Downstream(at_size(config.model, args.px), "vqa", ANSWERS).train()
        mine = batch
        if name != "whole":
            model.freeze(ENCODERS)
        if name == "encoded_once":
            started = time.perf_counter()
            with torch.no_grad(), autocast(alone.device, args.precision):
                image = model.image_encoder(model.normalise(batch["image"]))
                text = model.text_encoder(batch["text_ids"], batch["text_keep"])
            encode_s = (time.perf_counter() - started) / args.pairs
            dtype = DTYPES[args.precision]
            mine = batch | {"image_features": image.to(dtype), "text_features": text.to(dtype)}
        optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
        set_lr(optimizer, 1, 2, config.optim)
        ways[name] = Trainer(model, optimizer, alone, args.precision, None), mine

    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):  # the first one warms up
        for name, (trainer, mine) in ways.items():
            started = time.perf_counter()
            trainer.train_step([mine])
            seconds = time.perf_counter() - started
            print(f"{name}: {seconds:.2f} s a step", file=sys.stderr)
            if number:
                times[name].append(seconds)

    best = {name: min(values) for name, values in times.items()}
    print(
        json.dumps(
            {
                "config": Path(args.config).name,
                "overrides": args.overrides,
                "image_px": args.px,
                "text_length": args.length,
                "pairs": args.pairs,
                "precision": args.precision,
                "rounds": args.rounds,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "python": platform.python_version(),
                "machine": platform.processor() or platform.machine(),
                "step_s": {name: round(value, 3) for name, value in best.items()},
                "speedup": {name: round(best["whole"] / value, 3) for name, value in best.items()},
                "encode_s": round(encode_s, 4),
            },
            indent=2,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
