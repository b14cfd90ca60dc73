r"""Answer questions about images with a trained model: one, a table, a folder, a prepared split.

    python -m m3ae.predict --model RUN --image X.png --question "Is there a mass?"
    python -m m3ae.predict --model RUN --image X.png --question "..." --attention looked_at.png
    python -m m3ae.predict --model RUN --table questions.csv --raw images --out answers.csv
    python -m m3ae.predict --model RUN --folder images --question "Is there a mass?" --out a.jsonl
    python -m m3ae.predict --model RUN --data data/mine/test --out predictions.jsonl
    python -m m3ae.predict --model PRETRAINED --image X.png --text "a fracture" --text "no fracture"

RUN is the folder of a fine-tuning run (its best epoch is used), a checkpoint folder with
downstream.json in it, or a hub id. The image goes through the transform of training; for a model of
384 px its shorter side becomes 384 and the centre is cut out. A model of classes takes the text
that belongs to the image (`--text` is the same as `--question`). A retrieval model, and a
pre-trained one by its ITM head, gives match scores. Not a medical device.

A table (.csv, .tsv, .jsonl or .parquet) has the columns image (a path below --raw) and question,
and may have id and answer, which go into the output with prediction, score and top. A row that
cannot be used keeps its place, with an empty prediction and the reason in `error`. The output is
written as it goes: the same command again goes on after its last whole line, and refuses a file
that was begun with another model, table or option. `python -m m3ae.score` reads it.
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
from m3ae.files import printable

if TYPE_CHECKING:
    from m3ae.downstream.trained import Trained
    from m3ae.predictor import Predictor

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
    add("--exif", action="store_true", help="turn images as their EXIF says, as in preparing")
    add("--max-pixels", type=int, metavar="N", help="a larger image is refused")
    drawn = (
        "draw which patches each word looked at; several questions give OUT-1.png, OUT-2.png, ..."
    )
    add("--attention", type=Path, metavar="OUT.png", help=drawn)
    layer = "fusion layer of that picture, from 1 (default: -1, the last)"
    add("--layer", type=int, default=-1, metavar="N", help=layer)
    add("--head", type=int, metavar="N", help="attention head, from 1 (default: the mean)")
    add("--table", type=Path, metavar="FILE", help="a table of images and questions, see above")
    add("--raw", type=Path, metavar="DIR", help="what its image paths start from (its own folder)")
    columns = "what the table calls a column, e.g. image=filename"
    add("--columns", nargs="+", metavar="NAME=COLUMN", help=columns)
    add("--folder", type=Path, metavar="DIR", help="ask --question of every image in a folder")
    add("--data", metavar="SPLIT", help="predict a whole prepared split")
    out = ".csv or .jsonl, where the answers to a table, folder or split go"
    add("--out", type=Path, metavar="FILE", help=out)
    every = "all answers that the head has, also those that the protocol does not know"
    add("--all-answers", action="store_true", help=every)
    args = parser.parse_args(argv)
    return exit_status(lambda: _predict(args), mistake=2)


def _predict(args: argparse.Namespace) -> None:
    from m3ae.downstream.trained import load_from
    from m3ae.predictor import Predictor
    from m3ae.training.logs import start_logging

    start_logging(True)
    _check(args)
    trained, precision = load_from(args, args.data)
    _say_model(trained, drawing=args.attention is not None, one=args.image is not None)
    options = (args.window, args.exif, args.max_pixels)
    predictor = Predictor(trained, precision, args.batch, *options)
    if args.image is not None:
        _answer_one(predictor, args)
    elif args.data is not None:
        _answer_split(predictor, args)
    else:
        _answer_rows(predictor, args)


def _check(args: argparse.Namespace) -> None:
    """ValueError for options that do not belong together."""
    given = [name for name in ("image", "table", "folder", "data") if getattr(args, name)]
    if len(given) != 1:
        raise ValueError("give one of --image, --table, --folder and --data")
    (what,) = given
    if (what == "image") == (args.out is not None):
        raise ValueError("--out belongs to --table, --folder and --data, which need it")
    if (what in ("image", "folder")) != (args.question is not None):
        raise ValueError("--image or --folder, and --question, belong together")
    if what == "folder" and len(args.question) > 1:
        raise ValueError("--folder: one --question; for several give a --table")
    if what != "table" and (args.raw or args.columns):
        raise ValueError("--raw, --columns: belong to --table")
    if what != "image" and args.attention is not None:
        raise ValueError("--attention: draws one image; give --image and --question")
    if args.top < 1:
        raise ValueError(f"--top {args.top}: below 1")


def _answer_one(predictor: "Predictor", args: argparse.Namespace) -> None:
    """Print the answers to questions about one image, and draw where the model looked."""
    trained, results = predictor.trained, []
    if trained.task is not None:
        pairs = ((args.image, text) for text in args.question)
        results = list(predictor.stream(pairs, args.top, not args.all_answers))
    elif args.attention is None or hasattr(trained.model, "itm_head"):
        scores = predictor.match_scores([args.image], args.question)[0].tolist()
        ranked = zip(args.question, scores, strict=True)
        results = [{"text": text, "score": round(score, 6)} for text, score in ranked]
    if args.json:
        for result in results:
            row = {"image": str(args.image), **result}
            line = json.dumps(row, ensure_ascii=False)
            print(line if line.isprintable() else json.dumps(row))
    elif results:
        lines = "\n\n".join(_lines(trained, results)).split("\n")
        print("\n".join(map(printable, lines)))
    if args.attention is not None:
        _draw(trained, args, predictor.read(args.image), results)


def _answer_split(predictor: "Predictor", args: argparse.Namespace) -> None:
    from m3ae.predictor import predict_split
    from m3ae.scoring.predictions import write_predictions

    options = args.batch, args.top, predictor.precision, not args.all_answers
    rows = predict_split(predictor.trained, args.data, *options)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(args.out, rows)
    print(f"{len(rows)} predictions -> {args.out}")


def _answer_rows(predictor: "Predictor", args: argparse.Namespace) -> None:
    """Answer the rows of a table or a folder as they come, into a file that can be gone on with."""
    from tqdm.auto import tqdm

    from m3ae.corpora.unanswered import digest_of, folder_rows, table_rows
    from m3ae.data.contents import content_of
    from m3ae.row_file import RowFile

    if args.table is None:
        rows = folder_rows(args.folder, args.question[0])
    else:
        rows = table_rows(args.table, args.raw or args.table.parent, args.columns)
    folder = predictor.trained.folder  # what it says, not its card; a hub id stands for itself
    files = [*sorted(folder.glob("*.safetensors")), *folder.glob("downstream.json")]
    facts = {"model": [content_of(str(file)) for file in files] or str(folder)}
    facts |= {"rows": digest_of(rows)}
    facts |= {"protocol": predictor.trained.protocol, "precision": predictor.precision}
    facts |= {"top": args.top, "all_answers": args.all_answers, "window": args.window}
    facts |= {"exif": args.exif, "max_pixels": args.max_pixels}
    facts = json.loads(json.dumps(facts))
    known = [name for name in ("id", "image", "question", "answer") if name in rows[0].cells]
    errors = 0
    with RowFile(args.out, [*known, "prediction", "score", "top", "error"], facts) as out:
        if out.done:
            log.info("%s: %d of %d rows are there, going on", args.out, out.done, len(rows))
        left = tqdm(total=len(rows), initial=out.done, unit="row", desc=args.out.name)
        for begin in range(out.done, len(rows), predictor.batch):
            some = rows[begin : begin + predictor.batch]
            pairs = [(row.image(), row.cells["question"]) for row in some if not row.wrong]
            strict = not args.all_answers
            said = iter(list(predictor.stream(pairs, args.top, strict, keep_going=True)))
            found = [{"prediction": "", "error": r.wrong} if r.wrong else next(said) for r in some]
            out.write(
                row.cells | answer for row, answer in zip(some, map(_said, found), strict=True)
            )
            left.update(len(some))
            for row, answer in zip(some, found, strict=True):
                if "error" in answer:
                    errors += 1
                    log.info("%s: no prediction: %s", row.cells["id"], answer["error"])
        left.close()
    lacking = f", {errors} of those written now without prediction" if errors else ""
    print(f"{len(rows)} rows -> {args.out}{lacking}")


def _said(answer: dict[str, Any]) -> dict[str, Any]:
    """Of an answer what a file of answers holds; the question stands there as it was given."""
    return {
        name: answer[name] for name in ("prediction", "score", "top", "error") if name in answer
    }


def _say_model(trained: "Trained", drawing: bool, one: bool) -> None:
    """One line on what is used; ValueError where a model cannot answer and nothing is to draw."""
    if trained.task is None:
        if one and hasattr(trained.model, "itm_head"):
            log.info("%s: pre-trained, no answer head: its ITM head scores", trained.folder)
            return
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
    if trained.task in ("retrieval", None):
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
    trained: "Trained", args: argparse.Namespace, image: Any, results: list[dict[str, Any]]
) -> None:
    from m3ae.downstream.attention import draw_words

    for number, text in enumerate(args.question):
        path, said = args.attention, ""
        if len(args.question) > 1:
            path = path.with_name(f"{path.stem}-{number + 1}{path.suffix}")
        if results and trained.task in ("retrieval", None):
            said = f"match score {results[number]['score']:+.3f}"
        elif trained.task is not None:
            name = "answer" if trained.task == "vqa" else "class"
            said = f"{name}: {results[number]['prediction']} ({results[number]['score']:.1%})"
        draw_words(trained, image, " ".join(text.split()), path, args.layer, args.head, said)
        log.info("attention -> %s", path)


if __name__ == "__main__":
    sys.exit(main())
