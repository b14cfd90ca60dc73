r"""Turn a checkpoint of the authors' code into a folder that everything here reads.

    python -m m3ae.convert m3ae.ckpt OUT
    python -m m3ae.convert vqa_rad.ckpt OUT --answers data/vqa_rad/answers.json
    python -m m3ae.convert vqa_rad.ckpt OUT --answers data/vqa_rad/answers.json --data VQA-RAD \
        --evaluation runs/verify/0-vqa_rad/evaluation.json --licence apache-2.0 --push USER/NAME

Sizes are those of `--config`, but for the image's side and the heads, which the file tells. A
fine-tuned file does not say what its outputs mean: `--answers` is the answers.json (classes.json)
that preparation wrote beside the splits it was trained on, or a JSON list in their order. The
folder has weights, config.json, tokeniser, downstream.json if it is fine-tuned, and a model card;
`--push` uploads it to the hub once nothing in the card is open. Nothing in a file is executed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from m3ae.command import exit_status, parser_for
from m3ae.downstream.config import METRICS


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = parser_for(__doc__)
    parser.prog = "python -m m3ae.convert"
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="a file of the authors' code")
    add("out", metavar="OUT", type=Path, help="a new folder")
    config = "configs/pretrain/m3ae.yaml"
    add("--config", default=config, help="sizes of the model (default: %(default)s)")
    add("--set", nargs="+", default=[], metavar="key=value", help="changes to the config")
    words = "hub id or folder (default: that of the config's text encoder)"
    add("--tokenizer", metavar="NAME", help=words)
    add("--task", choices=METRICS, help="whose head, where a file has several")
    add("--answers", metavar="FILE", help="what the head's outputs mean, see above")
    add("--field", default="label", help="column of the labels (default: %(default)s)")
    add("--data", metavar="NAMES", help="what it was trained on, for the card")
    add("--licence", metavar="ID", help="licence of the weights, e.g. apache-2.0, for the card")
    add("--evaluation", metavar="FILE", help="evaluation.json of a run with it, for the card")
    add("--push", metavar="USER/NAME", help="upload to the hub")
    args = parser.parse_args(argv)
    return exit_status(lambda: _convert(args), mistake=2)


def _convert(args: argparse.Namespace) -> None:
    from m3ae.downstream.released import convert
    from m3ae.training.logs import start_logging

    start_logging(True)
    convert(args)


if __name__ == "__main__":
    sys.exit(main())
