"""Pictures a second of `Predictor`, against a loop over one picture at a time and over the command.

    python benchmarks/predict.py --pictures 1000

A model of the quickstart's size with random weights, pictures of 160 to 400 pixels. All ways run in
turn in one process, but for the command, which is started anew for each of a few pictures. Prints
JSON: seconds, pictures a second, answers that differ (in the text, and in any of the six digits of
a probability), and the resident memory after each quarter of the pictures.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from m3ae.config import load_config
from m3ae.data.texts import train_wordpiece
from m3ae.downstream.model import Downstream, write_facts
from m3ae.predictor import Predictor

ROOT = Path(__file__).parents[1]
ANSWERS = [f"answer {number}" for number in range(50)]
QUESTION = "is there a mass"


def make(folder: Path, pictures: int) -> tuple[Path, list[Path]]:
    """The model's folder and the pictures."""
    tokenizer = train_wordpiece([QUESTION], 400, folder / "tokenizer")
    sizes = load_config(ROOT / "configs/pretrain/quickstart.yaml").model
    torch.manual_seed(0)
    model = Downstream(sizes, "vqa", len(ANSWERS))
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder / "model", tokenizer)
    facts = {"task": "vqa", "field": "label", "answers": ANSWERS, "known": {}, "source": "none"}
    px = sizes.image_encoder.image_px
    write_facts(folder / "model", **facts, text_length=32, image_px=px, protocol="strict")
    rng, paths = np.random.default_rng(0), []
    for number in range(pictures):
        shape = (*rng.integers(160, 400, 2), *((3,) if number % 2 else ()))
        paths.append(folder / f"{number:05d}.png")
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return folder / "model", paths


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def timed(predictor: Predictor, paths: list[Path]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers, and how they came."""
    began, answers, memory = time.perf_counter(), [], []
    for answer in predictor.stream((path, QUESTION) for path in paths):
        answers.append(answer)
        if len(answers) % max(len(paths) // 4, 1) == 0:
            memory.append(resident_mib())
    taken = time.perf_counter() - began
    rate = round(len(paths) / taken, 2)
    return answers, {"seconds": round(taken, 2), "pictures_s": rate, "memory_mib": memory}


def command(model: Path, paths: list[Path]) -> dict[str, Any]:
    """The same by `python -m m3ae.predict`, once a picture."""
    began = time.perf_counter()
    for path in paths:
        words = ["--model", str(model), "--image", str(path), "--question", QUESTION, "--json"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        run = [sys.executable, "-m", "m3ae.predict", *words]
        subprocess.run(run, env=environment, check=True, capture_output=True)
    taken = time.perf_counter() - began
    return {"seconds": round(taken, 2), "pictures_s": round(len(paths) / taken, 3)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--commands", type=int, default=3, help="pictures for the command")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model, paths = make(Path(folder), args.pictures)
        one = Predictor.from_pretrained(model, device=args.device, batch=1)
        many = Predictor(one.trained, one.precision, args.batch)
        for predictor in (one, many):
            timed(predictor, paths[: 2 * args.batch])  # warm
        alone, slow = timed(one, paths)
        together, fast = timed(many, paths)
        result = {
            "pictures": args.pictures,
            "batch": args.batch,
            "threads": torch.get_num_threads(),
        }
        result |= {"command": command(model, paths[: args.commands]), "one": slow, "batches": fast}
    pairs = list(zip(alone, together, strict=True))
    result["other_text"] = sum(x["prediction"] != y["prediction"] for x, y in pairs)
    result["other_digit"] = sum(x != y for x, y in pairs)
    result["batches / one"] = round(fast["pictures_s"] / slow["pictures_s"], 2)
    result["batches / command"] = round(fast["pictures_s"] / result["command"]["pictures_s"], 1)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
