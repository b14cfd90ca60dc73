"""Write a model as torch.export programs, which run with torch alone, in batches of any size.

    python -m m3ae.export --model RUN --out DIR

DIR gets image_encoder.pt2, text_encoder.pt2, pair.pt2 (tokens after fusion, both poolers), of a
model that answers also answers.pt2 (logits), the tokeniser, and export.json: inputs, outputs and
what the logits mean. To run one:

    program = torch.export.load("DIR/pair.pt2").module()
    text, image, pooled = program(image=image, text_ids=text_ids, text_keep=text_keep)

The programs are of the CPU unless --device says otherwise, in float32. With --onnx each is also
written as NAME.onnx, by torch.onnx (pip install -e .[onnx]); its outputs have export.json's order.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from m3ae.command import exit_status, parser_for


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = parser_for(__doc__)
    parser.prog = "python -m m3ae.export"
    add = parser.add_argument
    run = "run folder or checkpoint folder, pre-trained or fine-tuned"
    add("--model", required=True, metavar="RUN", help=run)
    add("--out", required=True, type=Path, metavar="DIR", help="a folder")
    add("--protocol", metavar="NAME", help="whose best epoch (default: strict before the others)")
    add("--device", default="cpu", metavar="NAME", help="of the programs (default: %(default)s)")
    add("--onnx", action="store_true", help="ONNX files beside them")
    args = parser.parse_args(argv)
    return exit_status(lambda: _export(args), mistake=2)


def _export(args: argparse.Namespace) -> None:
    from m3ae.downstream.trained import load_trained, pick_device
    from m3ae.models.export import export
    from m3ae.training.logs import start_logging

    start_logging(True)
    trained = load_trained(Path(args.model), args.protocol)
    trained.model.to(pick_device(args.device))
    about = {"model": str(trained.folder), "task": trained.task, "device": args.device}
    about["text_length"] = trained.text_length
    if answers := trained.facts.get("answers"):
        about |= {"answers": answers, "exclusive": trained.model.exclusive}
    if (known := trained.known) is not None:
        about["known"] = sorted(known)
    paths = export(trained.model, args.out, about, args.onnx)
    trained.tokenizer.save_pretrained(args.out)
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    sys.exit(main())
