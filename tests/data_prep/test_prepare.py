"""Preparation: what is kept, what is counted, and that interruptions change nothing.

Run through the ROCO script, whose raw layout is the simplest.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from data_prep import roco, verify
from m3ae.corpora import chunks
from m3ae.corpora import prepare as prepare_module
from m3ae.data import images as images_module
from m3ae.data.images import decode, resize_crop
from m3ae.data.shards import Shards
from m3ae.data.texts import encode, load_tokenizer, train_wordpiece
from m3ae.processes import alone_in

ROOT = Path(__file__).parents[2]


def picture(seed: int, mode: str = "RGB", size=(20, 16)) -> Image.Image:
    """A noisy picture; every third seed is grey."""
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(array).convert("RGB")
    return (image.convert("L") if seed % 3 == 0 else image).convert(mode)


def as_bytes(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def write_roco(
    folder: Path, images: dict[str, bytes | None], captions: bytes | None = None
) -> Path:
    """A `train` split; an image of None is not written."""
    base = folder / "train" / "radiology"
    (base / "images").mkdir(parents=True)
    for key, data in images.items():
        if data is not None:
            (base / "images" / f"{key}.jpg").write_bytes(data)
    if captions is None:
        captions = "".join(f"{k}\t Axial  CT of\tcase {k}.\r\n" for k in images).encode()
    (base / "captions.txt").write_bytes(captions)
    return folder


def ten(folder: Path) -> Path:
    return write_roco(folder, {f"ROCO_{k:05d}": as_bytes(picture(k)) for k in range(10)})


def run(raw: Path, out: Path, *more: str) -> int:
    return roco.main(["--raw", f"{raw}", "--out", f"{out}", "--px", "16", "--workers", "0", *more])


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def chunks_of_four(monkeypatch):
    monkeypatch.setattr(chunks.Settings, "chunk_images", property(lambda self: 4))


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "original"])
def test_written_is_what_was_read(tmp_path, encoding):
    """Pixels other than the deterministic transform's, or a text beside another's image."""
    raw = ten(tmp_path / "raw")
    assert run(raw, tmp_path / "out", "--encoding", encoding, "--tokenizer", "train:60") == 0
    split = Shards(tmp_path / "out" / "train", load_tokenizer(tmp_path / "out" / "tokenizer"))
    assert len(split) == split.num_images == 10
    assert split.manifest["tokenizer"]["name"] == "train:60"
    for i in range(10):
        key = split.image_key(int(split.image_of_text[i]))
        assert split.text_key(i) == f"{key}/0" and split.text(i) == f"Axial CT of case {key}."
        ids, words = split.tokens(i)
        assert len(ids) == len(words) and words[-1] == words.max()
        image, _ = decode(raw / "train" / "radiology" / "images" / f"{key}.jpg")
        wanted, found = resize_crop(image, 16), split.image(int(split.image_of_text[i]), 16)
        if encoding == "jpeg":  # lossy, so only about the same
            assert np.abs(found.astype(int).mean() - wanted.astype(int).mean()) < 8
        else:
            assert np.array_equal(found, wanted)
    if encoding == "raw":
        assert [file["channels"] for file in split.manifest["files"]] == [1, 3]
    assert verify.main([str(tmp_path / "out")]) == 0


def test_bad_input_is_left_out_counted_and_listed(tmp_path, monkeypatch, capsys):
    """A bad file stops the preparation, slips in, or vanishes without a trace."""
    monkeypatch.setattr(images_module, "MAX_PIXELS", 2000)
    good = as_bytes(picture(1))
    exif = Image.Exif()
    exif[0x0112] = 3
    deep = Image.fromarray(np.full((20, 20), 3000, dtype=np.uint16))
    frames = [picture(1).convert("P"), picture(2).convert("P")]
    images = {
        "good": good,
        "missing": None,
        "empty": b"",
        "html": b"<html>404</html>",
        "short": good[: len(good) // 2],
        "deep": as_bytes(deep, "PNG"),
        "giant": as_bytes(picture(1, size=(100, 30))),
        "cmyk": as_bytes(picture(1, "CMYK")),
        "turned": as_bytes(picture(1), exif=exif),
        "animated": as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "latin": good,
        "brief": good,
    }
    lines = [f"{key}\t A caption of {key}\n".encode() for key in images][:-2]
    lines += [b"latin\tbl\xe4ue Kn\xf6chel im Bild\n", b"brief\ttwo  words\n"]
    lines += [b"no tab here\n", b"\n", b"good\tanother caption of good\n"]
    raw = write_roco(tmp_path / "raw", images, b"".join(lines))
    assert run(raw, tmp_path / "out") == 0
    split = Shards(tmp_path / "out" / "train")
    assert {split.image_key(j) for j in range(4)} == {"good", "cmyk", "turned", "animated"}
    assert split.num_images == 4
    report = json.loads((tmp_path / "out" / "report.json").read_text())["splits"]["train"]["report"]
    dropped = {reason: entry["count"] for reason, entry in report["dropped"].items()}
    assert dropped == {
        "image: missing": 1,
        "image: zero bytes": 1,
        "image: unreadable": 1,
        "image: truncated": 1,
        "image: 16-bit": 1,
        "image: too many pixels": 1,
        "image: no text left": 2,
        "text: its image was left out": 6,
        "text: not UTF-8": 1,
        "text: fewer than 3 words": 1,
        "line: not `id<TAB>caption`": 1,
        "line: id occurs twice, first one kept": 1,
    }
    assert report["dropped"]["image: truncated"]["examples"][0].startswith("short (short.jpg)")
    assert set(report["notes"]) == {
        "CMYK converted",
        "EXIF rotation ignored",
        "palette",
        "first frame of several taken",
    }
    assert report["texts_seen"] == 12 == len(split) + 6 + 2
    assert "image: zero bytes" in capsys.readouterr().out
    assert run(raw, tmp_path / "windowed", "--window", "0", "4000") == 0
    assert Shards(tmp_path / "windowed" / "train").num_images == 5


def test_workers_and_interruptions_change_nothing(tmp_path, monkeypatch, chunks_of_four, capsys):
    """A resumed or parallel run gives other bytes, or begins from the start."""
    raw = ten(tmp_path / "raw")
    train_wordpiece(["axial ct of case roco"], 60, tmp_path / "words")
    more = ["--tokenizer", str(tmp_path / "words")]
    assert run(raw, tmp_path / "whole", *more) == 0
    wanted = everything(tmp_path / "whole")
    assert run(raw, tmp_path / "two", *more, "--workers", "2") == 0
    assert everything(tmp_path / "two") == wanted

    out, true_chunk, true_replace = tmp_path / "again", chunks.prepare_chunk, os.replace
    worked_on = []

    def stops(items, index, *rest):
        if index == 1 and len(worked_on) < 2:
            raise KeyboardInterrupt
        worked_on.append(index)
        return true_chunk(items, index, *rest)

    monkeypatch.setattr(chunks, "prepare_chunk", stops)
    assert run(raw, out, *more) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert not (out / "train").exists()
    worked_on.append("resumed")
    # Then stop at every renaming of the end, one run after another.
    for allowed in range(1, 30):
        calls = []

        def breaks(source, target, calls=calls, allowed=allowed):
            calls.append(target)
            if len(calls) > allowed:
                raise OSError(28, "No space left on device")
            true_replace(source, target)

        monkeypatch.setattr(os, "replace", breaks)
        if run(raw, out, *more) == 0:
            break
        assert "error: [Errno 28] No space left" in capsys.readouterr().err
    assert allowed > 3 and everything(out) == wanted
    assert worked_on[:2] == [0, "resumed"] and 0 not in worked_on[2:]


def test_other_options_are_refused(tmp_path, monkeypatch, chunks_of_four, capsys):
    """Shards of two sizes mixed in one split, or a finished split overwritten."""
    raw = ten(tmp_path / "raw")
    assert run(raw, tmp_path / "out") == 0
    before = everything(tmp_path / "out")
    assert run(raw, tmp_path / "out") == 0
    assert "already prepared" in capsys.readouterr().out
    assert run(raw, tmp_path / "out", "--encoding", "jpeg") == 1
    assert "encoding was 'raw', is 'jpeg'" in capsys.readouterr().err
    assert run(raw, tmp_path / "out", "--tokenizer", "train:60") == 1
    assert "tokenizer was None" in capsys.readouterr().err
    assert {k: v for k, v in everything(tmp_path / "out").items() if k in before} == before

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "summarise", lambda *_: (_ for _ in ()).throw(OSError("x")))
        assert run(raw, stopped) == 1
    assert run(raw, stopped, "--min-words", "2") == 1
    assert "min_words was 3, is 2" in capsys.readouterr().err
    (raw / "train" / "radiology" / "captions.txt").write_text("ROCO_00001\tnow another text\n")
    assert run(raw, stopped) == 1
    assert "begun from other corpus files" in capsys.readouterr().err


def test_a_trained_tokenizer_is_kept(tmp_path, capsys):
    """A second split tokenised by a newly trained tokenizer, or one trained on other texts."""
    raw, out = ten(tmp_path / "raw"), tmp_path / "out"
    assert run(raw, out, "--tokenizer", "train:60") == 0
    made = everything(out / "tokenizer")
    (out / "train").rename(tmp_path / "aside")
    assert run(raw, out, "--tokenizer", "train:60") == 0
    assert everything(out / "tokenizer") == made
    assert run(raw, out, "--tokenizer", "train:50") == 1
    assert "tokenizer: prepared with other options (entries was 60, is 50)" in (
        capsys.readouterr().err
    )


def test_exclude_limit_and_split(tmp_path, capsys):
    """Images known to be in an evaluation set get into the training data."""
    raw, listed = ten(tmp_path / "raw"), tmp_path / "exclude.txt"
    listed.write_text("# why\nROCO_00000\tsame as another\n\nROCO_00003\n")
    assert run(raw, tmp_path / "out", "--exclude", str(listed), "--limit", "3") == 0
    split = Shards(tmp_path / "out" / "train")
    assert {split.image_key(j) for j in range(3)} == {f"ROCO_0000{k}" for k in (1, 2, 4)}
    assert split.num_images == 3
    assert split.manifest["report"]["dropped"]["image: in the --exclude list"]["count"] == 2
    assert run(raw, tmp_path / "out", "--split", "test") == 1
    assert "--split test: the corpus has train" in capsys.readouterr().err


def test_mistakes_end_in_one_line(tmp_path, capsys):
    """A traceback where a user mistyped a path or an option."""
    raw = ten(tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / "absent", [], "absent: not there; it should be the ROCO corpus"),
        (tmp_path / "empty", [], "no train/radiology"),
        (raw, ["--tokenizer", "train:many"], "--tokenizer train:many: train:N needs"),
        (raw, ["--tokenizer", str(tmp_path / "nothing")], "nothing"),
        (raw, ["--exclude", "absent.txt"], "absent.txt: not there"),
        (raw, ["--references", str(tmp_path)], "dlinks.txt: not there"),
        (raw, ["--min-words", "99"], "no image is left to prepare: image: no text left: 10"),
        (raw, ["--px", "0"], "--px 0"),
    ]
    for number, (source, more, message) in enumerate(cases):
        assert run(source, tmp_path / f"out{number}", *more) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and message in error
    with pytest.raises(SystemExit) as caught:
        run(raw, tmp_path / "out", "--encoding", "bmp")
    assert caught.value.code == 2
    with pytest.raises(SystemExit):
        roco.main(["--help"])
    assert "example: python data_prep/roco.py" in capsys.readouterr().out


# Forks children that run the real script, each killed after a random number of changes in the
# folder, until 20 were; a finished corpus is set aside and the next one begun. The imports are the
# parent's, which has no threads. Arguments: raw, out, seed.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from data_prep import roco
from m3ae.corpora import chunks

raw, out, rng = sys.argv[1], Path(sys.argv[2]), random.Random(int(sys.argv[3]))
chunks.Settings.chunk_images = property(lambda self: 4)

def start(place):
    child = os.fork()
    if child == 0:
        try:
            code = roco.main(["--raw", raw, "--out", str(place), "--px", "16", "--workers", "0"])
        except BaseException:
            code = 99
        os._exit(code)
    return child

def seen(place):
    found = set()
    for folder, _, names in os.walk(place):
        for name in names:
            try:
                found.add((name, os.stat(os.path.join(folder, name)).st_size))
            except FileNotFoundError:
                pass
    return found

def killed(place):
    # Whether it could be killed before it ended by itself.
    changes, before, child = rng.randrange(25), seen(place), start(place)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, status
            return False
        now = seen(place)
        if now != before:
            before, changes = now, changes - 1
        if changes < 0:
            time.sleep(rng.random() * 0.003)
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            return status == signal.SIGKILL
        time.sleep(0.0002)

kills = corpora = 0
while kills < 20:
    place = out / str(corpora)
    if killed(place):
        kills += 1
    else:
        corpora += 1
_, status = os.waitpid(start(out / str(corpora)), 0)
print("killed", kills, "finished", corpora + 1, "status", status)
"""


def test_killed_at_twenty_random_moments(tmp_path, chunks_of_four):
    """A kill anywhere after which the same command gives other bytes, or none."""
    images = {f"ROCO_{k:05d}": as_bytes(picture(k)) for k in range(60)}
    images |= {"ROCO_00007": b"<html>", "ROCO_00021": None}
    raw, out = write_roco(tmp_path / "raw", images), tmp_path / "killed"
    assert run(raw, tmp_path / "whole") == 0
    ran = subprocess.run(
        [sys.executable, "-c", KILLER, str(raw), str(out), "7"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert "killed 20 finished" in ran.stdout and ran.stdout.rstrip().endswith("status 0")
    wanted = everything(tmp_path / "whole")
    assert len(wanted) > 30
    for corpus in out.iterdir():
        assert everything(corpus) == wanted


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are listed by /proc")
def test_workers_end_with_their_parent(tmp_path):
    """Workers of a killed run that wait for ever, or write beside those of the next run."""
    raw = write_roco(tmp_path / "raw", {f"R{k}": as_bytes(picture(k)) for k in range(3)})
    (raw / "train" / "radiology" / "images" / "R0.jpg").unlink()
    os.mkfifo(raw / "train" / "radiology" / "images" / "R0.jpg")  # reading it never ends
    process = subprocess.Popen(
        [
            sys.executable,
            "data_prep/roco.py",
            "--raw",
            str(raw),
            "--out",
            str(tmp_path / "out"),
            "--px",
            "16",
            "--workers",
            "1",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    listed, children, limit = Path(f"/proc/{process.pid}/task/{process.pid}/children"), [], 60

    def working() -> list[str]:
        found = [Path(f"/proc/{child}/cmdline") for child in listed.read_text().split()]
        return [str(path.parent) for path in found if b"spawn_main" in path.read_bytes()]

    started = time.monotonic()
    while not children and time.monotonic() - started < limit:
        children = working()
        time.sleep(0.05)
    time.sleep(2)  # for the worker to begin its chunk
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children
    while any(Path(child).exists() for child in children):
        assert time.monotonic() - started < limit
        time.sleep(0.05)


def test_a_damaged_part_of_an_unfinished_split_is_made_again(tmp_path, monkeypatch, chunks_of_four):
    """A file of a finished chunk cut short by a full disk that ends up in the split."""
    raw, out = ten(tmp_path / "raw"), tmp_path / "out"
    assert run(raw, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "summarise", lambda *_: (_ for _ in ()).throw(OSError("x")))
        assert run(raw, out) == 1
    os.truncate(out / "train.partial" / "shard-00002.safetensors", 100)
    (out / "train.partial" / "shard-00005.safetensors").unlink()
    assert run(raw, out) == 0
    assert everything(out) == everything(tmp_path / "whole")


@pytest.mark.parametrize("encoding", ["raw", "original"])
def test_memory_does_not_grow_with_the_chunk(tmp_path, encoding):
    """The images of a chunk held until it is written: 190 MB a worker at 288 px."""
    side, count = 200, 60
    images = {f"R{k}": as_bytes(picture(k, size=(side, side)), "PNG") for k in range(count)}
    raw = write_roco(tmp_path / "raw", images)
    options = ["--px", str(side), "--encoding", encoding]
    run(raw, tmp_path / "first", *options)  # imports
    tracemalloc.start()
    try:
        assert run(raw, tmp_path / "out", *options) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert Shards(tmp_path / "out" / "train").num_images == count
    assert peak < 10 * 3 * side * side  # of ten images, where all 60 are 5.6 MB


def test_tokens_are_those_of_the_tokenizer(tmp_path):
    """Workers, which load no transformers, cut or pad texts as tokenizer.json says."""
    folder = tmp_path / "words"
    train_wordpiece(["axial ct of case roco _ 0123456789."], 60, folder)
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    settings["padding"] = {
        "strategy": {"Fixed": 40},
        "direction": "Right",
        "pad_id": 0,
        "pad_to_multiple_of": None,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    assert run(ten(tmp_path / "raw"), tmp_path / "out", "--tokenizer", str(folder)) == 0
    tokenizer = load_tokenizer(folder)
    split = Shards(tmp_path / "out" / "train", tokenizer)
    for i in range(len(split)):
        ids, words = split.tokens(i)
        assert (ids.tolist(), words.tolist()) == encode(tokenizer, [split.text(i)])[0]
        assert len(ids) > 4


@pytest.mark.parametrize("finished", [True, False])
def test_images_that_came_later(tmp_path, chunks_of_four, monkeypatch, capsys, finished):
    """A download that went on: what was missing stays so for good, though the file is there."""
    images = {f"ROCO_{k:05d}": as_bytes(picture(k)) for k in range(10)}
    late = {"ROCO_00001", "ROCO_00002", "ROCO_00009"}
    whole = write_roco(tmp_path / "whole", images)
    assert run(whole, tmp_path / "wanted") == 0
    raw = write_roco(tmp_path / "raw", {k: None if k in late else v for k, v in images.items()})
    if not finished:  # interrupted when all chunks were there
        monkeypatch.setattr(prepare_module, "seal", lambda value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(raw, tmp_path / "out")
        monkeypatch.undo()
        monkeypatch.setattr(chunks.Settings, "chunk_images", property(lambda self: 4))
    else:
        assert run(raw, tmp_path / "out") == 0
        assert Shards(tmp_path / "out/train").num_images == 7
        before = everything(tmp_path / "out")
        capsys.readouterr()
        assert run(raw, tmp_path / "out") == 0 and everything(tmp_path / "out") == before
        assert "already prepared with these options" in capsys.readouterr().out
    middle = tmp_path / ("out/train" if finished else "out/train.partial")
    untouched = (middle / "shard-00002.safetensors").stat().st_mtime_ns  # of ROCO_00004-7
    for key in late:
        (raw / "train/radiology/images" / f"{key}.jpg").write_bytes(images[key])
    assert run(raw, tmp_path / "out") == 0
    assert ("3 images that were missing have come" in capsys.readouterr().out) == finished
    assert everything(tmp_path / "out") == everything(tmp_path / "wanted")
    assert (tmp_path / "out/train/shard-00002.safetensors").stat().st_mtime_ns == untouched
    assert verify.main([str(tmp_path / "out")]) == 0


def test_a_finished_split_of_other_files(tmp_path, capsys):
    """ "already prepared" said of another corpus in --raw, and nothing of that."""
    assert run(ten(tmp_path / "raw"), tmp_path / "out") == 0
    before = everything(tmp_path / "out")
    other = write_roco(tmp_path / "other", {f"ROCO_{k:05d}": as_bytes(picture(k)) for k in (1, 2)})
    assert run(other, tmp_path / "out") == 0
    assert "made from other files, names or texts than --raw has now" in capsys.readouterr().err
    assert everything(tmp_path / "out/train").keys() == {
        name.removeprefix("train/") for name in before if name.startswith("train/")
    }


def test_two_launches(tmp_path):
    """Two commands that write to one folder, of which one ends with shards of neither."""
    raw, out = ten(tmp_path / "raw"), tmp_path / "out"
    out.mkdir()
    with alone_in(out):
        command = [sys.executable, "data_prep/roco.py", "--raw", f"{raw}", "--out", f"{out}"]
        second = subprocess.run(
            [*command, "--px", "16", "--workers", "0"], cwd=ROOT, capture_output=True, text=True
        )
        assert second.returncode == 1 and "another process is at work in it" in second.stderr
        assert not list(out.iterdir())
    assert run(raw, out) == 0


def test_a_report_adds_up(tmp_path, capsys):
    """Images that are excluded, or whose key occurs twice, in no "of"; texts of a form that nobody
    filled in; splits in the order of the alphabet."""
    images = {f"ROCO_{k:05d}": as_bytes(picture(k)) for k in range(16)}
    captions = "".join(
        f"ROCO_{k:05d}\t{'Replace this description' if k < 12 else f'Axial CT of case {k}'}\n"
        for k in range(16)
    )
    raw = write_roco(tmp_path / "raw", images | {"ROCO_00015": None}, captions.encode())
    for split in ("test", "validation"):
        shutil.copytree(raw / "train", raw / split)
    (tmp_path / "list").write_text("ROCO_00013\nROCO_00014\n")
    assert run(raw, tmp_path / "out", "--exclude", str(tmp_path / "list")) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert list(report["splits"]) == ["train", "valid", "test"]
    for split in report["splits"].values():
        counts, found = split["counts"], split["report"]
        assert (found["images_seen"], found["texts_seen"]) == (16, 16)
        lost = {reason: entry["count"] for reason, entry in found["dropped"].items()}
        assert counts["images"] + sum(n for why, n in lost.items() if why[:6] == "image:") == 16
        assert counts["texts"] + sum(n for why, n in lost.items() if why[:5] == "text:") == 16
        assert found["repeated_texts"] == [["Replace this description", 12]]
    said = capsys.readouterr()
    assert said.out.count("12 texts read: Replace this description") == 3
    assert "/16 [" in said.err  # of the progress bar


def test_a_manifest_says_what_made_it(tmp_path):
    """Pixels that another version resizes otherwise, and no way to tell which one it was."""
    assert run(ten(tmp_path / "raw"), tmp_path / "out") == 0
    made = Shards(tmp_path / "out/train").manifest["made_with"]
    assert made == {"pillow": PIL.__version__, "numpy": np.__version__}


def test_texts_that_differ_are_not_named(tmp_path):
    """A report of ordinary captions that is another than before."""
    assert run(ten(tmp_path / "raw"), tmp_path / "out") == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert "repeated_texts" not in report["splits"]["train"]["report"]
