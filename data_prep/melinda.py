r"""MELINDA -> shards of captions with class labels.

The corpus: DIR/train.csv, DIR/dev.csv, DIR/test.csv and DIR/melinda_images, as published; columns
figure_file, caption and the four to classify by: i_meth, p_meth, i_meth_label, p_meth_label. A
figure may have several rows, which become several texts of it. Splits are train, valid (dev) and
test. Texts of any length stay.

Task fields of a text: question_id, its row's number in the file from 1 (header and blank lines
apart), and the four columns, as strings exactly as in the file, or null where a cell is blank; such
rows are kept, counted in the report, and to be left out when that column is classified by.

OUT/classes.json has for each column the sorted classes: `paper`, of all splits, test too, as the
paper does, and `train`, of the training rows alone. By the paper there are 85 of i_meth, 45 of
p_meth, 15 of i_meth_label, 7 of p_meth_label.

example: python data_prep/melinda.py --raw melinda --out data/melinda --tokenizer roberta-base
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from m3ae.command import run
from m3ae.corpora.items import Drops, is_inside
from m3ae.corpora.prepare import corpus_parser
from m3ae.corpora.questions import Parsed, Question, count_empty, prepare_classes, to_items
from m3ae.corpora.tables import read_table
from m3ae.files import is_unicode, need

FILES = {"train": "train.csv", "valid": "dev.csv", "test": "test.csv"}
COLUMNS = ("i_meth", "p_meth", "i_meth_label", "p_meth_label")


def read_split(path: Path, drops: Drops, encoding: str | None = None) -> list[Question]:
    """The captions of one file, in its order; rows that cannot be used are counted."""
    captions = []
    columns = ("figure_file", "caption", *COLUMNS)
    for number, row in read_table(path, columns, drops, encoding=encoding):
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


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    images = need(args.raw, "the MELINDA corpus") / "melinda_images"
    need(images, "the folder of its figures")
    dropped = {split: Drops() for split in FILES}
    splits, counts = {}, {}
    for split, name in FILES.items():
        path = need(args.raw / name, "a table of MELINDA")
        captions = read_split(path, dropped[split], args.text_encoding)
        figures, empty = (
            len({caption.image for caption in captions}),
            count_empty(captions, COLUMNS),
        )
        counts[split] = {"rows": len(captions), "figures": figures, "without_label": empty}
        splits[split] = captions
    items = {split: to_items(asked, images.joinpath, str) for split, asked in splits.items()}
    corpus = Parsed("MELINDA", splits, items, dropped, {"corpus": counts})
    prepare_classes(corpus, args, COLUMNS)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(make_shards, corpus_parser(__doc__), argv)


if __name__ == "__main__":
    raise SystemExit(main())
