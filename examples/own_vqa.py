"""Your own questions about your own images: prepare, fine-tune, answer.

    python examples/own_vqa.py --model runs/quickstart --table questions.csv --raw images \\
        --out runs/mine --px 144 train.epochs=5

The table has the columns image, question and answer. A fifth of the images is kept for testing, a
tenth selects the epoch. What follows the options are keys of configs/finetune/finetune.yaml.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for the scripts of the repository

import run_finetune  # noqa: E402
from data_prep import table  # noqa: E402
from m3ae.checkpoints import last_checkpoint  # noqa: E402
from m3ae.corpora.unanswered import table_rows  # noqa: E402
from m3ae.predictor import Predictor  # noqa: E402


def main(argv: Sequence[str] | None = None) -> None:
    """Print the answers to the first rows of the table; the run says how well it does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="a pre-training run or folder")
    parser.add_argument("--table", required=True, type=Path)
    parser.add_argument("--raw", required=True, type=Path, help="the folder of its images")
    parser.add_argument("--out", required=True, type=Path, help="a new run folder")
    parser.add_argument("--px", required=True, help="side of the images that the model reads")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args(argv)

    model, data = str(last_checkpoint(args.model)), args.out / "data"
    prepare = ["--table", str(args.table), "--raw", str(args.raw), "--out", str(data)]
    prepare += ["--px", args.px, "--tokenizer", model]
    if table.main([*prepare, "--valid-share", "0.1", "--test-share", "0.2"]):
        raise SystemExit("not prepared, see above")
    keys = [f"data.{split}={data / split}" for split in ("train", "valid", "test")]
    keys += [f"init={model}", f"output={args.out}", f"data.image_px={args.px}"]
    config = str(ROOT / "configs/finetune/finetune.yaml")
    if run_finetune.main(["--config", config, *keys, *args.overrides]):
        raise SystemExit("not trained, see above")

    predictor = Predictor.from_pretrained(args.out)
    for row in table_rows(args.table, args.raw)[:5]:
        said = predictor(row.image(), row.cells["question"])
        print(f"{row.cells['question']} -> {said['prediction']} ({said['score']:.0%})", end=", ")
        print(f"in the table: {row.cells['answer']}")


if __name__ == "__main__":
    main()
