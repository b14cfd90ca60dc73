"""What bounds a pre-training step on a GPU, from its traced operations; no GPU needed.

    python benchmarks/roofline.py                          the paper's step, 32 and 256 pairs, 15 s
    python benchmarks/roofline.py --pairs 64 --gpus h200 --json roofline.json
    python benchmarks/roofline.py --config configs/pretrain/m3ae_clip_l14.yaml

Every operation takes the longest of three times: its arithmetic at the GPU's peak, its bytes at the
memory's speed, and the time of an empty kernel. Their sum is the GPU's time; the host's is the
number of operations times what it takes to launch one. The two run side by side, so the longer
one is the step's. Peaks and bandwidths are the vendors' (dense, with float32 sums); what a kernel
reaches of them, and the host's time, are assumptions, printed with the result:
--host-us 8 is PyTorch's usual time an operation, forward and backward.

Rows: `plain` is the published step (three passes, autocast copying each weight); `shared` computes
what the passes share once; `copies` also copies a block's weights by one operation; `fused` is
`copies` where all elementwise work between two products is one kernel, which a compiler comes near.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from m3ae.config import Config, load_config
from m3ae.pretraining.operations import OTHERS, Operation, trace_step

CONFIG = Path(__file__).parent.parent / "configs/pretrain/m3ae.yaml"


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU's data sheet: FLOP/s of bf16 and of float32, bytes/s, bytes of memory."""

    name: str
    half: float
    single: float
    bandwidth: float
    memory: float


GPUS = {
    "a100": Gpu("A100 80 GB SXM", 312e12, 19.5e12, 2.04e12, 80e9),
    "h100": Gpu("H100 SXM", 989e12, 67e12, 3.35e12, 80e9),
    "h100-pcie": Gpu("H100 PCIe", 756e12, 51e12, 2.0e12, 80e9),
    "h200": Gpu("H200", 989e12, 67e12, 4.8e12, 141e9),
    "rtx4090": Gpu("RTX 4090", 165e12, 82.6e12, 1.01e12, 24e9),
}
# What kernels reach of the data sheet, and the shortest kernel.
ASSUMED = {"products": 0.7, "attention": 0.4, "bandwidth": 0.8, "shortest_us": 2.0}
FUSED = {OTHERS, "casts", "layer norms"}
ROWS = {"plain": (False, False), "shared": (True, False), "copies": (True, True)}


def seconds(operation: Operation, gpu: Gpu) -> tuple[float, str]:
    """Time of one operation alone, and what bounds it."""
    peak = gpu.half if operation.half else gpu.single
    reached = ASSUMED["attention" if operation.group == "attention" else "products"]
    times = {
        "arithmetic": operation.flop / (peak * reached),
        "memory": operation.bytes / (gpu.bandwidth * ASSUMED["bandwidth"]),
        "launch": ASSUMED["shortest_us"] * 1e-6,
    }
    bound = max(times, key=times.__getitem__)
    return times[bound], bound


def fused(operations: list[Operation]) -> list[Operation]:
    """Neighbours that a compiler makes one kernel of; what they hand each other stays in it."""
    found: list[Operation] = []
    chain: list[Operation] = []
    last_use = {key: n for n, one in enumerate(operations) for key, _ in one.reads}

    def close(end: int) -> None:
        if not chain:
            return
        made = {key for one in chain for key, _ in one.writes}
        reads = {key: size for one in chain for key, size in one.reads if key not in made}
        writes = {k: size for one in chain for k, size in one.writes if last_use.get(k, end) >= end}
        found.append(
            Operation("fused", OTHERS, 0.0, True, tuple(reads.items()), tuple(writes.items()))
        )
        chain.clear()

    for number, one in enumerate(operations):
        if one.group in FUSED and one.name != "sum":
            chain.append(one)
        elif one.name == "sum":  # a kernel of its own, beside the chain
            found.append(one)
        else:
            close(number)
            found.append(one)
    close(len(operations))
    return found


def predict(operations: list[Operation], gpu: Gpu, pairs: int, host_us: float) -> dict:
    """Times of a step in ms by what bounds it and by group, and pairs/s."""
    by_bound, by_group = dict.fromkeys(("arithmetic", "memory", "launch"), 0.0), {}
    for operation in operations:
        time, bound = seconds(operation, gpu)
        by_bound[bound] += 1e3 * time
        by_group[operation.group] = by_group.get(operation.group, 0.0) + 1e3 * time
    gpu_ms, host_ms = sum(by_bound.values()), len(operations) * host_us / 1e3
    step = max(gpu_ms, host_ms)
    return {
        "gpu": gpu.name,
        "pairs": pairs,
        "operations": len(operations),
        "host_ms": round(host_ms, 1),
        "gpu_ms": round(gpu_ms, 1),
        "step_ms": round(step, 1),
        "pairs_per_s": round(1e3 * pairs / step),
        "bound_by": "host" if host_ms > gpu_ms else max(by_bound, key=by_bound.__getitem__),
        "ms_by_bound": {name: round(value, 1) for name, value in by_bound.items()},
        "ms_by_group": {name: round(value, 1) for name, value in sorted(by_group.items())},
        "share_of_peak": round(sum(o.flop for o in operations) / (step / 1e3) / gpu.half, 3),
    }


def steps(config: Config, pairs: int, length: int, precision: str) -> dict[str, list[Operation]]:
    """The traced step of each row."""
    found = {}
    for name, (share, copies) in ROWS.items():
        model = dataclasses.replace(config.model, share=share)
        one = dataclasses.replace(config, model=model)
        found[name] = trace_step(one, pairs, length, precision, copies)
    return found | {"fused": fused(found["copies"])}


def main(argv: list[str] | None = None) -> int:
    """Print a table; --json writes all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default=str(CONFIG))
    add("--pairs", type=int, nargs="+", default=[32, 256], help="pairs a GPU and step")
    add("--length", type=int, help="tokens a text; without: the config's limit")
    add("--gpus", nargs="+", choices=GPUS, default=list(GPUS), metavar="GPU", help=", ".join(GPUS))
    add("--precision", choices=["bf16", "fp16", "fp32"], default="bf16")
    add("--host-us", type=float, default=8.0, help="microseconds of the host an operation")
    add("--json", type=Path, help="write all figures to this file")
    add("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    given = ["model.image_encoder.weights=null", "model.text_encoder.weights=null"]
    config = load_config(args.config, given + args.overrides)
    length = args.length or config.data.text_length
    rows = []
    for pairs in args.pairs:
        print(f"tracing {pairs} pairs", file=sys.stderr)
        for name, operations in steps(config, pairs, length, args.precision).items():
            for gpu in args.gpus:
                rows.append({"step": name} | predict(operations, GPUS[gpu], pairs, args.host_us))
    print("| GPU | pairs | step | operations | host ms | GPU ms | bound by | pairs/s | of peak |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["pairs"], row["gpu"])):
        cells = [row["gpu"], row["pairs"], row["step"], f"{row['operations']:,}", row["host_ms"]]
        cells += [row["gpu_ms"], row["bound_by"], f"{row['pairs_per_s']:,}"]
        cells.append(f"{row['share_of_peak']:.0%}")
        print("| " + " | ".join(map(str, cells)) + " |")
    facts = {"config": Path(args.config).name, "length": length, "precision": args.precision}
    facts |= {"assumed": ASSUMED | {"host_us": args.host_us}}
    print(json.dumps(facts))
    if args.json:
        args.json.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
