"""Zips, gzip and parquet files that lead outside or expand: nothing outside, little memory."""

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from data_prep import rocov2
from m3ae.corpora.items import Drops
from m3ae.corpora.stored import InZip
from m3ae.corpora.tables import read_table
from m3ae.data.shards import Shards
from m3ae.scoring.predictions import read_predictions
from tests.data_prep.test_corpora import SMALL, dropped, save_image
from tests.data_prep.test_rocov2 import key, write_captions
from tests.faults.offered import ALL, MEMORY, cost, refused, some, whole

GIGABYTES = 2**31
LINK, DEVICE = stat.S_IFLNK | 0o777, stat.S_IFCHR | 0o666


def zeros(count: int, compressor) -> bytes:
    """So many zeros, compressed."""
    block, parts = bytes(2**24), []
    for _ in range(count // len(block)):
        parts.append(compressor.compress(block))
    return b"".join(parts) + compressor.flush()


def lying(path: Path, name: str, method: int, content: bytes, size: int) -> None:
    """A zip of one member that claims to be `size` bytes, whatever its content expands to."""
    crc = zlib.crc32(bytes(size)) if size < 2**20 else 0
    sizes = struct.pack("<III", crc, len(content), size)
    facts = struct.pack("<HHHHH", 63, 0, method, 0, 33) + sizes
    local = b"PK\x03\x04" + facts + struct.pack("<HH", len(name), 0) + name.encode() + content
    central = b"PK\x01\x02" + struct.pack("<H", 63) + facts
    central += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name.encode()
    end = struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    path.write_bytes(local + central + b"PK\x05\x06" + end)


def member_of(path: Path) -> object:
    return InZip(path, "a.png").read_bytes()


@pytest.mark.parametrize("claimed", [GIGABYTES, 1000])
@pytest.mark.parametrize("method", some(["lzma", "bzip2", "deflate"]))
def test_a_member_that_expands(method, claimed, tmp_path):
    """A few bytes in a zip that become gigabytes, told by its header or against it."""
    compressor, number = {
        "deflate": (zlib.compressobj(9, zlib.DEFLATED, -15), 8),
        "bzip2": (bz2.BZ2Compressor(), 12),
        "lzma": (lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1}]), 14),
    }[method]
    content = zeros(2**29 if method == "deflate" else 2**25, compressor)
    lying(tmp_path / "bomb.zip", "a.png", number, content, claimed)
    found, grown = cost(lambda: member_of(tmp_path / "bomb.zip"))
    assert grown < MEMORY and (isinstance(found, OSError) or found == bytes(1000))


def picture(tmp_path: Path, seed: int = 0) -> bytes:
    save_image(tmp_path / "image.jpg", seed)
    return (tmp_path / "image.jpg").read_bytes()


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def test_hostile_members(tmp_path):
    """Members that would be written outside, links followed, a bomb that ends the preparation."""
    raw, out, names = tmp_path / "raw", tmp_path / "out", [key("train", k) for k in range(8)]
    write_captions(raw, "train", [f"Caption number {k}." for k in range(8)])
    image = picture(tmp_path)
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as nested:
        nested.writestr("a", bytes(10**7))
    with zipfile.ZipFile(raw / "train_images.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(f"{names[0]}.jpg", image)
        file.writestr(f"../../{names[1]}.jpg", image)
        file.writestr(f"/{tmp_path}/{names[2]}.jpg", image)
        file.writestr(f"..\\{names[3]}.jpg", image)
        file.writestr(entry(f"{names[4]}.jpg", LINK), "/etc/passwd")
        file.writestr(entry(f"{names[5]}.jpg", DEVICE), "")
        file.writestr(f"{names[6]}.jpg", bytes(2**28 if ALL else 2**27))
        file.writestr(f"{names[7]}.jpg", inner.getvalue())
    before = {path for path in tmp_path.rglob("*")}
    arguments = ["--raw", str(raw), "--out", str(out), *SMALL, "--workers", "0"]
    found, grown = cost(lambda: rocov2.main(arguments))
    assert found == 0 and grown < MEMORY
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(out)} == before
    assert dropped(Shards(out / "train")) == {
        "archive: name leads elsewhere": 3,
        "image: missing": 3,
        "image: unreadable": 3,
        "image: zero bytes": 1,
        "text: its image was left out": 7,
    }


def test_devices_and_pipes_in_a_folder(tmp_path):
    """An image that is a pipe, which hangs, or a device that never ends."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_captions(raw, "train", [f"Caption number {k}." for k in range(4)])
    folder = raw / "train_images"
    save_image(folder / f"{key('train', 0)}.jpg", 0)
    os.mkfifo(folder / f"{key('train', 1)}.jpg")
    (folder / f"{key('train', 2)}.jpg").symlink_to("/dev/zero")
    with open(folder / f"{key('train', 3)}.jpg", "wb") as file:
        file.truncate(2**32)  # a hole
    arguments = ["--raw", str(raw), "--out", str(out), *SMALL, "--workers", "0"]
    found, grown = cost(lambda: rocov2.main(arguments))
    assert found == 0 and grown < MEMORY
    counted = {"image: unreadable": 3, "text: its image was left out": 3}
    assert dropped(Shards(out / "train")) == counted


def gzip_of(head: bytes, times: int, path: Path) -> None:
    with gzip.open(path, "wb", 9) as file:
        file.write(head)
        for _ in range(times):
            file.write(bytes(2**24).replace(b"\0", b" "))


@whole
@pytest.mark.parametrize(
    "head", [b"", b"ID,Caption\n", b'ID,Caption\n"', b"ID,Caption\n" + b'"a\n",' * 9]
)
def test_a_table_that_expands(head, tmp_path):
    """One line, one cell or one quoted record without end in a small .csv.gz."""
    path = tmp_path / "bomb.csv.gz"
    gzip_of(head, 6, path)
    refused(lambda: list(read_table(path, ("ID", "Caption"), Drops())), path.name)


@pytest.mark.parametrize("name", some(["bomb.jsonl.gz", "bomb.csv.gz"]))
def test_predictions_that_expand(name, tmp_path):
    """A thousand times the file of blanks after one good row."""
    gzip_of(b'{"id": "a", "prediction": "b"}\n', 6, tmp_path / name)
    refused(lambda: read_predictions(tmp_path / name), name)


def test_parquet_that_expands(tmp_path):
    """One caption of a megabyte, stored once, in each of a hundred thousand rows."""
    pyarrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    path, rows = tmp_path / "bomb.parquet", 100_000
    words = pyarrow.array(["x" * 2**20])
    captions = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, "int32"), words)
    table = pyarrow.table({"ID": captions, "Caption": captions})
    parquet.write_table(table, path, compression="zstd", store_schema=False)
    refused(lambda: list(read_table(path, ("ID", "Caption"), Drops())), path.name)
