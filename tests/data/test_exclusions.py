"""Which images the ids of an exclusion list name."""

import shutil
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae.data.exclusions import find_listed, listed, read_exclusions, say_unmatched, unmatched
from m3ae.data.shards import Shards

TREE = [f"patient{p}/study{s}/view{v}.jpg" for p, s, v in product("12", "12", "12")]


def named(names: list[str], *ids: str) -> set[str]:
    found = find_listed([(name,) for name in names], set(ids), "list.txt")
    return {names[number] for numbers in found.values() for number in numbers}


def test_equal_file_names_are_told_apart():
    """An id of one patient's view that names another's, or all, or none."""
    one = TREE[5]
    assert named(TREE, one) == named(TREE, one.removesuffix(".jpg")) == named(TREE, "./" + one)
    assert named(TREE, one) == named(TREE, one.replace("/", "\\")) == {one}
    assert named(["a\\b.png", "c/b.png"], "a\\b.png") == {"a\\b.png"}
    assert named(TREE, "patient3/study1/view1.jpg", "iew1", "images/" + one) == set()
    for id in ("view1", "view1.jpg", "study2/view1", "study2/view1.jpg"):
        with pytest.raises(
            ValueError, match=r"list\.txt: id '.*view1.*' .* may be any of \d images"
        ):
            named(TREE, id)
    assert named([*TREE, "view1.jpg"], "view1") == {"view1.jpg"}


def test_a_key_that_is_another_images_file():
    """Rows numbered 1, 2, ... beside files of other numbers, and the wrong image left out."""
    images = [("1", "a/2.png"), ("2", "a/1.png"), ("3", "a/3.png"), ("4", "b/5.png")]

    def numbers(id: str) -> list[int]:
        return find_listed(images, {id}, "list.txt").get(id, [])

    for id in ("1", "2", "1.png", "2.png"):
        with pytest.raises(ValueError, match=f"id '{id}' .* may be any of 2 images, e.g. '.'"):
            numbers(id)
    assert [numbers(id) for id in ("a/1.png", "3", "3.png", "4", "5", "9")] == [
        *([1], [2], [2], [3], [3]),
        [],
    ]
    assert find_listed([("x", "f.png"), ("y", "f.png")], {"f"}, "") == {"f": [0, 1]}
    with pytest.raises(ValueError, match="may be any of 2 images"):
        find_listed([("a.png", "b.png"), ("b.png", "a.png")], {"a.png"}, "")


@pytest.mark.parametrize(
    "key, id, same",
    [
        ("synpic1", "synpic1.jpg", True),
        ("sub/synpic1.JPG", "synpic1", True),
        ("sub/synpic1.JPG", "synpic1.jpg", True),
        ("a.png", "a.jpg", False),
        ("hash_1-Figure1-1.png", "hash_1-Figure1-1", True),
        ("10.1001/a.b", "a", False),
        ("10.1001/a.b", "a.b", True),
        ("a.png.jpg", "a.png", True),
        ("xa", "a", False),
        (".jpg", "a.jpg", False),
    ],
)
def test_suffixes(key, id, same):
    """The suffix of an image file that decides, or a part of a name that is cut off as one."""
    assert named([key], id) == ({key} if same else set())


PART = st.sampled_from(["a", "b", "a.png", "b.jpg", "x.y", "a.png.jpg"])
PATHS = st.lists(st.lists(PART, min_size=1, max_size=3).map("/".join), unique=True, max_size=8)


def bare(name: str) -> str:
    return name.rsplit(".", 1)[0] if name.endswith((".png", ".jpg")) else name


def fits(name: str, id: str) -> bool:
    """By parts and not by letters: the id's parts are the last of the name."""
    size, ends = id.count("/") + 1, {n[-4:] for n in (name, id) if n != bare(n)}
    last = bare(name).split("/")[-size:]
    return last == id.split("/") or (len(ends) < 2 and last == bare(id).split("/"))


@given(PATHS, st.lists(PART, min_size=1, max_size=3).map("/".join))
def test_an_id_names_one_image_or_none(names, id):
    """More images left out than are listed, fewer, or a choice among several."""
    likely = [name for name in names if fits(name, id)]
    whole = [name for name in likely if bare(name) in (id, bare(id))]
    wanted = [id] if id in names else whole or likely
    if len(wanted) > 1:
        with pytest.raises(ValueError, match="may be any of"):
            named(names, id)
    else:
        assert named(names, id) == set(wanted)


@given(PATHS, st.data())
def test_a_list_of_keys_names_these(names, data):
    """Keys of which one is the end of another: the shorter one names both, or none."""
    ids = data.draw(st.sets(st.sampled_from(names))) if names else set()
    assert named(names, *ids) == ids


def test_damaged_names_of_files(shards, tmp_path):
    """A traceback that names no file, or a list that is obeyed in part."""
    folder = tmp_path / "train"
    shutil.copytree(shards / "train", folder)
    (folder / "images.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"train/images\.json: damaged"):
        listed(Shards(folder), {"a"})


def test_ids_of_no_image(tmp_path):
    """A list of another corpus that leaves out nothing, silently; an empty one refused."""
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf# from an audit\r\none\tremark\r\ntwo\r\n")
    ids = read_exclusions(path)
    assert ids == {"one", "two"}
    assert unmatched({path: ids}, {"one"}, "a.png") == {path: ["two"]}
    assert say_unmatched(path, ids, ["two"]) == f"{path}: 1 of 2 ids name no image: two"
    with pytest.raises(ValueError, match=r"x\.txt: none of its 2 ids is an image, e\.g\. 'one'"):
        unmatched({path: ids}, set(), "a.png")
    assert unmatched({path: set()}, set(), "a.png") == {}
    lists = {"x": ids, "y": {"three"}, "z": set()}  # x and y of two corpora
    assert unmatched(lists, {"one"}, "a.png") == {"x": ["two"], "y": ["three"]}
    with pytest.raises(ValueError, match=r"^x, y: none of their 3 ids is an image, e\.g\. 'one'"):
        unmatched(lists, {"four"}, "a.png")
