"""The public name of `m3ae.scoring.answers`, kept for code outside the repository."""

from m3ae.scoring.answers import accepted_answers, normalise_answer

__all__ = ["accepted_answers", "normalise_answer"]
