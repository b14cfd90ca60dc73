r"""Add or replace the token ids of prepared splits; no image is read or written.

Token ids lie in a file of their own. The new file is written beside the old one, the manifest then
changes from one to the other in one instant, and the old file is deleted. So a killed run leaves
the old tokenizer or the new one, and the same command finishes it. Shards of format version 1,
which hold token ids themselves, stay as they are: those ids are no longer read. Nothing may read
the split while this runs.

example: python data_prep/tokens.py data/roco data/medicat/train --tokenizer roberta-base
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3ae.command import parser_for, run
from m3ae.corpora import prepare
from m3ae.corpora.report import write_report
from m3ae.corpora.shard_writer import is_sealed, seal
from m3ae.corpora.token_files import PATTERN, describe_tokenizer
from m3ae.corpora.verification import split_folders, token_problems
from m3ae.data import shards
from m3ae.data.manifest import VERSION
from m3ae.files import write_json
from m3ae.processes import alone_in


def replace_tokens(folder: Path, tokenizer: Any, facts: dict[str, Any]) -> None:
    """Bring one split to the tokens of `tokenizer`; `facts` are its entry in the manifest.

    Raises ValueError where the manifest is damaged: a new checksum would hide it.
    """
    manifest = shards.read_manifest(folder)
    if "sha256" in manifest and not is_sealed(manifest):
        raise ValueError(f"{folder / 'manifest.json'}: damaged; see data_prep/verify.py --repair")
    if holds(folder, manifest, facts):
        print(f"{folder}: holds the tokens of {facts['name']} already")
    else:
        manifest |= {"version": VERSION, "tokenizer": facts}
        manifest.setdefault("report", {})
        prepare.add_tokens(folder, manifest, tokenizer)
        write_json(folder / "manifest.json", seal(manifest) if "sha256" in manifest else manifest)
    delete_others(folder, manifest)


def holds(folder: Path, manifest: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Whether a split has the tokens of this tokenizer, undamaged where they are a file."""
    if (manifest["tokenizer"] or {}).get("fingerprint") != facts["fingerprint"]:
        return False
    return shards.holds_tokens(manifest) or not token_problems(folder, manifest)


def delete_others(folder: Path, manifest: dict[str, Any]) -> None:
    """Delete what earlier runs left in a split, of this version and the one before."""
    names = prepare.file_names(manifest) | {manifest.get("chunks")}
    for pattern in ("shard-*.safetensors*", f"{PATTERN}*", "chunks*.json*"):
        for path in folder.glob(pattern):
            if path.name not in names:
                path.unlink()


def retokenize(args: argparse.Namespace) -> None:
    """The whole work."""
    splits = [split.absolute() for given in args.folders for split in split_folders(given)]
    from m3ae.data.texts import load_tokenizer  # seconds, so after the paths

    tokenizer = load_tokenizer(args.tokenizer)
    facts = describe_tokenizer(tokenizer, args.tokenizer)
    for split in splits:
        with alone_in(split.parent):
            replace_tokens(split, tokenizer, facts)
    for corpus, split in {split.parent: split for split in splits}.items():
        if (corpus / "report.json").exists():  # else the split stands alone
            write_report(corpus, shards.read_manifest(split)["source"])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = parser_for(__doc__)
    add, what = parser.add_argument, "prepared corpora or splits"
    add("folders", type=Path, nargs="+", metavar="OUT", help=what)
    add("--tokenizer", required=True, metavar="NAME", help="hub id or folder")
    return run(retokenize, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
