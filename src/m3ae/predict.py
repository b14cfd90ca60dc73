r"""Answer questions about an image with a fine-tuned model, or predict a whole prepared split.

    python -m m3ae.predict --model RUN --image X.png --question "Is there a mass?"
    python -m m3ae.predict --model RUN --image X.png --question "..." --attention looked_at.png
    python -m m3ae.predict --model RUN --data data/mine/test --out predictions.jsonl

RUN is the folder of a fine-tuning run (its best epoch is used) or a checkpoint folder with
downstream.json in it. The image goes through the transform of training; for a model of 384 px its
shorter side becomes 384 and the centre is cut out. A model of classes takes the text that belongs
to the image (`--text` is the same as `--question`); a retrieval model gives a match score.
Not a medical device.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3ae.command import exit_status, parser_for
from m3ae.downstream.arguments import add_model_arguments
from m3ae.scoring.predictions import write_predictions

if TYPE_CHECKING:
    import numpy as np

    from m3ae.downstream.trained import Trained

log = logging.getLogger("m3ae")

NOTE = """match score of image and text: a logit, no probability. Of several texts for this image
the highest fits best; scores of other images or models do not compare."""


# ------------------------------------------------------------------------------ command line


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = parser_for(__doc__)
    parser.prog = "python -m m3ae.predict"
    add = parser.add_argument
    add_model_arguments(parser, "run folder of a fine-tuning, or a checkpoint folder")
    add("--image", type=Path, metavar="FILE", help="an image file that Pillow opens, or DICOM")
    add("--question", "--text", action="append", metavar="TEXT", help="may be repeated")
    add("--top", type=int, default=5, metavar="N", help="answers to list (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object a question")
    grey = "grey values of a 16-bit image that become 0 and 255, as in preparing"
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=grey)
    drawn = (
        "draw which patches each word looked at; several questions give OUT-1.png, OUT-2.png, ..."
    )
    add("--attention", type=Path, metavar="OUT.png", help=drawn)
    layer = "fusion layer of that picture, from 1 (default: -1, the last)"
    add("--layer", type=int, default=-1, metavar="N", help=layer)
    add("--head", type=int, metavar="N", help="attention head, from 1 (default: the mean)")
    add("--data", metavar="SPLIT", help="predict a whole prepared split instead of --image")
    add("--out", type=Path, metavar="FILE", help="where its predictions go, e.g. predictions.jsonl")
    args = parser.parse_args(argv)
    return exit_status(lambda: _predict(args), mistake=2)


def _predict(args: argparse.Namespace) -> None:
    from m3ae.downstream.trained import load_from
    from m3ae.predictor import answer, make_batch, predict_split, read_image
    from m3ae.training.logs import start_logging

    start_logging(True)
    one = args.image is not None or args.question is not None
    if one == (args.data is not None) or one != (args.out is None):
        raise ValueError("give --image and --question, or --data and --out")
    if one and (args.image is None or args.question is None):
        raise ValueError("--image and --question belong together")
    if args.data is not None and args.attention is not None:
        raise ValueError("--attention: draws one image; give --image and --question")
    if args.top < 1:
        raise ValueError(f"--top {args.top}: below 1")
    trained, precision = load_from(args, args.data)
    _say_model(trained, drawing=args.attention is not None)
    if args.data is not None:
        rows = predict_split(trained, args.data, args.batch, args.top, precision)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(args.out, rows)
        print(f"{len(rows)} predictions -> {args.out}")
        return
    image = read_image(args.image, trained.image_px, args.window)
    results = []
    if trained.task is None:
        make_batch(trained, image, args.question)  # its checks
    else:
        for begin in range(0, len(args.question), args.batch):
            some = args.question[begin : begin + args.batch]
            results += answer(trained, image, some, args.top, precision)
        if args.json:
            for result in results:
                print(json.dumps({"image": str(args.image), **result}, ensure_ascii=False))
        else:
            print("\n\n".join(_lines(trained, results)))
    if args.attention is not None:
        _draw(trained, args, image, results)


def _say_model(trained: "Trained", drawing: bool) -> None:
    """One line on what is used; ValueError where a model cannot answer and nothing is to draw."""
    if trained.task is None:
        if not drawing:
            tune = f"run_finetune.py --config configs/finetune/... init={trained.folder}"
            hint = f"fine-tune it first ({tune}), or give --attention OUT.png to see what it reads"
            raise ValueError(f"{trained.folder}: pre-trained, so it has no answer head; {hint}")
        log.info("%s: pre-trained, no answer head: only its attention is drawn", trained.folder)
        return
    what, known = trained.task, trained.known
    if trained.task != "retrieval":
        kind = "answers" if trained.task == "vqa" else "classes"
        what += f", {len(trained.facts['answers'])} {kind}"
        if known is not None:
            what += f", of which {len(known)} may be given under the {trained.protocol} protocol"
        if trained.image == "none":
            what += "; a question-only model, which sees no image"
    log.info("model: %s (%s)", trained.folder, what)


def _lines(trained: "Trained", results: Sequence[dict[str, Any]]) -> Iterable[str]:
    """What is printed, a block a question."""
    if trained.task == "retrieval":
        ranked = sorted(results, key=lambda result: -result["score"])
        yield "\n".join(f"{result['score']:+9.4f}  {result['text']}" for result in ranked)
        yield NOTE
        return
    names = {"vqa": ("question", "answer"), "multilabel": ("text", "likeliest")}
    names = names.get(trained.task, ("text", "class"))
    for result in results:
        lines = [f"{names[0]:<10}{result['question']}", f"{names[1]:<10}{result['prediction']}"]
        lines += [f"{100 * score:8.2f} %  {text}" for text, score in result["top"]]
        yield "\n".join(lines)


def _draw(
    trained: "Trained", args: argparse.Namespace, image: "np.ndarray", results: list[dict[str, Any]]
) -> None:
    from m3ae.downstream.attention import draw_words

    for number, text in enumerate(args.question):
        path, said = args.attention, ""
        if len(args.question) > 1:
            path = path.with_name(f"{path.stem}-{number + 1}{path.suffix}")
        if trained.task == "retrieval":
            said = f"match score {results[number]['score']:+.3f}"
        elif trained.task is not None:
            name = "answer" if trained.task == "vqa" else "class"
            said = f"{name}: {results[number]['prediction']} ({results[number]['score']:.1%})"
        draw_words(trained, image, " ".join(text.split()), path, args.layer, args.head, said)
        log.info("attention -> %s", path)


if __name__ == "__main__":
    sys.exit(main())
