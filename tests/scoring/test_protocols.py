"""Protocols: what is trained on, what selects, which answers are known."""

import pytest

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
