"""Questions as batches: targets, augmentation, false texts."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep import pairs as pairs_script
from data_prep import table
from m3ae.data.datasets import Pairs
from m3ae.data.sampler import Plan
from m3ae.data.texts import load_tokenizer
from m3ae.downstream.config import load_finetune_config
from m3ae.downstream.data import (
    UNKNOWN,
    EvalQuestions,
    Questions,
    TrainQuestions,
    augmented,
    next_other,
    read_answers,
    read_splits,
)
from m3ae.downstream.selection import hold_out
from m3ae.scoring.protocols import protocols_of
from tests.recipe import ROOT


def config(task: str = "vqa", **changes):
    """The paper's fine-tuning of 64 px, texts of 24 tokens."""
    metric = {"vqa": "overall", "retrieval": "loss"}[task]
    made = load_finetune_config(
        ROOT / "configs/finetune/finetune.yaml",
        [
            f"task={task}",
            f"eval={{metric: {metric}, batch: 5}}",
            "data={image_px: 64, text_length: 24, false_texts: 3, valid: valid}",
        ],
    )
    return dataclasses.replace(made, data=dataclasses.replace(made.data, **changes))


@pytest.fixture(scope="module")
def tokenizer(shards):
    return load_tokenizer(shards / "tokenizer")


def read(folder, tokenizer, **more) -> Questions:
    return Questions(Pairs([str(folder)], tokenizer, 24, 64), **more)


def test_targets(questions, tokenizer):
    """A target that is another answer's number, or an unknown one taken for the first answer."""
    test = read(questions / "test", tokenizer)
    answers = sorted(test.labels())[1:]
    test.set_answers(answers)
    batches = list(EvalQuestions(test, 5))
    rows = np.concatenate([batch["index"] for batch in batches])
    assert rows.tolist() == test.rows.tolist()
    for batch in batches:
        for row, target in zip(batch["index"].tolist(), batch["target"].tolist(), strict=True):
            label = test.label(row)
            assert label == answers[target] if target != UNKNOWN else label not in answers
    assert UNKNOWN in np.concatenate([batch["target"] for batch in batches])


def test_training_batches_do_not_depend_on_processes(questions, tokenizer):
    """Another order or sample when the same step is split over processes."""
    train = read(questions / "train", tokenizer)
    train.set_answers(sorted(train.labels()))
    one = TrainQuestions(train, config(), Plan(len(train), 3, 8, 8, 1), 0)
    two = [TrainQuestions(train, config(), Plan(len(train), 3, 8, 2, 2), rank) for rank in (0, 1)]
    for step in range(3):
        whole = one[step]["index"].tolist()
        parts = [part[2 * step + micro]["index"].tolist() for part in two for micro in (0, 1)]
        assert whole == [row for part in parts for row in part]


def test_false_texts_are_of_other_images(shards, tokenizer):
    """A false text of the same image, the true one not first, or draws that change."""
    captions = read(shards / "train", tokenizer)
    data = EvalQuestions(captions, 5, false_texts=3)
    batch = data[0]
    assert batch["text_ids"].shape[:2] == (5, 4) and not batch["target"].any()
    for k, row in enumerate(batch["index"].tolist()):
        ids, _ = captions.pairs.tokens(row)
        length = batch["text_ids"].shape[2]
        assert batch["text_ids"][k, 0].tolist() == ids[:length].tolist()
        assert not (batch["text_ids"][k, 1:] == batch["text_ids"][k, 0]).all(dim=1).any()
    again = data[0]
    assert all((batch[key] == again[key]).all() for key in batch)


@pytest.fixture(scope="module")
def jpegs(shards, tmp_path_factory):
    """Phantom pictures in shards of encoding jpeg."""
    raw = shards.parent / "raw" / "roco" / "train" / "radiology" / "images"
    folder = tmp_path_factory.mktemp("jpegs")
    names = sorted(path.name for path in raw.iterdir())[:4]
    rows = "".join(f"{name},a phantom of nobody\n" for name in names)
    (folder / "table.csv").write_text("image,text\n" + rows)
    assert (
        pairs_script.main(
            [
                "--table",
                str(folder / "table.csv"),
                "--raw",
                str(raw),
                "--px",
                "64",
                "--out",
                str(folder / "out"),
                "--encoding",
                "jpeg",
                "--workers",
                "0",
            ]
        )
        == 0
    )
    return folder / "out" / "train"


@pytest.mark.parametrize("kind", ["resized_crop", "rand_augment"])
def test_augmentation_follows_from_the_generator(jpegs, tokenizer, kind):
    """A crop drawn from the global generator, which another sample or process moves on."""
    data = config(augmentation=kind).data
    shards = read(jpegs, tokenizer).shards
    first = augmented(shards, 0, data, np.random.default_rng(3))
    torch.rand(5)
    state = torch.get_rng_state()
    again = augmented(shards, 0, data, np.random.default_rng(3))
    assert np.array_equal(first, again) and first.shape[1:] == (64, 64) and first.dtype == np.uint8
    assert torch.equal(state, torch.get_rng_state())
    others = [augmented(shards, 0, data, np.random.default_rng(k)) for k in range(4, 12)]
    assert any(other.shape != first.shape or not np.array_equal(other, first) for other in others)


def test_a_crop_keeps_most_of_the_image(jpegs, tokenizer):
    """crop_scale taken for the share that is cut off."""
    data = config(augmentation="resized_crop", crop_scale=0.9).data
    questions = read(jpegs, tokenizer)
    whole = questions.pairs.image(0).astype(float).mean(axis=0)
    crops = [augmented(questions.shards, 0, data, np.random.default_rng(k)) for k in range(8)]
    likeness = [
        np.corrcoef(whole.ravel(), crop.astype(float).mean(axis=0).ravel())[0, 1] for crop in crops
    ]
    assert np.median(likeness) > 0.7


def test_a_split_without_rows_or_field(questions, tokenizer):
    """An empty split that passes, or a field that nobody has."""
    with pytest.raises(ValueError, match="no row is left"):
        read(questions / "test", tokenizer, rows=np.array([], dtype=int))
    with pytest.raises(ValueError, match="has no 'colour', only answer, "):
        read(questions / "test", tokenizer, field="colour")


@pytest.mark.parametrize("protocol", ["strict", "image_disjoint"])
def test_held_out_rows_do_not_depend_on_the_preparation(tmp_path, tokenizer, protocol):
    """Other rows held out where grey and coloured images are in one shard, or in another order."""
    rng, rows = np.random.default_rng(0), []
    for number in range(30):
        shape = (70, 80, 3) if number % 3 == 1 else (70, 80)
        name = f"synpic{number}.png"
        array = rng.integers(0, 256, shape, dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / "images" / name)
        rows += [f"{name},is it {word},yes,train" for word in ("grey", "coloured")]
        rows += [f"{name},what is it,a picture,test"] * (number > 27)

    def held_out(name: str, lines: list[str], encoding: str) -> list[str]:
        head = "image,question,answer,split"
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")
        prepare = ["--table", str(tmp_path / f"{name}.csv"), "--raw", str(tmp_path / "images")]
        prepare += ["--out", str(tmp_path / name), "--px", "64", "--workers", "0"]
        assert table.main([*prepare, "--encoding", encoding]) == 0
        data = {split: str(tmp_path / name / split) for split in ("train", "test")}
        made = config(**data, valid=None, held_out=0.3)
        splits, _, _ = read_splits(made, tokenizer, protocols_of(protocol, "own", False))
        kept, held = splits["train"], splits["held_out"]
        assert not set(images(kept)) & set(images(held))
        return sorted(zip(images(held), map(held.shards.text, held.rows.tolist()), strict=True))

    def images(split: Questions) -> list[str]:
        return [split.shards.image_key(int(split.shards.image_of_text[row])) for row in split.rows]

    wanted = held_out("raw", rows, "raw")
    assert len(wanted) == 18
    assert held_out("jpeg", rows, "jpeg") == wanted
    assert held_out("turned", rows[::-1], "raw") == wanted


def test_the_other_image(questions, tokenizer):
    """One's own image as another's: at the end, or among several questions on one image."""
    assert next_other(np.array([3, 3, 5, 3])).tolist() == [2, 2, 3, 2]
    assert next_other(np.array([4, 4, 1])).tolist() == [2, 2, 0]
    with pytest.raises(ValueError, match="one image only"):
        next_other(np.array([2, 2]))
    test = read(questions / "test", tokenizer, rows=np.arange(3, 20))
    own, other, none = (list(EvalQuestions(test, 5, arm)) for arm in ("own", "other", "none"))
    owners = test.shards.image_of_text
    for batch, turned, empty in zip(own, other, none, strict=True):
        for key in ("index", "text_ids", "text_keep", "target"):
            assert torch.equal(batch[key], turned[key]) and torch.equal(batch[key], empty[key])
        assert empty["image"].shape == (len(batch["index"]), 3, 64, 64)
        assert empty["image"].dtype == torch.float32 and not empty["image"].any()
        for k, row in enumerate(batch["index"].tolist()):
            assert np.array_equal(batch["image"][k], test.pairs.image(int(owners[row])))
            after = [*range(row + 1, 20), *range(3, row)]
            shown = next(owners[j] for j in after if owners[j] != owners[row])
            assert np.array_equal(turned["image"][k], test.pairs.image(int(shown)))


@settings(max_examples=200)
@given(
    owners=st.lists(st.integers(0, 30), min_size=4, max_size=80),
    share=st.floats(0.05, 0.5),
    skip=st.integers(0, 3),
)
def test_no_image_is_on_both_sides(owners, share, skip):
    """A held-out question whose image is trained on, or a row lost between the two."""
    images = np.array(owners)
    rows = np.arange(len(images))[skip:]
    train, held = hold_out(rows, images, share)
    assert sorted([*train, *held]) == rows.tolist()
    assert not set(images[train]) & set(images[held])
    known = len(set(images[rows]))
    assert len(set(images[held])) == max(1, round(share * known))
    again = hold_out(rows, images, share)
    assert np.array_equal(again[1], held)


def test_answer_lists(tmp_path):
    """Another list, column or order than the one asked for."""
    train = str(tmp_path / "train")
    assert read_answers(train, None, "label", "paper") is None
    lists = {"paper": ["a", "b"], "train": ["a"], "reference_order": ["b", "a"]}
    (tmp_path / "answers.json").write_text(json.dumps(lists))
    assert read_answers(train, None, "label", "paper") == ["a", "b"]
    assert read_answers(train, None, "label", "reference_order") == ["b", "a"]
    columns = {"i_meth": {"paper": ["x"], "train": []}, "p_meth": {"paper": ["y", "z"]}}
    (tmp_path / "classes.json").write_text(json.dumps(columns))
    (tmp_path / "answers.json").unlink()
    assert read_answers(train, None, "p_meth", "paper") == ["y", "z"]
    with pytest.raises(ValueError, match=r"classes\.json: no list paper for data\.field=label"):
        read_answers(train, None, "label", "paper")
    (tmp_path / "own.json").write_text('["no", "yes"]')
    assert read_answers(train, str(tmp_path / "own.json"), "label", "paper") == ["no", "yes"]
    for bad in ("{", "[]", "[1]", '{"train": ["a"]}', '"yes"x', "null"):
        (tmp_path / "own.json").write_text(bad)
        with pytest.raises(ValueError, match=r"own\.json"):
            read_answers(train, str(tmp_path / "own.json"), "label", "paper")
