"""The answer normaliser against the recorded pairs."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.scoring.answers import (
    accepted_answers,
    answer_label,
    keeps_its_form,
    normalise_answer,
)
from tests.recipe import GOLDEN

RECORDED = json.loads((GOLDEN / "golden_normalize_word.json").read_text())


@pytest.mark.parametrize(("answer", "expected"), RECORDED)
def test_recorded_pairs(answer, expected):
    """Catches any rule that differs from the reference's: the answer lists would differ."""
    assert normalise_answer(answer) == expected


@given(st.text(max_size=40))
def test_no_answer_is_an_error(answer):
    """Catches an answer that breaks the normaliser, or keeps stray spaces or articles."""
    words = normalise_answer(answer).split(" ")
    assert words == [""] or all(words)
    assert not {"a", "an", "the"} & set(words)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The Lung", {"lung"}),
        ("lung, pleura#spine and contents", {"lung pleura", "spine and contents"}),
        ("a cyst (benign) of the liver", {"cyst of liver", "cyst benign of liver"}),
        ("(staging) x (y)#z", {"x", "staging x", "x y", "staging x y", "z"}),
        ("a (b (c)) d", {"d", "b d", "b c d"}),
        ("tumor(s)", {"tumor", "tumor s", "tumors"}),
        ("ct (iv", {"ct iv"}),
        (") b ( c", {"b c"}),
        ("ct (one#two) mri", {"ct 1", "2 mri"}),  # no bracket pairs within its alternative
        ("(gbm)", {"gbm"}),
        ("#", {"#"}),
        ("the", {""}),
        ("", {""}),
        ("()", {""}),
        ("#a#", {"#a#"}),
        ("x##", {"x"}),
        ("() y", {"y"}),
    ],
)
def test_accepted_answers(answer, expected):
    """An alternative or an optional part not honoured, or a wrong answer counted as right."""
    assert accepted_answers(answer) == expected


def test_many_brackets_take_no_time():
    """2^40 combinations of an answer with 40 brackets."""
    whole, left_out = " ".join("x y".split() * 40), " ".join("x" * 40)
    forms = accepted_answers("x (y)" * 40)
    assert {whole, left_out} < forms and len(forms) == 3  # and one without the brackets' marks


@settings(max_examples=2000)
@given(st.text("ab ()#-,.\n", max_size=24) | st.text(max_size=24))
def test_accepted_answers_of_anything(answer):
    """An answer that nothing can match, that the empty one matches, or that ends the run."""
    forms = accepted_answers(answer)
    assert forms and ("" not in forms or forms == {normalise_answer(answer)} == {""})
    whole = normalise_answer(answer)
    if "#" not in answer and whole:
        assert whole in forms  # who is right by the paper's protocol is right by this one
    if not {"#", "(", ")"} & set(answer):
        assert forms == {whole}
    for part in answer.split("#"):
        assert not normalise_answer(part) or normalise_answer(part) in forms


def test_an_answer_without_a_word_keeps_its_form():
    """The letter A of a multiple choice, or an article, with no label; a blank one given one."""
    assert [answer_label(answer) for answer in ("A", "B", "The  AN", "A mass", "")] == [
        *("a", "b", "the an", "mass"),
        "",
    ]
    kept = {label: keeps_its_form(label) for label in ("a", "the an", "()", "", "mass", None)}
    assert kept == {"a": True, "the an": True, "()": True, "": False, "mass": False, None: False}
