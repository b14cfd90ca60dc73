"""WebDataset tars in and out: equal pixels and texts, and nothing that a tar can hide gets in."""

import gzip
import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset

from data_prep import from_webdataset, table, to_webdataset, verify
from m3ae.data.shards import Shards
from tests.data_prep.test_prepare import as_bytes, everything, picture, run, ten

PNG = as_bytes(picture(1), "PNG")


def write_tar(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def take(raw: Path, out: Path, *more: str) -> int:
    options = ["--px", "16", "--workers", "0", *more]
    return from_webdataset.main(["--raw", str(raw), "--out", str(out), *options])


def contents(split: Shards) -> dict[str, tuple[list, list[str]]]:
    """Pixels and texts of each image by its key."""
    found = {split.image_key(j): (split.image(j, 16).tolist(), []) for j in range(split.num_images)}
    for i, image in enumerate(split.image_of_text):
        found[split.image_key(int(image))][1].append(split.text(i))
    return found


def corpus(folder: Path) -> Path:
    """Ten grey and coloured images, with captions beyond ASCII."""
    raw = ten(folder)
    captions = raw / "train" / "radiology" / "captions.txt"
    captions.write_text(captions.read_text().replace("case", "\u00fcber case"), "utf-8")
    return raw


@pytest.mark.parametrize("encoding", ["raw", "original"])
def test_round_trip(tmp_path, encoding):
    """Pixels encoded with a loss, texts of another image, or keys that do not come back."""
    assert run(corpus(tmp_path / "raw"), tmp_path / "a", "--encoding", encoding) == 0
    args = [str(tmp_path / "a"), "--out", str(tmp_path / "tars"), "--tar-mb", "1"]
    assert to_webdataset.main(args) == 0
    assert to_webdataset.main(args) == 1  # is there already
    assert take(tmp_path / "tars", tmp_path / "b", "--encoding", encoding) == 0
    first, second = Shards(tmp_path / "a" / "train"), Shards(tmp_path / "b" / "train")
    assert contents(first) == contents(second)
    assert verify.main([str(tmp_path / "b")]) == 0
    assert not list((tmp_path / "tars").glob("*.partial"))


def test_the_package_reads_what_is_written(tmp_path):
    """Tars that other code bases cannot read, or read other pairs from."""
    assert run(corpus(tmp_path / "raw"), tmp_path / "a") == 0
    assert to_webdataset.main([str(tmp_path / "a" / "train"), "--out", str(tmp_path / "tars")]) == 0
    split = Shards(tmp_path / "a" / "train")
    wanted = contents(split)
    url = str(tmp_path / "tars" / "train" / "000000.tar")
    samples = webdataset.WebDataset(url, shardshuffle=False).decode("pil")
    found = {sample["__key__"]: (sample["png"], sample["txt"]) for sample in samples}
    assert found.keys() == wanted.keys()
    for key, (pixels, texts) in wanted.items():
        image, text = found[key]
        full = np.broadcast_to(np.array(pixels), (3, 16, 16))
        assert np.array_equal(np.asarray(image.convert("RGB")).transpose(2, 0, 1), full)
        assert text.split("\n") == texts


def write_questions(folder: Path) -> Path:
    """A prepared corpus of two images, named with dots, with two questions each."""
    (folder / "images").mkdir(parents=True)
    rows = ["image,question,answer"]
    for name in ("a.b.png", "c d.png"):
        (folder / "images" / name).write_bytes(PNG)
        rows += [f"{name},Is it {name[0]}?,yes", f"{name},Where is it?,left lung"]
    (folder / "questions.csv").write_text("\n".join(rows))
    places = ["--table", folder / "questions.csv", "--raw", folder / "images"]
    options = ["--out", folder / "out", "--px", "16", "--workers", "0"]
    assert table.main([str(word) for word in [*places, *options]]) == 0
    return folder / "out"


@pytest.mark.parametrize("each", [True, False])
def test_questions(tmp_path, each):
    """Answers lost on the way out; keys with dots cut by the package, so that two are one."""
    out = write_questions(tmp_path)
    option = ["--each-text"] if each else []
    assert to_webdataset.main([str(out), "--out", str(tmp_path / "tars"), *option]) == 0
    url = str(tmp_path / "tars" / "train" / "000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    assert len(samples) == (4 if each else 2)
    asked = [(s["__key__"], row["question"], row["answer"]) for s in samples for row in s["json"]]
    assert [(question, answer) for _, question, answer in asked] == [
        ("Is it a?", "yes"),
        ("Where is it?", "left lung"),
        ("Is it c?", "yes"),
        ("Where is it?", "left lung"),
    ]
    assert {key.split("-")[0] for key, *_ in asked} == {"a_b_png", "c_d_png"}
    field = ["--field", "question", "--min-words", "1"]
    assert take(tmp_path / "tars", tmp_path / "back", *field) == 0
    assert len(Shards(tmp_path / "back" / "train")) == 4
    assert Shards(tmp_path / "back" / "train").num_images == (4 if each else 2)
    if not each:
        assert take(tmp_path / "tars", tmp_path / "lines", "--lines") == 0
        assert len(Shards(tmp_path / "lines" / "train")) == 4


def test_splits_by_folder_and_patterns(tmp_path, capsys):
    """A folder `val` left out; two tars whose keys begin anew, of which one is lost."""
    for place in ("train/0.tar", "train/1.tar", "val/0.tar"):
        members = [("0001.png", PNG), ("0001.txt", b"a text of " + place.encode())]
        write_tar(tmp_path / "tars" / place, members)
    assert take(tmp_path / "tars", tmp_path / "out") == 0
    train = Shards(tmp_path / "out" / "train")
    assert [train.image_key(j) for j in range(2)] == ["0/0001", "1/0001"]
    assert Shards(tmp_path / "out" / "valid").image_key(0) == "0001"
    pattern = tmp_path / "tars" / "train" / "[0-9].tar"
    assert take(pattern, tmp_path / "flat", "--as-split", "test") == 0
    assert Shards(tmp_path / "flat" / "test").num_images == 2
    assert take(tmp_path / "tars" / "no*.tar", tmp_path / "none") == 1
    assert "no file has such a name" in capsys.readouterr().err


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_what_a_tar_can_hide(tmp_path):
    """A member that is written outside the folder, a link that reads any file, a pair made of two
    samples' halves; or one of them left out without a count."""
    (tmp_path / "secret.txt").write_text("a secret text here")
    text = b"a text of three words"
    members = [
        ("good.jpg", PNG),
        ("good.txt", text),
        ("good.cls", b"3"),
        ("../../escaped.png", PNG),
        ("../../escaped.txt", text),
        ("/absolute.png", PNG),
        (link("linked.png", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (link("linked.txt", tarfile.LNKTYPE, "good.txt"), b""),
        (link("secret.txt", tarfile.SYMTYPE, str(tmp_path / "secret.txt")), b""),
        (link("pipe.png", tarfile.FIFOTYPE, ""), b""),
        (link("folder.png", tarfile.DIRTYPE, ""), b""),
        ("good.jpg", as_bytes(picture(2))),
        ("lonely.png", PNG),
        ("textonly.txt", text),
        ("two.png", PNG),
        ("two.jpg", PNG),
        ("two.txt", text),
        ("blank.png", PNG),
        ("blank.txt", b" \n"),
        ("broken.png", PNG[:50]),
        ("broken.txt", text),
        ("nosuffix", b"x"),
        ("__meta__", b"{}"),
    ]
    write_tar(tmp_path / "raw" / "0.tar", members)
    before = set(tmp_path.rglob("*"))
    assert take(tmp_path / "raw", tmp_path / "out") == 0
    split = Shards(tmp_path / "out" / "train")
    assert [split.image_key(j) for j in range(split.num_images)] == ["good"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["members_not_read"] == {"train": {"cls": 1}}
    dropped = report["splits"]["train"]["report"]["dropped"]
    assert {reason: entry["count"] for reason, entry in dropped.items()} == {
        "image: truncated": 1,
        "member: a link, device or sparse file": 4,
        "member: name leads outside the tar": 3,
        "member: name without a suffix": 1,
        "member: occurs twice, first one kept": 1,
        "sample: empty .txt": 1,
        "sample: no .txt": 1,
        "sample: no image": 1,
        "sample: several images": 1,
        "text: its image was left out": 1,
    }
    new = {path for path in tmp_path.rglob("*") if path not in before}
    assert all(path.is_relative_to(tmp_path / "out") for path in new)
    assert b"secret text" not in b"".join(everything(tmp_path / "out").values())


def test_fields_of_json(tmp_path):
    """A caption that is no text, or is in another field, made one; JSON that ends the run."""
    cases = {
        "one": {"caption": "a text of words"},
        "list": {"caption": ["a first text", "a second text"]},
        "number": {"caption": 3},
        "other": {"text": "a text of words"},
        "null": {"caption": None},
        "array": [],
    }
    members = [(f"{key}.json", json.dumps(value).encode()) for key, value in cases.items()]
    members += [("bad.json", b"{"), ("deep.json", b"[" * 100_000)]
    members += [(f"{key}.png", PNG) for key in [*cases, "bad", "deep"]]
    write_tar(tmp_path / "raw" / "0.tar", members)
    assert take(tmp_path / "raw", tmp_path / "out", "--field", "caption") == 0
    split = Shards(tmp_path / "out" / "train")
    assert [split.text(i) for i in range(len(split))] == [
        "a text of words",
        "a first text",
        "a second text",
    ]
    dropped = split.manifest["report"]["dropped"]
    assert {reason: entry["count"] for reason, entry in dropped.items()} == {
        "sample: .json is not JSON": 2,
        "sample: caption in .json is no text": 2,
        "sample: no caption in .json": 2,
    }


def test_damaged_tars_are_named(tmp_path, capsys):
    """A tar cut short, or damaged in the middle, whose remaining samples are missing in silence."""
    members = [(f"{k}.{suffix}", PNG) for k in range(9) for suffix in ("png", "txt")]
    path = write_tar(tmp_path / "raw" / "0.tar", members)
    sound = path.read_bytes()
    middle = sound.index(b"5.png")
    damages = {
        "cut short": sound[: middle + 600],
        "a header": sound[:middle] + b"\xff" * 20 + sound[middle + 20 :],
        "no tar": b"<html>404</html>" * 100,
        "compressed": gzip.compress(sound),
        "two in one": sound + sound,
        "empty": b"",
    }
    for what, data in damages.items():
        path.write_bytes(data)
        assert take(tmp_path / "raw", tmp_path / "out") == 1, what
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and "0.tar" in error, what


def test_sample_keys_differ():
    """Two images of one name after what the package cuts is replaced."""
    known: Counter[str] = Counter()
    keys = [to_webdataset.sample_key(key, known) for key in ("a.b", "a_b", "a_b-2", "__x__", "/.")]
    assert len(set(keys)) == 5 and not any("." in key or key.startswith("__") for key in keys)
