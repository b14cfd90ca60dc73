"""Splits of a user's table: drawn by image or group, and checked."""

import argparse
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae.corpora.own_table import add_table_options, name_unused
from m3ae.corpora.splits import Groups, read_fractions

ROWS = st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from(["", *"ABCDE"])))
PARTS = st.dictionaries(st.sampled_from(["test", "valid"]), st.sampled_from([0.1, 0.3, 0.45]))


TABLE = ["--table", "x.csv"]


def grouped(rows) -> Groups:
    groups = Groups("patient")
    for image, group in rows:
        groups.add("train", image, group)
    return groups


@given(ROWS, PARTS, st.integers(0, 5))
def test_no_group_is_in_two_splits(rows, parts, seed):
    """A patient, or an image of two patients, on both sides of a draw; an image lost in it."""
    groups, images = grouped(rows), {image for image, _ in rows}
    try:
        split_of = groups.draw(parts, seed)
    except ValueError as error:
        assert "nothing is left to train on" in str(error)
        return
    assert set(split_of) == images
    splits: dict[str, set[str]] = defaultdict(set)
    for image, group in rows:
        splits[group or f"alone {image}"].add(split_of[image])
    assert all(len(found) == 1 for found in splits.values())
    assert groups.facts()["groups"]["in_two_splits"] == 0
    assert split_of == grouped(rows[::-1]).draw(parts, seed)
    for split, part in parts.items():
        count = sum(found == split for found in split_of.values())
        assert count >= max(1, round(part * len(images)))


def test_sizes_of_a_draw_by_group():
    """A fraction of the groups instead of the images, or a split that takes far too much."""
    rows = [(f"p{p}-{k}.png", f"p{p}") for p in range(40) for k in range(1 + p % 3)]
    split_of = grouped(rows).draw({"test": 0.2, "valid": 0.1}, 0)
    counts = [list(split_of.values()).count(name) for name in ("train", "valid", "test")]
    assert sum(counts) == len(rows) == 79
    assert 16 <= counts[2] <= 18 and 8 <= counts[1] <= 10
    assert grouped(rows).draw({"test": 0.2}, 1) != grouped(rows).draw({"test": 0.2}, 0)


def test_one_group_leaves_nothing_to_train_on():
    """A column that joins everything and still gives a test split."""
    with pytest.raises(ValueError, match="of 3 images that 'patient' joins to 1 groups"):
        grouped([("a", "A"), ("b", "A"), ("b", "B"), ("c", "B")]).draw({"test": 0.1}, 0)


def test_groups_of_two_splits_are_counted_and_named(capsys):
    """A patient in train and test of a column split, unseen as the images differ."""
    groups = Groups("patient")
    rows = [("train", "a", "A"), ("train", "b", "B"), ("test", "c", "B"), ("test", "d", "")]
    for row in rows:
        groups.add(*row)
    facts = {"column": "patient", "rows_without": 1, "splits": {"train": 2, "test": 1}}
    assert groups.facts() == {"groups": {**facts, "in_two_splits": 1}}
    said = "warning: 1 groups (patient) of split test are in another split too, e.g. B"
    assert said in capsys.readouterr().err
    assert Groups(None).facts() == {}


def test_columns_that_look_like_groups_are_named(capsys):
    """A patient column that nobody is told of, or an advice to those who gave one."""
    name_unused("x.csv", ["PatientID", "age", "study_uid"], None)
    error = capsys.readouterr().err
    assert "note: columns of x.csv not used: PatientID, age, study_uid\n" in error
    assert "note: x.csv has a column PatientID, study_uid: --group PatientID keeps" in error
    name_unused("x.csv", ["study_uid"], "PatientID")
    name_unused("x.csv", ["age"], None)
    assert "--group" not in capsys.readouterr().err


def test_fractions():
    """Shares that leave nothing to train on, or one that is not asked for."""
    parser = argparse.ArgumentParser()
    add_table_options(parser)
    assert read_fractions(parser.parse_args(TABLE)) == {}
    assert read_fractions(parser.parse_args([*TABLE, "--test-share", "0.2"])) == {"test": 0.2}
    for wrong in (["--test-share", "0"], ["--test-share", "0.5", "--valid-share", "0.5"]):
        with pytest.raises(ValueError, match="between 0 and 1, together below 1"):
            read_fractions(parser.parse_args([*TABLE, *wrong]))
