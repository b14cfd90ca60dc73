r"""MELINDA -> shards of captions with class labels.

The corpus: DIR/train.csv, DIR/dev.csv, DIR/test.csv and DIR/melinda_images, as published; columns
figure_file, caption and the four to classify by: i_meth, p_meth, i_meth_label, p_meth_label. A
figure may have several rows, which become several texts of it. Splits are train, valid (dev) and
test. Texts of any length stay.

Task fields of a text: question_id, its row's number in the file from 1 (header and blank lines
apart), and the four columns, as strings exactly as in the file, or null where a cell is blank; such
rows are kept, counted in the report, and to be left out when that column is classified by. The kind
of the shards is that of questions, the one for texts with task fields.

OUT/classes.json has for each column the sorted classes: `paper`, of all splits, test too, as the
paper does, and `train`, of the training rows alone. By the paper there are 85 of i_meth, 45 of
p_meth, 15 of i_meth_label, 7 of p_meth_label.

example: python data_prep/melinda.py --raw melinda --out data/melinda --tokenizer roberta-base
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from m3ae.command import exit_status
from m3ae.corpora.items import Drops, is_inside
from m3ae.corpora.prepare import add_arguments
from m3ae.corpora.questions import Question, prepare_fields, share, to_items
from m3ae.corpora.tables import read_table
from m3ae.files import is_unicode, need

FILES = {"train": "train.csv", "valid": "dev.csv", "test": "test.csv"}
IMAGES = "melinda_images"
COLUMNS = ("i_meth", "p_meth", "i_meth_label", "p_meth_label")


def read_split(path: Path, drops: Drops) -> list[Question]:
    """The captions of one file, in its order; rows that cannot be used are counted."""
    captions = []
    for number, row in read_table(path, ("figure_file", "caption", *COLUMNS), drops):
        where, figure = f"{path.name}: row {number}", row["figure_file"].strip()
        if not figure or not row["caption"].strip():
            drops.add("row: no figure_file or no caption", where)
        elif not all(map(is_unicode, row.values())):
            drops.add("row: not UTF-8", where)
        elif not is_inside(figure):
            drops.add("row: figure_file leads elsewhere", f"{where}: {figure}")
        else:
            labels = {name: row[name] if row[name].strip() else None for name in COLUMNS}
            fields = {"question_id": str(number), **labels}
            captions.append(Question(figure, row["caption"], fields))
    return captions


def classes(captions: Iterable[Question], column: str) -> list[str]:
    """The sorted classes of a column."""
    found = {caption.fields[column] for caption in captions}
    return sorted(found - {None})


def count_corpus(captions: Sequence[Question]) -> dict[str, Any]:
    """Of one split: usable rows, figures, and by column the rows whose label is blank."""
    blank = {name: sum(c.fields[name] is None for c in captions) for name in COLUMNS}
    figures = len({caption.image for caption in captions})
    return {"rows": len(captions), "figures": figures, "without_label": blank}


def coverage(lists: dict[str, list[str]], test: Sequence[Question], column: str) -> dict[str, Any]:
    """Numbers of classes, and the share of labelled test rows whose class is a training one."""
    labels = [c.fields[column] for c in test if c.fields[column] is not None]
    counts = {name: len(some) for name, some in lists.items()}
    return {**counts, "test_coverage": share([label in lists["train"] for label in labels])}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args(argv)

    def body() -> None:
        images = need(need(args.raw, "the MELINDA corpus") / IMAGES, "the folder of its figures")
        dropped = {split: Drops() for split in FILES}
        splits = {
            split: read_split(need(args.raw / name, "a table of MELINDA"), dropped[split])
            for split, name in FILES.items()
        }
        train, test = splits["train"], splits["test"]
        everything = [caption for captions in splits.values() for caption in captions]
        lists = {
            name: {"paper": classes(everything, name), "train": classes(train, name)}
            for name in COLUMNS
        }
        facts = {
            "corpus": {split: count_corpus(some) for split, some in splits.items()},
            "classes": {name: coverage(lists[name], test, name) for name in COLUMNS},
        }
        items = {split: to_items(some, images.joinpath, str) for split, some in splits.items()}
        prepare_fields(items, dropped, args, "MELINDA", facts, "classes.json", lists)

    return exit_status(body)


if __name__ == "__main__":
    sys.exit(main())
