"""What each optimisation of the pre-training step gives, turned on one after the other.

    python benchmarks/ladder.py                          the paper's model; on a GPU, else a CPU
    python benchmarks/ladder.py --pairs 256 --steps 20   one H200
    python benchmarks/ladder.py --only shared trimmed --json ladder.json

Random weights and noise; every rung in a process of its own, so that the peak memory is its own;
the median of the steps counts. `of peak`: the counted arithmetic of the step over its time, as a
share of what a product of 4096 x 4096 reaches in the same process, precision and moment.
`operations`: launches of a step as a GPU would be given them (`m3ae.pretraining.operations`), in
eager mode. Texts of 64 tokens; from `trimmed` on of 30 on average.
"""

import argparse
import contextlib
import dataclasses
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from step import random_batch

from m3ae.config import load_config
from m3ae.data.datasets import trim
from m3ae.models import build_model
from m3ae.models.param_groups import param_groups
from m3ae.pretraining.cost import activation_bytes, step_flops
from m3ae.pretraining.operations import trace_step
from m3ae.training.distributed import Processes, choose_device
from m3ae.training.engine import Trainer
from m3ae.training.logs import peak_memory_gib
from m3ae.training.optim import build_optimizer, set_lr

CONFIG = Path(__file__).parent.parent / "configs/pretrain/m3ae.yaml"


@dataclasses.dataclass(frozen=True)
class Rung:
    """Settings, all of them: a rung is the one before it and one thing more."""

    what: str
    overrides: tuple[str, ...] = ()
    precision: str = "fp32"
    copies: bool = True
    mean_tokens: int | None = 30


def rungs(half: str) -> dict[str, Rung]:
    """The ladder, by name; `half` is the 16-bit precision of the device."""
    plain, compiled = ("model.share=false",), ("model.compile=true",)
    found = {
        "plain": Rung("three whole passes, as published", plain, mean_tokens=None),
        "shared": Rung("what passes share, once", mean_tokens=None),
        "trimmed": Rung("padding that all texts share cut"),
        half: Rung(f"{half}, autocast copying each weight", precision=half, copies=False),
        "copies": Rung("a block's weights copied at once", precision=half),
        "compiled": Rung("compile: true", compiled, half),
    }
    checkpointing = ("model.activation_checkpointing=true",)
    found["checkpointed"] = Rung("not compiled, activations computed again", checkpointing, half)
    return found


def matmul_flops(device: torch.device, precision: str) -> float:
    """FLOP/s of the fastest of ten products of 4096 x 4096 in a precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    one = torch.randn(4096, 4096, device=device).to(dtype)
    best = float("inf")
    for _ in range(10 if device.type == "cuda" else 3):
        started = time.perf_counter()
        one @ one
        wait(device)
        best = min(best, time.perf_counter() - started)
    return 2 * 4096**3 / best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(args: argparse.Namespace, rung: Rung) -> dict:
    """One rung, in this process."""
    device = choose_device(args.device, 0)
    config = load_config(args.config, [*given(args), *rung.overrides])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.train.tf32
    model = build_model(config).to(device)
    optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
    alone = Processes(0, 0, 1, device)
    trainer = Trainer(model, optimizer, alone, rung.precision, config.optim.clip_norm)
    if not rung.copies:
        trainer.copies = contextlib.nullcontext
    batches = [random_batch(config, args.pairs, rung.mean_tokens, seed) for seed in range(2)]
    batches = [trim(batch) for batch in batches] if config.model.share else batches
    times = []
    for number in range(args.steps + 2):  # two to warm up
        set_lr(optimizer, number, config.train.steps, config.optim)
        wait(device)
        started = time.perf_counter()
        trainer.train_step([batches[number % 2]])
        wait(device)
        times.append(time.perf_counter() - started)
        print(f"{rung.what}: {times[-1]:.3f} s", file=sys.stderr)
    seconds = statistics.median(times[2:])
    length = batches[0]["text_ids"].shape[1]
    flop = step_flops(config.model, length) * args.pairs
    held = sum(p.numel() * p.element_size() for p in model.parameters()) * 4
    kept = activation_bytes(config.model, length, args.pairs, device, rung.precision)
    operations = trace_step(config, args.pairs, length, rung.precision, rung.copies)
    return {
        "what": rung.what,
        "pairs_per_s": args.pairs / seconds,
        "seconds": seconds,
        "warm_up_seconds": times[0],
        "of_peak": flop / seconds / matmul_flops(device, rung.precision),
        "gflop_a_pair": flop / args.pairs / 1e9,
        "peak_gib": peak_memory_gib(device),
        "estimated_gib": (held + kept) / 2**30,
        "operations": len(operations),
    }


def given(args: argparse.Namespace) -> list[str]:
    """Overrides of every rung."""
    sizes = {"train.batch_global": args.pairs, "train.batch_per_process": args.pairs}
    sizes |= {"eval.batch": args.pairs, "model.itm.group": min(args.pairs, 8)}
    weights = [f"model.{name}_encoder.weights=null" for name in ("image", "text")]
    return [*weights, *(f"{key}={value}" for key, value in sizes.items()), *args.overrides]


def work(pipe: object, args: argparse.Namespace, rung: Rung) -> None:
    """A process's body: a result, or the line of an error (a GPU that is too small)."""
    try:
        pipe.send(measure(args, rung))
    except (RuntimeError, ValueError) as error:
        pipe.send({"what": rung.what, "error": str(error).splitlines()[0]})


def main(argv: list[str] | None = None) -> int:
    """Climb, print a table, with --json write all figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default=str(CONFIG))
    add("--pairs", type=int, help="a step; without: 4 on a CPU, 32 on a GPU")
    add("--steps", type=int, help="counted ones; without: 2 on a CPU, 20 on a GPU")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto")
    add("--half", choices=["bf16", "fp16"], default="bf16", help="the 16-bit precision")
    add("--only", nargs="+", metavar="RUNG", help="these alone")
    add("--json", type=Path)
    add("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    gpu = choose_device(args.device, 0).type == "cuda"
    args.pairs, args.steps = args.pairs or (32 if gpu else 4), args.steps or (20 if gpu else 2)
    known = rungs(args.half)
    if unknown := set(args.only or ()) - set(known):
        parser.error(f"--only {min(unknown)}: the rungs are {', '.join(known)}")
    context, rows = torch.multiprocessing.get_context("spawn"), {}
    for name in args.only or known:
        near, far = context.Pipe()
        process = context.Process(target=work, args=(far, args, known[name]))
        process.start()
        rows[name] = near.recv()
        process.join()
    print("| rung | | pairs/s | s a step | of peak | peak GiB | estimated | operations |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        if "error" in row:
            print(f"| {name} | {row['what']} | {row['error']} |")
            continue
        cells = [f"{row['pairs_per_s']:.3g}", f"{row['seconds']:.3g}", f"{row['of_peak']:.0%}"]
        cells += [f"{row['peak_gib']:.1f}", f"{row['estimated_gib']:.1f}"]
        print(f"| {name} | {row['what']} | {' | '.join(cells)} | {row['operations']:,} |")
    device = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    facts = {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    facts |= {"config": Path(args.config).name, "pairs": args.pairs, "rows": rows}
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
