r"""Write features of a prepared split to a safetensors file: pre-trained or fine-tuned model.

    python -m m3ae.features --model RUN --data data/mine/train --what pair --out mine.safetensors

what    a row                  --pool cls (default)           --pool mean
image   each image once        the image encoder's CLS token  mean over its patches
text    each text              the text encoder's CLS token   mean over its real tokens, also the
                                                              special ones
pair    each text with its     both poolers, text then image  means of both streams after fusion,
        image                  (what the heads read)          over real tokens and over patches

image and text are before fusion: neither has seen the other. Images are not augmented.

The file: `features` float32 (rows, D); in its metadata `keys`, a JSON list with the key of each row
(of the image; else of the text), and what, pool, model, data, image_px, text_length.
`m3ae.features.read_features` reads it back.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor
from tqdm.auto import tqdm

from m3ae.command import exit_status, parser_for
from m3ae.data.datasets import Pairs, stack_images, trim
from m3ae.data.shards import read_manifest
from m3ae.downstream.trained import Trained, add_model_arguments, load_from
from m3ae.files import replacing
from m3ae.models.layers import masked_mean
from m3ae.models.m3ae import M3AE
from m3ae.training.engine import evaluating, to_device
from m3ae.training.logs import start_logging
from m3ae.training.precision import autocast

log = logging.getLogger("m3ae")

WHAT, POOLS = ("image", "text", "pair"), ("cls", "mean")


def image_features(model: M3AE, image: Tensor, pool: str) -> Tensor:
    """Images as in a batch -> (B, D) of the image encoder, before fusion."""
    x = model.image_encoder(model.normalise(image))
    return x[:, 0].float() if pool == "cls" else x[:, 1:].float().mean(dim=1)


def text_features(model: M3AE, ids: Tensor, keep: Tensor, pool: str) -> Tensor:
    """Token ids int64 (B, L), keep bool (B, L) -> (B, D) of the text encoder, before fusion."""
    x = model.text_encoder(ids, keep)
    return x[:, 0].float() if pool == "cls" else masked_mean(x, keep)


def pair_features(model: M3AE, image: Tensor, ids: Tensor, keep: Tensor, pool: str) -> Tensor:
    """Pairs -> (B, 2D) after fusion, text half first."""
    pair = model.encode_pair(image, ids, keep)
    if pool == "cls":
        return pair.pooled.float()
    return torch.cat([masked_mean(pair.text, keep), pair.image[:, 1:].float().mean(dim=1)], dim=1)


def extract(
    trained: Trained, folder: str, what: str, pool: str, batch: int, precision: str
) -> tuple[np.ndarray, list[str]]:
    """Features float32 (n, D) and keys of a prepared split, in its order.

    Raises ValueError naming the first row whose features are not finite, for pairs of a model that
    runs no fusion, and as `Pairs`.
    """
    if what == "pair":
        trained.need_fusion("it has no features of a pair; take --what image or text")
    pairs = Pairs([folder], trained.tokenizer, trained.text_length, trained.image_px)
    shards, model = pairs.corpora[0], trained.model
    device = model.pixel_mean.device

    def compute(rows: list[int]) -> Tensor:
        shown = rows if what == "image" else shards.image_of_text[rows]
        if what != "text":
            image = stack_images([pairs.image(int(row)) for row in shown]).to(device)
        if what == "image":
            return image_features(model, image, pool)
        texts = to_device(trim(pairs.texts(rows)), device)
        ids, keep = texts["text_ids"], texts["text_keep"]
        if what == "text":
            return text_features(model, ids, keep, pool)
        return pair_features(model, image, ids, keep, pool)

    key, count = shards.text_key, len(shards)
    if what == "image":
        key, count = shards.image_key, shards.num_images
    keys, features = [key(row) for row in range(count)], np.zeros((0, 0), np.float32)
    with evaluating(model), autocast(device, precision):
        for begin in tqdm(range(0, count, batch), unit="batch", desc=f"{what} features"):
            rows = list(range(begin, min(begin + batch, count)))
            part = compute(rows).float().cpu().numpy()
            if not begin:
                features = np.empty((count, part.shape[1]), np.float32)
            features[begin : begin + len(part)] = part
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        rows = f"{len(wrong)} features are not finite, e.g. of {keys[wrong[0]]}"
        raise ValueError(f"{folder}: {rows}; try --precision fp32")
    return features, keys


def read_features(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Features float32 (n, D) and the key of each row; ValueError where the file holds none."""
    try:
        with safe_open(str(path), framework="numpy") as file:
            features, metadata = file.get_tensor("features"), file.metadata()
            return features, json.loads(metadata["keys"])
    except FileNotFoundError:
        raise
    except Exception as error:  # the library has an exception class of its own
        raise ValueError(f"{path}: not a file of m3ae.features ({error})") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = parser_for(__doc__)
    parser.prog = "python -m m3ae.features"
    add = parser.add_argument
    add_model_arguments(parser, "run folder, checkpoint folder or hub id of any model")
    add("--data", required=True, metavar="SPLIT", help="folder of a prepared split, e.g. OUT/train")
    add("--what", required=True, choices=WHAT)
    add("--out", required=True, type=Path, metavar="FILE", help="e.g. features.safetensors")
    add("--pool", choices=POOLS, default="cls", help="see above (default: %(default)s)")
    length = "tokens, special ones included (default: that of training)"
    add("--text-length", type=int, metavar="N", help=length)
    args = parser.parse_args(argv)
    start_logging(True)
    return exit_status(lambda: _features(args), mistake=2)


def _features(args: argparse.Namespace) -> None:
    if args.out.is_dir():
        raise ValueError(f"--out {args.out}: a folder; give a file, e.g. features.safetensors")
    trained, precision = load_from(args, args.data, args.text_length)
    what = f"{trained.folder} ({trained.task or 'pre-trained'})"
    sizes = {"image_px": trained.image_px, "text_length": trained.text_length}
    log.info("model: %s, images of %d px, texts of %d tokens", what, *sizes.values())
    features, keys = extract(trained, args.data, args.what, args.pool, args.batch, precision)
    source = read_manifest(Path(args.data))["source"]
    facts = {"what": args.what, "pool": args.pool, "source": source, **sizes}
    facts |= {"model": trained.folder, "data": args.data}
    metadata = {name: str(value) for name, value in facts.items()}
    metadata["keys"] = json.dumps(keys, ensure_ascii=False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(args.out) as temporary:
        save_file({"features": features}, temporary, metadata=metadata)
    print(f"{args.what} features {features.shape[0]} x {features.shape[1]} -> {args.out}")


if __name__ == "__main__":
    sys.exit(main())
