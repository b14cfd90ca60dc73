r"""ROCO (radiology part) -> shards of image-caption pairs.

The corpus: DIR/{train,validation,test}/radiology/captions.txt and images/ROCO_00001.jpg, as its own
fetch script leaves it; `val` for `validation` will do. Older downloads and the copies of them name
images by figure, PMC4608653_cro-0008-0385-g01.jpg, which dlinks.txt or licences.txt then tell. With
--references, the sentences that refer to a figure (MedICaT's roco_*_references.jsonl) become
further texts of it, as in the paper; they are joined through the same two files. Or the hub's
parquet copies (columns image, image_id, caption), which lack those and so take no --references.

OUT/papers.tsv names the article (PMC id) of each image, for the strict protocol of retrieval.

example: python data_prep/roco.py --raw roco-dataset/data --out data/roco \
             --tokenizer roberta-base
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from m3ae.command import run
from m3ae.corpora.items import Drops, Item, is_inside
from m3ae.corpora.papers import write_roco_papers
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.report import say_missing
from m3ae.corpora.roco_files import figure_names, image_files, image_id, parquet_pairs
from m3ae.corpora.stored import SPLIT_NAMES, parquet_splits
from m3ae.corpora.tables import read_lines
from m3ae.files import need


def read_captions(path: Path, drops: Drops) -> dict[str, str]:
    """Caption by id, e.g. ROCO_00001; lines `id<TAB>caption`."""
    captions = {}
    for number, line in read_lines(path):
        key, tab, caption = line.partition("\t")
        key, where = key.strip(), f"{path.name}:{number}"
        if not tab or not key:
            drops.add("line: not `id<TAB>caption`", f"{where}: {line[:60]}")
        elif not is_inside(key):
            drops.add("line: id leads elsewhere", f"{where}: {key[:60]}")
        elif key in captions:
            drops.add("line: id occurs twice, first one kept", f"{where}: {key}")
        else:
            captions[key] = caption
    return captions


def parse_reference(line: str) -> tuple[str, list[str]]:
    """Figure name and sentences of a line; ValueError where it is no such object."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    name, texts = row.get("roco_image_id"), row.get("gorc_references") or []
    if not isinstance(name, str):
        raise ValueError("no roco_image_id")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("gorc_references is not a list of strings")
    return name, texts


def read_references(path: Path, names: dict[str, str], drops: Drops) -> dict[str, list[str]]:
    """Sentences that refer to a figure, by ROCO id."""
    references: dict[str, list[str]] = {}
    for number, line in read_lines(need(path, "MedICaT's inline references of ROCO")):
        where = f"{path.name}:{number}"
        try:
            name, texts = parse_reference(line)
        except (ValueError, RecursionError) as error:
            drops.add("line: not a reference object", f"{where}: {error}")
            continue
        if name in names:
            references.setdefault(names[name], []).extend(texts)
        else:
            drops.add("references: figure not in this split", f"{where}: {name}", len(texts))
    return references


def read_split(folder: Path, references: Path | None, drops: Drops) -> list[Item]:
    """Items of one split's radiology folder."""
    captions = read_captions(need(folder / "captions.txt", "ROCO's captions"), drops)
    need(folder / "images", "the folder of ROCO's images (see its fetch script)")
    extra: dict[str, list[str]] = {}
    if references:
        need(folder / "dlinks.txt", "ROCO's list of archives", folder / "licences.txt")
        extra = read_references(references, figure_names(folder, drops), drops)
    items = []
    for key, file in image_files(folder, captions).items():
        texts = (captions[key], *extra.get(key, ()))
        items.append(Item(key, folder / "images" / file, texts, image_id(folder, key, file)))
    return items


def find_splits(args: argparse.Namespace, dropped: dict[str, Drops]) -> dict[str, list[Item]]:
    """Items by split of the original layout, else of a hub copy; {} where there is neither."""
    splits = {}
    for split, names in SPLIT_NAMES.items():
        folders = [args.raw / name / "radiology" for name in names]
        for folder in [folder for folder in folders if folder.is_dir()][:1]:
            file = f"roco_{'val' if split == 'valid' else split}_references.jsonl"
            references = args.references and args.references / file
            parts = (folder / "captions.txt", folder / "images", references or folder)
            asked_for = split in (args.split or SPLIT_NAMES)
            if asked_for or all(part.exists() for part in parts):
                splits[split] = read_split(folder, references, dropped[split])
    if splits:
        return splits
    hub = parquet_splits(args.raw)
    if hub and args.references:
        why = "the hub's copies name no figures, which --references is joined by"
        raise ValueError(f"{args.raw}: {why}; leave it out, or give the original layout")
    return {split: parquet_pairs(files, dropped[split]) for split, files in hub.items()}


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    need(args.raw, "the ROCO corpus")
    dropped = {split: Drops() for split in SPLIT_NAMES}
    splits = find_splits(args, dropped)
    if not splits:
        give = "give ROCO's folder `data`, or one of parquet files such as train-*"
        raise FileNotFoundError(f"{args.raw}: no train/radiology or the like in it; {give}")
    say_missing(args.raw, splits)
    prepare(splits, dropped, args, source="ROCO radiology")
    write_roco_papers(args.raw, args.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser, what = corpus_parser(__doc__), "folder of MedICaT's roco_*_references.jsonl"
    parser.add_argument("--references", type=Path, metavar="DIR", help=what)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
