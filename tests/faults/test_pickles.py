"""Pickles that should do harm: nothing is executed, one documented error, little memory."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given

from m3ae.models import pickles
from m3ae.models.weight_files import read_checkpoint, read_weights
from tests.faults.offered import ALL, DAMAGE, accepted_or_refused, damaged, often, refused, some

LEGACY = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def storage(numel: int, kind: str = "FloatStorage") -> bytes:
    """Opcodes of a storage by its persistent id: key 0, of so many elements."""
    place = text("storage") + named("torch", kind) + text("0") + text("cpu")
    return b"(" + place + b"J" + struct.pack("<i", numel) + b"tQ"


def tensor(numel: int, size: bytes, stride: bytes, kind: str = "FloatStorage") -> bytes:
    made = named("torch._utils", "_rebuild_tensor_v2") + b"(" + storage(numel, kind) + b"K\x00"
    return made + b"(" + size + b"t(" + stride + b"t\x89Nt" + b"R"


def big(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def doubled(begin: bytes, twice: bytes, times: int) -> bytes:
    """Something of which each level holds the one below twice."""
    return begin + b"".join(b"q" + bytes([k]) + b"0" + twice % (k, k) for k in range(times))


def calls(command: str) -> dict[str, bytes]:
    """Every way in which a pickle calls a function or has a method run."""
    run, argument = named("os", "system"), b"(" + text(command) + b"t"
    code = f"__import__('os').system({command!r})"
    evaluate = named("builtins", "getattr") + b"(" + named("builtins", "object")
    state = b"}" + text("__reduce__") + run + b"s"
    parts = {
        "reduce": run + argument + b"R.",
        "posix": named("posix", "system") + argument + b"R.",
        "stack_global": b"\x80\x04" + text("os") + text("system") + b"\x93" + argument + b"R.",
        "inst": b"(" + text(command) + b"ios\nsystem\n.",
        "obj": b"(" + run + text(command) + b"o.",
        "newobj": named("subprocess", "Popen") + b"(" + text(command) + b"t\x81.",
        "newobj_ex": b"\x80\x04"
        + named("subprocess", "Popen")
        + b"("
        + text(command)
        + b"t}"
        + text("shell")
        + b"\x88s\x92.",
        "build": named("tests.faults.test_pickles", "Trap") + b")\x81" + text(command) + b"b.",
        "build_of_a_class": named("collections", "OrderedDict")
        + b"N"
        + state
        + b"\x86b0"
        + run
        + argument
        + b"R.",
        "build_of_a_function": named("torch._utils", "_rebuild_tensor_v2")
        + b"N"
        + b"}"
        + text("__defaults__")
        + b")s\x86b.",
        "eval": named("builtins", "eval") + b"(" + text(code) + b"tR.",
        "exec_of_python_2": named("__builtin__", "eval") + b"(" + text(code) + b"tR.",
        "getattr": evaluate + text("__subclasses__") + b"tR)R.",
        "partial": named("functools", "partial") + b"(" + run + text(command) + b"tR)R.",
        "map": named("builtins", "map") + b"(" + run + b"(" + text(command) + b"ltR.",
        "dotted": named("torch", "os.system") + argument + b"R.",
        "dotted_stack": b"\x80\x04"
        + text("torch")
        + text("_utils.os.system")
        + b"\x93"
        + argument
        + b"R.",
        "torch_load": named("torch", "load") + argument + b"R.",
        "torch_hub": named("torch.hub", "load") + b"(" + text("a/b") + text("c") + b"tR.",
        "torch_jit": named("torch.jit", "load") + argument + b"R.",
        "torch_storage": named("torch.storage", "_load_from_bytes") + b"(C\x02(N" + b"tR.",
        "from_file": named("torch", "UntypedStorage") + b"(" + big(2**40) + b"tR.",
        "numpy_object": named("numpy.core.multiarray", "_reconstruct")
        + b"("
        + named("numpy", "ndarray")
        + b"K\x00\x85C\x01btR(K\x01K\x01\x85"
        + named("numpy", "dtype")
        + b"("
        + text("O8")
        + b"\x89\x88tR\x89]("
        + run
        + argument
        + b"Retb.",
        "copyreg": named("copyreg", "_reconstructor")
        + b"("
        + run
        + named("builtins", "str")
        + text(command)
        + b"tR.",
        "persistent_text": b"Pos.system " + command.encode() + b"\n.",
        "persistent_call": b"("
        + text("storage")
        + run
        + argument
        + b"R"
        + text("0")
        + text("cpu")
        + b"K\x01tQ.",
        "persistent_module": b"(" + text("module") + run + text("source") + text(code) + b"tQ.",
        "protocol_0": b"cos\nsystem\np0\n(S" + repr(command).encode() + b"\np1\ntp2\nRp3\n.",
    }  # fmt: skip  (a line a few opcodes, as they are read)
    for opcode, size in ((b"\x82", 1), (b"\x83", 2), (b"\x84", 4)):
        parts[f"extension_{size}"] = opcode + (1).to_bytes(size, "little") + argument + b"R."
    # The same beside weights, so that the whole is read on.
    weights = b"}(" + text("w") + tensor(1, b"K\x01", b"K\x01") + text("x")
    parts["beside_weights"] = weights + run + argument + b"Ru."
    return parts


def bombs() -> dict[str, bytes]:
    """What takes a few bytes and asks for gigabytes, for days, or for a stack without end."""
    laugh = doubled(b")", b"h%ch%c\x86", 60)
    module = named("__torch__.m", "M") + b")\x81}"
    twice = module + b"(" + text("a") + b"h%c" + text("b") + b"h%cub"
    found = {
        "memo": b"}r" + struct.pack("<I", 2**29) + b".",
        "memo_text": b"}p99999999999\n.",
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**35) + b"x.",
        "bytes_of_4": b"B" + struct.pack("<I", 2**32 - 1) + b"x.",
        "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x.",
        "unicode": b"\x80\x04\x8d" + struct.pack("<Q", 2**34) + b"x.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
        "long": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
        "digits": b"L" + b"9" * 500_000 + b"L\n.",
        "nested": b"]" + b"\x85" * 300_000 + b".",
        "marks": b"(" * 300_000 + b".",
        "tuple_as_key": b"}" + laugh + b"Ns.",
        "tuple_in_set": b"\x80\x04\x8f(" + laugh + b"\x90.",
        "tuple_in_frozen_set": b"\x80\x04(" + laugh + b"\x91.",
        "tuple_as_storage": b"("
        + text("storage")
        + named("torch", "FloatStorage")
        + laugh
        + b"NK\x01tQ.",
        "tuple_in_dict": b"(" + laugh + b"Nd.",
        "pairs": named("collections", "OrderedDict") + b"(](" + laugh + b"N\x86etR.",
        "large_view": b"}" + text("w") + tensor(1, big(2**33), b"K\x01") + b"s.",
        "large_stride_0": b"}" + text("w") + tensor(1, big(2**36), b"K\x00", "HalfStorage") + b"s.",
        "negative": b"}" + text("w") + tensor(-1, b"K\x01", b"K\x01") + b"s.",
        "storage_of_gigabytes": b"}" + text("w") + tensor(2**31 - 1, b"K\x01", b"K\x01") + b"s.",
        "holds_itself": b"}q\x00" + text("state_dict") + b"h\x00s.",
        "module_in_itself": named("__torch__.m", "M") + b")\x81q\x00}" + text("a") + b"h\x00sb.",
        "modules_twice": doubled(module + b"b", twice, 40) + b".",
        "no_stop": b"N" * 1000,
        "pops": b"0" * 1000 + b".",
        "next_buffer": b"\x80\x05\x97\x98.",
    }  # fmt: skip  (a line a few opcodes, as they are read)
    return found


class Trap:
    """Whose state is a command that it runs."""

    def __setstate__(self, state: str) -> None:
        os.system(state)


def legacy(body: bytes) -> bytes:
    return b"".join(pickle.dumps(x, 2) for x in LEGACY) + body + pickle.dumps(["0"], 2)


def archive(body: bytes, compression: int = zipfile.ZIP_STORED, data: bytes = bytes(4)) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as into:
        into.writestr("x/data.pkl", body)
        into.writestr("x/byteorder", "little")
        into.writestr("x/data/0", data)
        into.writestr("x/version", "3\n")
    return file.getvalue()


FORMS: dict[str, Callable[[bytes], bytes]] = {"legacy": legacy, "archive": archive}
SOME = list(FORMS) if ALL else ["archive"]


def offer(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(lambda: read_weights(path), path.name)


@pytest.mark.parametrize("form", SOME)
@pytest.mark.parametrize("kind", some(calls(""), 3))
def test_nothing_is_called(kind, form, tmp_path):
    """A function or a method that a file names is run, by any of the ways that pickle has."""
    sentinel = tmp_path / "executed"
    body = calls(f"touch {sentinel}")[kind]
    (tmp_path / "trap.pt").write_bytes(FORMS[form](body))
    # Weights beside it are read; all else is no file of weights.
    if kind == "beside_weights" and form == "archive":
        assert read_weights(tmp_path / "trap.pt").keys() == {"w"}
    else:
        offer(tmp_path / "trap.pt", FORMS[form](body))
    assert not sentinel.exists()


@pytest.mark.parametrize("kind", ["build_of_a_class", "build_of_a_function"])
def test_nothing_is_changed(kind, tmp_path):
    """A file that gives a class or function of this process other attributes."""
    (tmp_path / "trap.pt").write_bytes(archive(calls("true")[kind]))
    rebuild = torch._utils._rebuild_tensor_v2
    before = rebuild.__defaults__, dict(rebuild.__dict__), dict(vars(pickles._Items))
    with pytest.raises(ValueError, match=r"trap\.pt"):
        read_weights(tmp_path / "trap.pt")
    assert before == (rebuild.__defaults__, rebuild.__dict__, dict(vars(pickles._Items)))


def test_the_traps_are_traps(tmp_path):
    """Files that do nothing whoever reads them, which would prove nothing."""
    ran = []
    for kind in some(("reduce", "obj", "inst", "build", "eval", "stack_global", "protocol_0")):
        sentinel = tmp_path / kind
        pickle.loads(calls(f"touch {sentinel}")[kind])
        ran.append(sentinel.exists())
    assert all(ran)


@pytest.mark.parametrize("form", SOME)
@pytest.mark.parametrize("kind", some(bombs(), 5))
def test_bombs(kind, form, tmp_path):
    """A few bytes that take gigabytes, or do not end."""
    offer(tmp_path / "bomb.pt", FORMS[form](bombs()[kind]))


def overlapping() -> bytes:
    """200 storages that are one record."""
    names = b"".join(
        text(f"w{key}") + tensor(2**20, big(2**20), b"K\x01").replace(text("0"), text(str(key)))
        for key in range(200)
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as into:
        into.writestr("x/data.pkl", b"}(" + names + b"u.")
        into.writestr("x/data/0", bytes(2**22))
        shared = into.getinfo("x/data/0")
        for key in range(1, 200):
            info = zipfile.ZipInfo(f"x/data/{key}")
            info.header_offset, info.CRC = shared.header_offset, shared.CRC
            info.file_size, info.compress_size = shared.file_size, shared.compress_size
            into.filelist.append(info)
    return file.getvalue()


LARGE = b"}" + text("w") + tensor(2**26, big(2**26), b"K\x01") + b"s."
ARCHIVES: dict[str, Callable[[], bytes]] = {
    "outside": lambda: archive(LARGE).replace(b"x/data/0", b"../../00"),
    "compressed_pickle": lambda: archive(b"}." + bytes(2**28), zipfile.ZIP_DEFLATED),
    "compressed_storage": lambda: archive(LARGE, zipfile.ZIP_DEFLATED, bytes(2**28)),
    "nested": lambda: archive(archive(b"}.")),
    "overlapping": overlapping,
}


@pytest.mark.parametrize("kind", some(ARCHIVES))
def test_archives(kind, tmp_path):
    """A compressed record of gigabytes, records that lie over one another, one outside."""
    offer(tmp_path / "bomb.pt", ARCHIVES[kind]())


def whole(form: str) -> bytes:
    """A valid file: a checkpoint with foreign objects, legacy or zipped, or an archive."""
    file = io.BytesIO()
    if form == "script":
        torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 3))), file)
    else:
        state = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2).half()}
        beside = {"epoch": 1, "args": Trap(), "sizes": {1, 2}, "optimizer": {0: torch.ones(2)}}
        content = {"state_dict": state, **beside}
        torch.save(content, file, _use_new_zipfile_serialization=form == "zipped")
    return file.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("form", some(["zipped", "legacy", "script"]))
def test_damaged_files(form, tmp_path_factory):
    """A damaged file that ends in an error that no caller expects, or without the file's name."""
    path, content = tmp_path_factory.mktemp("damaged") / "damaged.pt", whole(form)
    path.write_bytes(content)
    assert read_weights(path) and read_checkpoint(path)

    @often
    @given(DAMAGE)
    def offered(damage):
        path.write_bytes(damaged(content, damage))
        accepted_or_refused(lambda: read_weights(path), path)

    offered()
