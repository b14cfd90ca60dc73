"""Tokens and masked language modelling: exact counts, rates, and what must never be masked."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.data.texts import (
    assemble,
    encode,
    fingerprint,
    load_tokenizer,
    mask_tokens,
    max_scored,
    mlm_scored,
    ordinary_ids,
    special_ids,
    train_wordpiece,
)

SEEDS = st.integers(0, 10_000)
SPECIAL = {"cls": 0, "sep": 2, "mask": 99, "pad": 1}
# Word indices of a text: each token continues the word before it, or begins the next.
WORDS = st.lists(st.booleans(), max_size=40).map(
    lambda starts: np.cumsum([0, *starts])[: len(starts)]
)
CORPUS = [
    "axial ct of the chest with contrast",
    "sagittal mri of the brain without contrast",
    "chest radiograph with pleural effusion",
    "photomicrograph of the biopsy specimen",
] * 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_wordpiece(CORPUS, 70, tmp_path_factory.mktemp("tokenizer"))


def text_words(words, length: int) -> np.ndarray:
    return assemble(np.arange(10, 10 + len(words)), np.asarray(words), length, SPECIAL)[1]


# ------------------------------------------------------------------------------ tokens


@given(WORDS, st.integers(3, 30))
def test_assemble(words, length):
    """A separator cut off with a long text, padding with a word, a token lost."""
    ids, placed = assemble(np.arange(10, 10 + len(words)), words, length, SPECIAL)
    kept = min(len(words), length - 2)
    wanted = [0, *range(10, 10 + kept), 2] + [1] * (length - 2 - kept)
    assert ids.tolist() == wanted and ids.dtype == np.int64
    assert placed.tolist() == [-1, *words[:kept].tolist()] + [-1] * (length - 1 - kept)


def test_encode(tokenizer):
    """Special tokens added twice, truncation, or word indices of another row."""
    texts = ["", "Axial CT", "radiograph " * 600]
    rows = encode(tokenizer, texts)
    assert [len(ids) == len(words) for ids, words in rows] == [True] * 3
    assert rows[0] == ([], []) and encode(tokenizer, []) == []
    special = set(tokenizer.all_special_ids)
    assert all(not special & set(ids) for ids, _ in rows)
    assert tokenizer.decode(rows[1][0]) == "axial ct"
    assert rows[2][1][-1] == 599  # words are counted to the end
    assert all(0 <= b - a <= 1 for a, b in pairwise(rows[2][1]))


def test_no_tokenizer(tmp_path):
    """Catches a page of advice on conversion where a folder simply holds no tokeniser."""
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}.*give a local folder"):
        load_tokenizer(tmp_path)


OLD = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "axial", "ct", "chest", "##s"]


def older(folder, capitals: bool = False, **files: dict) -> str:
    """A folder as older BERTs have it: a vocab.txt, and the JSON files given."""
    entries = [*OLD, "Axial", "CT"] if capitals else OLD
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("files", [{}, {"config": {"hidden_size": 8}}, {"tokenizer_config": {}}])
@pytest.mark.parametrize("capitals", [False, True])
def test_tokenizer_of_an_older_bert(capitals, files, tmp_path, caplog):
    """A vocab.txt alone called a folder without one, or a vocabulary with capitals lowered."""
    with caplog.at_level("INFO"):
        tokenizer = load_tokenizer(older(tmp_path, capitals, **files))
    ((ids, words),) = encode(tokenizer, ["Axial CT chests"])
    assert ids == ([9, 10, 7, 8] if capitals else [5, 6, 7, 8]) and words == [0, 1, 2, 2]
    assert special_ids(tokenizer) == {"pad": 0, "cls": 2, "sep": 3, "mask": 4}
    assert ("case is kept" if capitals else "texts are lowered") in caplog.text
    tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert fingerprint(load_tokenizer(tmp_path / "saved")) == fingerprint(tokenizer)


def test_an_older_bert_that_says_its_case(tmp_path):
    """What the folder itself says overruled by a guess from its vocabulary."""
    tokenizer = load_tokenizer(older(tmp_path, True, tokenizer_config={"do_lower_case": True}))
    assert encode(tokenizer, ["Axial CT"])[0][0] == [5, 6]
    known = load_tokenizer(older(tmp_path, True, config={"model_type": "bert"}))
    assert encode(known, ["Axial CT"])[0][0] == [5, 6]


def test_vocabularies_of_no_known_kind(tmp_path):
    """A folder that holds a vocabulary called one that holds none; what lacks must be said."""
    (tmp_path / "vocab.txt").write_text("<s>\nct\n")
    with pytest.raises(ValueError, match=r"vocab\.txt: no \[PAD\], .* not BERT's; add its token"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load_tokenizer(tmp_path)
    other = tmp_path / "roberta"
    other.mkdir()
    (other / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(ROBERTA)}))
    (other / "merges.txt").write_text("#version: 0.2\nc t\n")
    with pytest.raises(ValueError, match=r"holds vocab\.json, merges\.txt and no config\.json"):
        load_tokenizer(other)
    (other / "config.json").write_text('{"model_type": "roberta"}')  # as it says
    assert encode(load_tokenizer(other), ["ct"])[0][0] == [7]


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "c", "t", "ct"]


def test_training_is_reproducible(tmp_path):
    """Catches a vocabulary that depends on hash order: shards would differ from run to run."""
    made = [train_wordpiece(CORPUS, 90, tmp_path / name) for name in ("a", "b")]
    assert made[0].get_vocab() == made[1].get_vocab()
    assert encode(made[0], ["axial ct abra"])[0][1] == [0, 1, 2, 2, 2, 2]


def test_fingerprint(tokenizer, tmp_path):
    """Shards of one tokeniser read with another: equal sizes do not make them equal."""
    folder = tmp_path / "same"
    tokenizer.save_pretrained(str(folder))
    assert fingerprint(load_tokenizer(folder)) == fingerprint(tokenizer)
    other = train_wordpiece([text[::-1] for text in CORPUS], 70, tmp_path / "other")
    assert fingerprint(other) != fingerprint(tokenizer)


def test_ordinary_ids(tokenizer):
    """A random replacement that is [SEP] or [PAD] cuts the text for the model."""
    ids = ordinary_ids(tokenizer)
    assert not set(ids.tolist()) & set(special_ids(tokenizer).values())
    assert len(ids) == len(tokenizer) - 5


# ------------------------------------------------------------------------------ what is scored


@given(WORDS, SEEDS, st.sampled_from([0.15, 0.3, 0.6]))
def test_exact_sampling(words, seed, ratio):
    """Another number than the ratio of the real tokens; padding or special tokens scored."""
    placed = text_words(words, 24)
    real = placed >= 0
    scored = mlm_scored(placed, ratio, "exact", np.random.default_rng(seed))
    assert scored.sum() == min(real.sum(), max(1, round(ratio * real.sum())))
    assert not (scored & ~real).any()


@given(WORDS, SEEDS, st.sampled_from([0.15, 0.3, 0.6]))
def test_whole_words_are_never_split(words, seed, ratio):
    """Pieces of a word scored alone: the rest gives it away. Slow twin: word by word."""
    placed = text_words(words, 24)
    scored = mlm_scored(placed, ratio, "whole_word", np.random.default_rng(seed))
    real = placed[placed >= 0]
    budget = max(1, round(ratio * len(real)))
    sizes = [int((real == word).sum()) for word in sorted(set(real.tolist()))]
    for word in set(real.tolist()):
        assert scored[placed == word].all() or not scored[placed == word].any()
    assert not scored[placed < 0].any()
    if len(real):
        assert min(budget, len(real)) <= scored.sum() < budget + max(sizes)


@given(WORDS, SEEDS)
def test_reference_sampling(words, seed):
    """Draws over the padded length, specials cancelled: slow twin on the same generator."""
    placed = text_words(words, 64)
    scored = mlm_scored(placed, 0.15, "reference", np.random.default_rng(seed))
    order = np.random.default_rng(seed).permutation(64)
    wanted = {int(place) for place in order[:10] if placed[place] >= 0}
    assert set(np.flatnonzero(scored).tolist()) == wanted


def test_reference_rates():
    """Fact 12: a real token is scored with p = 10/64; short texts often have none."""
    rng, draws = np.random.default_rng(0), 6000
    for real, none in ((3, 0.58), (10, 0.16)):
        placed = text_words(range(real), 64)
        drawn = np.stack([mlm_scored(placed, 0.15, "reference", rng) for _ in range(draws)])
        rate = drawn[:, placed >= 0].mean(axis=0)
        assert np.abs(rate - 10 / 64).max() < 5 * np.sqrt(0.16 * 0.84 / draws)
        assert abs((~drawn.any(axis=1)).mean() - none) < 0.03


@pytest.mark.parametrize("sampling", ["exact", "whole_word"])
def test_every_token_is_scored_equally_often(sampling):
    """The first words, or the last, more often than others. Five standard deviations."""
    rng, draws, placed = np.random.default_rng(3), 5000, text_words(range(20), 24)
    rate = np.mean([mlm_scored(placed, 0.15, sampling, rng) for _ in range(draws)], axis=0)
    assert np.abs(rate[placed >= 0] - 3 / 20).max() < 5 * np.sqrt(0.15 * 0.85 / draws)


def test_unknown_sampling():
    """A mistyped sampling that masks nothing."""
    with pytest.raises(ValueError, match=r"'exactly' is not one of exact, whole_word, reference"):
        mlm_scored(text_words(range(3), 8), 0.15, "exactly", np.random.default_rng(0))


@given(WORDS, st.integers(3, 40), SEEDS, st.sampled_from(["exact", "reference"]))
def test_max_scored(words, length, seed, sampling):
    """A collate with a fixed length that a text outgrows."""
    scored = mlm_scored(text_words(words, length), 0.15, sampling, np.random.default_rng(seed))
    assert scored.sum() <= max_scored(length, 0.15, sampling)


def test_max_scored_is_reached():
    """A bound so wide that it costs: the longest text reaches it."""
    for sampling, words in (("exact", range(62)), ("reference", range(62))):
        counts = [
            mlm_scored(text_words(words, 64), 0.15, sampling, np.random.default_rng(seed)).sum()
            for seed in range(50)
        ]
        assert max(counts) == max_scored(64, 0.15, sampling)
    assert max_scored(64, 0.15, "whole_word") is None


# ------------------------------------------------------------------------------ 80 / 10 / 10


@settings(max_examples=60)
@given(WORDS, SEEDS)
def test_masked_ids_and_labels(words, seed):
    """A token changed that is not scored, a label that is the masked id, a special id drawn."""
    rng = np.random.default_rng(seed)
    ids, placed = assemble(np.arange(10, 10 + len(words)), words, 24, SPECIAL)
    scored = mlm_scored(placed, 0.5, "exact", rng)
    ordinary = np.arange(3, 99)
    masked, labels = mask_tokens(ids, scored, SPECIAL["mask"], ordinary, rng)
    for place in range(24):
        if scored[place]:
            assert labels[place] == ids[place]
            assert masked[place] in {SPECIAL["mask"], *ordinary.tolist()}
        else:
            assert labels[place] == -100 and masked[place] == ids[place]


def test_shares_of_mask_random_and_kept():
    """80/10/10 turned into 80/20, or random words from a part of the vocabulary."""
    rng, n = np.random.default_rng(4), 40_000
    ids, ordinary = np.full(n, 50), np.delete(np.arange(3, 60), 50 - 3)  # never the token itself
    masked, _ = mask_tokens(ids, np.ones(n, bool), 99, ordinary, rng)
    shares = {"mask": (masked == 99).mean(), "kept": (masked == 50).mean()}
    assert shares == pytest.approx({"mask": 0.8, "kept": 0.1}, abs=5 * np.sqrt(0.16 / n))
    drawn = masked[(masked != 99) & (masked != 50)]
    counts = np.bincount(drawn, minlength=60)[ordinary]
    assert counts.sum() == len(drawn) and counts.min() > 0.4 * len(drawn) / len(ordinary)
