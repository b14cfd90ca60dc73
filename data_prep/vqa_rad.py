r"""VQA-RAD -> shards of questions on images.

The corpus: DIR/VQA_RAD Dataset Public.json and DIR/VQA_RAD Image Folder, as published. Splits are
`train` and `test` (phrase types freeform and para, test_freeform and test_para). A row's
`question_frame`, where it is not NULL, is one more wording of its question, and the published
benchmark puts the frames of all rows, test rows too, into training. One preparation carries all
three training sets; rows of `train` have flags by which a protocol selects:

    paper     all of `train`                                     3,064 questions
    strict    without leaked: frames of test rows                2,780
    unframed  without framed: frames of any row                  1,797

Rows also say whether a test question is on their image (`image_in_test`). Without the official
file, trainset.json and testset.json of the MEVF code will do; their `framed` and `leaked` are
null, for nothing in these files tells.

example: python data_prep/vqa_rad.py --raw vqa_rad --out data/vqa_rad --tokenizer roberta-base
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from m3ae.data.prepare import Drops, add_arguments, need, run
from m3ae.data.questions import (
    Question,
    checked_rows,
    count_images,
    count_types,
    labels,
    prepare_questions,
    task_fields,
)

OFFICIAL, MEVF = "VQA_RAD Dataset Public.json", ("trainset.json", "testset.json")
IMAGES = "VQA_RAD Image Folder"
PHRASES = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
KEYS = ("image_name", "question", "answer_type", "phrase_type")

Splits = dict[str, list[Question]]


def frame_of(row: dict[str, Any]) -> str:
    """The row's framed question, empty without one."""
    frame = row.get("question_frame")
    return "" if not isinstance(frame, str) or frame.strip() in ("", "NULL") else frame.strip()


def make_question(row: dict[str, Any], framed: bool | None, leaked: bool | None) -> Question:
    """A row's question or, if `framed`, its frame; None says unknown."""
    kind = row.get("question_type")
    fields = task_fields(
        f"{row['qid']}-frame" if framed else row["qid"], row["answer"], row["answer_type"],
        kind.strip() if isinstance(kind, str) else "", qid=row["qid"],
        phrase_type=row["phrase_type"], framed=framed, leaked=leaked,
    )  # fmt: skip
    return Question(row["image_name"], frame_of(row) if framed else row["question"], fields)


def read_official(path: Path, drops: Drops) -> Splits:
    """Questions by split; the framed ones of all rows follow the others of `train`."""
    splits: Splits = {"train": [], "test": []}
    framed = []
    for row in checked_rows(path, KEYS, drops, KEYS[0]):
        split = PHRASES.get(row["phrase_type"])
        if split is None:
            drops.add("question: unknown phrase_type", f"{path.name}: qid {row['qid']}")
            continue
        splits[split].append(make_question(row, framed=False, leaked=False))
        if frame_of(row):
            framed.append(make_question(row, framed=True, leaked=split == "test"))
    splits["train"] += framed
    return splits


def read_mevf(raw: Path, drops: Drops) -> Splits:
    """Questions by split of trainset.json and testset.json; a repeated qid gets a number."""
    splits: Splits = {}
    for split, name in zip(("train", "test"), MEVF, strict=True):
        flag = None if split == "train" else False
        path = need(raw / name, "a question file of the MEVF code")
        rows = checked_rows(path, KEYS, drops, KEYS[0], repeated=True)
        splits[split] = [make_question(row, flag, flag) for row in rows]
    return splits


def read_corpus(raw: Path, drops: Drops) -> Splits:
    """Questions by split from whichever files are there, with `image_in_test` on each."""
    need(raw, "the VQA-RAD corpus")
    found = Drops()
    if (raw / OFFICIAL).exists():
        splits = read_official(raw / OFFICIAL, found)
    elif (raw / MEVF[0]).exists():
        splits = read_mevf(raw, found)
    else:
        raise FileNotFoundError(f"{raw}: no '{OFFICIAL}' in it, and no {' or '.join(MEVF)}")
    drops.merge({f"{why} (any split)": entry for why, entry in found.as_dict().items()})
    tested = {question.image for question in splits["test"]}
    for question in (question for split in splits.values() for question in split):
        question.fields["image_in_test"] = question.image in tested
    return splits


def find_images(raw: Path) -> Path:
    """The images' folder: the official one, else `images`."""
    folder, other = raw / IMAGES, raw / "images"
    if other.is_dir() and not folder.is_dir():
        return other
    return need(folder, "the folder of VQA-RAD's images")


def image_key(name: str) -> str:
    """The picture's MedPix number, e.g. synpic54610: what exclusion lists name it by."""
    return PurePosixPath(name).stem


def count_corpus(splits: Splits, images: Path) -> dict[str, Any]:
    """What the raw corpus has: image files, images with a question, training sets, test."""
    train, test = splits["train"], splits["test"]
    asked = [question for question in train if not question.fields["framed"]]
    known = all(question.fields["framed"] is not None for question in train)
    framed = sum(bool(question.fields["framed"]) for question in train) if known else None
    leaked = sum(bool(question.fields["leaked"]) for question in train) if known else None
    sets = {"paper": len(train)}
    if known:
        sets |= {"strict": len(train) - leaked, "unframed": len(asked)}
    return {
        "image_files": count_images(images),
        "images_asked_about": {
            "all": len({question.image for question in train + test}),
            "train": len({question.image for question in asked}),
            "test": len({question.image for question in test}),
        },
        "training_sets": sets,
        "framed": framed,
        "leaked": leaked,
        "test": count_types(test),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    args = parser.parse_args(argv)

    def body() -> None:
        drops = Drops()
        splits = read_corpus(args.raw, drops)
        images = find_images(args.raw)
        train, test = splits["train"], splits["test"]
        asked = [question for question in train if not question.fields["framed"]]
        # The paper's list is of all rows; frames of test rows add nothing to it.
        lists = {"paper": labels(train, test), "train": labels(asked)}
        both = dict.fromkeys(splits, drops)
        prepare_questions(splits, dict.fromkeys(splits, images), image_key, lists,
                          count_corpus(splits, images), both, args, "VQA-RAD")

    return run(body)


if __name__ == "__main__":
    sys.exit(main())
