"""Answers as strings: the normaliser that the VQA benchmarks share (reference, data fact 22)."""

import re

_NUMBERS = "none zero one two three four five six seven eight nine ten".split()
_DIGITS = {word: str(max(0, number - 1)) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ";/[]\"{}()=+\\_-><@`,?!"
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")  # not the point of 5.6
_MOST_FULL_STOPS = 32  # the reference removes no more, by a misplaced argument

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
