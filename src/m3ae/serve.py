"""A page to ask a picture: its answers with bars, and where each word of the question looked.

    pip install -e .[page]
    python -m m3ae.serve --model RUN
    python -m m3ae.serve --model RUN --rank-with PRETRAINED --images FOLDER

RUN is a fine-tuning run, whose best epoch answers (beside what blind baselines would have said,
where its training split is here), or a pre-trained or retrieval model, which ranks captions.
With --rank-with the page has both. It is for this machine only unless --host says otherwise; it
sends nothing anywhere. Uploads stay in memory: no file is written of them, and they are gone when
their page is closed. Not a medical device.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3ae.command import exit_status, parser_for
from m3ae.downstream.arguments import add_model_arguments

if TYPE_CHECKING:
    from m3ae.reports.ask_page import Page

log = logging.getLogger("m3ae")


def load_page(args: argparse.Namespace) -> "Page":
    """The models that the options name; raises ValueError where one cannot do its part."""
    from m3ae.downstream.asking import MOST_PIXELS, Asker, Ranker, rows_of_training
    from m3ae.downstream.trained import load_from
    from m3ae.reports.ask_page import Page, pictures_of

    most = MOST_PIXELS if args.max_pixels is None else args.max_pixels
    if most < 1:
        raise ValueError(f"--max-pixels {most}: below 1")
    images = pictures_of(args.images)
    trained, precision = load_from(args, None)
    asker = ranker = None
    if trained.task in (None, "retrieval"):
        if args.rank_with:
            raise ValueError(
                f"--rank-with: --model {args.model} ranks captions itself; leave it out"
            )
        ranker = Ranker(trained, precision)
    else:
        rows, why = rows_of_training(trained)
        if why:
            log.info("no blind baselines: %s", why)
        asker = Asker(trained, precision, rows, why)
    if args.rank_with:
        other = argparse.Namespace(**{**vars(args), "model": args.rank_with, "protocol": None})
        ranker = Ranker(*load_from(other, None))
    window = tuple(args.window) if args.window else None
    return Page(asker, ranker, images, window, most)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = parser_for(__doc__)
    parser.prog = "python -m m3ae.serve"
    add = parser.add_argument
    add_model_arguments(
        parser, "run folder of a fine-tuning or pre-training, or a checkpoint folder"
    )
    add("--rank-with", metavar="RUN", help="a pre-trained or retrieval model that ranks captions")
    add("--images", type=Path, metavar="DIR", help="a folder of pictures to pick from")
    grey = "grey values of 16-bit images that become 0 and 255, as in preparing"
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=grey)
    most = "a picture of more pixels is refused before it is decoded (default: 50000000)"
    add("--max-pixels", type=int, metavar="N", help=most)
    host = "address to listen on (default: %(default)s, this machine only; anyone who reaches "
    host += "another one can use the page, there is no password)"
    add("--host", default="127.0.0.1", metavar="NAME", help=host)
    add("--port", type=int, metavar="N", help="default: the first free one from 7860")
    add("--open", action="store_true", help="open the page in a browser")
    args = parser.parse_args(argv)
    return exit_status(lambda: _serve(args), mistake=2)


def _serve(args: argparse.Namespace) -> None:
    from m3ae.reports.ask_page import import_gradio, launch
    from m3ae.training.logs import start_logging

    start_logging(True)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # which cleans up, as Ctrl+C
    try:
        with tempfile.TemporaryDirectory(prefix="m3ae-page-") as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder  # what Gradio may cache goes when the page ends
            import_gradio()  # which reads that; its absence is told before models are loaded
            launch(load_page(args), args.host, args.port, args.open)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
