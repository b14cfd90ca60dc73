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
from typing import TYPE_CHECKING

from m3ae.command import exit_status, parser_for
from m3ae.data.shards import read_manifest
from m3ae.downstream.arguments import add_model_arguments
from m3ae.files import replacing

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("m3ae")

WHAT, POOLS = ("image", "text", "pair"), ("cls", "mean")


def read_features(path: str | Path) -> "tuple[np.ndarray, list[str]]":
    """Features float32 (n, D) and the key of each row; ValueError where the file holds none."""
    from safetensors import safe_open

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
    return exit_status(lambda: _features(args), mistake=2)


def _features(args: argparse.Namespace) -> None:
    from m3ae.downstream.features import extract
    from m3ae.downstream.trained import load_from
    from m3ae.training.logs import start_logging

    start_logging(True)
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
    from safetensors.numpy import save_file

    with replacing(args.out) as temporary:
        save_file({"features": features}, temporary, metadata=metadata)
    print(f"{args.what} features {features.shape[0]} x {features.shape[1]} -> {args.out}")


if __name__ == "__main__":
    sys.exit(main())
