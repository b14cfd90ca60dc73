"""Overlap between corpora, end to end on generated folders and prepared splits."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import audit, pairs
from m3ae.data.exclusions import read_exclusions
from m3ae.data.shards import Shards

KINDS = ("bytes", "id", "image", "text", "near-text", "id-window")


def scene(seed: int, size=(200, 160)) -> Image.Image:
    """A picture with structure of its own at several scales."""
    rng, total = np.random.default_rng(seed), np.zeros((size[1], size[0]))
    for cells in (4, 8, 16, 32):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), float)
    return Image.fromarray((total / 4).astype(np.uint8))


def copy_of(image: Image.Image) -> Image.Image:
    """Another size, encoding and contrast."""
    out = io.BytesIO()
    brighter = image.resize((90, 72)).convert("RGB").point(lambda v: v * 0.8 + 30)
    brighter.save(out, "JPEG", quality=60)
    return Image.open(out)


def only(*kinds: str) -> list[str]:
    return [f"--no-{kind}" for kind in KINDS if kind not in kinds]


def run(tmp_path, keep, against, *more, name="exclude.txt") -> tuple[set[str], dict]:
    out = tmp_path / "lists" / name
    as_list = [
        [str(x) for x in (side if isinstance(side, list) else [side])] for side in (keep, against)
    ]
    arguments = ["--keep", *as_list[0], "--against", *as_list[1], "--out", str(out)]
    assert audit.main([*arguments, "--workers", "0", *more]) == 0
    return read_exclusions(out), json.loads(Path(f"{out}.json").read_text())


@pytest.fixture
def folders(tmp_path):
    keep, against = tmp_path / "keep", tmp_path / "against"
    (against / "sub").mkdir(parents=True)
    keep.mkdir()
    for number in (100, 200, 300):
        scene(number).save(keep / f"synpic{number}.png")
    Image.new("L", (50, 50), 7).save(keep / "flat1.png")
    scene(9).save(keep / "ROCO_1.png")
    copy_of(scene(100)).save(against / "sub" / "copy.jpg")  # the same picture
    scene(1).save(against / "synpic201.png")  # another picture, neighbouring number
    scene(2).save(against / "synpic203.png")  # three away
    scene(3).save(against / "synpic300.png")  # the same id only
    scene(4).save(against / "ROCO_2.png")  # numbers of other corpora mean nothing
    (against / "twin.png").write_bytes((keep / "ROCO_1.png").read_bytes())
    Image.new("L", (50, 50), 200).save(against / "flat2.png")  # flat pictures match nothing
    (against / "broken.png").write_bytes(b"")
    return keep, against


def test_each_kind_of_match_in_folders(tmp_path, folders, capsys):
    """A copy, a neighbour or a same id stays in the training data, or is counted wrongly."""
    keep, against = folders
    listed, report = run(tmp_path, keep, against)
    assert listed == {"copy", "synpic201", "synpic300", "twin"}
    counts = {kind: entry["images"] for kind, entry in report["by_kind"].items()}
    assert counts == {"bytes": 1, "id": 1, "image": 2, "text": 0, "near-text": 0, "id-window": 1}
    assert (report["keep"], report["against"], len(report["unreadable"])) == (5, 7, 1)
    html = (tmp_path / "lists" / "exclude.txt.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 8 and "numbers 1 apart" in html
    assert "4 of 7 images match one of 5 (4 pairs); 1 unreadable" in capsys.readouterr().out
    by = {entry["id"]: set(entry["by"]) for entry in report["list"]}
    assert by == {
        "copy": {"image"},
        "synpic201": {"id-window"},
        "synpic300": {"id"},
        "twin": {"bytes", "image"},
    }


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("bytes", {"twin.png"}),
        ("id", {"synpic300.png"}),
        ("image", {"sub/copy.jpg", "twin.png"}),
        ("id-window", {"synpic201.png"}),
    ],
)
def test_kinds_are_switched_off(tmp_path, folders, kind, found):
    """A switch that switches another kind off, or none; naming by path."""
    assert run(tmp_path, *folders, *only(kind), "--ids", "path")[0] == found


def test_window_and_workers(tmp_path, folders):
    """The window is not obeyed; worker processes give another result."""
    listed, _ = run(tmp_path, *folders, *only("id-window"), "--window", "3")
    assert listed == {"synpic201", "synpic203"}
    assert not run(tmp_path, *folders, *only("id-window"), "--window", "0")[0]
    one = run(tmp_path, *folders)[1]
    assert one == run(tmp_path, *folders, "--workers", "1")[1]


def test_names_that_hold_the_number(tmp_path, capsys):
    """Names of MedPix 2.0, in which the number is not the whole name: no shared id, no neighbour,
    and no word that no number was found; another corpus's names that cannot be told."""
    keep, against = tmp_path / "keep", tmp_path / "against"
    keep.mkdir(), against.mkdir()
    for number, name in enumerate(("synpic100", "synpic200", "case_7_ct")):
        scene(number).save(keep / f"{name}.png")
    names = ("MPX1007_synpic100", "MPX1008_synpic201", "case_8_ct", "other")
    for number, name in enumerate(names):
        scene(10 + number).save(against / f"{name}.png")
    ids = [*only("id"), *["--id-pattern", r"synpic(\d+)"]]
    assert run(tmp_path, keep, against, *ids)[0] == {"MPX1007_synpic100"}
    listed, report = run(tmp_path, keep, against)
    assert listed == {"MPX1007_synpic100", "MPX1008_synpic201"}
    assert report["numbers"] == {"keep": 2, "against": 2}
    assert "in 2 names of --keep, 2 others" in capsys.readouterr().out
    listed, report = run(tmp_path, keep, against, "--id-pattern", r"case_(\d+)_ct")
    assert listed == {"case_8_ct"} and report["numbers"] == {"keep": 1, "against": 1}
    for pattern, said in (("(", "no regular"), ("synpic", "one group"), ("(case)", "no number")):
        given = ["--keep", str(keep), "--against", str(against), "--out", str(tmp_path / "no")]
        assert audit.main([*given, "--workers", "0", "--id-pattern", pattern]) == 1
        assert "--id-pattern" in (error := capsys.readouterr().err) and said in error


def test_a_name_of_many_images(tmp_path, capsys):
    """Two million pairs of files named alike, and every image left out."""
    keep, against = tmp_path / "keep", tmp_path / "against"
    for number in range(8):
        for side, first in ((keep, 0), (against, 10)):
            place = side / f"patient{number}"
            place.mkdir(parents=True)
            scene(first + number).save(place / "view1.png")
    scene(30).save(keep / "mine.png"), scene(31).save(against / "mine.png")
    given = [*only("id"), "--ids", "path"]
    assert len(run(tmp_path, keep, against, *given, "--stock", "8")[0]) == 9
    capsys.readouterr()
    listed, report = run(tmp_path, keep, against, *given, "--stock", "7")
    assert listed == {"mine.png"}
    assert report["ids_of_many"] == {"ids": 1, "examples": ["view1"]}
    assert "ids of more than --stock images of a side match nothing" in capsys.readouterr().out


def test_ids_hidden(tmp_path):
    """Shared pictures are found by their names only."""
    keep, against = tmp_path / "keep", tmp_path / "against"
    keep.mkdir(), against.mkdir()
    for number in range(30):
        scene(number).save(keep / f"synpic{1000 + 10 * number}.png")
        copy_of(scene(number + 20)).save(against / f"{number:03d}.jpg")
    listed, report = run(tmp_path, keep, against)
    assert listed == {f"{number:03d}" for number in range(10)}
    assert report["by_kind"]["id"]["pairs"] == report["by_kind"]["id-window"]["pairs"] == 0


def test_refused(tmp_path, folders, capsys):
    """A mistake that ends in a traceback, or in an empty list that looks like a clean bill."""
    keep, against = map(str, folders)
    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "x.txt"), "--workers", "0"]
    for arguments, message in [
        (["--keep", str(tmp_path / "absent"), "--against", against], "absent: not there"),
        (["--keep", keep, "--against", str(tmp_path / "empty")], "no image and no prepared split"),
        (["--keep", keep, "--against", against, *only()], "every kind of match is switched off"),
        (["--keep", keep, "--against", against, "--threshold", "0"], "--threshold 0"),
        (["--keep", keep, "--against", against, "--window", "-1"], "--window -1"),
    ]:
        assert audit.main([*arguments, *out]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    for path in folders[0].iterdir():
        path.write_bytes(b"no image")
    assert audit.main(["--keep", keep, "--against", against, *out]) == 1
    assert "--keep: none of its images can be read" in capsys.readouterr().err
    assert not (tmp_path / "x.txt").exists()


def test_an_id_that_no_list_can_hold(tmp_path, capsys):
    """An image whose id reads as a remark stays in the training data."""
    keep = tmp_path / "keep"
    keep.mkdir()
    scene(0).save(keep / "#1.png")
    arguments = ["--keep", str(keep), "--against", str(keep), "--out", str(tmp_path / "x")]
    assert audit.main([*arguments, "--workers", "0"]) == 1
    assert "image id '#1': no list can hold it" in capsys.readouterr().err


def test_names_are_escaped(tmp_path):
    """A file name that runs as a script on the page."""
    keep, against = tmp_path / "keep", tmp_path / "against"
    keep.mkdir(), against.mkdir()
    name = "<script>alert('x')&<img src=x onerror=alert(1)>"
    scene(0).save(keep / f"{name}.png")
    scene(0).save(against / f"b{name}.png")
    listed, _ = run(tmp_path, keep, against)
    page = (tmp_path / "lists" / "exclude.txt.html").read_text()
    assert listed == {f"b{name}"}
    assert "<script" not in page and "onerror=alert(1)&gt;" in page and "<img src=x" not in page


def test_page_is_cut(tmp_path):
    """A page of a million pictures, or one that hides that it shows a part."""
    folder = tmp_path / "same"
    folder.mkdir()
    for number in range(5):
        scene(0).save(folder / f"{number}.png")
    _, report = run(tmp_path, folder, folder, "--page-pairs", "3")
    assert report["pairs"] == 10
    page = (tmp_path / "lists" / "exclude.txt.html").read_text()
    assert page.count("<img") == 6 and "7 more are not shown" in page


# ------------------------------------------------------------------ prepared corpora


def prepared(tmp_path, name: str, rows: list[tuple], encoding="raw", *more: str) -> Path:
    """Rows (id, image, text, split) prepared by the real script."""
    raw = tmp_path / f"{name}_raw"
    raw.mkdir(exist_ok=True)
    lines = []
    for id_, image, text, split in rows:
        image.save(raw / f"{id_}.png")
        lines.append(json.dumps({"image": f"{id_}.png", "text": text, "split": split, "id": id_}))
    table = tmp_path / f"{name}.jsonl"
    table.write_text("\n".join(lines))
    arguments = [
        "--table",
        str(table),
        "--raw",
        str(raw),
        "--out",
        str(tmp_path / name),
        "--px",
        "64",
        "--encoding",
        encoding,
        "--workers",
        "0",
    ]
    assert pairs.main([*arguments, *more]) == 0
    return tmp_path / name


ROWS = [
    ("a", scene(10), "An axial slice of the upper chest.", "train"),
    ("b", scene(11), "Something else entirely, in colour.", "train"),
    ("c", scene(12), "Frontal view of both lungs with a large nodule on the left side.", "train"),
    ("d", scene(13), "A text of its own about the hand.", "valid"),
]


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "original"])
def test_prepared_folders_of_each_encoding(tmp_path, encoding):
    """Cropped pixels of raw shards hide the picture; a split's key is not used as the id."""
    corpus = prepared(tmp_path, "corpus", ROWS, encoding)
    files = tmp_path / "files"
    files.mkdir()
    scene(11).save(files / "x.png")
    scene(13).save(files / "d.png")
    scene(50).save(files / "y.png")
    listed, report = run(tmp_path, files, corpus)
    assert listed == {"b", "d"} and report["against"] == 4
    assert report["by_kind"]["bytes"]["images"] == (2 if encoding == "original" else 0)
    assert report["by_kind"]["image"]["images"] == 2 and report["by_kind"]["id"]["images"] == 1
    assert run(tmp_path, files, corpus / "train")[0] == {"b"}  # a split alone


def test_texts(tmp_path):
    """Captions copied with another case, or with a word changed, stay; common phrases match all."""
    keep = prepared(tmp_path, "keep", ROWS)
    rows = [
        ("p", scene(20), "AN axial slice -- of the upper chest", "train"),
        (
            "q",
            scene(21),
            "Frontal view of both lungs with a large nodule on the right side.",
            "train",
        ),
        ("r", scene(22), "A text about another thing, a foot.", "train"),
    ]
    rows += [(f"s{n}", scene(30 + n), "Chest x-ray of patient.", "train") for n in range(4)]
    against = prepared(tmp_path, "against", rows)
    listed, report = run(tmp_path, keep, against, "--text-threshold", "0.6")
    assert listed == {"p", "q"}
    assert report["by_kind"]["text"]["images"] == report["by_kind"]["near-text"]["images"] == 1
    assert run(tmp_path, keep, against, "--no-near-text")[0] == {"p"}
    assert run(tmp_path, keep, against, "--no-text", "--text-threshold", "0.6")[0] == {"q"}
    own, report = run(tmp_path, against, against, *only("text"))
    assert own == {"s1", "s2", "s3"} and report["texts"]["stock"] == 0
    own, report = run(tmp_path, against, against, *only("text"), "--stock", "3")
    assert not own and report["texts"]["stock_examples"] == ["chest x ray of patient"]


def test_against_itself(tmp_path):
    """An image reported as its own duplicate; both of a pair left out; a pair listed twice."""
    rows = [
        *ROWS,
        ("e", copy_of(scene(10)), "One more text of three words.", "valid"),
        ("f", copy_of(scene(13)), "And the last text of all.", "valid"),
    ]
    corpus = prepared(tmp_path, "corpus", rows)
    listed, report = run(tmp_path, corpus, corpus)
    assert listed == {"e", "f"} and report["pairs"] == 2
    assert {(entry["id"], entry["matches"]) for entry in report["list"]} == {("e", "a"), ("f", "d")}
    listed, _ = run(tmp_path, corpus / "valid", corpus / "train")
    assert listed == {"a"}
    listed, _ = run(tmp_path, corpus / "valid", corpus)  # valid on both sides
    assert listed == {"a", "f"}


def test_round_trip(tmp_path):
    """A list that the preparation scripts do not understand."""
    keep = prepared(tmp_path, "keep", [("k", scene(11), "An image to evaluate on.", "train")])
    corpus = prepared(tmp_path, "corpus", ROWS)
    run(tmp_path, keep, corpus)
    again = prepared(
        tmp_path, "again", ROWS, "raw", "--exclude", str(tmp_path / "lists" / "exclude.txt")
    )
    split = Shards(again / "train")
    assert [split.image_key(j) for j in range(split.num_images)] == ["a", "c"]
    listed, report = run(tmp_path, keep, again)
    assert not listed and report["pairs"] == 0


def test_copies_of_one_file(tmp_path, capsys):
    """A million pairs of copies of one file, in memory and in the JSON; a copy that stays."""
    folder = tmp_path / "same"
    folder.mkdir()
    scene(0).save(folder / "0.png")
    for number in range(1, 120):
        (folder / f"{number}.png").write_bytes((folder / "0.png").read_bytes())
    listed, report = run(tmp_path, folder, folder, *only("bytes"))
    assert len(listed) == 119 and report["pairs"] < 120 * 50
    # 50 of 120 for each image, itself among them or not
    assert report["matches_not_listed"] == {"bytes": 120 * 70}
    assert "not listed, as more than 50 of an image by a kind: 8400 by bytes" in (
        capsys.readouterr().out
    )


def test_advice_on_small_pixels(tmp_path, capsys):
    """Prepared splits audited where raw folders would have shown more."""
    corpus = prepared(tmp_path, "corpus", ROWS)
    run(tmp_path, corpus / "valid", corpus / "train", *only("id"))
    said = capsys.readouterr().out
    assert "audit the raw folders if you have them: corpus/valid (64 px), corpus/train (64" in said
    with pytest.raises(SystemExit):
        audit.main(["--help"])
    assert "Give raw folders rather than prepared splits" in capsys.readouterr().out
