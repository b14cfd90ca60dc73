"""Seconds and memory of a training step: `share: true` against `share: false`, in one run.

    python benchmarks/step.py                    the paper's base model, CPU, fp32, about 8 minutes
    python benchmarks/step.py --config C --pairs 8 --rounds 5

Random weights. The two kinds of step run in turn, in processes of their own (so that peak memory is
each one's), the smallest time of each counts. `full_length`: every text fills its 64 tokens.
`mean_30`: texts of 30 tokens on average; the plain step pads them to 64 as the reference does.
Prints JSON; FLOPs are counted on the model, not timed.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m3ae.config import Config, load_config
from m3ae.data.datasets import trim
from m3ae.data.masking import draw_in_batch_negatives, draw_patch_order, scored_positions
from m3ae.models import build_model
from m3ae.models.param_groups import param_groups
from m3ae.pretraining.cost import step_flops
from m3ae.training.distributed import Processes
from m3ae.training.engine import Trainer
from m3ae.training.logs import peak_memory_gib
from m3ae.training.optim import build_optimizer, set_lr

LENGTHS = {"full_length": None, "mean_30": 30}


def random_batch(
    config: Config, pairs: int, mean_tokens: int | None, seed: int
) -> dict[str, Tensor]:
    """A batch of noise with masks as training draws them; lengths spread by a third of the mean."""
    rng, length = np.random.default_rng(seed), config.data.text_length
    text, image = config.model.text_encoder, config.model.image_encoder
    lengths = np.full(pairs, length)
    if mean_tokens is not None:
        spread = np.linspace(-mean_tokens / 3, mean_tokens / 3, pairs)
        lengths = np.clip(np.round(mean_tokens + spread), 4, length).astype(int)
    keep = np.arange(length) < lengths[:, None]
    ids = np.where(keep, rng.integers(4, text.vocab_size, (pairs, length)), text.pad_id)
    labels = np.full((pairs, length), -100)
    for row, tokens in enumerate(lengths):
        count = max(1, round(config.model.mlm.ratio * (tokens - 2)))
        places = 1 + rng.permutation(tokens - 2)[:count]
        labels[row, places] = ids[row, places]
    match, rows = draw_in_batch_negatives(np.arange(pairs), np.zeros(pairs), rng)
    patches = (image.image_px // image.patch_px) ** 2
    positions, targets = scored_positions(torch.from_numpy(labels), 10)
    pixels = rng.integers(0, 256, (pairs, 1, image.image_px, image.image_px), dtype=np.uint8)
    return {
        "image": torch.from_numpy(pixels),
        "text_ids": torch.from_numpy(ids),
        "text_keep": torch.from_numpy(keep),
        "mlm_ids": torch.from_numpy(np.where(labels < 0, ids, 3)),
        "mlm_labels": torch.from_numpy(labels),
        "mlm_positions": positions,
        "mlm_targets": targets,
        "patch_order": torch.from_numpy(
            np.stack([draw_patch_order(patches, rng) for _ in range(pairs)])
        ),
        "itm_match": torch.from_numpy(match),
        "itm_image": torch.from_numpy(rows),
    }


def measure(pipe: object, path: str, overrides: list[str], share: bool, pairs: int) -> None:
    """A process that runs one step each time it is told which length."""
    config = load_config(path, [*overrides, f"model.share={str(share).lower()}"])
    alone = Processes(0, 0, 1, torch.device("cpu"))
    model = build_model(config)
    trainer = Trainer(
        model, build_optimizer(param_groups(model, config.optim), config.optim), alone, "fp32", None
    )
    step = 0
    while (title := pipe.recv()) is not None:
        batch = random_batch(config, pairs, LENGTHS[title], seed=0)
        batch = trim(batch) if share else batch
        set_lr(trainer.optimizer, step, config.train.steps, config.optim)
        started = time.perf_counter()
        trainer.train_step([batch])
        seconds = time.perf_counter() - started
        pipe.send((seconds, peak_memory_gib(alone.device), trainer.read()["loss"]))
        step += 1


def main(argv: list[str] | None = None) -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent.parent / "configs/pretrain/m3ae.yaml"
    parser.add_argument("--config", default=str(default))
    parser.add_argument("--pairs", type=int, default=4, help="pairs a step")
    parser.add_argument("--rounds", type=int, default=2, help="counted steps of each kind")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    overrides = [
        "model.image_encoder.weights=null",
        "model.text_encoder.weights=null",
        f"model.itm.group={min(args.pairs, 8)}",
        f"train.batch_global={args.pairs}",
        f"train.batch_per_process={args.pairs}",
        f"eval.batch={args.pairs}",
        *args.overrides,
    ]
    config = load_config(args.config, overrides)
    context = torch.multiprocessing.get_context("spawn")
    pipes, workers = {}, {}
    for share in (True, False):
        pipes[share], far = context.Pipe()
        workers[share] = context.Process(
            target=measure, args=(far, args.config, overrides, share, args.pairs)
        )
        workers[share].start()
    times: dict[tuple[bool, str], list[float]] = {}
    memory: dict[bool, float] = {}
    for number in range(args.rounds + 1):  # the first one warms up
        for title in LENGTHS if number else ["full_length"]:
            for share in (True, False):
                pipes[share].send(title)
                seconds, memory[share], _ = pipes[share].recv()
                print(f"{title}, share {share}: {seconds:.2f} s", file=sys.stderr)
                if number:
                    times.setdefault((share, title), []).append(seconds)
    for share in (True, False):
        pipes[share].send(None)
        workers[share].join()
    best = {key: min(values) for key, values in times.items()}
    length = config.data.text_length
    result = {
        "config": Path(args.config).name,
        "pairs_a_step": args.pairs,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "seconds_a_step": {
            f"{title}, share {str(share).lower()}": round(best[share, title], 3)
            for title in LENGTHS
            for share in (True, False)
        },
        "peak_memory_gib": {f"share {str(s).lower()}": round(memory[s], 2) for s in memory},
        **{
            f"speedup_{title}": round(best[False, title] / best[True, title], 3)
            for title in LENGTHS
        },
        "gflop_a_pair": {
            "share true, in-batch negatives": flops(args, overrides, length),
            "share true, corpus negatives": flops(
                args, [*overrides, "model.itm.negatives=dataset"], length
            ),
            "share false": flops(args, [*overrides, "model.share=false"], length),
        },
    }
    print(json.dumps(result, indent=2))
    return 0


def flops(args: argparse.Namespace, overrides: list[str], length: int) -> float:
    """Counted GFLOP a pair of a step, texts of full length."""
    return round(step_flops(load_config(args.config, overrides).model, length) / 1e9, 1)


if __name__ == "__main__":
    sys.exit(main())
