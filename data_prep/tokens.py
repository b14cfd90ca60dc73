r"""Add or replace the token ids of prepared splits; no image is decoded or encoded again.

Each shard is written anew beside the old one, with its pixels copied byte for byte; the manifest
then changes from the old shards to the new ones in one instant, and the old ones are deleted. So
a killed run leaves the old split whole, and the same command continues it. In between, a split
takes twice its space on disk. Nothing may read the split while this runs.

example: python data_prep/tokens.py data/roco data/medicat/train --tokenizer roberta-base
"""

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from m3ae.data import prepare, shards
from m3ae.data.shards import AGAIN, Shards


def split_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a split, else the finished splits in it."""
    if (prepare.need(folder, "a prepared corpus or split") / "manifest.json").exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/manifest.json"))
    found = [split for split in found if split.suffix != ".partial"]
    if not found:
        raise FileNotFoundError(f"{folder}: no split in it (no */manifest.json)")
    return found


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rewrite(split: Shards, k: int, target: Path, tokenizer: Any) -> dict[str, Any]:
    """Write shard k with the tokens of `tokenizer` to `target`; returns its bytes and sha256.

    Raises ValueError if the old shard is not what its manifest says: a new checksum would hide it.
    """
    from m3ae.data.texts import encode  # transformers takes seconds to import

    path = split.folder / split.files[k]["name"]
    if sha256(path) != split.files[k]["sha256"]:
        raise ValueError(f"{path}: sha256 is not the manifest's; {AGAIN}")
    tensors = {name: array for name, array in split.shard(k).items()
               if not name.startswith("token_")}  # fmt: skip
    rows = range(split.files[k]["texts"])
    texts = [shards.row_bytes(tensors, "text", row).decode() for row in rows]
    tensors |= shards.ragged_tokens(encode(tokenizer, texts))
    temporary = target.with_name(target.name + ".tmp")
    written = shards.write_shard(temporary, tensors)
    os.replace(temporary, target)  # so a shard of the new name is a whole one
    return written


def token_counts(path: Path) -> Counter:
    """How many texts of a shard have how many tokens."""
    return Counter(np.diff(shards.map_shard(path)["token_offsets"]).tolist())


def replace_tokens(folder: Path, tokenizer: Any, made: dict[str, Any]) -> None:
    """Bring one split to the tokens of `tokenizer`; `made` is its entry in the manifest."""
    manifest = shards.read_manifest(folder)
    if (manifest["tokenizer"] or {}).get("fingerprint") != made["fingerprint"]:
        split, files, lengths = Shards(folder), [], Counter()
        new = [f"shard-{k:05d}-{made['fingerprint']}.safetensors" for k in range(len(split.files))]
        delete_others(folder, {file["name"] for file in split.files} | set(new))
        with tqdm(desc=str(folder), total=len(split), unit=" texts") as bar:
            for k, (file, name) in enumerate(zip(split.files, new, strict=True)):
                target = folder / name
                if target.exists():  # of a run that was killed
                    written = {"bytes": target.stat().st_size, "sha256": sha256(target)}
                else:
                    written = rewrite(split, k, target, tokenizer)
                files.append({**file, "name": name, **written})
                lengths += token_counts(target)
                split._open.clear()  # one shard mapped at a time
                bar.update(file["texts"])
        statistics = prepare.length_statistics(lengths, tokens=True)
        report = {**manifest.get("report", {}), "text_lengths": statistics}
        manifest |= {"tokenizer": made, "files": files, "report": report}
        shards.write_json(folder / "manifest.json", manifest)
    else:
        print(f"{folder}: holds the tokens of {made['name']} already")
    delete_others(folder, {file["name"] for file in manifest["files"]})


def delete_others(folder: Path, names: set[str]) -> None:
    """Delete the shards of a split that are not among `names`: what earlier runs left."""
    for path in folder.glob("shard-*.safetensors*"):
        if path.name not in names:
            path.unlink()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="OUT", help="prepared corpora or splits")
    add("--tokenizer", required=True, metavar="NAME", help="hub id or folder")
    args = parser.parse_args(argv)

    def body() -> None:
        splits = [split.absolute() for given in args.folders for split in split_folders(given)]
        from m3ae.data.texts import fingerprint, load_tokenizer  # seconds, so after the paths

        tokenizer = load_tokenizer(args.tokenizer)
        size = max(tokenizer.get_vocab().values()) + 1
        made = {"name": args.tokenizer, "fingerprint": fingerprint(tokenizer), "size": size}
        for split in splits:
            replace_tokens(split, tokenizer, made)
        for corpus in dict.fromkeys(split.parent for split in splits):
            if (corpus / "report.json").exists():  # else the split stands alone
                source = next(split for split in splits if split.parent == corpus)
                prepare.write_report(corpus, shards.read_manifest(source)["source"])

    return prepare.run(body)


if __name__ == "__main__":
    sys.exit(main())
