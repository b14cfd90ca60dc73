"""Ranking with cached features against whole passes a pair, and the training side of retrieval."""

import os
import re
import shutil
import socket
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.data.datasets import Pairs
from m3ae.data.shards import Shards
from m3ae.data.texts import load_tokenizer
from m3ae.downstream.ranking import Pool, read_pool, score_all
from m3ae.downstream.retrieval import draw_false_texts, match_score, retrieval_scores
from m3ae.models import M3AE
from m3ae.models.heads import ITMHead, RetrievalHead, start_retrieval_head
from m3ae.scoring.metrics import ranks_by_rule, recall_at_k, recalls, same_words
from m3ae.training.distributed import Processes, join_processes
from tests.recipe import close, golden, golden_model, tiny_config

ALONE = Processes(0, 0, 1, torch.device("cpu"))


class Broken(list):
    """Images of which one cannot be read the second time it is asked for (the first is the
    fingerprint): an interruption in the middle."""

    asked = 0

    def __getitem__(self, row):
        self.asked += row == 5
        if self.asked == 2:
            raise OSError("interrupted")
        return super().__getitem__(row)


def golden_pool() -> Pool:
    record = golden("golden_tiny_recall")
    return Pool(
        list(record["image"].numpy()),
        record["recall_text_ids"],
        record["recall_text_masks"].bool(),
        record["text_owner"],
        [""] * 15,
    )


def golden_head() -> RetrievalHead:
    record, head = golden("golden_tiny_recall"), RetrievalHead(96)
    head.load_state_dict({"weight": record["irtr_head_weight"], "bias": record["irtr_head_bias"]})
    return head


@cache
def small_pool() -> Pool:
    """7 images, grey and coloured; 13 texts of 3 to 16 tokens, some images with several."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (1 + 2 * (i % 2), 64, 64), dtype=np.uint8) for i in range(7)]
    lengths = torch.tensor([16, 3, 9, 5, 8, 4, 12, 3, 7, 16, 6, 8, 4])
    keep = torch.arange(16) < lengths[:, None]
    ids = torch.from_numpy(rng.integers(4, 200, (13, 16))).where(keep, 1)
    owner = torch.cat([torch.arange(7), torch.tensor([2, 5, 2, 0, 6, 6])])
    return Pool(images, ids, keep, owner, [f"text {i}" for i in range(13)])


def uncached(model: M3AE, head: torch.nn.Module, pool: Pool) -> torch.Tensor:
    """Every pair through everything, padded to full length: the slow twin."""
    rows = []
    with torch.no_grad():
        for image in pool.images:
            for ids, keep in zip(pool.text_ids, pool.text_keep, strict=True):
                pair = model.encode_pair(torch.from_numpy(image)[None], ids[None], keep[None])
                rows.append(match_score(head, pair.pooled))
    return torch.cat(rows).view(len(pool.images), -1)


# ------------------------------------------------------------------------------ scores


def test_scores_and_recalls_of_the_reference():
    """Anything in the cached path that differs from whole passes; all six recalls."""
    record, pool = golden("golden_tiny_recall"), golden_pool()
    scores = score_all(golden_model(), golden_head(), pool, ALONE, image_block=5, text_block=4)
    close(scores, record["scores"], 3e-5, "scores")
    ours = by_rule(scores, pool.image_of_text, [f"text {i}" for i in range(15)])
    for theirs, name in (("ir", "t2i"), ("tr", "i2t")):
        for k in (1, 5, 10):
            wanted = pytest.approx(record["recalls"][f"{theirs}_r{k}"])
            assert ours["id"][f"{name}_r{k}"] == ours["text"][f"{name}_r{k}"] == wanted


@pytest.mark.parametrize("kind", ["retrieval", "itm"])
def test_cached_equals_uncached(kind):
    """Padding that is attended to, a cut text, columns left in order of length, blocks mixed up,
    dropout left on, the wrong row of the ITM head."""
    torch.manual_seed(0)
    drops = ("fusion.dropout", "fusion.attention_dropout", "text_encoder.dropout")
    model = M3AE(tiny_config(*(f"model.{name}=0.5" for name in drops)).model)
    model.load_state_dict(golden_model().state_dict())
    head = golden_head() if kind == "retrieval" else model.itm_head
    model.train()
    scores = score_all(model, head, small_pool(), ALONE, image_block=3, text_block=4)
    assert model.training  # as it was
    wanted = uncached(model.eval(), head, small_pool())
    torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)
    assert wanted.std() > 0.1  # or 1e-5 would say little
    if kind == "itm":  # zero-shot with both rows ranks by log-odds
        pool, image = small_pool(), torch.from_numpy(small_pool().images[3])[None]
        with torch.no_grad():
            pair = model.encode_pair(image, pool.text_ids[2:3], pool.text_keep[2:3])
            odds = head(pair.pooled).log_softmax(dim=1)[0]
        assert float(odds[1] - odds[0]) == pytest.approx(float(scores[3, 2]), abs=1e-4)


@pytest.mark.parametrize("depth", [1, 2])
def test_shallow_fusion(depth):
    """A first layer that is also the last one, or stands next to it."""
    torch.manual_seed(0)
    layers = [f"model.fusion.depth={depth}", f"model.mim.layer={depth}"]
    model, head = M3AE(tiny_config(*layers).model).eval(), golden_head()
    scores = score_all(model, head, small_pool(), ALONE)
    torch.testing.assert_close(scores, uncached(model, head, small_pool()), rtol=1e-5, atol=1e-5)


def test_everything_is_encoded_once():
    """An image encoded again for every block of texts, or the other way round."""
    model = golden_model()
    seen = {"image_encoder": 0, "text_encoder": 0}

    def count(name):
        def hook(module, inputs, output):
            seen[name] += len(output)

        return getattr(model, name).register_forward_hook(hook)

    hooks = [count(name) for name in seen]
    score_all(model, golden_head(), small_pool(), ALONE, image_block=3, text_block=4)
    for hook in hooks:
        hook.remove()
    assert seen == {"image_encoder": 7, "text_encoder": 13}


def test_scores_are_float32_under_autocast():
    """A head in bf16, of 8 bits, under which many texts of a pool tie."""
    pooled = (1 + torch.rand(200, 192)).bfloat16()
    head = golden_head()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = match_score(head, pooled)
    assert scores.dtype == torch.float32 and len(scores.unique()) > 190
    scores = score_all(golden_model(), head, small_pool(), ALONE, precision="bf16")
    wanted = score_all(golden_model(), head, small_pool(), ALONE)
    assert scores.dtype == torch.float32
    assert 0 < (scores - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_score_that_is_not_finite():
    """A NaN that would rank first or last by accident."""
    head = RetrievalHead(96)
    torch.nn.init.constant_(head.weight, float("nan"))
    with pytest.raises(ValueError, match="image 0 with text 0 is not finite under fp32"):
        score_all(golden_model(), head, small_pool(), ALONE)


# ------------------------------------------------------------------------------ resuming, processes


def ranked(out=None, pool=None, group=ALONE, head=None):
    pool = pool or small_pool()
    return score_all(
        golden_model(), head or golden_head(), pool, group, out=out, image_block=2, text_block=4
    )


def test_interrupted_and_resumed(tmp_path, capsys):
    """Blocks ranked again, lost, or put elsewhere; other bits than without the interruption."""
    out, pool, whole = tmp_path / "scores", small_pool(), ranked()
    broken = Pool(Broken(pool.images), pool.text_ids, pool.text_keep, pool.image_of_text, [])
    with pytest.raises(OSError, match="interrupted"):
        ranked(out, broken)
    assert sorted(path.name for path in out.iterdir()) == [
        "ranking.json",
        "scores-00000.npy",
        "scores-00001.npy",
    ]
    stamps = [path.stat().st_mtime_ns for path in sorted(out.glob("*.npy"))]
    (out / "scores-00002.tmp").write_bytes(b"half a block")  # a death while writing
    capsys.readouterr()
    assert torch.equal(ranked(out), whole)
    assert "/39 " in capsys.readouterr().err  # pairs left: 3 images of 13 texts
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("*.npy"))[:2]] == stamps
    hook = golden_model().text_encoder.register_forward_hook(lambda *_: pytest.fail("encoded"))
    assert torch.equal(ranked(out), whole)  # nothing left to do
    hook.remove()


def test_scores_of_another_ranking_are_refused(tmp_path):
    """Scores of two models, pools or precisions in one table."""
    pool, out = small_pool(), tmp_path / "scores"
    ranked(out)
    head = golden_head()
    head.weight.data[0, 0] += 1e-3
    image = pool.images[6].copy()
    image[0, 0, 0] ^= 1
    ids = pool.text_ids.clone()
    ids[12, 1] += 1
    others = {
        "weights": {"head": head},
        "images": {
            "pool": Pool(
                [*pool.images[:6], image], pool.text_ids, pool.text_keep, pool.image_of_text, []
            )
        },
        "texts": {"pool": Pool(pool.images, ids, pool.text_keep, pool.image_of_text, [])},
    }
    for name, change in others.items():
        with pytest.raises(ValueError, match=rf"other {name}\); delete it") as caught:
            ranked(out, **change)
        assert str(out) in str(caught.value)
    with pytest.raises(ValueError, match="other precision, image_block"):
        score_all(golden_model(), golden_head(), pool, ALONE, "bf16", out)
    with torch.no_grad():
        golden_model().fusion.text_layers[3].feed_forward.up.bias[0] += 1e-3
    try:
        with pytest.raises(ValueError, match="other weights"):
            ranked(out)
    finally:
        golden_model.cache_clear()
    (out / "scores-00001.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"scores-00001.npy: cannot be read .* delete it"):
        ranked(out)
    np.save(out / "scores-00001.npy", np.zeros((2, 12), np.float32))
    with pytest.raises(ValueError, match=r"scores-00001.npy: float32 \(2, 12\), not"):
        ranked(out)
    (out / "ranking.json").unlink()
    with pytest.raises(ValueError, match=r"no ranking.json"):
        ranked(out)
    (out / "ranking.json").write_text("{}")
    with pytest.raises(ValueError, match="not the record of a ranking"):
        ranked(out)


def _worker(rank: int, port: int, folder) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with join_processes(None) as group:
        found = {"memory": ranked(group=group), "resumed": ranked(folder / "out", group=group)}
        try:
            ranked(folder / "other", group=group)
        except ValueError as error:
            found["error"] = str(error)
        torch.save(found, folder / f"{rank}.pt")


def test_two_processes(tmp_path):
    """Blocks of one process lost, in another order, or one process waiting for the other's error;
    a ranking that one process began."""
    pool, whole, out = small_pool(), ranked(), tmp_path / "out"
    ranked(out)
    shutil.copytree(out, tmp_path / "other")
    record = tmp_path / "other/ranking.json"
    record.write_text(re.sub('"images": "..', '"images": "zz', record.read_text()))
    (out / "scores-00001.npy").unlink()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (port, tmp_path), nprocs=2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(found["memory"], whole) and torch.equal(found["resumed"], whole)
        assert "other images" in found["error"]
    assert len(list(out.glob("*.npy"))) == -(-len(pool.images) // 2)


@pytest.mark.parametrize("listed", [False, True])
def test_pool_of_prepared_folders(shards, tmp_path, listed):
    """Texts, tokens and images of a split out of step, also where a list leaves images out;
    special tokens taken for padding."""
    tokenizer = load_tokenizer(str(shards / "tokenizer"))
    folders, exclude = [str(shards / "test"), str(shards / "train")], tmp_path / "list.txt"
    test = Shards(folders[0])
    exclude.write_text(f"{test.image_key(1)}\n{test.image_key(4)}\n")
    pairs = Pairs(folders, tokenizer, 12, 64, [str(exclude)] if listed else None)
    pool = read_pool(pairs)
    assert len(pool.images) == 56 - 2 * listed
    assert len(pool.texts) == len(pairs) and len(pool.images) == pairs.image_starts[-1]
    for index in range(len(pairs)):
        sample = pairs[index]
        assert int(pool.image_of_text[index]) == sample.image_id
        assert np.array_equal(pool.images[sample.image_id], sample.image)
        assert np.array_equal(pool.text_ids[index], sample.ids)
        assert pool.texts[index] == pairs.text(index)
        real = sample.ids != tokenizer.pad_token_id
        assert np.array_equal(pool.text_keep[index], real)


# ------------------------------------------------------------------------------ recall


def by_rule(scores, owner, texts, ks=(1, 5, 10)) -> dict[str, dict[str, float]]:
    places = ranks_by_rule(scores, owner, texts)
    return {rule: recalls(place, ks) for rule, place in places.items()}


def test_identical_captions():
    """One rule for both columns; case or punctuation that makes captions differ."""
    owner = torch.tensor([0, 1, 2, 2])
    texts = ["Chest X-ray.", "chest x ray", "Brain MRI", "brain CT"]
    scores = torch.tensor([[1, 2, 0, 0], [4, 3, 0, 1], [0, 0, 2, 3.0]])
    ours = by_rule(scores, owner, texts, (1,))
    # Image 0's best text is text 1 and text 0's best image is image 1: of the same words.
    assert ours["id"] == pytest.approx({"t2i_r1": 3 / 4, "i2t_r1": 1 / 3})
    assert ours["text"] == {"t2i_r1": 1.0, "i2t_r1": 1.0}
    assert same_words(owner, texts, 3).sum(axis=0).tolist() == [2, 2, 1, 1]
    with pytest.raises(ValueError, match="3 texts, but"):
        ranks_by_rule(scores, owner, texts[:3])
    with pytest.raises(ValueError, match="has no text"):
        ranks_by_rule(scores, torch.tensor([0, 1, 1, 0]), texts)


@settings(max_examples=50)
@given(
    images=st.integers(1, 6), extra=st.integers(0, 5), k=st.integers(1, 8), seed=st.integers(0, 99)
)
def test_text_rule_is_a_plain_loop(images, extra, k, seed):
    """A hit of the text rule missed or invented; the id rule changed by the texts."""
    torch.manual_seed(seed)
    owner = torch.cat([torch.arange(images), torch.randint(images, (extra,))])
    texts = [("a", "b b", "B, b", "c")[int(i)] for i in torch.randint(4, (len(owner),))]
    words = [text.lower().replace(",", "") for text in texts]
    scores = torch.rand(images, len(owner))

    def hit(image: int, text: int) -> bool:
        return any(o == image and w == words[text] for o, w in zip(owner, words, strict=True))

    t2i = [
        any(hit(i, t) for i in scores[:, t].argsort(descending=True)[:k].tolist())
        for t in range(len(owner))
    ]
    i2t = [
        any(hit(i, t) for t in scores[i].argsort(descending=True)[:k].tolist())
        for i in range(images)
    ]
    ours = by_rule(scores, owner, texts, (k,))
    assert ours["text"] == pytest.approx(
        {f"t2i_r{k}": sum(t2i) / len(t2i), f"i2t_r{k}": sum(i2t) / len(i2t)}
    )
    assert ours["id"] == recall_at_k(scores, owner, (k,))


# ------------------------------------------------------------------------------ training


def test_false_texts():
    """A text of the same image, a text that is never drawn, draws that depend on the batch."""
    owner = np.array([0, 1, 2, 2, 0, 3, 3, 3])
    drawn = draw_false_texts(owner, np.array([2, 0, 3]), 4000, 7, [0, 1, 2])
    for image, row in zip((2, 0, 3), drawn, strict=True):
        counts = np.bincount(row, minlength=8)
        assert not counts[owner == image].any()
        others = (owner != image).sum()
        assert np.abs(counts[owner != image] / 4000 - 1 / others).max() < 0.03  # uniform
    again = draw_false_texts(owner, np.array([3, 2]), 4000, 7, [2, 0])
    assert np.array_equal(again, drawn[[2, 0]])
    assert not np.array_equal(draw_false_texts(owner, np.array([2]), 4000, 8, [0])[0], drawn[0])
    assert not np.array_equal(draw_false_texts(owner, np.array([2]), 4000, 7, [3])[0], drawn[0])
    with pytest.raises(ValueError, match="no other image"):
        draw_false_texts(np.array([4, 4]), np.array([4]), 15, 0, [0])


def test_training_scores_of_the_reference():
    """Texts of one image scored with another one's pixels."""
    record, model, head = golden()["irtr"], golden_model(), RetrievalHead(96)
    start_retrieval_head(head, model.itm_head)
    inputs, names = record["inputs"], ("text", "false_text_0", "false_text_1", "false_text_2")
    ids = torch.stack([inputs[f"{name}_ids"] for name in names], dim=1)
    keep = torch.stack([inputs[f"{name}_masks"] for name in names], dim=1).bool()
    with torch.no_grad():
        scores = retrieval_scores(model, head, golden()["inputs"]["image"], ids, keep)
    close(scores, record["scores"], 3e-5, "scores")


@pytest.mark.parametrize("kind", [RetrievalHead, ITMHead])
def test_training_equals_whole_passes(kind):
    """A branch without gradient, or counted 1 + F times, where the image is encoded once."""
    model = M3AE(tiny_config().model)
    model.load_state_dict(golden_model().state_dict())
    model = model.double()
    head, pool = kind(96).double(), small_pool()
    image = model.normalise(torch.from_numpy(np.stack(pool.images[::2]))).double()  # grey
    ids, keep = (t[:12].view(4, 3, 16) for t in (pool.text_ids, pool.text_keep))
    parameters = dict(model.named_parameters()) | dict(head.named_parameters())
    wanted = torch.stack(
        [
            match_score(head, model.encode_pair(image, ids[:, f], keep[:, f]).pooled)
            for f in range(3)
        ],
        dim=1,
    )
    ours = retrieval_scores(model, head, image, ids, keep)
    assert wanted.shape == ours.shape == (4, 3)
    found = []
    for scores in (wanted, ours):
        loss = torch.nn.functional.cross_entropy(scores, torch.zeros(4, dtype=torch.int64))
        found.append(torch.autograd.grad(loss, parameters.values(), allow_unused=True))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    for name, first, second in zip(parameters, *found, strict=True):
        assert (first is None) == (second is None), name
        if first is not None:
            scale = first.norm().clamp(min=1e-6)  # key biases: zero but for rounding
            assert (second - first).norm() / scale < 1e-5, name
    assert sum(gradient is not None for gradient in found[1]) > 100
