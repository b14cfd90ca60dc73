"""Relaxed measures against their definitions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae.scoring.measures import measure_answers
from m3ae.scoring.predictions import complete
from m3ae.scoring.relaxed import DEFINITIONS, measure_relaxed, token_measures, yes_or_no


@pytest.mark.parametrize(
    "said, true, recall, f1, bleu",
    [
        ("right lung", "right lung", 1, 1, 1),
        ("it is in right lung", "right lung", 1, 4 / 7, 2 / 5),
        ("lung", "right lung", 1 / 2, 2 / 3, math.exp(-1)),
        ("lung lung lung", "lung", 1, 1 / 2, 1 / 3),  # clipped
        ("lung", "lung lung", 1 / 2, 2 / 3, math.exp(-1)),
        ("heart", "right lung", 0, 0, 0),
        ("", "lung", 0, 0, 0),
        ("lung", "", 0, 0, 0),
        ("", "", 1, 1, 1),
    ],
)
def test_token_measures(said, true, recall, f1, bleu):
    """A repeated word that counts again and again, a short answer without its penalty."""
    assert token_measures(said, true) == pytest.approx((recall, f1, bleu))


WORDS = st.lists(st.sampled_from("a b c d".split()), max_size=6).map(" ".join)


@given(WORDS, WORDS)
def test_token_measures_are_fractions(said, true):
    """A measure above 1, or one that is perfect for other words."""
    values = token_measures(said, true)
    assert all(0 <= value <= 1 for value in values)
    assert (values[1] == 1) == (sorted(said.split()) == sorted(true.split()))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Yes.", "yes"),
        ("NO, there is none", "no"),
        ("There is no effusion.", "no"),
        ("I would say yes, no fracture is seen", "yes"),
        ("not known; the nose and eyes", None),
        ("", None),
    ],
)
def test_yes_or_no(text, expected):
    """Yes read out of `eyes`, or a sentence that says neither read as the gold answer."""
    assert yes_or_no(text) == expected


def rows_of(predictions: list, answers: list[str]) -> list[dict]:
    kinds = ["closed" if answer in ("yes", "no") else "open" for answer in answers]
    told = zip(predictions, answers, kinds, strict=True)
    rows = [
        {"id": f"i{k // 2}/{k}", "prediction": said, "answer": answer, "type": kind}
        for k, (said, answer, kind) in enumerate(told)
    ]
    return complete(rows, "file")


def test_unparsed_predictions_are_wrong_and_counted():
    """A prediction that says neither yes nor no left out of the mean, or given the gold's."""
    rows = rows_of(["Yes, clearly", "it depends", None, "the liver"], ["yes", "no", "no", "liver"])
    found = measure_relaxed([rows], "strict")
    assert found["unparsed"] == [2]
    entry = {"questions": 3, "images": 2, "value": pytest.approx(1 / 3), "interval": None}
    assert found["measures"]["yes_no"] == {"overall": entry}
    assert found["measures"]["token_recall"]["open"]["value"] == 1
    assert found["measures"]["token_recall"]["closed"]["value"] == pytest.approx(1 / 3)
    assert list(found["measures"]) == list(DEFINITIONS) == list(found["definitions"])


def test_protocols_and_what_is_refused():
    """The best alternative under paper, or classes and rows without answers measured as text."""
    rows = rows_of(["spine", "x"], ["left lung#spine", "y"])
    recall = [
        measure_relaxed([rows], protocol)["measures"]["token_recall"]["overall"]["value"]
        for protocol in ("paper", "strict")
    ]
    assert recall == [0, 1 / 2]
    for bad in ({"type": None}, {"label": None}, {"prediction": None}):
        lacking = [{k: x for k, x in row.items() if k not in bad} for row in rows]
        with pytest.raises(ValueError, match="give --data"):
            measure_relaxed([lacking], "strict")


@pytest.mark.parametrize("seeds", [1, 2])
def test_intervals_are_those_of_accuracy(seeds):
    """A single run's interval without the expansion for few images: two intervals of one fact."""
    right = [[k % 3 > 0 for k in range(44)], [k % 5 > 0 for k in range(44)]][:seeds]
    runs = [rows_of(["liver" if hit else "x" for hit in run], ["liver"] * 44) for run in right]
    other = [rows_of(["liver"] * 30 + ["x"] * 14, ["liver"] * 44)] * seeds
    found = measure_relaxed(runs, "strict", other, samples=500)["measures"]
    wanted = measure_answers(runs, "strict", against=other, samples=500)
    for part in ("overall", "open"):
        entry, accuracy = found["token_recall"][part], wanted[part]
        assert entry["interval"] == pytest.approx(accuracy["interval"], abs=1e-8)
        for key in ("difference_interval", "p"):
            ours, theirs = entry["against"][key], accuracy["against"][key]
            assert ours == pytest.approx(theirs, abs=1e-8) and theirs is not None
        assert "mcnemar" not in entry["against"]  # no measure is right or wrong


def test_intervals_and_comparisons():
    """An interval of questions instead of images, seeds that do not widen it, unpaired pairs."""
    answers = ["liver", "yes"] * 40
    half = rows_of(["it is liver", "no"] * 40, answers)
    mixed = rows_of(["liver", "yes"] * 20 + ["x", "y"] * 20, answers)
    own = measure_relaxed([half], "strict", samples=500)["measures"]
    assert own["token_recall"]["overall"]["interval"] is None  # the same in every image
    assert own["bleu_1"]["open"]["value"] == pytest.approx(1 / 3)
    against = measure_relaxed([mixed], "strict", [half], samples=500)["measures"]
    entry = against["token_recall"]["overall"]
    assert entry["value"] == entry["against"]["value"] == 0.5
    low, high = entry["interval"]
    assert low == pytest.approx(0.345, abs=0.03) and high == pytest.approx(0.655, abs=0.03)
    assert entry["against"]["difference_interval"] == pytest.approx([low - 0.5, high - 0.5])
    same = measure_relaxed([mixed, half], "strict", [mixed, half], samples=500)["measures"]
    same = same["token_f1"]["overall"]
    assert len(same["values"]) == 2
    assert same["against"]["difference_interval"] == [0, 0]
    apart = measure_relaxed([mixed, half], "strict", [mixed, half], paired_seeds=False)["measures"]
    low, high = apart["token_f1"]["overall"]["against"]["difference_interval"]
    assert low < -0.05 and high > 0.05
    low, high = own["yes_no"]["overall"]["interval"]
    assert low == 0 < high < 0.1  # none of 40, which is no proof of none
    bare = measure_relaxed([half], "strict", samples=0)["measures"]["yes_no"]["overall"]
    assert bare == {"questions": 40, "images": 40, "value": 0, "interval": None}
