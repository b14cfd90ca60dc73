"""Kernels of a training step's compiled blocks: those that the compiler makes, and library calls.

    python benchmarks/compiled.py                  the paper's depths at a small width, 2 minutes
    python benchmarks/compiled.py --config configs/pretrain/m3ae_roberta_large.yaml

How blocks are cut into kernels does not depend on their width, so they are compiled for a CPU at
width 64 and counted: each graph's kernels times the calls of it in one step. A GPU's compiler
joins no more and may join less: of two loops in one kernel here it may make two. Attention dropout
is off, since only then a CPU has attention as one kernel. Prints JSON.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from step import random_batch
from torch._inductor.compile_fx import compile_fx, compile_fx_inner

from m3ae.config import load_config
from m3ae.data.datasets import trim
from m3ae.models import build_model

CONFIG = Path(__file__).parent.parent / "configs/pretrain/m3ae.yaml"
SMALL = """
model.image_encoder={weights: null, width: 64, heads: 4, image_px: 64}
model.text_encoder={weights: null, width: 64, heads: 4, mlp_width: 256, vocab_size: 500}
model.text_encoder.attention_dropout=0
model.fusion={width: 64, heads: 4, attention_dropout: 0}
model.mim={decoder_width: 64, decoder_heads: 4}
model.mlm={decoder_width: 64, decoder_heads: 4}
model.itm.group=4
model.compile=true
""".strip().splitlines()
OWN = re.compile(r"^ +cpp_fused\w*\(", re.MULTILINE)
LIBRARY = re.compile(r"^ +(?:\w+ = )?(?:extern_kernels\.|torch\.ops\.aten\._scaled)", re.MULTILINE)


class Counting:
    """A backend of torch.compile: inductor's, that counts what its graphs launch."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.kernels: list[tuple[int, int]] = []  # own and library's, of each graph

    def backend(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        return compile_fx(graph, inputs, inner_compile=self._compile)

    def _compile(self, graph: torch.fx.GraphModule, inputs: list, **options: object) -> Callable:
        compiled, number = compile_fx_inner(graph, inputs, **options), len(self.kernels)
        code = compiled.source_code
        self.kernels.append((len(OWN.findall(code)), len(LIBRARY.findall(code))))
        print(f"graph {number}: {self.kernels[-1]}", file=sys.stderr)

        def run(given: list) -> list:
            self.calls[number] += 1
            return compiled(given)

        run._boxed_call = True
        return run


def main(argv: list[str] | None = None) -> int:
    """Compile, run a step, count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=str(CONFIG))
    args = parser.parse_args(argv)
    config = load_config(args.config, [*SMALL, "train={batch_global: 4, batch_per_process: 4}"])
    counting, real = Counting(), torch.compile
    torch.compile = lambda forward, **_: real(forward, backend=counting.backend)
    model = build_model(config)
    torch.compile = real
    for seed in range(2):
        counting.calls.clear()
        model(trim(random_batch(config, 4, None, seed)))["loss"].backward()
    own, library = (
        sum(calls * counting.kernels[graph][kind] for graph, calls in counting.calls.items())
        for kind in range(2)
    )
    result = {"config": Path(args.config).name, "graphs": len(counting.kernels)}
    result |= {"calls": sum(counting.calls.values()), "kernels": own, "library_calls": library}
    print(json.dumps(result | {"torch": torch.__version__}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
