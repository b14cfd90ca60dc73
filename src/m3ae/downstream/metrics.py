"""The public name of `m3ae.scoring.metrics`, kept for code outside the repository."""

from m3ae.scoring.metrics import recall_at_k, vqa_accuracy

__all__ = ["recall_at_k", "vqa_accuracy"]
