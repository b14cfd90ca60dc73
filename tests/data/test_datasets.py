"""Batches: a function of seed and place alone, with the keys that the model expects."""

import dataclasses

import numpy as np
import pytest
import torch

from m3ae.config import load_config
from m3ae.data.datasets import EvalBatches, Pairs, TrainBatches, stack_images, train_loader, trim
from m3ae.data.masking import NOT_SCORED
from m3ae.data.sampler import Order, Plan
from m3ae.data.texts import load_tokenizer
from tests.conftest import SMALL
from tests.data.test_shards import write_split
from tests.recipe import ROOT


@pytest.fixture()
def config(shards):
    settings = [*SMALL, f"data.train=[{shards}/train]", f"data.tokenizer={shards}/tokenizer"]
    return load_config(ROOT / "configs/pretrain/quickstart.yaml", settings)


@pytest.fixture()
def pairs(config):
    return Pairs(config.data.train, load_tokenizer(config.data.tokenizer), 24, 64)


def train_batches(config, pairs, micro=8, processes=1, rank=0):
    plan = Plan(len(pairs), 8, 8, micro, processes)
    return TrainBatches(pairs, Order(pairs.sizes, None, 0), plan, config.model, 0, rank)


def test_batch_has_the_shapes_of_the_contract(config, pairs):
    """Catches a key, shape or type that the model does not expect."""
    batch = train_batches(config, pairs)[0]
    length = batch["text_ids"].shape[1]
    assert batch["image"].dtype == torch.uint8 and batch["image"].shape == (8, 1, 64, 64)
    for key in ("text_ids", "text_keep", "mlm_ids", "mlm_labels"):
        assert batch[key].shape == (8, length)
    assert batch["patch_order"].sort(dim=1).values.equal(torch.arange(16).expand(8, 16))
    assert batch["itm_match"].dtype == batch["text_keep"].dtype == torch.bool
    scored = batch["mlm_labels"] != NOT_SCORED
    assert (batch["text_keep"] | ~scored).all()
    assert batch["mlm_ids"][~scored].equal(batch["text_ids"][~scored])
    assert batch["mlm_labels"][scored].equal(batch["text_ids"][scored])
    real = batch["text_keep"].sum(dim=1) - 2
    assert scored.sum(dim=1).tolist() == [max(1, round(0.25 * n)) for n in real.tolist()]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_start(config, pairs, workers):
    """Catches randomness from a worker's own generator, and an order that forgets the start."""
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=workers))
    plan = Plan(len(pairs), 8, 8, 8, 1)
    before = torch.get_rng_state()
    late = list(train_loader(config, pairs, plan, 0, 5, torch.device("cpu")))
    assert torch.get_rng_state().equal(before), "the loader moved the global generator"
    data = train_batches(config, pairs)
    assert len(late) == 3
    for step, batch in enumerate(late, start=5):
        for key, value in data[step].items():
            assert batch[key].equal(value), key


@pytest.mark.parametrize("split", [(4, 2), (2, 1), (2, 2)])
def test_split_batches_are_slices_of_the_whole(config, pairs, split):
    """Catches masks or ITM partners that change with the number of processes."""
    micro, processes = split
    whole = train_batches(config, pairs)[1]
    parts = []
    for rank in range(processes):
        data = train_batches(config, pairs, micro, processes, rank)
        parts += [data[data.plan.accumulation + i] for i in range(data.plan.accumulation)]
    for key in ("index", "patch_order", "itm_match", "mlm_positions", "mlm_targets", "image"):
        assert torch.cat([part[key] for part in parts]).equal(whole[key]), key
    shown = [part["itm_image"] + i * micro for i, part in enumerate(parts)]
    assert torch.cat(shown).equal(whole["itm_image"])


def test_masks_change_with_the_epoch(config, pairs):
    """Catches a sample that is masked alike in every epoch."""
    data = train_batches(config, pairs)
    data.plan = dataclasses.replace(data.plan, steps=10)
    rows = {}
    for item in range(10):  # two epochs of 40
        batch = data[item]
        for row, index in enumerate(batch["index"].tolist()):
            rows.setdefault(index, []).append(batch["patch_order"][row].tolist())
    assert all(len(orders) == 2 and orders[0] != orders[1] for orders in rows.values())


def test_dataset_negatives_come_from_the_same_corpus(shards, config, pairs):
    """Catches a false image of another corpus, whose style would give it away."""
    model = dataclasses.replace(
        config.model, itm=dataclasses.replace(config.model.itm, negatives="dataset")
    )
    both = Pairs([f"{shards}/train", f"{shards}/test"], pairs.tokenizer, 24, 64)
    plan = Plan(len(both), 6, 8, 8, 1)
    data = TrainBatches(both, Order(both.sizes, None, 0), plan, model, 0, 0)
    images = {both.image(j).tobytes(): j for j in range(int(both.image_starts[-1]))}
    for item in range(6):
        batch = data[item]
        assert batch["itm_match"].sum() == 4
        assert batch["itm_negative_rows"].tolist() == (~batch["itm_match"]).nonzero()[:, 0].tolist()
        for row, index in enumerate(batch["index"].tolist()):
            shown = images[batch["negative_image"][row].numpy().tobytes()]
            assert (shown >= both.image_starts[1]) == (index >= both.starts[1])


def test_evaluation_is_the_same_every_time(config, pairs):
    """Catches evaluation masks that move with the batch size or the number of batches."""
    first = EvalBatches(pairs, config.model, seed=3, samples=12, batch=4)
    second = EvalBatches(pairs, config.model, seed=3, samples=12, batch=6)
    both = [list(iter(data)) for data in (first, second)]
    for key in ("index", "patch_order", "mlm_targets"):
        assert torch.cat([b[key] for b in both[0]]).equal(torch.cat([b[key] for b in both[1]]))
    other = EvalBatches(pairs, config.model, seed=3, samples=12, batch=4, draw=1)
    assert not torch.equal(other[0]["patch_order"], first[0]["patch_order"])
    assert len(set(first.indices.tolist())) == 12


def test_shards_without_tokens_are_tokenised_while_reading(shards, pairs, tmp_path):
    """Catches different ids from cached tokens and from tokenising on the fly."""
    import json
    import shutil

    copy = tmp_path / "train"
    shutil.copytree(shards / "train", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"tokenizer": None}))
    plain = Pairs([str(copy)], pairs.tokenizer, 24, 64)
    for index in range(len(pairs)):
        assert np.array_equal(plain[index].ids, pairs[index].ids)
        assert np.array_equal(plain[index].words, pairs[index].words)


def test_grey_and_colour_images_mix():
    """Catches a grey image that loses its value beside a colour one."""
    grey, colour = np.full((1, 2, 2), 7, np.uint8), np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    mixed = stack_images([grey, colour])
    assert mixed.shape == (2, 3, 2, 2)
    assert (mixed[0] == 7).all() and np.array_equal(mixed[1].numpy(), colour)
    assert stack_images([grey, grey]).shape == (2, 1, 2, 2)


def test_trim_cuts_only_padding():
    """Catches a real token lost with the padding."""
    keep = torch.zeros(2, 24, dtype=torch.bool)
    keep[0, :9], keep[1, :3] = True, True
    batch = {"text_ids": torch.arange(48).view(2, 24), "text_keep": keep}
    cut = trim(batch)
    assert cut["text_keep"].shape == (2, 16) and cut["text_keep"].sum() == keep.sum()
    assert cut["text_ids"].equal(batch["text_ids"][:, :16])


# ------------------------------------------------------------------ data.exclude


def excluding(shards, pairs, *keys, tmp_path, folders=("train",)):
    path = tmp_path / "list.tsv"
    path.write_text("# a remark\n" + "".join(f"{key}\twhy\n" for key in keys))
    folders = [f"{shards}/{name}" for name in folders]
    return Pairs(folders, pairs.tokenizer, 24, 64, exclude=[str(path)])


@pytest.mark.parametrize("negatives", ["in_batch", "dataset"])
def test_an_excluded_image_is_in_no_batch(shards, config, pairs, tmp_path, negatives):
    """Catches a left-out image that trains on, as itself or as the false image of another pair."""
    corpus = pairs.corpora[0]
    out = [0, 7, 8, corpus.num_images - 1]
    few = excluding(
        shards, pairs, *map(corpus.image_key, out), tmp_path=tmp_path, folders=("train", "test")
    )
    bad = {corpus.image(j, 64).tobytes() for j in out}
    texts = int((~np.isin(corpus.image_of_text, out)).sum())
    assert few.sizes[0] == texts < len(corpus) and few.image_starts[1] == corpus.num_images - 4
    itm = dataclasses.replace(config.model.itm, negatives=negatives)
    model = dataclasses.replace(config.model, itm=itm)
    plan = Plan(len(few), 3 * len(few) // 8, 8, 8, 1)
    data = TrainBatches(few, Order(few.sizes, None, 0), plan, model, 0, 0)
    seen, wrong = set(), 0
    for item in range(len(data)):
        batch = data[item]
        seen |= set(batch["index"].tolist())
        shown = [*batch["image"], *batch.get("negative_image", ())]
        wrong += sum(image.numpy().tobytes() in bad for image in shown)
    assert wrong == 0 and seen == set(range(len(few)))


def test_excluded_rows_move_nothing_else(shards, pairs, tmp_path):
    """Catches texts or images that shift against each other, and wrong image numbers."""
    corpus = pairs.corpora[0]
    gone = corpus.image_key(3)
    few = excluding(shards, pairs, gone, tmp_path=tmp_path, folders=("train", "test"))
    whole = Pairs([f"{shards}/train", f"{shards}/test"], pairs.tokenizer, 24, 64)
    wanted = [i for i in range(len(whole)) if i >= len(corpus) or corpus.image_of_text[i] != 3]
    assert len(few) == len(wanted)
    for new, old in enumerate(wanted):
        ours, theirs = few[new], whole[old]
        assert (ours.key, ours.corpus) == (theirs.key, theirs.corpus)
        assert few.text(new) == whole.text(old) and np.array_equal(ours.image, theirs.image)
        assert np.array_equal(few.image(ours.image_id), ours.image)
        assert ours.image_id == theirs.image_id - (theirs.image_id > 3)


def test_exclusion_by_stem_and_its_count(shards, pairs, tmp_path, caplog):
    """Catches a list that names files where the corpus has keys, and a silent filter."""
    from m3ae.data.exclusions import image_stem

    assert image_stem("sub/synpic1.JPG") == "synpic1" and image_stem("10.1001/a.b") == "a.b"
    with caplog.at_level("INFO"):
        few = excluding(shards, pairs, pairs.corpora[0].image_key(0), "unknown", tmp_path=tmp_path)
    count = pairs.corpora[0].num_images
    assert f"leaves out 1 of {count} images" in caplog.text and len(few) < len(pairs)


def test_exclusions_refused(shards, pairs, tmp_path):
    """Catches a run without data, or one that trains on what a missing list should leave out."""
    every = [pairs.corpora[0].image_key(j) for j in range(pairs.corpora[0].num_images)]
    with pytest.raises(ValueError, match=r"train: data\.exclude lists all of its images"):
        excluding(shards, pairs, *every, tmp_path=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.tsv"):
        Pairs([f"{shards}/train"], pairs.tokenizer, 24, 64, exclude=[str(tmp_path / "gone.tsv")])


def test_enlarged_pictures_are_said(shards, tmp_path, caplog):
    """Pictures prepared at 6 px and trained on at 8, blurred, without a word."""
    tokenizer = load_tokenizer(shards / "tokenizer")
    folder = str(write_split(tmp_path / "s", "jpeg"))
    with caplog.at_level("WARNING"):
        Pairs([folder], tokenizer, 24, 6)
        assert not caplog.text
        Pairs([folder], tokenizer, 24, 8)
    assert f"{folder}: prepared at 6 px, enlarged to 8; prepare with --px 8" in caplog.text
