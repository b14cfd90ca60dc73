"""Which rows a run trains on: fractions of the images, and their number without a model."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import phantoms, table
from m3ae.data.sampler import Plan
from m3ae.data.texts import load_tokenizer
from m3ae.downstream.config import load_finetune_config
from m3ae.downstream.data import TrainQuestions, read_splits
from m3ae.downstream.selection import few_images, training_rows
from m3ae.scoring.protocols import protocols_of
from tests.recipe import ROOT


def config(task: str, folder, *more: str, **changes):
    """Fine-tuning of 64 px on a prepared folder."""
    metric = {"vqa": "overall", "classification": "accuracy", "retrieval": "loss"}[task]
    splits = [f"data.{name}={folder}/{name}" for name in ("train", "test")]
    sizes = "data={image_px: 64, text_length: 24, false_texts: 3}"
    given = [f"task={task}", f"eval.metric={metric}", sizes, *splits, *more]
    made = load_finetune_config(ROOT / "configs/finetune/finetune.yaml", given)
    return dataclasses.replace(made, data=dataclasses.replace(made.data, **changes))


@pytest.fixture(scope="module")
def tokenizer(shards):
    return load_tokenizer(shards / "tokenizer")


@pytest.fixture(scope="module")
def classes(shards, tmp_path_factory):
    """Classes of 40 phantoms, some without a finding."""
    folder = tmp_path_factory.mktemp("classes")
    options = ["--layouts", "tables", "--tables", "40", "--px", "64", "--workers", "1"]
    assert phantoms.main(["--out", str(folder), *options]) == 0
    made = ["--table", str(folder / "tables/classes.csv"), "--raw", str(folder / "tables/images")]
    made += ["--out", str(folder / "out"), "--px", "64", "--workers", "0", "--classes"]
    assert table.main([*made, "plane,kind", "--tokenizer", str(shards / "tokenizer")]) == 0
    return folder / "out"


@given(
    owners=st.lists(st.integers(0, 30), min_size=1, max_size=80),
    fractions=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    seed=st.integers(0, 3),
)
def test_a_smaller_fraction_is_part_of_a_larger(owners, fractions, seed):
    """Few labels that are no part of many, half an image's rows, or none at all."""
    images = np.array([f"image {owner}" for owner in owners])
    rows = np.arange(len(images))[len(images) // 3 :]
    small, large = (few_images(rows, images, part, seed) for part in sorted(fractions))
    assert set(small) <= set(large) <= set(rows)
    kept = set(images[small])
    assert len(kept) == max(1, round(min(fractions) * len(set(images[rows]))))
    assert small.tolist() == [row for row in rows if images[row] in kept]


def test_seeds_draw_other_images_and_an_order_of_rows_does_not_matter():
    """One subset for all seeds, or one that another preparation would change."""
    images = np.array([f"image {k}" for k in range(100)])
    rows = np.arange(100)
    drawn = [set(images[few_images(rows, images, 0.1, seed)]) for seed in range(3)]
    assert all(len(some) == 10 for some in drawn) and len(set.union(*drawn)) > 20
    turned = images[::-1]
    assert set(turned[few_images(rows, turned, 0.1, 0)]) == drawn[0]


@pytest.mark.parametrize("fraction", [1.0, 0.4, 0.001])
def test_rows_are_counted_without_a_model(questions, classes, shards, tokenizer, fraction):
    """A control whose steps are counted on rows that its run leaves out."""
    cases = [
        ("vqa", questions, "VQA-RAD", "label", ("paper", "strict", "image_disjoint")),
        ("classification", classes, "table", "kind", ("paper", "strict")),
        ("retrieval", shards, "ROCO", "label", ("paper",)),
    ]
    for task, folder, source, field, names in cases:
        valid = [f"data.valid={folder}/valid"] if task == "retrieval" else []
        found = {}
        for name in names:
            changes = {"fraction": fraction, "field": field}
            made = config(task, folder, f"protocol={name}", *valid, **changes)
            rules = protocols_of(name, source, bool(valid))
            splits, answers, known = read_splits(made, tokenizer, rules)
            train = splits["train"]
            found[name] = len(train)
            assert training_rows(made) == len(train)
            images = train.shards.image_of_text
            kept = set(images[train.rows])
            assert train.images() == len(kept)
            if name == "strict":
                # Answers known, and the part held out, which does not shrink.
                assert known[name] == set(train.labels()) == set(answers)
                whole = read_splits(
                    config(task, folder, **{**changes, "fraction": 1.0}), tokenizer, rules
                )
                held = whole[0]["held_out"]
                assert splits["held_out"].rows.tolist() == held.rows.tolist()
                assert not kept & set(images[held.rows])
                assert set(train.rows) <= set(whole[0]["train"].rows)
        if len(names) > 1:
            both = config(task, folder, "protocol=both", **changes)
            assert training_rows(both) == min(found["paper"], found["strict"])


def test_a_fraction_sees_no_text_of_the_rest(shards, tokenizer):
    """False texts of images that a run with few images must not know."""
    made = config("retrieval", shards, f"data.valid={shards}/valid", fraction=0.1)
    rules = protocols_of("paper", "ROCO", True)
    train = read_splits(made, tokenizer, rules)[0]["train"]
    assert train.images() == 4
    own = {tuple(train.pairs.tokens(int(row))[0].tolist()) for row in train.rows}
    data = TrainQuestions(train, made, Plan(len(train), 8, 4, 4, 1), 0)
    for step in range(8):
        for ids in data[step]["text_ids"].flatten(0, 1).tolist():
            assert any(list(text[: len(ids)]) == ids for text in own)


@pytest.mark.parametrize("wrong", ["data.fraction=0", "data.fraction=1.5", "eval.every=0"])
def test_values_that_no_run_could_work_with(questions, wrong):
    """No image, or no epoch evaluated."""
    with pytest.raises(ValueError, match=wrong.split("=")[0]):
        config("vqa", questions, wrong)
