"""Anything in the files of corpora of questions: read, counted or refused.

Each parser gets rows with nasty cells and files with damaged bytes. It may raise ValueError or
OSError, which end a script as one line and exit code 1; every other row becomes a text or a drop,
and no image lies outside the corpus's folder.
"""

import csv
import datetime
import decimal
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_prep import slake, vqa_med_2019, vqa_rad
from m3ae.corpora.chunks import clean
from m3ae.corpora.items import Drops, Item
from m3ae.corpora.questions import Question, count_types, coverage, labels, to_items
from m3ae.corpora.tables import read_lines

MANY = settings(
    max_examples=2000, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ALLOWED = (ValueError, OSError)
ELSEWHERE = ["../../x", "/etc/x", "..", "a/../../x", "..\\x", "C:x", "C:\\x", "a\0b", "\\\\h\\x"]
CELLS = [
    *ELSEWHERE,
    "",
    " ",
    ".",
    "a",
    "a.jpg",
    "b/source.jpg",
    "x" * 300,
    "é",
    "\u2028",
    "1",
    "-1",
    "1e999",
    "yes",
    "#",
    "(",
    "a#(b)",
    "NULL",
    "en",
    "open",
    "CLOSED ",
    '"',
    "|",
    ",",
    "\n",
    "\r",
    "\ufeff",
    "train",
    "50000001",
    "s50000001",
]
WORDS = st.sampled_from(CELLS) | st.text(max_size=3)
VALUES = st.one_of(
    WORDS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(WORDS, max_size=2),
    st.just("\ud800"),
)


def damage(data: bytes, cut: tuple[int, int, bytes]) -> bytes:
    """The file with some bytes replaced, e.g. cut short."""
    place = cut[0] * len(data) // 99
    return data[:place] + cut[2] + data[place + cut[1] :]


CUTS = st.none() | st.tuples(st.integers(0, 99), st.integers(0, 40), st.binary(max_size=4))


def check_items(items: Iterable[Item], folder: Path) -> None:
    """The rest of a preparation without images; raises where it would end, or read elsewhere."""
    keys = []
    for item in items:
        place = getattr(item.image, "archive", None) or getattr(item.image, "file", item.image)
        assert Path(os.path.normpath(place)).is_relative_to(folder)
        json.dumps([item.key, item.image.name, item.texts, *item.fields])
        kept = clean(item, 1, drops := Drops())
        assert len(kept) + drops.counts.total() == len(item.texts)
        keys += [key for key, _, _ in kept]
    assert len(set(keys)) == len(keys)


def check_questions(splits: dict[str, list[Question]], place, key_of, folder: Path) -> None:
    for asked in splits.values():
        items = {item.key: item for item in to_items(asked, place, key_of)}  # as `_select` does
        check_items(items.values(), folder)
        known = labels(asked)
        json.dumps(sorted(known), ensure_ascii=False).encode()
        coverage({"paper": known}, asked)
        assert count_types(asked)["questions"] == len(asked)


def as_csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def table(header: list[str]) -> st.SearchStrategy:
    """A CSV: mostly that header, rows of nasty cells, of mostly the right length."""
    cell = WORDS.filter(lambda s: not any("\ud800" <= c <= "\udfff" for c in s)) | st.just("\udcff")
    rows = st.lists(
        st.lists(cell, min_size=len(header), max_size=len(header)) | st.lists(cell, max_size=3),
        max_size=3,
    )
    heads = st.sampled_from([header] * 8 + [header[1:], [*header, header[0]], []])
    return st.builds(lambda head, some: (head, some), heads, rows)


# ------------------------------------------------------------------ VQA-RAD and SLAKE

RAD = {
    "qid": 1,
    "phrase_type": "freeform",
    "image_name": "a.jpg",
    "question": "What?",
    "question_frame": "NULL",
    "question_type": "PRES",
    "answer": "yes",
    "answer_type": "OPEN",
}
SLAKE = {
    "qid": 1,
    "img_name": "xmlab1/source.jpg",
    "question": "What?",
    "answer": "CT",
    "q_lang": "en",
    "answer_type": "OPEN",
    "content_type": "Organ",
}


def rows_like(good: dict) -> st.SearchStrategy:
    """A few rows with some columns changed or removed, or anything in their place."""
    key = st.sampled_from(list(good))
    special = {
        "qid": st.sampled_from([1, "1", "1-frame", "1-2"]),
        "question_frame": st.sampled_from(["Which?", "\ud800"]),
        "answer": st.sampled_from(["no", "\ud800"]),
        "phrase_type": st.sampled_from(["para", "test_para"]),
    }
    changes = st.dictionaries(key, VALUES, max_size=2)
    often = st.fixed_dictionaries({}, optional={k: v for k, v in special.items() if k in good})
    row = st.builds(
        lambda c, o, gone: {k: v for k, v in {**good, **o, **c}.items() if k != gone},
        changes,
        often,
        st.none() | key,
    )
    return st.lists(row | VALUES, max_size=3)


def test_vqa_rad_files(tmp_path):
    """A damaged official or MEVF file ends in a traceback, or two texts get one key."""
    raw = Path(os.path.normpath(tmp_path))
    layouts = {"official": (vqa_rad.OFFICIAL,), "mevf": vqa_rad.MEVF}
    for layout in layouts:
        (raw / layout / "images").mkdir(parents=True)

    @MANY
    @given(rows=rows_like(RAD), cut=CUTS)
    def check(rows, cut):
        data = json.dumps(rows).encode()
        for layout, names in layouts.items():
            for name in names:
                (raw / layout / name).write_bytes(damage(data, cut) if cut else data)
            check_layout(raw / layout, None if cut else len(rows) * len(names))

    check()


def check_layout(raw: Path, rows: int | None) -> None:
    drops = Drops()
    try:
        corpus = vqa_rad.read_corpus(raw, None, drops)
    except ALLOWED:
        assert rows is None
        return
    check_questions(corpus.splits, corpus.place, vqa_rad.image_key, raw / "images")
    vqa_rad.count_corpus(corpus)
    "".join(vqa_rad.leaked_lines(corpus.splits["train"])).encode()
    if rows is not None:
        whole = sum(not q.fields["framed"] for split in corpus.splits.values() for q in split)
        frames = drops.counts["question: question_frame not UTF-8 (any split)"]
        assert whole + drops.counts.total() - frames == rows


def test_vqa_rad_parquet_rows(tmp_path):
    """A column of another type, or a file cut short, ends in another exception."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    raw = Path(os.path.normpath(tmp_path))
    official = raw / "official.json"
    official.write_text(
        json.dumps(
            [
                {**RAD, "question_frame": "Which?"},
                {**RAD, "qid": 2, "phrase_type": "test_para", "question_frame": "Who?"},
            ]
        )
    )
    cells = ["What?", "which?", "who?", "yes", " YES", "NULL", None, *CELLS[9:20]]
    columns = st.sampled_from(
        [
            *([one, two] for one in cells for two in cells[:6]),
            [1, None],
            [-1, 2**62],
            [None, None],
            [0.5, float("nan")],
            [b"\xff", b"a"],
            [[1], []],
            [{"a": 1}, None],
            [True, False],
            [datetime.date(1, 1, 1), None],
            [datetime.timedelta(1), None],
            [decimal.Decimal("1.5"), None],
        ]
    )
    stored = [{"bytes": data, "path": "../../x"} for data in (b"", b"one", b"two", None)]
    images = st.sampled_from(
        [
            *([one, two] for one in stored for two in stored),
            [stored[1], None],
            [b"one", b"two"],
            ["x", "y"],
            [1, 2],
            [None, None],
        ]
    )
    good = {"image": stored[1:3], "question": ["What?", "who?"], "answer": ["yes", "yes"]}
    parquet.write_table(pyarrow.table(good), raw / "test.parquet")
    names = st.sampled_from(["image", "image", "image", "picture"])

    @MANY
    @given(
        image=images, question=columns, answer=columns, name=names, cut=CUTS, joined=st.booleans()
    )
    @example(  # a group whose columns have fewer rows than it says
        [stored[1], stored[0]], [" ", "What?"], ["What?"] * 2, "image", (53, 5, b"\x00"), False
    )
    def check(image, question, answer, name, cut, joined):
        table = pyarrow.table({name: image, "question": question, "answer": answer})
        parquet.write_table(table, raw / "train.parquet", row_group_size=1, compression="none")
        if cut:
            data = (raw / "train.parquet").read_bytes()
            (raw / "train.parquet").write_bytes(damage(data, cut))
        drops = Drops()
        try:
            corpus = vqa_rad.read_corpus(raw, official if joined else None, drops)
        except ALLOWED:
            return
        check_questions(corpus.splits, corpus.place, vqa_rad.image_key, raw)
        vqa_rad.count_corpus(corpus)
        if not cut:
            assert sum(map(len, corpus.splits.values())) + drops.counts.total() == 4

    check()


def test_slake_files(tmp_path):
    """A damaged SLAKE file ends in a traceback, or an image is read from elsewhere."""
    (tmp_path / "imgs").mkdir()
    raw = Path(os.path.normpath(tmp_path))
    place = slake.find_images(raw)

    @MANY
    @given(rows=rows_like(SLAKE), cut=CUTS)
    def check(rows, cut):
        data, drops = json.dumps(rows).encode(), Drops()
        (raw / "train.json").write_bytes(damage(data, cut) if cut else data)
        try:
            asked = slake.read_split(raw / "train.json", ("en", "zh"), drops)
        except ALLOWED:
            assert cut
            return
        check_questions({"test": asked}, place, slake.image_key, raw / "imgs")
        if not cut:
            assert len(asked) + drops.counts.total() == len(rows)

    check()


# ------------------------------------------------------------------ VQA-Med-2019


def test_vqa_med_lines(tmp_path):
    """A line that ends the run, names an image elsewhere, or is neither read nor counted."""
    raw = Path(os.path.normpath(tmp_path))
    cell = WORDS.map(lambda s: s.encode("utf-8", "replace")) | st.sampled_from(
        [b"\xff", b"organ", b"organ", b"synpic1", b"lung (left)#heart"]
    )

    @MANY
    @given(
        lines=st.lists(st.lists(cell, max_size=5), max_size=3),
        end=st.sampled_from([b"\n", b"\r\n"]),
        cut=CUTS,
    )
    def check(lines, end, cut):
        data = end.join(b"|".join(columns) for columns in lines)
        path = raw / "lines.txt"
        path.write_bytes(damage(data, cut) if cut else data)
        for category in ("organ", ""):  # of the file, or in its lines
            drops = Drops()
            source = vqa_med_2019.Source(raw, ((path, category),))
            asked = vqa_med_2019.read_questions(source, ["organ"], drops)
            others = 0 if category else _of_other_categories(path)
            assert len(asked) + drops.counts.total() + others == len(list(read_lines(path)))
            assert all(question.fields["alternatives"] for question in asked)
            check_questions({"test": asked}, raw.joinpath, lambda name: Path(name).stem, raw)

    check()


def _of_other_categories(path: Path) -> int:
    """Good lines of categories not asked for, which are no drops."""
    every = vqa_med_2019.read_questions(
        vqa_med_2019.Source(path.parent, ((path, ""),)), vqa_med_2019.NAMES, Drops()
    )
    return sum(question.fields["question_type"] != "organ" for question in every)
