r"""VQA-RAD -> shards of questions on images.

The corpus: DIR/VQA_RAD Dataset Public.json and DIR/VQA_RAD Image Folder, as published. Splits are
`train` and `test` (phrase types freeform and para, test_freeform and test_para). A row's
`question_frame`, where it is not NULL, is one more wording of its question, and the published
benchmark puts the frames of all rows, test rows too, into training. One preparation carries all
three training sets; rows of `train` have flags by which a protocol selects:

    paper     all of `train`                                     3,064 questions
    strict    without leaked: frames of test rows                2,780
    unframed  without framed: frames of any row                  1,797

Rows also say whether a test question is on their image (`image_in_test`). Where `leaked` is known
of all rows, OUT/leaked_questions.txt lists those: question_id, tab, image, tab, question.

Where the official file is not in DIR, others will do, with null for `framed` and `leaked`:

    trainset.json and testset.json of the MEVF code, with the folder of images (or `images`).
        `framed` is known where phrase_type says `frame`, and then only frames may be leaked. Other
        corpora and splits go about in this form: what is unlike VQA-RAD's is named and reported
    the hub's parquet copy (image, question, answer; 1,793 + 451 rows, no framed ones). The key of
        an image is from the sha256 of its bytes; closed is what is answered by yes or no. With
        --official FILE (the official json) its rows are joined to the official ones by the text of
        question and answer, and get their fields. Rows that were not joined are counted.

example: python data_prep/vqa_rad.py --raw vqa_rad --out data/vqa_rad --tokenizer roberta-base
"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from m3ae.command import run
from m3ae.corpora import questions
from m3ae.corpora.items import Drops, Stored
from m3ae.corpora.prepare import corpus_parser
from m3ae.corpora.questions import Place, Question, Splits
from m3ae.corpora.stored import parquet_rows, parquet_splits
from m3ae.files import is_unicode, need, printable, write_text
from m3ae.scoring.answers import normalise_answer

OFFICIAL, MEVF = "VQA_RAD Dataset Public.json", ("trainset.json", "testset.json")
IMAGES = "VQA_RAD Image Folder"
LEAKED = "leaked_questions.txt"
MEVF_ROWS, MOST_IMAGES = {"train": 3064, "test": 451}, 315
VQA_MED_TYPES = {"MODALITY", "PLANE", "ORGAN", "ABNORMALITY"}
PHRASES = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
KEYS = ("image_name", "question", "answer_type", "phrase_type")

Row = dict[str, Any]


@dataclass(frozen=True)
class Corpus:
    """Questions by split, and their images; `joined`: counts of `join`, {} without --official.

    `unlike`: what tells that the files are not those of VQA-RAD, or not all of them; `other`:
    whether they are of another corpus or split.
    """

    splits: Splits
    place: Place
    image_files: int
    copy: bool = False
    joined: dict[str, Any] = field(default_factory=dict)
    unlike: tuple[str, ...] = ()
    other: bool = False


def frame_of(row: dict[str, Any]) -> str:
    """The row's framed question, empty without one."""
    frame = row.get("question_frame")
    return "" if not isinstance(frame, str) or frame.strip() in ("", "NULL") else frame.strip()


def make_question(row: dict[str, Any], framed: bool | None, leaked: bool | None) -> Question:
    """A row's question or, if `framed`, its frame; None says unknown."""
    kind, name = row.get("question_type"), f"{row['qid']}-frame" if framed else row["qid"]
    kind = kind.strip() if isinstance(kind, str) else ""
    own = {"qid": row["qid"], "phrase_type": row["phrase_type"], "framed": framed, "leaked": leaked}
    fields = questions.task_fields(name, row["answer"], row["answer_type"], kind, **own)
    return Question(row["image_name"], frame_of(row) if framed else row["question"], fields)


def read_official(path: Path, drops: Drops, encoding: str | None = None) -> Splits:
    """Questions by split; the framed ones of all rows follow the others of `train`."""
    splits: Splits = {"train": [], "test": []}
    framed = []
    for row in questions.checked_rows(path, KEYS, drops, encoding=encoding):
        split, where = PHRASES.get(row["phrase_type"]), f"{path.name}: qid {row['qid']}"
        if split is None:
            drops.add("question: unknown phrase_type", where)
        elif row["qid"].endswith("-frame"):
            drops.add("question: qid ends in -frame, as the ids of frames do", where)
        else:
            splits[split].append(make_question(row, framed=False, leaked=False))
            if not is_unicode(frame_of(row)):
                drops.add("question: question_frame not UTF-8", where)
            elif frame_of(row):
                framed.append(make_question(row, framed=True, leaked=split == "test"))
    splits["train"] += framed
    return splits


def read_mevf(raw: Path, drops: Drops, encoding: str | None = None) -> Splits:
    """Questions by split of trainset.json and testset.json; a repeated qid gets a number."""
    splits: Splits = {}
    for split, name in zip(("train", "test"), MEVF, strict=True):
        path = need(raw / name, "a question file of the MEVF code")
        rows = questions.checked_rows(path, KEYS, drops, repeated=True, encoding=encoding)
        frames = [row["phrase_type"].lower() == "frame" for row in rows]
        splits[split] = []
        for row, frame in zip(rows, frames, strict=True):
            framed = frame if split == "test" or any(frames) else None
            # A frame's own text is its question here; whether of a test row, nothing says.
            question = make_question(row, False, False if framed is False else None)
            question.fields["framed"] = framed
            splits[split].append(question)
    return splits


def unlike_published(splits: Splits) -> tuple[list[str], bool]:
    """What of MEVF files is not as in VQA-RAD's, and whether they are another corpus or split."""
    tested = sum(PHRASES.get(q.fields["phrase_type"]) == "test" for q in splits["train"])
    images = {question.image for question in chain(*splits.values())}
    types = {q.fields["question_type"].upper() for q in chain(*splits.values())} - {""}
    found = {
        f"{tested} rows of {MEVF[0]} are test rows by their phrase_type, none should be": tested,
        f"{len(images)} images, VQA-RAD has {MOST_IMAGES}": len(images) > MOST_IMAGES,
        "their question types are those of VQA-Med-2019": bool(types) and types <= VQA_MED_TYPES,
    }
    unlike = [remark for remark, is_so in found.items() if is_so]
    for name, (split, rows) in zip(MEVF, MEVF_ROWS.items(), strict=True):
        if len(splits[split]) != rows:
            unlike.append(f"{len(splits[split])} rows in {name}, {rows} expected")
    return unlike, any(found.values())


@dataclass
class Copied:
    """A row of the parquet copy and, once joined, its official row.

    `could_be`: the official rows with its text; `framed`: as the text of their frame.
    """

    row: Row
    could_be: list[Row] = field(default_factory=list)
    framed: bool = False
    official: Row | None = None


def read_rows(raw: Path, drops: Drops) -> tuple[dict[str, list[Copied]], dict[str, Stored]]:
    """Rows of the parquet copy by split, row-N (from 0) as qid, and its images by new names."""
    files = parquet_splits(raw)
    rows: dict[str, list[Copied]] = {}
    images: dict[str, Stored] = {}
    for split in ("train", "test"):
        if split not in files:
            raise FileNotFoundError(f"{raw}: no parquet file of split {split} in it")
        rows[split] = []
        found = parquet_rows(files[split], ("question", "answer"), image="image")
        for number, (image, row) in enumerate(found):
            data = image.read_bytes()
            name = f"sha256-{hashlib.sha256(data).hexdigest()[:16]}.image"
            closed = normalise_answer(str(row["answer"])) in ("yes", "no")
            row |= {"image_name": name if data else "", "qid": f"row-{number}"}
            row["answer_type"] = "closed" if closed else "open"
            try:
                rows[split].append(Copied(questions.check_row(row, KEYS[:3])))
                images.setdefault(name, image)
            except ValueError as error:
                where = f"{image.file.name}: row {number} of split {split}"
                drops.add(f"question: {error}", where)
    return rows, images


def text_key(question: str, answer: str) -> tuple[str, str]:
    """What rows are joined by: white space collapsed, and the copy is in lower case."""
    return " ".join(question.split()).casefold(), " ".join(answer.split()).casefold()


def by_text(official: Iterable[Row], framed: bool = False) -> dict[tuple[str, str], list[Row]]:
    """Official rows by the text of question (or frame) and answer."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in official:
        question = frame_of(row) if framed else row["question"]
        if question:
            found.setdefault(text_key(question, row["answer"]), []).append(row)
    return found


def join(rows: dict[str, list[Copied]], official: Sequence[Row]) -> dict[str, Any]:
    """Find the official rows of the copy's; returns the counts by split.

    Several images have the same question and answer. So an image is first named: by the name that
    most of its rows could have. A row that could be several is the one on that image, and a row
    that could be none on it stays as it is. No official row is taken twice. A training row is a
    frame only where it is no training row's question.
    """
    split_of = {row["qid"]: PHRASES.get(row["phrase_type"]) for row in official}
    asked = {split: by_text(r for r in official if split_of[r["qid"]] == split) for split in rows}
    frames = by_text(official, framed=True)
    votes: dict[str, Counter] = {}
    for split, copies in rows.items():
        for copied in copies:
            key = text_key(copied.row["question"], copied.row["answer"])
            copied.could_be = asked[split].get(key, [])
            if split == "train" and not copied.could_be:
                copied.could_be, copied.framed = frames.get(key, []), True
            names = {row["image_name"] for row in copied.could_be}
            votes.setdefault(copied.row["image_name"], Counter()).update(names)
    named = {}
    for image, counter in votes.items():
        best = counter.most_common(2)
        if len(best) == 1 or (best and best[0][1] > best[1][1]):
            named[image] = best[0][0]
    taken: set[tuple[str, bool]] = set()
    for copied in chain(*rows.values()):
        name = named.get(copied.row["image_name"])
        for row in copied.could_be:
            sure = row["image_name"] == name or (name is None and len(copied.could_be) == 1)
            if sure and (row["qid"], copied.framed) not in taken:
                copied.official = row
                taken.add((row["qid"], copied.framed))
                break
    counts = {}
    for split, copies in rows.items():
        alone = [copied.row["question"] for copied in copies if copied.official is None]
        counts[split] = {"rows": len(copies), "not_joined": len(alone), "examples": alone[:5]}
    return counts


def make_copied(copied: Copied) -> Question:
    """The question of a row of the copy, with the fields of its official row if it has one."""
    if copied.official is None:
        question = make_question({**copied.row, "phrase_type": None}, None, None)
        return Question(question.image, question.text, {**question.fields, "qid": None})
    row, own_row = copied.official, copied.row
    leaked = copied.framed and PHRASES.get(row["phrase_type"]) == "test"
    question = make_question({**row, "answer": own_row["answer"]}, copied.framed, leaked)
    return Question(own_row["image_name"], own_row["question"], question.fields)


def read_copy(
    raw: Path, official: Path | None, drops: Drops, encoding: str | None = None
) -> Corpus:
    """The corpus from the hub's parquet copy, joined to the official file if that is given."""
    rows, images = read_rows(raw, drops)
    joined = {}
    if official is not None:
        need(official, "the official json of VQA-RAD")
        joined = join(rows, questions.checked_rows(official, KEYS, drops, encoding=encoding))
    splits = {split: [make_copied(copied) for copied in copies] for split, copies in rows.items()}
    return Corpus(splits, images.__getitem__, len(images), copy=True, joined=joined)


def read_corpus(
    raw: Path, official: Path | None, drops: Drops, encoding: str | None = None
) -> Corpus:
    """The corpus from whichever files are there, with `image_in_test` on each question.

    encoding: of texts in json that are not UTF-8.
    """
    need(raw, "the VQA-RAD corpus")
    found = Drops()
    if official is not None and not parquet_splits(raw):
        raise ValueError(f"--official {official}: is for the parquet copy, and {raw} has none")
    if official is None and (raw / OFFICIAL).exists():
        corpus = in_folder(raw, read_official(raw / OFFICIAL, found, encoding))
    elif official is None and (raw / MEVF[0]).exists():
        splits = read_mevf(raw, found, encoding)
        unlike, other = unlike_published(splits)
        corpus = replace(in_folder(raw, splits), unlike=tuple(unlike), other=other)
        if unlike:
            wrong = f"{MEVF[0]} and {MEVF[1]} are not VQA-RAD's as published"
            print(f"warning: {raw}: {wrong}: {printable('; '.join(unlike))}", file=sys.stderr)
    elif parquet_splits(raw):
        corpus = read_copy(raw, official, found, encoding)
    else:
        lacks = f"no '{OFFICIAL}' in it, no {' or '.join(MEVF)}, and no parquet files"
        raise FileNotFoundError(f"{raw}: {lacks}")
    drops.merge(found.as_dict(), " (any split)")
    tested = {question.image for question in corpus.splits["test"]}
    for question in chain(*corpus.splits.values()):
        question.fields["image_in_test"] = question.image in tested
    return corpus


def in_folder(raw: Path, splits: Splits) -> Corpus:
    """The corpus whose images lie in the official folder, else in `images`."""
    folder = need(raw / IMAGES, "the folder of VQA-RAD's images", raw / "images")
    return Corpus(splits, folder.joinpath, questions.count_images(folder))


def image_key(name: str) -> str:
    """The picture's MedPix number, e.g. synpic54610; in the parquet copy, sha256- and 16 digits."""
    return PurePosixPath(name).stem


def leaked_lines(train: Iterable[Question]) -> list[str]:
    """question_id, image and question of the leaked rows, between tabs."""
    leaked = [q for q in train if q.fields["leaked"]]
    rows = ((q.fields["question_id"], image_key(q.image), " ".join(q.text.split())) for q in leaked)
    return ["\t".join(row) + "\n" for row in rows]


def count_corpus(corpus: Corpus) -> dict[str, Any]:
    """What the raw corpus has; the parquet copy has no set `paper`, as it lacks the framed rows."""
    train, test = corpus.splits["train"], corpus.splits["test"]
    asked = [question for question in train if not question.fields["framed"]]
    sets: dict[str, int] = {"copy" if corpus.copy else "paper": len(train)}
    framed = leaked = None
    if all(question.fields["framed"] is not None for question in train):
        framed = len(train) - len(asked)
        if all(question.fields["leaked"] is not None for question in train):
            leaked = sum(question.fields["leaked"] for question in train)
            sets["strict"] = len(train) - leaked
        sets["unframed"] = len(asked)
    parts = {"all": train + test, "train": asked, "test": test}
    images = {name: len({question.image for question in part}) for name, part in parts.items()}
    counts = {"image_files": corpus.image_files, "images_asked_about": images}
    counts |= {"training_sets": sets, "framed": framed, "leaked": leaked}
    counts["test"] = questions.count_types(test)
    if corpus.unlike:
        counts["unlike_published"] = list(corpus.unlike)
    return counts | ({"joined": corpus.joined} if corpus.joined else {})


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    drops = Drops()
    corpus = read_corpus(args.raw, args.official, drops, args.text_encoding)
    splits, facts = corpus.splits, {"corpus": count_corpus(corpus)}
    to_items = partial(questions.to_items, place=corpus.place, key_of=image_key)
    items = {split: to_items(asked) for split, asked in splits.items()}
    both = dict.fromkeys(splits, drops)
    source = "VQA-RAD, another split or corpus" if corpus.other else "VQA-RAD"
    questions.prepare_questions(questions.Parsed(source, splits, items, both, facts), args)
    if all(question.fields["leaked"] is not None for question in splits["train"]):
        write_text(args.out / LEAKED, "".join(leaked_lines(splits["train"])))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser, what = corpus_parser(__doc__), "the official json, to join the parquet copy to"
    parser.add_argument("--official", type=Path, metavar="FILE", help=what)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
