"""Evaluate the authors' released checkpoints as the paper does, and compare with what is expected.

    python verify_released.py --config configs/finetune/vqa_rad.yaml \\
        --checkpoints seed0.ckpt seed1.ckpt seed2.ckpt --out runs/verify
    python verify_released.py --config configs/finetune/vqa_rad.yaml --checkpoints seed0.ckpt \\
        --expected 349 --predictions theirs.jsonl --out runs/verify

A file does not say what its outputs mean: the answers follow the order in which they occur in the
files that it was trained on. For VQA-RAD prepare trainset.json and testset.json of the MEVF code,
for VQA-Med-2019 the paper's own layout, not the official files. `--predictions` (id and
prediction, see `m3ae.score`) are compared item by item. Ends with 1 where anything differs.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3ae.command import exit_status, parser_for
from m3ae.data.shards import read_manifest
from m3ae.downstream.config import load_finetune_config
from m3ae.files import write_json
from m3ae.installation import check_installation
from m3ae.scoring.predictions import is_right, read_predictions

log = logging.getLogger("m3ae")

# Right answers of the three released checkpoints, from their published percentages (REFERENCE:
# 77.4, 76.9, 76.7 of 451; 84.3, 83.0, 82.5 of 1,061; 80.5, 80.0, 79.7 of 375).
EXPECTED = {
    "VQA-RAD": (451, (349, 347, 346)),
    "SLAKE": (1061, (894, 881, 875)),
    "VQA-Med-2019, questions": (375, (302, 300, 299)),
    # p_meth_label, in percent: published without a number of rows, from which counts would follow.
    "MELINDA": (None, (79.6, 77.9, 77.7)),
}


def predicted(config_file: str, checkpoint: str, out: Path, overrides: Sequence[str]) -> list[dict]:
    """Test predictions of a checkpoint under the paper's protocol."""
    from m3ae.training.distributed import join_processes
    from m3ae.training.logs import start_logging
    from run_finetune import finetune

    own = [f"init={checkpoint}", f"output={out}", "eval_only=true", "protocol=paper"]
    config = load_finetune_config(config_file, [*overrides, *own])
    with join_processes(config.train.threads, config.train.device) as processes:
        start_logging(processes.first)
        finetune(config, processes)
    return read_predictions(out / "predictions-paper.jsonl")


def differing(ours: list[dict], theirs: list[dict], name: str) -> list[dict[str, str]]:
    """Questions that two files answer differently; ValueError if they are not of the same ones."""
    other = {row["id"]: row["prediction"] for row in theirs}
    if other.keys() != {row["id"] for row in ours}:
        raise ValueError(f"{name}: {len(other)} ids, not those of the {len(ours)} test questions")
    return [
        {"id": row["id"], "ours": row["prediction"], "theirs": other[row["id"]]}
        for row in ours
        if row["prediction"] != other[row["id"]]
    ]


def compare(
    rights: list[int], total: int, source: str, expected: Sequence[int] | None
) -> list[int | None]:
    """Ours less expected by checkpoint; without `expected` by rank among the published three."""
    if expected is not None:
        if len(expected) != len(rights):
            raise ValueError(f"--expected: {len(expected)} numbers for {len(rights)} checkpoints")
        return [right - wanted for right, wanted in zip(rights, expected, strict=True)]
    questions, published = EXPECTED.get(source, (0, ()))
    if questions is None:  # percent; of fewer than 1,000 rows one count at most rounds to each
        questions, published = total, tuple(round(total * value / 100) for value in published)
    if questions != total or len(published) != len(rights):
        log.info(
            "no published number to compare with (%s, %d questions); give --expected", source, total
        )
        return [None] * len(rights)
    order = sorted(range(len(rights)), key=lambda k: -rights[k])
    return [rights[k] - published[order.index(k)] for k in range(len(rights))]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 as expected, 1 not."""
    parser = parser_for(__doc__)
    add = parser.add_argument
    add("--config", required=True, help="the data set's configuration, configs/finetune/*.yaml")
    add("--checkpoints", nargs="+", required=True, metavar="FILE", help="released checkpoints")
    add("--expected", nargs="+", type=int, metavar="N", help="right answers of each checkpoint")
    add("--predictions", nargs="+", metavar="FILE", help="predictions of each checkpoint")
    add("--out", type=Path, required=True, metavar="DIR", help="where the evaluations go")
    add("--set", nargs="+", default=[], metavar="key=value", help="e.g. data.test=DIR")
    args = parser.parse_args(argv)

    def body() -> None:
        check_installation()
        if args.predictions and len(args.predictions) != len(args.checkpoints):
            raise ValueError("--predictions: one file for each of --checkpoints")
        test = load_finetune_config(args.config, args.set).data.test
        source = read_manifest(Path(test))["source"]
        results: list[dict[str, Any]] = []
        for number, checkpoint in enumerate(args.checkpoints):
            folder = args.out / f"{number}-{Path(checkpoint).stem}"
            rows = predicted(args.config, checkpoint, folder, args.set)
            right = sum(is_right(row, "paper") for row in rows)
            results.append({"checkpoint": Path(checkpoint).name, "right": right, "of": len(rows)})
            if args.predictions:
                theirs = read_predictions(args.predictions[number])
                results[-1]["differing"] = differing(rows, theirs, args.predictions[number])
        rights = [entry["right"] for entry in results]
        gaps = compare(rights, results[0]["of"], source, args.expected)
        for entry, gap in zip(results, gaps, strict=True):
            entry["less_expected"] = gap
            items = f", {len(entry['differing'])} items differ" if "differing" in entry else ""
            shown = "nothing to compare with" if gap is None else f"{gap:+d} against expected"
            print(f"{entry['checkpoint']}: {entry['right']} of {entry['of']} right, {shown}{items}")
        write_json(args.out / "verification.json", results)
        if any(gaps) or any(entry.get("differing") for entry in results):
            raise ValueError(f"not as expected; see {args.out / 'verification.json'}")

    return exit_status(body)


if __name__ == "__main__":
    sys.exit(main())
