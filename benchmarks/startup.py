"""How long a command takes to begin: --help of each, and one question to a small model.

    git worktree add /somewhere OLD_COMMIT
    python benchmarks/startup.py --before /somewhere

Each command runs `--repeats` times here and in the other checkout, in turn, so that other work on
the machine falls on both; of each the least is kept. Prints JSON: seconds of wall clock and of
processor, and before / after.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SIZES = """
model.image_encoder={weights: null, image_px: 32, patch_px: 16, width: 32, depth: 1, heads: 2}
model.text_encoder={weights: null, kind: bert, vocab_size: 80, type_vocab_size: 2, pad_id: 0}
model.text_encoder={width: 32, depth: 1, heads: 2, mlp_width: 64, max_positions: 40}
model.fusion={width: 32, depth: 2, heads: 2}
model.mim={layer: 1, decoder_width: 32, decoder_depth: 1, decoder_heads: 2}
""".strip().splitlines()


def small_model(folder: Path) -> None:
    """A fine-tuned model of 32 px that knows two answers, untrained."""
    from m3ae.config import load_config
    from m3ae.data.texts import train_wordpiece
    from m3ae.downstream.model import Downstream, write_facts

    tokenizer = train_wordpiece(["is there a mass"], 80, folder / "tokenizer")
    config = load_config(ROOT / "configs/pretrain/m3ae.yaml", SIZES).model
    Downstream(config, "vqa", 2).save_pretrained(folder, tokenizer)
    facts = {"task": "vqa", "field": "label", "answers": ["no", "yes"], "known": {}}
    write_facts(folder, **facts, text_length=12, image_px=32, protocol="strict", source="none")


def seconds(root: Path, words: Sequence[str]) -> tuple[float, float]:
    """Wall clock and processor seconds of a command in a checkout."""
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-500:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    scripts = ["run_pretrain.py", "run_finetune.py", "run_tables.py", "verify_released.py"]
    scripts += sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("data_prep/*.py"))
    rooms = ("predict", "score", "features", "convert")
    commands = [[f"{name}", "--help"] for name in scripts]
    commands += [["-m", f"m3ae.{room}", "--help"] for room in rooms]
    roots = {"after": ROOT} | ({"before": args.before.resolve()} if args.before else {})
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        small_model(place / "model")
        grey = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(grey).save(place / "x.png")
        question = ["-m", "m3ae.predict", "--model", str(place / "model"), "--json"]
        question += ["--image", str(place / "x.png"), "--question", "is there a mass"]
        for words in [*commands, question]:
            name = "one question" if words is question else " ".join(words)
            taken = {root: [] for root in roots}
            for _ in range(args.repeats):
                for root, where in roots.items():
                    taken[root].append(seconds(where, words))
            best = {
                root: [round(min(kind), 2) for kind in zip(*taken[root], strict=True)]
                for root in roots
            }
            result[name] = {
                root: dict(zip(("wall", "cpu"), best[root], strict=True)) for root in roots
            }
            if "before" in roots:
                ratios = zip(best["before"], best["after"], strict=True)
                result[name]["before / after"] = [round(x / y, 1) for x, y in ratios]
            print(name, result[name], file=sys.stderr)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
