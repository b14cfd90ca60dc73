"""A user's own table: several files of one, and paths as people write them."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import pairs, table
from m3ae.corpora.own_table import OwnTable, find_files
from m3ae.corpora.tables import path_below
from m3ae.data.shards import Shards
from tests.data_prep.test_corpora import SMALL, save_image, texts_of

# ------------------------------------------------------------------ paths


@pytest.fixture
def raw(tmp_path) -> Path:
    for k, name in enumerate(("a.png", "sub/b.png", "odd\\c.png", "t1:30.png")):
        save_image(tmp_path / "raw" / name, k)
    save_image(tmp_path / "secret.png", 9)
    (tmp_path / "linked").symlink_to(tmp_path / "raw")
    return tmp_path / "raw"


def test_paths_as_people_write_them(raw):
    """A file inside --raw that is said to be outside, or taken for another one."""
    for name in ("sub/b.png", "./sub//b.png", "sub\\b.png", ".\\sub\\b.png", "sub/../sub/b.png"):
        assert path_below(raw, name) == "sub/b.png"
    for folder in (raw, raw.parent / "linked"):
        assert path_below(raw, f"{folder.resolve()}/sub/b.png") == "sub/b.png"
        assert path_below(folder, f"{folder}/sub/b.png") == "sub/b.png"
    assert path_below(raw, "odd\\c.png") == "odd\\c.png"
    assert path_below(raw, "t1:30.png") == "t1:30.png"
    assert path_below(raw, "..hidden/a..png") == "..hidden/a..png"
    assert path_below(raw, "a\\" + "b" * 999) == "a/" + "b" * 999  # longer than names may be


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "..\\secret.png",
        "sub/../../secret.png",
        "/secret.png",
        "//secret.png",
        "C:\\images\\a.png",
        "c:/images/a.png",
        "a\0.png",
        ".",
        "sub/..",
        "..",
    ],
)
def test_paths_that_lead_outside(raw, name):
    """A file outside --raw that gets into shards."""
    with pytest.raises(ValueError, match="image leads outside --raw"):
        path_below(raw, name)
    with pytest.raises(ValueError, match="image leads outside --raw"):
        path_below(raw, str(raw.parent / "secret.png"))


PARTS = st.lists(st.sampled_from(["a", "..", ".", "", "C:", "~", "b c", "\\", "é"]), max_size=6)


@given(PARTS, st.sampled_from("/\\"), st.booleans())
def test_no_path_leads_out(tmp_path_factory, parts, separator, absolute):
    """A mixture of separators and dots by which a file outside --raw is read."""
    raw = Path("/nowhere/raw")
    try:
        path = path_below(raw, ("/" if absolute else "") + separator.join(parts))
    except ValueError:
        return
    assert not path.startswith("/") and ".." not in path.split("/") and path not in ("", ".")


def test_one_image_however_it_is_written(raw, capsys):
    """Texts of one image under several names of it; the same row kept by one script alone."""
    rows = ["sub/b.png", " sub\\b.png ", str(raw / "sub" / "b.png"), "t1:30.png", "C:\\x.png"]
    path = raw.parent / "X.CSV"
    lines = [f'"{name}",text number {k},is it {k}?,yes\n' for k, name in enumerate(rows)]
    path.write_text("image,text,question,answer\n" + "".join(lines))
    for script in (pairs, table):
        out = raw.parent / script.__name__
        where = ["--raw", str(raw), "--table", str(path), "--out", str(out)]
        assert script.main([*where, *SMALL]) == 0
        found = {key: len(texts) for key, texts in texts_of(Shards(out / "train")).items()}
        assert found == {"sub/b.png": 3, "t1:30.png": 1}
        dropped = Shards(out / "train").manifest["report"]["dropped"]
        assert dropped["row: image leads outside --raw"]["examples"] == ["X.CSV: row 5"]


# ------------------------------------------------------------------ several files


def write_parquet(path: Path, rows: list[dict]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)


def hub_rows(raw: Path, name: str, *numbers: int) -> list[dict]:
    rows = []
    for k in numbers:
        save_image(raw / "made" / f"{name}{k}.png", k)
        data = (raw / "made" / f"{name}{k}.png").read_bytes()
        said = {"question": f"is it {k}?", "answer": f"{name} {k}", "text": f"text of {name} {k}"}
        rows.append({"image": {"bytes": data, "path": "x.png"}, **said})
    return rows


def run(script, raw: Path, *more: str) -> dict[str, dict[str, list[str]]]:
    out = raw.parent / "out"
    assert script.main(["--raw", str(raw), "--out", str(out), *SMALL, *more]) == 0
    folders = [path.parent for path in out.glob("*/manifest.json")]
    return {folder.name: texts_of(Shards(folder)) for folder in folders}


@pytest.mark.parametrize("way", ["folder", "pattern", "files"])
def test_parquet_files_of_the_hub(raw, way):
    """The first of several files alone; all of them in train; a row number that comes twice."""
    data = raw / "data"
    names = ["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"]
    for k, name in enumerate(names):
        path = data / f"{name}-ab12.parquet"
        write_parquet(path, hub_rows(raw, "tvw"[k], 2 * k, 2 * k + 1))
    files = sorted(map(str, data.iterdir()))
    given = {"folder": [str(raw)], "pattern": [f"{data}/*.parquet"], "files": files}[way]
    found = run(table, raw, "--table", *given)
    stems = [Path(file).stem for file in files]
    assert found == {
        "train": {f"{stems[k // 2]}-0-{k % 2}": [f"is it {k}?"] for k in range(4)},
        "valid": {f"{stems[2]}-0-{k}": [f"is it {k + 4}?"] for k in range(2)},
    }
    train = Shards(raw.parent / "out" / "train")
    assert [train.fields(i)["question_id"] for i in range(4)] == ["1", "2", "3", "4"]
    assert [name.split()[0] for name in train.manifest["options"]["table"]] == [
        f"{stem}.parquet" for stem in stems
    ]


def test_files_of_one_name(raw, capsys):
    """An image of another file of the same name; twins said to be in two splits."""
    for k, split in enumerate(("train", "test")):
        write_parquet(raw / split / "0000.parquet", hub_rows(raw, split, k))
    found = run(table, raw, "--table", str(raw), "--encoding", "original")
    assert found["train"] == {"train-0000-0-0": ["is it 0?"]}
    assert found["test"] == {"test-0000-0-0": ["is it 1?"]}
    for k, split in enumerate(("train", "test")):
        shard = Shards(raw.parent / "out" / split).shard(0)
        wanted = (raw / "made" / f"{split}{k}.png").read_bytes()
        assert shard["image_bytes"].tobytes() == wanted
    assert "another split" not in capsys.readouterr().err


def test_several_tables_of_pairs(raw):
    """Rows of a second table lost, or their drops named by the first one's numbers."""
    for k, name in enumerate(("a.png", "sub/b.png")):
        (raw.parent / f"{k}.csv").write_text(f"image,text\n{name},text of number {k}\n,no image\n")
    found = run(pairs, raw, "--table", f"{raw.parent}/?.csv")
    assert found == {"train": {"a.png": ["text of number 0"], "sub/b.png": ["text of number 1"]}}
    dropped = Shards(raw.parent / "out" / "train").manifest["report"]["dropped"]
    assert dropped["row: no image"]["examples"] == ["0.csv: row 2", "1.csv: row 2"]


def test_one_file_is_read_as_before(raw):
    """A table that becomes another split, or another option, because of its name."""
    path = raw.parent / "test-00000-of-00001.jsonl"
    path.write_text(json.dumps({"image": "a.png", "text": "one two three"}))
    assert run(pairs, raw, "--table", str(path)) == {"train": {"a.png": ["one two three"]}}
    options = Shards(raw.parent / "out" / "train").manifest["options"]
    assert options["table"].startswith("test-00000-of-00001.jsonl ")


def test_tables_that_are_not_there(raw, capsys):
    """A pattern or folder without a table taken for an empty one."""
    with pytest.raises(FileNotFoundError, match=r"x\*\.csv: no file has such a name"):
        find_files([raw / "x*.csv"])
    with pytest.raises(FileNotFoundError, match="sub: no parquet files such as train-00000"):
        find_files([raw / "sub"])
    with pytest.raises(FileNotFoundError, match=r"x\.csv: not there; it should be a table"):
        find_files([raw / "x.csv"])
    (raw / "[x].csv").write_text("image,text\n")
    assert find_files([raw / "[x].csv"]) == [(raw / "[x].csv", "")]


# ------------------------------------------------------------------ what is left out

BOOKED = st.lists(
    st.tuples(
        st.sampled_from(["", "train", "test", "dev"]),
        st.sampled_from(["", "a", "b", "c", "d"]),
        st.booleans(),
    )
)


@given(BOOKED, st.booleans())
def test_what_is_left_out_adds_up(rows, drawn):
    """A row or image that is counted twice, not at all, or on another split than its own."""
    own = OwnTable("x.csv", Path("raw"), [])
    home = {"a": "train", "b": "test", "c": "train", "d": "test"}
    used: dict[str, set[str]] = {}
    rows = [("train" if drawn and split else split, image, good) for split, image, good in rows]
    for number, (split, image, good) in enumerate(rows):
        if good and split and image:
            used.setdefault(home[image] if drawn else split, set()).add(image)
        else:
            own.leave_out("bad", str(number), split, image if split else "")
    dropped, facts = own.book(used, drawn)
    of_none = facts.get("rows_of_no_split", {})
    lost = "image: all its rows were left out"
    counts = [dropped[split].counts for split in used]
    counts.append({why: entry["count"] for why, entry in of_none.items()})
    good = sum(good and bool(split and image) for split, image, good in rows)
    assert sum(each.get("row: bad", 0) for each in counts) + good == len(rows)
    named = {(split, image) for split, image, _ in rows if split and image}
    images = sum(map(len, used.values())) + sum(each.get(lost, 0) for each in counts)
    assert images == len(named)
    for split in used:
        found = {int(number) for number in dropped[split].examples.get("row: bad", ())}
        for number in found:
            image = rows[number][1]
            assert split == (home[image] if drawn else rows[number][0])
