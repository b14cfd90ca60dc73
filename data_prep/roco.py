r"""ROCO (radiology part, original layout) -> shards of image-caption pairs.

The corpus: DIR/{train,validation,test}/radiology/captions.txt and images/ROCO_00001.jpg, as its own
fetch script leaves it; `val` for `validation` will do. With --references, the sentences that
refer to a figure (MedICaT's roco_{train,val,test}_references.jsonl) become further texts of it, as
in the paper; they are joined through dlinks.txt or licences.txt.

example: python data_prep/roco.py --raw roco-dataset/data --out data/roco \
             --tokenizer roberta-base
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from m3ae.data.prepare import Drops, Item, add_arguments, need, prepare, read_lines, run

SPLITS = {"train": ("train",), "valid": ("validation", "val"), "test": ("test",)}


def read_captions(path: Path, drops: Drops) -> dict[str, str]:
    """Caption by id, e.g. ROCO_00001; lines `id<TAB>caption`."""
    captions = {}
    for number, line in read_lines(path):
        key, tab, caption = line.partition("\t")
        if not tab or not key.strip():
            drops.add("line: not `id<TAB>caption`", f"{path.name}:{number}: {line[:60]}")
        elif key.strip() in captions:
            drops.add("line: id occurs twice, first one kept", f"{path.name}:{number}: {key}")
        else:
            captions[key.strip()] = caption
    return captions


def figure_names(folder: Path, drops: Drops) -> dict[str, str]:
    """ROCO id by figure name, e.g. PMC4608653_cro-0008-0385-g01.jpg.

    The name is the stem of the archive in dlinks.txt, "_", and its last column; licences.txt
    gives it whole.
    """
    names = {}
    for number, line in read_lines(need(folder / "dlinks.txt", "ROCO's list of archives")):
        columns = line.split("\t")
        archives = [word for word in line.split() if word.endswith(".tar.gz")]
        if len(columns) < 3 or not archives:
            drops.add("line: no archive and figure", f"dlinks.txt:{number}: {line[:60]}")
            continue
        stem = PurePosixPath(archives[0]).name.removesuffix(".tar.gz")
        names[f"{stem}_{columns[-1].strip()}"] = columns[0].strip()
    if (folder / "licences.txt").exists():
        for _, line in read_lines(folder / "licences.txt"):
            columns = line.split(",")
            if len(columns) >= 2 and columns[0] != "ROCO_ID":
                names.setdefault(columns[1].strip(), columns[0].strip())
    return names


def read_references(path: Path, names: dict[str, str], drops: Drops) -> dict[str, list[str]]:
    """Sentences that refer to a figure, by ROCO id."""
    references: dict[str, list[str]] = {}
    for number, line in read_lines(need(path, "MedICaT's inline references of ROCO")):
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line)
            name, texts = row["roco_image_id"], row["gorc_references"] or []
        except (ValueError, KeyError, TypeError) as error:
            drops.add("line: not a reference object", f"{where}: {error}")
            continue
        if name not in names:
            drops.add("references: figure not in this split", f"{where}: {name}", len(texts))
            continue
        references.setdefault(names[name], []).extend(str(text) for text in texts)
    return references


def read_split(folder: Path, references: Path | None, drops: Drops) -> list[Item]:
    """Items of one split's radiology folder."""
    captions = read_captions(need(folder / "captions.txt", "ROCO's captions"), drops)
    need(folder / "images", "the folder of ROCO's images (see its fetch script)")
    extra = read_references(references, figure_names(folder, drops), drops) if references else {}
    return [
        Item(key, folder / "images" / f"{key}.jpg", (caption, *extra.get(key, ())))
        for key, caption in captions.items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--references", type=Path, metavar="DIR",
                        help="folder of MedICaT's roco_*_references.jsonl")  # fmt: skip
    args = parser.parse_args(argv)

    def body() -> None:
        need(args.raw, "the ROCO corpus")
        splits, dropped = {}, {}
        for split, names in SPLITS.items():
            found = [args.raw / name / "radiology" for name in names]
            found = [folder for folder in found if folder.is_dir()]
            if not found:
                print(f"{args.raw}: no {names[0]}/radiology, split {split} is left out")
                continue
            source = None
            if args.references:
                short = "val" if split == "valid" else split
                source = args.references / f"roco_{short}_references.jsonl"
            dropped[split] = Drops()
            splits[split] = read_split(found[0], source, dropped[split])
        if not splits:
            raise FileNotFoundError(f"{args.raw}: no train/radiology, validation/radiology or "
                                    "test/radiology in it; give ROCO's folder `data`")  # fmt: skip
        prepare(splits, dropped, args, source="ROCO radiology")

    return run(body)


if __name__ == "__main__":
    sys.exit(main())
