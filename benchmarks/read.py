"""Samples a second that one process with one thread reads, masks and collates for pre-training.

    python benchmarks/read.py                              about 3 minutes
    python benchmarks/read.py --images 64 --seconds 0.5 --rounds 2
    ulimit -n 1024; python benchmarks/read.py --files 780  many shards besides: 4 GB of disk

`raw`, `jpeg`: batches of the given recipe (masks, patch orders and image-text pairs drawn) from
prepared shards of grey images at its image side and text length. `from_files`: a plain PyTorch
dataset that does what the published implementation does for a sample: decodes two 800 x 600 JPEGs,
as RGBA, resizes the shorter side (bicubic), crops, normalises, tokenises; batches are stacked, but
no mask is drawn. `many_warm`, `many_cold`: raw shards of 64 images in four corpora, together so
many files, in the page cache and after it was emptied of them. The kinds run in turn; the best
round of each counts. Images and captions are generated; the files are in the page cache, but with
the default number not in the processor's. Prints JSON.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pictures import save_picture
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from m3ae.config import Config, load_config
from m3ae.corpora import prepare
from m3ae.corpora.token_files import write_tokens
from m3ae.data.datasets import Pairs, TrainBatches
from m3ae.data.sampler import Order, Plan
from m3ae.data.texts import load_tokenizer

TARGETS = {"raw": 3000, "jpeg": 1200}  # samples a second a core; of many shards 9,000 and 7,000
TOKENIZER = "train:2000"
DISTINCT = 256  # image files; a larger corpus names them again


def write_corpus(folder: Path, images: int) -> list[prepare.Item]:
    """Images, each with a caption of 5-50 made-up words."""
    rng, items = np.random.default_rng(0), []
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(3000)]
    often = 1 / np.arange(10, len(words) + 10)  # few words are frequent, as in any language
    for number in range(images):
        path = folder / f"{number % DISTINCT:03d}.jpg"
        if number < DISTINCT:
            save_picture(path, rng)
        chosen = rng.choice(words, int(rng.integers(5, 51)), p=often / often.sum())
        items.append(prepare.Item(f"{number:05d}", path, (" ".join(chosen) + ".",)))
    return items


def prepare_shards(items: list[prepare.Item], out: Path, encoding: str, px: int) -> None:
    """Prepare the items as split `train` of `out`, with tokens."""
    options = f"--px {px} --encoding {encoding} --tokenizer {TOKENIZER} --workers 0".split()
    places = ["--raw", str(items[0].image.parent), "--out", str(out)]
    args = prepare.corpus_parser(None).parse_args([*places, *options])
    with contextlib.redirect_stdout(sys.stderr):
        prepare.prepare({"train": items}, {}, args, source="generated")


class FromFiles(Dataset):
    """A sample = its caption's tokens, its image and another one, decoded when asked for."""

    def __init__(self, items: list[prepare.Item], tokenizer: Any, config: Config) -> None:
        px = config.model.image_encoder.image_px
        self.items, self.tokenizer, self.length = items, tokenizer, config.data.text_length
        self.random = np.random.default_rng(0)
        self.transform = transforms.Compose(
            [
                transforms.Resize(px, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(px),
                lambda image: image.convert("RGB"),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> torch.Tensor:
        """Normalised pixels (3, px, px)."""
        data = self.items[index].image.read_bytes()
        return self.transform(Image.open(io.BytesIO(data)).convert("RGBA"))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = self.tokenizer(
            self.items[index].texts[0],
            max_length=self.length,
            padding="max_length",
            truncation=True,
        )
        other = int(self.random.integers(len(self)))
        return {
            "ids": torch.tensor(tokens["input_ids"]),
            "image": self.image(index),
            "false_image": self.image(other),
        }


def shard_batches(config: Config, folders: list[Path], tokenizer: Any) -> Iterator[Any]:
    """Training batches without end."""
    text, image = config.data.text_length, config.model.image_encoder.image_px
    pairs = Pairs([str(folder) for folder in folders], tokenizer, text, image)
    batch = config.train.batch_per_process
    plan = Plan(len(pairs), 10**9, batch, batch, 1)
    order = Order(pairs.sizes, None, config.seed)
    data = TrainBatches(pairs, order, plan, config.model, config.seed, 0)
    return (data[item] for item in range(len(data)))


def many_corpora(first: Path, files: int, tokenizer: Any) -> list[Path]:
    """Four splits of together so many files, each a copy of the one shard of a split."""
    manifest = json.loads((first / "manifest.json").read_text(encoding="utf-8"))
    (shard,) = manifest["files"]
    folders = []
    for corpus in range(4):
        folder = first.parent / f"many-{corpus}" / "train"
        folder.mkdir(parents=True)
        own = range(corpus, files, 4)
        copies = [shard | {"name": f"shard-{number:05d}.safetensors"} for number in own]
        for copy in copies:
            shutil.copyfile(first / shard["name"], folder / copy["name"])
        counts = {name: shard[name] * len(copies) for name in ("images", "texts")}
        whole = {key: value for key, value in manifest.items() if key != "sha256"}
        whole |= {"files": copies, "counts": counts}
        whole["tokens"], _ = write_tokens(folder, copies, tokenizer, whole["tokenizer"])
        (folder / "manifest.json").write_text(json.dumps(whole), encoding="utf-8")
        folders.append(folder)
    return folders


def empty_cache(folders: list[Path]) -> None:
    """Let the system forget the files."""
    for path in (path for folder in folders for path in folder.glob("*.safetensors")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def file_batches(data: FromFiles, batch: int) -> Iterator[Any]:
    """Batches of the plain dataset without end, shuffled."""
    loader = DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def rate(batches: Iterator[Any], batch: int, seconds: float) -> float:
    """Samples a second over at least that many seconds."""
    started, samples = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(batches)
        samples += batch
    return samples / (time.perf_counter() - started)


def main(argv: list[str] | None = None) -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent.parent / "configs/pretrain/m3ae.yaml"
    parser.add_argument("--config", default=str(default))
    parser.add_argument("--images", type=int, default=3072, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2, help="a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--files", type=int, default=0, help="shards of four more corpora")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides)
    px, batch = config.model.image_encoder.image_px, config.train.batch_per_process
    if args.images < batch or args.rounds < 1:
        parser.error(f"--images must be {batch} (a batch) or more, --rounds 1 or more")
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "files"
        raw.mkdir()
        items = write_corpus(raw, args.images)
        readers: dict[str, Iterator[Any]] = {}
        sizes = {}
        for encoding in TARGETS:
            out = Path(folder) / encoding
            prepare_shards(items, out, encoding, px)
            tokenizer = load_tokenizer(out / "tokenizer")
            readers[encoding] = shard_batches(config, [out / "train"], tokenizer)
            shards = (out / "train").glob("*.safetensors")
            sizes[encoding] = round(sum(path.stat().st_size for path in shards) / len(items))
        sizes["from_files"] = round(sum(item.image.stat().st_size for item in items) / len(items))
        readers["from_files"] = file_batches(FromFiles(items, tokenizer, config), batch)
        if args.files:
            prepare_shards(items[:64], Path(folder) / "one", "raw", px)
            tokenizer = load_tokenizer(Path(folder) / "one" / "tokenizer")
            folders = many_corpora(Path(folder) / "one" / "train", args.files, tokenizer)
            many = shard_batches(config, folders, tokenizer)
        for name, reader in readers.items():
            rate(reader, batch, args.seconds / 2)  # warms up, and fills the page cache
            rates[name] = []
        for number in range(args.rounds):
            for name, reader in readers.items():
                rates[name].append(rate(reader, batch, args.seconds))
            shown = {name: round(values[-1]) for name, values in rates.items()}
            print(f"round {number + 1}: {shown}", file=sys.stderr)
        if args.files:  # one kind after the other, since the second empties the first one's cache
            rate(many, batch, 20 * args.seconds)  # maps all, fills the cache
            rates["many_warm"] = [rate(many, batch, args.seconds) for _ in range(args.rounds)]
            for _ in range(args.rounds):
                empty_cache(folders)
                rates.setdefault("many_cold", []).append(rate(many, batch, args.seconds))
    best = {name: max(values) for name, values in rates.items()}
    result = {
        "config": Path(args.config).name,
        "image_px": px,
        "text_length": config.data.text_length,
        "batch": batch,
        "images": args.images,
        "samples_per_s": {name: round(value, 1) for name, value in best.items()},
        "target_samples_per_s": TARGETS,
        "times_from_files": {name: round(best[name] / best["from_files"], 1) for name in TARGETS},
        "bytes_a_sample": sizes,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
