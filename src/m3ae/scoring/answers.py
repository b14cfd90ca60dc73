"""Answers as strings: the normaliser that the VQA benchmarks share (reference, data fact 22)."""

import functools
import re
from itertools import combinations

_NUMBERS = "none zero one two three four five six seven eight nine ten".split()
_DIGITS = {word: str(max(0, number - 1)) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")  # not the point of 5.6
_MOST_FULL_STOPS = 32  # the reference removes no more, by a misplaced argument
_MOST_BRACKETS = 6  # of which every combination is tried

# Words written without their apostrophe, by what stands after it. "im" and "ive" are not among
# them: the reference spells them with a capital, after everything is in lower case.
_SHORTENED = {
    "n't": "ai are ca could did does do had has have is might must need ought should sha was were "
    "wo would",
    "'ve": "could might must should they we what where who would you not",
    "'re": "there they what why you",
    "'ll": "how it somebody someone something they what who why you",
    "'d": "he how it somebody someone something there they where who you",
    "'s": "he how somebody someone something that there what when where who why",
}
_CONTRACTIONS = {
    (stem + ending).replace("'", ""): stem + ending
    for ending, stems in _SHORTENED.items()
    for stem in stems.split()
} | {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all"}


@functools.lru_cache(100_000)
def normalise_answer(answer: str) -> str:
    """Lower case, digits for number words, no articles or punctuation, apostrophes restored.

    Punctuation beside a space is dropped, between letters it becomes a space; so "x-ray" and
    "x - ray" are both "x ray". A comma within a number drops all punctuation of the answer.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    bare = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if bare or beside_space else " ")
    out = _FULL_STOP.sub("", out, count=_MOST_FULL_STOPS)
    words = [_DIGITS.get(word, word) for word in out.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def answer_label(answer: str) -> str:
    """The answer normalised; one that has nothing left then, as the letter A, in lower case alone.

    That is the label of users' own questions. The benchmarks have none of such answers.
    """
    return normalise_answer(answer) or " ".join(answer.lower().split())


def keeps_its_form(label: str | None) -> bool:
    """Whether a label is one that `answer_label` did not normalise."""
    return bool(label) and not normalise_answer(label)


@functools.lru_cache(100_000)
def accepted_answers(answer: str) -> frozenset[str]:
    """The normalised answers that count as right under the strict protocol (VQA-Med-2019).

    `#` separates alternatives, wherever it stands. A `(...)` part is optional, alone or within
    another one; kept, it is read as the paper's label has it ("tumor(s)": "tumor s") and as if its
    brackets were not there ("tumors"). Brackets that do not pair within their alternative are
    punctuation; of more than 6 pairs all are kept or none. What has no words is no alternative.
    Never empty: an answer without any words has its own normal form, be it "".
    """
    forms = {normalise_answer(form) for part in answer.split("#") for form in _readings(part)}
    return frozenset(forms - {""} or {normalise_answer(answer)})


def _readings(text: str) -> set[str]:
    """The text with its `(...)` parts kept or left out, in every combination."""
    pairs = _bracket_pairs(text)
    sizes = range(len(pairs) + 1) if len(pairs) <= _MOST_BRACKETS else (0, len(pairs))
    readings = {text}
    for size in sizes if pairs else ():
        for left_out in combinations(pairs, size):
            gone = {place for begin, end in left_out for place in range(begin, end + 1)}
            kept = "".join(letter for place, letter in enumerate(text) if place not in gone)
            readings |= {kept, kept.replace("(", "").replace(")", "")}
    return readings


def _bracket_pairs(text: str) -> list[tuple[int, int]]:
    """Places of each "(" and its ")"; none where one is without the other."""
    pairs, opened = [], []
    for place, letter in enumerate(text):
        if letter == "(":
            opened.append(place)
        elif letter == ")":
            if not opened:
                return []
            pairs.append((opened.pop(), place))
    return [] if opened else pairs
