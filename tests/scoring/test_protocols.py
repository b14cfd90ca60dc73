"""Protocols: what is trained on, what is held out, which answers are known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.downstream.data import hold_out, read_answers
from m3ae.scoring.protocols import protocols_of, select_rows

FIELDS = [
    {"leaked": False, "image_in_test": True},
    {"leaked": True, "image_in_test": True},
    {"leaked": False, "image_in_test": False},
]


def test_the_rules_of_every_corpus():
    """VQA-RAD selected on its valid copy of test under strict, or others selected on test."""
    by_name = {rules.name: rules for rules in protocols_of("both", "VQA-RAD", False)}
    assert by_name["paper"].select == "test" and by_name["paper"].known_answers == "all"
    assert by_name["strict"].select == "held_out" and by_name["strict"].known_answers == "train"
    assert protocols_of("paper", "VQA-RAD", True)[0].select == "test"
    assert [rules.select for rules in protocols_of("both", "SLAKE", True)] == ["valid", "valid"]


def test_rows_by_protocol():
    """Leaked rows trained on under strict, or test images under image_disjoint."""
    rows = {
        name: select_rows(protocols_of(name, "VQA-RAD", False)[0], FIELDS).tolist()
        for name in ("paper", "strict", "image_disjoint")
    }
    assert rows == {"paper": [0, 1, 2], "strict": [0, 2], "image_disjoint": [2]}


def test_unknown_flags_are_refused():
    """Rows of which nobody knows whether they are leaked, trained on as if they were not."""
    unknown = [{"leaked": None}, {"leaked": False}]
    strict = protocols_of("strict", "VQA-RAD", False)[0]
    with pytest.raises(ValueError, match="do not say whether they are leaked"):
        select_rows(strict, unknown)
    assert select_rows(strict, [{}, {}]).tolist() == [0, 1]  # a corpus without such a flag


@settings(max_examples=200)
@given(
    owners=st.lists(st.integers(0, 30), min_size=4, max_size=80),
    share=st.floats(0.05, 0.5),
    skip=st.integers(0, 3),
)
def test_no_image_is_on_both_sides(owners, share, skip):
    """A held-out question whose image is trained on, or a row lost between the two."""
    images = np.array(owners)
    rows = np.arange(len(images))[skip:]
    train, held = hold_out(rows, images, share)
    assert sorted([*train, *held]) == rows.tolist()
    assert not set(images[train]) & set(images[held])
    known = len(set(images[rows]))
    assert len(set(images[held])) == max(1, round(share * known))
    again = hold_out(rows, images, share)
    assert np.array_equal(again[1], held)


def test_answer_lists(tmp_path):
    """Another list, column or order than the one asked for."""
    train = str(tmp_path / "train")
    assert read_answers(train, None, "label") is None
    lists = {"paper": ["a", "b"], "train": ["a"], "reference_order": ["b", "a"]}
    (tmp_path / "answers.json").write_text(json.dumps(lists))
    assert read_answers(train, None, "label") == ["a", "b"]
    assert read_answers(train, None, "label", "reference_order") == ["b", "a"]
    columns = {"i_meth": {"paper": ["x"], "train": []}, "p_meth": {"paper": ["y", "z"]}}
    (tmp_path / "classes.json").write_text(json.dumps(columns))
    (tmp_path / "answers.json").unlink()
    assert read_answers(train, None, "p_meth") == ["y", "z"]
    with pytest.raises(ValueError, match=r"classes\.json: no list paper for data\.field=label"):
        read_answers(train, None, "label")
    (tmp_path / "own.json").write_text('["no", "yes"]')
    assert read_answers(train, str(tmp_path / "own.json"), "label") == ["no", "yes"]
    for bad in ("{", "[]", "[1]", '{"train": ["a"]}', '"yes"x', "null"):
        (tmp_path / "own.json").write_text(bad)
        with pytest.raises(ValueError, match=r"own\.json"):
            read_answers(train, str(tmp_path / "own.json"), "label")
