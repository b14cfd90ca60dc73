"""Pairs a second of image-text ranking: cached against uncached, in one run.

    python benchmarks/retrieval.py                    the base model at 288 px, CPU, about 5 minutes
    python benchmarks/retrieval.py --config C --texts 4 --rounds 1 model.fusion.depth=2

Random weights, one image against a block of texts of 40 tokens, both ways in turn; the smallest
time of each counts. Uncached = the reference's way: the image repeated for every text of the block
through the image encoder, every text through the text encoder, all fusion layers at all tokens.
Cached = m3ae.downstream.ranking: the part that is left for a pair, and apart from it what a pool
needs once an image or a text. `full_length`: every text has 40 tokens. `tokens_24`: 24, as in a
block of a pool sorted by length, which the cached way cuts and the reference pads to 40.
Prints JSON. `speedup_pairs` leaves the encoding out, `speedup_with_encoding` includes the cached
way's encoding of a pool of `--pool` images and as many texts, spread over all its pairs. The
process is ended with status 1 if the scores of the two ways differ by more than 1e-5.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from m3ae.config import load_config
from m3ae.downstream.ranking import TextBlock, encode_images, encode_texts, score_block
from m3ae.downstream.retrieval import match_score
from m3ae.models import M3AE, build_model
from m3ae.models.heads import RetrievalHead, start_retrieval_head

DEVICE = torch.device("cpu")
LENGTH = 40  # tokens of a text (the paper's fine-tuning code)
LENGTHS = {"full_length": LENGTH, "tokens_24": 24}


def random_texts(model: M3AE, count: int, tokens: int) -> tuple[Tensor, Tensor]:
    """ids int64 and keep bool (count, LENGTH)."""
    config, rng = model.config.text_encoder, np.random.default_rng(0)
    keep = (torch.arange(LENGTH) < tokens).repeat(count, 1)
    ids = torch.from_numpy(rng.integers(4, config.vocab_size, (count, LENGTH)))
    return ids.where(keep, config.pad_id), keep


def uncached(
    model: M3AE, head: RetrievalHead, image: np.ndarray, ids: Tensor, keep: Tensor
) -> Tensor:
    """One image with every text of a block, as the reference ranks: scores (texts,)."""
    shown = torch.from_numpy(image).expand(len(ids), *image.shape)
    return match_score(head, model.encode_pair(shown, ids, keep).pooled)


def cached(model: M3AE, head: RetrievalHead, stream: Tensor, blocks: list[TextBlock]) -> Tensor:
    """The same from an encoded image and encoded texts."""
    return score_block(model, head, stream, blocks)[0]


def seconds(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    out = work()
    return time.perf_counter() - started, out


def gflop(work: Callable[[], object]) -> float:
    """Counted while it runs, 2 FLOP a multiply-add."""
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    return counter.get_total_flops() / 1e9


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).parent.parent / "configs/pretrain/m3ae.yaml"
    parser.add_argument("--config", default=str(default))
    parser.add_argument("--texts", type=int, default=8, help="texts of a block")
    parser.add_argument("--rounds", type=int, default=4, help="counted rounds")
    parser.add_argument("--pool", type=int, default=2000, help="images, and texts, of the pool")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_args(argv)
    weights = ["model.image_encoder.weights=null", "model.text_encoder.weights=null"]
    config = load_config(args.config, [*weights, *args.overrides])
    model = build_model(config).eval()
    head = RetrievalHead(config.model.fusion.width)
    start_retrieval_head(head, model.itm_head)
    px = config.model.image_encoder.image_px
    image = np.random.default_rng(1).integers(0, 256, (3, px, px), dtype=np.uint8)

    texts = {title: random_texts(model, args.texts, n) for title, n in LENGTHS.items()}
    times: dict[str, list[float]] = {}
    worst = 0.0
    for number in range(args.rounds + 1):  # the first one warms up
        for title in LENGTHS if number else ["full_length"]:
            ids, keep = texts[title]
            image_s, stream = seconds(lambda: encode_images(model, [image], DEVICE))
            text_s, blocks = seconds(
                lambda i=ids, k=keep: encode_texts(model, i, k, args.texts, DEVICE)
            )
            fast_s, fast = seconds(lambda s=stream, b=blocks: cached(model, head, s, b))
            slow_s, slow = seconds(lambda i=ids, k=keep: uncached(model, head, image, i, k))
            worst = max(worst, float((fast - slow).abs().max()))
            print(
                f"{title}: cached {fast_s:.2f} s, uncached {slow_s:.2f} s, {args.texts} pairs",
                file=sys.stderr,
            )
            if number:
                found = {
                    "image": image_s,
                    "text": text_s / args.texts,
                    "cached": fast_s / args.texts,
                    "uncached": slow_s / args.texts,
                }
                for key, value in found.items():
                    times.setdefault(f"{title} {key}", []).append(value)

    best = {key: min(values) for key, values in times.items()}
    result = {
        "config": Path(args.config).name,
        "overrides": args.overrides,
        "image_px": px,
        "text_length": LENGTH,
        "texts_a_block": args.texts,
        "rounds": args.rounds,
        "pool": f"{args.pool} images x {args.pool} texts",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "largest_difference_of_scores": worst,
    }
    for title in LENGTHS:
        ids, keep = texts[title]
        per = {key: best[f"{title} {key}"] for key in ("image", "text", "cached", "uncached")}
        encoding = (per["image"] + per["text"]) / args.pool  # N images and N texts, N^2 pairs
        stream = encode_images(model, [image], DEVICE)
        blocks = encode_texts(model, ids, keep, args.texts, DEVICE)
        flop = {
            "cached": gflop(lambda s=stream, b=blocks: cached(model, head, s, b)) / args.texts,
            "uncached": gflop(lambda i=ids, k=keep: uncached(model, head, image, i, k))
            / args.texts,
        }
        spent = gflop(lambda: encode_images(model, [image], DEVICE))
        spent += (
            gflop(lambda i=ids, k=keep: encode_texts(model, i, k, args.texts, DEVICE)) / args.texts
        )
        flop["cached_with_encoding"] = flop["cached"] + spent / args.pool
        result[title] = {
            "pairs_per_s": {
                "uncached": round(1 / per["uncached"], 3),
                "cached": round(1 / per["cached"], 3),
                "cached_with_encoding": round(1 / (per["cached"] + encoding), 3),
            },
            "speedup_pairs": round(per["uncached"] / per["cached"], 3),
            "speedup_with_encoding": round(per["uncached"] / (per["cached"] + encoding), 3),
            "speedup_slowest_cached_fastest_uncached": round(
                per["uncached"] / max(times[f"{title} cached"]), 3
            ),
            "encoding_s": {"image": round(per["image"], 3), "text": round(per["text"], 4)},
            "gflop_a_pair": {key: round(value, 2) for key, value in flop.items()},
            "gflop_ratio": round(flop["uncached"] / flop["cached_with_encoding"], 3),
        }
    print(json.dumps(result, indent=2))
    return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
