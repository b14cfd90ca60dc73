"""The shard format: what is written comes back, and what is damaged is named."""

import copy
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from m3ae.corpora import verification
from m3ae.corpora.shard_writer import ShardWriter, ragged, write_shard
from m3ae.corpora.token_files import describe_tokenizer, ragged_tokens
from m3ae.corpora.verification import verify
from m3ae.data import shards
from m3ae.data.manifest import FORMAT, VERSION
from m3ae.data.shards import Shards
from m3ae.data.texts import train_wordpiece
from m3ae.files import write_json

CHANNELS = [1, 3, 3]  # of the shards below
PX = 6


def write_split(folder: Path, encoding="raw", tokenizer=None, version=VERSION) -> Path:
    """Three shards of 2 images and 3 texts each: texts 0 and 2 belong to image 1, text 1 to 0."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files, rows, tokens = [], [], None
    for k, channels in enumerate(CHANNELS):
        images = rng.integers(0, 256, (2, channels, PX, PX), dtype=np.uint8)
        tensors = {"image_of_text": np.array([1, 0, 1])}
        tensors |= ragged("text", (f"naïve text {k}{i}".encode() for i in range(3)))
        tensors |= ragged("text_key", (f"{k}/{i}".encode() for i in range(3)))
        tensors |= ragged("image_key", (f"image {k}{j}".encode() for j in range(2)))
        if encoding == "raw":
            tensors["images"] = images
        else:
            tensors |= ragged("image", (as_png(image) for image in images))
        rows += [([5 + k, 6], [0, 0]), ([], []), ([7], [0])]
        if tokenizer and version == 1:
            tensors |= ragged_tokens(rows[-3:])
        name = f"shard-{k:05d}.safetensors"
        files.append(
            {
                "name": name,
                **write_shard(folder / name, tensors),
                "images": 2,
                "texts": 3,
                "channels": channels if encoding == "raw" else None,
            }
        )
    made = tokenizer and describe_tokenizer(tokenizer, "mine") | {"size": 40}
    if tokenizer and version > 1:
        name, metadata = "tokens-1.safetensors", {key: str(made[key]) for key in made}
        tokens = {"name": name, **write_shard(folder / name, ragged_tokens(rows), metadata)}
    write_json(
        folder / "manifest.json",
        {
            "format": FORMAT,
            "version": version,
            "kind": "pairs",
            "source": "test",
            "counts": {"images": 6, "texts": 9},
            "encoding": encoding,
            "px": PX,
            "options": {},
            "tokenizer": made,
            "files": files,
            **({"tokens": tokens} if version > 1 else {}),
        },
    )
    return folder


def as_png(image: np.ndarray) -> bytes:
    import io

    out = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    corpora = {"mine": ["axial mri of the head"] * 4, "other": ["chest film, two views"] * 4}
    return {name: train_wordpiece(texts, 40, folder / name) for name, texts in corpora.items()}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("encoding", ["raw", "original"])
def test_round_trip(tmp_path, tokenizers, encoding, version):
    """A text, key, token or image of another row; a global index that forgets earlier shards; a
    split of the version before that cannot be read any more."""
    folder = write_split(tmp_path / "s", encoding, tokenizers["mine"], version)
    split = Shards(folder, tokenizers["mine"])
    assert (len(split), split.num_images) == (9, 6)
    assert split.image_of_text.tolist() == [1, 0, 1, 3, 2, 3, 5, 4, 5]
    assert split.image_of_text.dtype == np.int64
    rng = np.random.default_rng(0)
    images = [image for c in CHANNELS for image in rng.integers(0, 256, (2, c, PX, PX), np.uint8)]
    for i in (8, 0, 4, 3):
        assert split.text(i) == f"naïve text {i // 3}{i % 3}"
        assert split.text_key(i) == f"{i // 3}/{i % 3}"
        ids, words = split.tokens(i)
        assert ids.tolist() == [[5 + i // 3, 6], [], [7]][i % 3] and len(ids) == len(words)
        assert ids.dtype == words.dtype == np.int64
    for j in (5, 0, 2):
        assert split.image_key(j) == f"image {j // 2}{j % 2}"
        assert np.array_equal(split.image(j, PX), images[j])
    for read in (split.text, split.tokens):
        with pytest.raises(IndexError, match="text 9 of 9"):
            read(9)
    assert verify(split.folder) == []


def test_files_are_safetensors(tmp_path):
    """Our writer produces something that the library cannot open, or reads as other values."""
    folder = write_split(tmp_path / "s")
    with safe_open(folder / "shard-00001.safetensors", "np") as file:
        assert file.get_tensor("images").shape == (2, 3, PX, PX)
        assert file.get_tensor("image_of_text").tolist() == [1, 0, 1]


def test_pickle_carries_no_open_file(tmp_path):
    """A worker process receives the pixels, or a mapping of another process, with the object."""
    split = Shards(write_split(tmp_path / "s"))
    split.image(0, PX)
    split.image(0, PX)[:] = 0  # a sample is the caller's own: changing it leaves the file alone
    copied = pickle.loads(pickle.dumps(split))  # as it goes to a worker
    assert copied._open == {} and np.array_equal(copied.image(0, PX), split.image(0, PX))
    assert copied.image(0, PX).any()


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (230, 230))
from m3ae.data.shards import Shards
splits = [Shards(sys.argv[1]) for _ in range(90)]  # 270 files
for _ in range(2):
    for split in splits:
        assert [split.text_key(i) for i in (0, 3, 6, 0)] == ["0/0", "1/0", "2/0", "0/0"]
print(sum(len(split._open) for split in splits))
"""


def test_many_shards_few_files(tmp_path):
    """Several corpora of together more shards than the process may open files; a limit that is
    never used, so that every sample maps a file anew."""
    folder = write_split(tmp_path / "s")
    ran = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(folder)], capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == ["30"]


def test_other_sizes(tmp_path):
    """Raw pixels silently resized; encoded images refused another size."""
    with pytest.raises(ValueError, match=r"raw shards of 6 px cannot give 8 px; prepare with --px"):
        Shards(write_split(tmp_path / "raw")).image(0, 8)
    assert Shards(write_split(tmp_path / "original", "original")).image(5, 8).shape == (3, 8, 8)


def test_another_tokenizer(tmp_path, tokenizers):
    """Token ids of one vocabulary fed to a model of another."""
    folder = write_split(tmp_path / "s", tokenizer=tokenizers["mine"])
    with pytest.raises(ValueError, match=r"/s: its tokens are of tokenizer mine \(.*\), not of "):
        Shards(folder, tokenizers["other"])
    without = Shards(write_split(tmp_path / "t"), tokenizers["other"])  # tokenised on the fly
    assert without.tokens(0) is None


def change_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def damage_header(folder: Path) -> None:
    path = folder / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[20:24] = b"\xff{]}"
    path.write_bytes(data)


def shape_of_another(folder: Path) -> None:
    path = folder / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"shape":[2,3,6,6]', b'"shape":[2,6,3,6]'))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: change_manifest(f, version=3), r"manifest.json: .*version 3, this code reads"),
        (lambda f: change_manifest(f, format="other"), r"manifest.json: format other"),
        (lambda f: (f / "manifest.json").write_text("[1"), r"manifest.json: not a manifest"),
        (
            lambda f: (f / "manifest.json").write_text(
                '{"format": "m3ae-shards", "version": 1, "px": 6}'
            ),
            r"manifest.json: no kind, source",
        ),
        (lambda f: (f / "manifest.json").unlink(), r"manifest.json: not there"),
        (lambda f: change_manifest(f, counts={"images": 9, "texts": 9}), "not the sums"),
        (lambda f: (f / "shard-00001.safetensors").unlink(), "00001.safetensors: missing"),
        (lambda f: (f / "shard-00001.safetensors").open("ab").truncate(500), "00001.*cut short"),
        (damage_header, "00001.safetensors: corrupt header"),
        (shape_of_another, r"00001.safetensors: images is \(2, 6, 3, 6\), the manifest says"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    """A damaged corpus is trained on, or fails later without naming the file."""
    folder = write_split(tmp_path / "s")
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Shards(folder)
    assert "\n" not in str(caught.value)
    assert len(verify(folder)) == 1


def test_verify_finds_a_flipped_bit(tmp_path):
    """Bit rot in pixels, which no size or shape shows."""
    folder = write_split(tmp_path / "s")
    path = folder / "shard-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert len(Shards(folder)) == 9
    assert verify(folder) == [f"{path}: sha256 is not the manifest's; {shards.AGAIN}"]


WRONG_TOKENS = [5, 6, 99]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("text_offsets", [0, 5, 4, 3], "text_offsets do not rise"),
        ("image_of_text", [0, 1, 2], "points outside"),
        ("token_ids", WRONG_TOKENS, "outside the tokenizer's 0-39"),
    ],
)
def test_verify_finds_wrong_contents(tmp_path, tokenizers, name, value, message):
    """Shards written whole but wrong: their checksum is right and their offsets are not."""
    folder = write_split(tmp_path / "s", tokenizer=tokenizers["mine"], version=1)
    path = folder / "shard-00001.safetensors"
    tensors = {key: array.copy() for key, array in shards.map_shard(path).items()}
    tensors[name] = np.array(value, dtype=tensors[name].dtype)
    manifest = copy.deepcopy(shards.read_manifest(folder))
    manifest["files"][1].update(write_shard(path, tensors))
    write_json(folder / "manifest.json", manifest)
    problems = verify(folder)
    assert len(problems) == 1 and message in problems[0] and "00001" in problems[0]


def rewrite_tokens(folder: Path, fingerprint: str | None = None, **arrays: list[int]) -> None:
    """Other arrays, or another tokenizer's fingerprint, in the file of token ids; sha256 right."""
    manifest = shards.read_manifest(folder)
    path = folder / manifest["tokens"]["name"]
    tensors = {key: array.copy() for key, array in shards.map_shard(path).items()}
    tensors |= {name: np.array(value, tensors[name].dtype) for name, value in arrays.items()}
    metadata = shards.read_metadata(path)
    metadata |= {"fingerprint": fingerprint} if fingerprint else {}
    manifest["tokens"] |= write_shard(path, tensors, metadata)
    write_json(folder / "manifest.json", manifest)


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, message, opens",
    [
        (lambda f: (f / "tokens-1.safetensors").unlink(), "tokens-1.*: missing", False),
        (lambda f: (f / "tokens-1.safetensors").open("ab").truncate(99), "cut short", False),
        (lambda f: rewrite_tokens(f, token_offsets=[0, 2, 3]), "token_offsets is", False),
        (lambda f: rewrite_tokens(f, fingerprint="abc"), "of tokenizer abc, the manifest", False),
        (lambda f: flip_last(f / "tokens-1.safetensors"), "sha256 is not the manifest's", True),
        (lambda f: rewrite_tokens(f, token_ids=WRONG_TOKENS * 3), "tokenizer's 0-39", True),
        (lambda f: rewrite_tokens(f, token_words=[0] * 4), "differ in length", True),
        (lambda f: rewrite_tokens(f, token_offsets=[0] * 9 + [8]), "do not rise", True),
        (lambda f: change_manifest(f, tokens=None), "tokens is not the entry", False),
    ],
)
def test_damage_of_the_token_file_is_named(tmp_path, tokenizers, damage, message, opens):
    """Token ids of another tokenizer or of other texts fed to the model."""
    folder = write_split(tmp_path / "s", tokenizer=tokenizers["mine"])
    damage(folder)
    if opens:
        Shards(folder)
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Shards(folder)
    problems = verify(folder)
    assert len(problems) == 1 and re.search(message, problems[0])


def test_verify_finds_an_undecodable_image(tmp_path):
    """An encoded image that turns out broken only in the middle of a training run."""
    folder = write_split(tmp_path / "s", "original")
    path = folder / "shard-00000.safetensors"
    tensors = {key: array.copy() for key, array in shards.map_shard(path).items()}
    tensors["image_bytes"][:8] = 0
    manifest = shards.read_manifest(folder)
    manifest["files"][0].update(write_shard(path, tensors))
    write_json(folder / "manifest.json", manifest)
    assert len(verify(folder)) == 1 and "image image 00: unreadable" in verify(folder)[0]
    with pytest.raises(ValueError, match="image 00: unreadable"):
        Shards(folder).image(0, PX)


# ------------------------------------------------------------------ damage at random

FUZZ = settings(
    max_examples=600, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**31, 2**70),
    st.just(-1),
    st.just(0),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just([[]]),
    st.just("../x"),
    st.just("\0"),
    st.just([0, -1]),
    st.just([2**64, 2**64]),
    st.just({"a": {}}),
    st.just("raw"),
    st.lists(st.integers(-8, 400), max_size=4),
).map(copy.deepcopy)


@pytest.fixture(scope="module", params=["raw", "original"])
def sound(request, tmp_path_factory, tokenizers):
    """Folder of a sound split with tokens; the tests change one file of it and put it back."""
    folder = tmp_path_factory.mktemp("sound") / request.param
    return write_split(folder, request.param, tokenizers["mine"])


def spots(value) -> list[tuple]:
    """The paths to everything in a JSON value, but for the value itself."""
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [
        spot for key, part in pairs for spot in [(key,), *((key, *rest) for rest in spots(part))]
    ]


def mutated(value, data: st.DataObject):
    """A JSON value with one to three parts replaced, removed, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        places = spots(value)
        if not places:
            return value
        *path, key = data.draw(st.sampled_from(places))
        holder = value
        for part in path:
            holder = holder[part]
        how = data.draw(st.sampled_from(["replace", "remove", "rename", "add", "like another"]))
        if how == "replace":
            holder[key] = data.draw(ODD)
        elif how == "remove":
            del holder[key]
        elif how == "like another":
            *where, other = data.draw(st.sampled_from(places))
            source = value
            for part in where:
                source = source[part]
            holder[key] = copy.deepcopy(source[other]) if len(path) + len(where) < 8 else 0
        elif isinstance(holder, dict):
            moved = holder.pop(key) if how == "rename" else data.draw(ODD)
            holder[data.draw(st.text(max_size=4))] = moved
        else:
            holder.append(data.draw(ODD))
    return value


def changed_bytes(blob: bytes, most: int, data: st.DataObject) -> bytes:
    """Bytes among the first `most` replaced, and perhaps the end cut off or added to."""
    out = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 4))):
        out[data.draw(st.integers(0, min(most, len(out)) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([None, None, "cut", "grow"]))
    if cut == "cut":
        del out[data.draw(st.integers(0, len(out))) :]
    return bytes(out) + (b"\0" * data.draw(st.integers(1, 16)) if cut == "grow" else b"")


def opens_or_names(folder: Path, name: str) -> None:
    """The split opens, or an error of one kind names the file; so does what verify lists."""
    try:
        Shards(folder)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error) and "again" in str(error)  # what to do
        assert verification.find_problems(folder)[0][0] == name
    else:
        verification.find_problems(folder)


def changed_file(blob: bytes, data) -> bytes:
    """A safetensors file with a few bytes, or the header or its length, changed."""
    length = int.from_bytes(blob[:8], "little")
    if data.draw(st.booleans()):
        return changed_bytes(blob, 8 + length, data)
    text = json.dumps(mutated(json.loads(blob[8 : 8 + length]), data)).encode()
    size = data.draw(st.sampled_from([len(text)] * 4 + [0, length, 2**63, 2**64 - 1]))
    return size.to_bytes(8, "little") + text + blob[8 + length :]


@settings(FUZZ, max_examples=60)
@given(data=st.data())
def test_any_damage_of_the_token_file_is_named(sound, data):
    """Another exception than ValueError for a header or metadata that nobody wrote."""
    path = sound / "tokens-1.safetensors"
    blob = path.read_bytes()
    new = changed_file(blob, data)
    try:
        path.write_bytes(new)
        opens_or_names(sound, path.name)
    finally:
        path.write_bytes(blob)


@FUZZ
@given(data=st.data())
def test_any_damage_of_a_header_is_named(sound, data):
    """A header that ends in another exception than ValueError, or in values of another tensor."""
    path = sound / "shard-00001.safetensors"
    blob = path.read_bytes()
    new = changed_file(blob, data)
    try:
        path.write_bytes(new)
        try:
            tensors = shards.map_shard(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            # What opens fills the file, tensor after tensor.
            start = 8 + int.from_bytes(new[:8], "little")
            assert start + sum(array.nbytes for array in tensors.values()) == len(new)
        manifest = shards.read_manifest(sound)
        manifest["files"][1]["bytes"] = len(new)
        with_size = sound / "manifest.json"
        old = with_size.read_bytes()
        try:
            write_json(with_size, manifest)
            opens_or_names(sound, path.name)
        finally:
            with_size.write_bytes(old)
    finally:
        path.write_bytes(blob)


@FUZZ
@given(data=st.data())
def test_any_damage_of_a_manifest_is_named(sound, data):
    """A manifest that ends in another exception than ValueError, or far from its cause."""
    path = sound / "manifest.json"
    blob = path.read_bytes()
    if data.draw(st.booleans()):
        new = changed_bytes(blob, len(blob), data)
    else:
        new = json.dumps(mutated(json.loads(blob), data)).encode()
    try:
        path.write_bytes(new)
        try:
            shards.read_manifest(sound)
        except (ValueError, FileNotFoundError) as error:
            assert str(path) in str(error) and "\n" not in str(error)
        try:
            Shards(sound)
        except (ValueError, FileNotFoundError) as error:
            assert str(sound) in str(error)
        verification.find_problems(sound)
    finally:
        path.write_bytes(blob)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "NaN", "\ud800"])
def test_strange_json_is_named(sound, text):
    """JSON on which the parser itself gives up."""
    path = sound / "manifest.json"
    blob = path.read_bytes()
    try:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError, match="not a manifest"):
            shards.read_manifest(sound)
    finally:
        path.write_bytes(blob)


@pytest.mark.parametrize("offsets", [[-8, 0], [8, 4], [0, 2**62], [-(2**70), 8]])
def test_impossible_offsets_are_named(sound, offsets):
    """Offsets that numpy would take from the end of the file, or cut at it."""
    path = sound / "shard-00000.safetensors"
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + length])
    header["text_bytes"]["data_offsets"] = offsets
    text = json.dumps(header).encode()
    try:
        path.write_bytes(len(text).to_bytes(8, "little") + text + blob[8 + length :])
        with pytest.raises(ValueError, match="corrupt header"):
            shards.map_shard(path)
    finally:
        path.write_bytes(blob)


def test_any_bytes_of_images_leave_integers_aligned(tmp_path):
    """Integers after an odd number of image bytes that other readers refuse, or read slowly."""
    for size in range(9):
        tensors = {"image_bytes": np.arange(size, dtype=np.uint8), "image_of_text": np.arange(3)}
        written = write_shard(tmp_path / "s.safetensors", tensors)
        assert written["bytes"] == (tmp_path / "s.safetensors").stat().st_size
        found = shards.map_shard(tmp_path / "s.safetensors")
        assert found["image_of_text"].flags.aligned and found["image_of_text"].tolist() == [0, 1, 2]
        assert found["image_bytes"].tolist() == list(range(size))
        with safe_open(tmp_path / "s.safetensors", "np") as file:
            assert file.get_tensor("image_of_text").tolist() == [0, 1, 2]


def test_images_appended_one_by_one_are_the_same_file(tmp_path):
    """A file that depends on how the images came."""
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 7, 7), dtype=np.uint8)
    rest = {"image_of_text": np.arange(5)}
    whole = write_shard(tmp_path / "whole", {"images": images, **rest})
    writer = ShardWriter(tmp_path / "parts")
    for image in images:
        writer.append(image)
    assert writer.finish("images", images.shape, rest) == whole
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
