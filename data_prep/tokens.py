r"""Add or replace the token ids of prepared splits; no image is decoded or encoded again.

Each shard is written anew beside the old one, with its pixels copied byte for byte; the manifest
then changes from the old shards to the new ones in one instant, and the old ones are deleted. So
a killed run leaves the old split whole, and the same command continues it. In between, a split
takes twice its space on disk. Nothing may read the split while this runs.

example: python data_prep/tokens.py data/roco data/medicat/train --tokenizer roberta-base
"""

import argparse
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from m3ae.command import parser_for, run
from m3ae.corpora import prepare
from m3ae.corpora.shard_writer import is_sealed, ragged_tokens, seal, shard_name, write_shard
from m3ae.corpora.verification import read_chunks, split_folders
from m3ae.data import shards
from m3ae.data.shards import AGAIN, Shards
from m3ae.files import file_sha256, replacing, write_json


def rewrite(split: Shards, k: int, target: Path, tokenizer: Any) -> dict[str, Any]:
    """Write shard k with the tokens of `tokenizer` to `target`; returns its bytes and sha256.

    Raises ValueError if the old shard is not what its manifest says: a new checksum would hide it.
    """
    from m3ae.data.texts import encode  # transformers takes seconds to import

    path = split.folder / split.files[k]["name"]
    if file_sha256(path) != split.files[k]["sha256"]:
        raise ValueError(f"{path}: sha256 is not the manifest's; {AGAIN}")
    tensors = {n: array for n, array in split.shard(k).items() if not n.startswith("token_")}
    tensors.pop("padding", None)
    rows = range(split.files[k]["texts"])
    texts = [shards.row_bytes(tensors, "text", row).decode() for row in rows]
    tensors |= ragged_tokens(encode(tokenizer, texts))
    with replacing(target) as temporary:  # so a shard of the new name is a whole one
        return write_shard(temporary, tensors)


def token_counts(path: Path) -> Counter:
    """How many texts of a shard have how many tokens."""
    return Counter(np.diff(shards.map_shard(path)["token_offsets"]).tolist())


def read_record(folder: Path, manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The record for repairs; None for splits of earlier versions, which have none.

    Raises ValueError where it or the manifest is damaged: a new checksum would hide it.
    """
    if "sha256" in manifest and not is_sealed(manifest):
        raise ValueError(f"{folder / 'manifest.json'}: damaged; see data_prep/verify.py --repair")
    return read_chunks(folder) if "chunks" in manifest else None


def new_record(
    record: dict[str, Any], made: dict[str, Any], files: list[dict[str, Any]], folder: Path
) -> dict[str, Any]:
    """The record of a split whose shards have become `files`, in the same order."""
    chunks, rest = [], iter(files)
    for chunk in record["chunks"]:
        new = [next(rest) for _ in chunk["files"]]
        lengths = sum((token_counts(folder / file["name"]) for file in new), Counter())
        chunks.append({**chunk, "files": new, "lengths": sorted(map(list, lengths.items()))})
    return {"facts": {**record["facts"], "tokenizer": made}, "chunks": chunks}


def replace_tokens(folder: Path, tokenizer: Any, made: dict[str, Any]) -> None:
    """Bring one split to the tokens of `tokenizer`; `made` is its entry in the manifest."""
    manifest, version = shards.read_manifest(folder), made["fingerprint"]
    if (manifest["tokenizer"] or {}).get("fingerprint") == version:
        print(f"{folder}: holds the tokens of {made['name']} already")
        delete_others(folder, manifest)
        return
    split, files, lengths = Shards(folder), [], Counter()
    record = read_record(folder, manifest)
    new = [shard_name(k, version) for k in range(len(split.files))]
    delete_others(folder, manifest, set(new))
    with tqdm(desc=str(folder), total=len(split), unit=" texts") as bar:
        for k, (file, name) in enumerate(zip(split.files, new, strict=True)):
            target = folder / name
            if target.exists():  # of a run that was killed
                written = {"bytes": target.stat().st_size, "sha256": file_sha256(target)}
            else:
                written = rewrite(split, k, target, tokenizer)
            files.append({**file, "name": name, **written})
            lengths += token_counts(target)
            split._open.clear()  # one shard mapped at a time
            bar.update(file["texts"])
    statistics = prepare.length_statistics(lengths, tokens=True)
    report = {**manifest.get("report", {}), "text_lengths": statistics}
    manifest |= {"tokenizer": made, "files": files, "report": report}
    if record is not None:
        manifest["chunks"] = f"chunks-{version}.json"
        record = seal(new_record(record, made, files, folder))
        write_json(folder / manifest["chunks"], record, indent=None)
    write_json(folder / "manifest.json", seal(manifest) if "sha256" in manifest else manifest)
    delete_others(folder, manifest)


def delete_others(folder: Path, manifest: dict[str, Any], more: Container[str] = ()) -> None:
    """Delete what earlier runs left in a split: what is neither the manifest's nor in `more`."""
    names = {file["name"] for file in manifest["files"]} | {manifest.get("chunks")}
    for pattern in ("shard-*.safetensors*", "chunks*.json*"):
        for path in folder.glob(pattern):
            if path.name not in names and path.name not in more:
                path.unlink()


def retokenize(args: argparse.Namespace) -> None:
    """The whole work."""
    splits = [split.absolute() for given in args.folders for split in split_folders(given)]
    from m3ae.data.texts import fingerprint, load_tokenizer  # seconds, so after the paths

    tokenizer = load_tokenizer(args.tokenizer)
    size = max(tokenizer.get_vocab().values()) + 1
    made = {"name": args.tokenizer, "fingerprint": fingerprint(tokenizer), "size": size}
    for split in splits:
        replace_tokens(split, tokenizer, made)
    for corpus, split in {split.parent: split for split in splits}.items():
        if (corpus / "report.json").exists():  # else the split stands alone
            prepare.write_report(corpus, shards.read_manifest(split)["source"])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = parser_for(__doc__)
    add, what = parser.add_argument, "prepared corpora or splits"
    add("folders", type=Path, nargs="+", metavar="OUT", help=what)
    add("--tokenizer", required=True, metavar="NAME", help="hub id or folder")
    return run(retokenize, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
