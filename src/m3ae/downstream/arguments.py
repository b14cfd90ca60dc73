"""The options by which a command is given its model; without torch, for its --help."""

import argparse

from m3ae.scoring.predictions import PROTOCOLS

PREFERRED = ("strict", "image_disjoint", "paper")  # whose best epoch is used, if none is asked for
PRECISIONS = ("auto", "bf16", "fp16", "fp32")


def add_model_arguments(parser: argparse.ArgumentParser, runs: str) -> None:
    """The options by which a command is given its model."""
    add = parser.add_argument
    add("--model", required=True, metavar="RUN", help=runs)
    whose = f"whose best epoch and answers (default: the first there is of {', '.join(PREFERRED)})"
    add("--protocol", choices=PROTOCOLS, help=whose)
    own = "class of its head where that is its owner's own, e.g. my_package.MyTask; is imported"
    add("--task", metavar="CLASS", help=own)
    precision = "auto: bf16 on GPUs that have it, else fp16, fp32 on CPUs"
    add("--precision", choices=PRECISIONS, default="auto", help=precision)
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    add("--batch", type=int, default=32, metavar="N", help="rows a forward pass (default: 32)")
