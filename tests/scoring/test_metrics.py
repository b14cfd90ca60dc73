"""Downstream measures against the recorded values and plain loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.scoring.metrics import confusion, recall_at_k, vqa_accuracy
from tests.recipe import golden


def test_recall_of_the_reference():
    """Catches image-to-text taken for text-to-image, and an image with several texts."""
    data = golden("golden_tiny_recall")
    ours = recall_at_k(data["scores"], data["text_owner"], (1, 5, 10))
    for theirs, name in (("ir", "t2i"), ("tr", "i2t")):
        for k in (1, 5, 10):
            assert ours[f"{name}_r{k}"] == pytest.approx(data["recalls"][f"{theirs}_r{k}"])


@settings(max_examples=50)
@given(
    images=st.integers(1, 6), extra=st.integers(0, 5), k=st.integers(1, 8), seed=st.integers(0, 99)
)
def test_recall_is_a_plain_loop(images, extra, k, seed):
    """Catches a k beyond the pool, and ties in how texts and images are counted."""
    torch.manual_seed(seed)
    owner = torch.cat([torch.arange(images), torch.randint(images, (extra,))])
    scores = torch.rand(images, len(owner))
    t2i = [owner[t] in scores[:, t].argsort(descending=True)[:k] for t in range(len(owner))]
    i2t = [(owner[scores[i].argsort(descending=True)[:k]] == i).any() for i in range(images)]
    ours = recall_at_k(scores, owner, (k,))
    assert ours[f"t2i_r{k}"] == pytest.approx(sum(map(bool, t2i)) / len(owner))
    assert ours[f"i2t_r{k}"] == pytest.approx(sum(map(bool, i2t)) / images)


def test_vqa_accuracy_of_the_reference():
    """Catches argmax of the targets, partial scores counted as right, open taken for closed."""
    vqa = golden()["vqa"]

    def targets(labels, scores):
        out = torch.zeros(len(labels), vqa["logits"].shape[1])
        for row, (label, score) in enumerate(zip(labels, scores, strict=True)):
            out[row, label] = torch.tensor(score)
        return out

    first, second = (targets(vqa["labels" + e], vqa["scores" + e]) for e in ("", "_2"))
    closed = torch.tensor([*vqa["answer_types"], *vqa["answer_types_2"]]) == 0
    logits = vqa["logits"].repeat(2, 1)
    ours = vqa_accuracy(logits, torch.cat([first, second]), closed)
    expected = {"overall": "epoch_score", "closed": "epoch_close", "open": "epoch_open"}
    assert ours == pytest.approx({name: vqa[key] for name, key in expected.items()})


def test_shapes_are_checked():
    """Catches silent broadcasting of arrays that do not belong together."""
    with pytest.raises(ValueError, match="has no text"):
        recall_at_k(torch.rand(3, 2), torch.tensor([0, 1]), (1,))
    with pytest.raises(ValueError, match="2 texts"):
        recall_at_k(torch.rand(3, 2), torch.tensor([0]), (1,))
    with pytest.raises(ValueError, match=r"not \(Q, A\)"):
        vqa_accuracy(torch.rand(3, 2), torch.rand(2, 2), torch.ones(3, dtype=torch.bool))


def test_confusion():
    """Columns for rows, a missing prediction as a class."""
    answers, predictions = ["a", "a", "a", "b", "c"], ["a", "a", "b", "b", None]
    classes, matrix = confusion(answers, predictions)
    assert classes == ["a", "b", "c"]
    assert matrix.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert confusion(["a"], ["d"])[0] == ["a", "d"]
