"""The answer normaliser against the recorded pairs."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae.downstream.answers import normalise_answer
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
