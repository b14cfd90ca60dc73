"""Tensors out of pickles, of which nothing is executed: PyTorch's files and TorchScript archives.

`torch.load(weights_only=True)` cannot take its place: it refuses archives, and any file with a
foreign object in it, such as hyper-parameters or callbacks, as files of other programs have.
"""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

_PICKLE_BYTES = 2**24  # of a file's pickle without its tensors; a large model's takes 1 MB
_MOST_VIEWS = 8  # times all that is stored may be in tensors: tied weights


class Inert:
    """Stands for any foreign object in a checkpoint: takes whatever it is given, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    # How pickle fills a dictionary, a list (item by item, or all at once) and a set.
    __setitem__ = append = extend = add = __init__

    def __call__(self, *args: Any, **kwargs: Any) -> "Inert":
        """Itself."""
        return self


class _Items(dict):
    """A dictionary without the items whose keys are neither text nor numbers: none is a tensor's.

    To hash a key such as a tuple of tuples of ... can take for ever.
    """

    __slots__ = ()

    def __init__(self, pairs: Iterable = ()) -> None:
        for key, value in pairs:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(key, str | int | float):
            super().__setitem__(key, value)


class Module:
    """Stands for a module of a TorchScript archive: its state, and none of its methods."""

    state: Any = None


_DTYPES = {  # of storages
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


def _first(value: Any, *_: Any) -> Any:
    return value


class _TensorsOnly(pickle._Unpickler):
    """The Python one, as the C one takes gigabytes for a few bytes: a memo's place 2 ** 28.

    storage: the elements, flat, of a storage by its dtype, key and number of elements.
    """

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, storage: Callable[[torch.dtype, str, Any], Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self.storage, self.known = storage, set[str]()
        self.stored = self.viewed = 0  # elements, of storages and of tensors over them

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_tensor"),
        ):
            return self.view
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _first
        if module == "torch.jit._pickle":  # marks around lists of tensors
            return _first
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module.partition(".")[0] == "__torch__":
            return Module
        known = {("collections", "OrderedDict"): _Items, ("torch", "Size"): tuple}
        return known.get((module, name), Inert)

    def persistent_load(self, identity: tuple) -> Any:
        kind, dtype, key, _, numel, *view = identity
        if kind != "storage" or not isinstance(key, str | int):
            raise ValueError("a record in it is no tensor's")
        storage = self.storage(dtype, str(key), numel)
        self.stored += 0 if str(key) in self.known else storage.numel()
        self.known.add(str(key))
        if view and view[0] is not None:  # of before 2017: a part of another storage
            _, begin, size = view[0]
            return storage[begin : begin + size]
        return storage

    def view(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
        """A tensor over a part of a storage, which must hold its elements."""
        viewed = storage.as_strided(size, stride, offset)
        self.viewed += viewed.numel()
        if self.viewed > _MOST_VIEWS * self.stored:
            raise ValueError("its tensors are larger than what it stores")
        return viewed

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Module):
            self.stack[-1].state = state

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append(_Items(zip(items[::2], items[1::2], strict=True)))

    def _no_set(self) -> None:
        self.append(Inert())

    def _no_frozen_set(self) -> None:
        self.pop_mark()
        self.append(Inert())

    def _bytearray(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    # Nothing but a module of ours is given a state, no key or member is hashed but a name's, and
    # no memory is taken before the bytes that should fill it are there.
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.EMPTY_DICT[0]] = lambda self: self.append(_Items())
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.EMPTY_SET[0]] = _no_set
    dispatch[pickle.FROZENSET[0]] = _no_frozen_set
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray


def read_archive(file: BinaryIO) -> Any:
    """Storages are records of their own: `data/0`, `data/1`, ..., none of them compressed."""
    # Never by `torch.load`, which hands archives to `torch.jit.load`, and that runs their methods.
    left, storages = os.fstat(file.fileno()).st_size, dict[str, Tensor]()
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"{len(roots)} records named data.pkl in it, not one")

        def read(name: str, most: int) -> bytes:
            nonlocal left
            info = archive.getinfo(f"{roots[0]}{name}")
            left -= info.file_size
            if info.compress_type != zipfile.ZIP_STORED or left < 0 or info.file_size > most:
                raise ValueError(f"record {name} is compressed, or larger than it may be")
            return archive.read(info)

        def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
            if key not in storages:
                content = bytearray(read(f"data/{key}", left))
                if len(content) != numel * dtype.itemsize:
                    raise ValueError(f"storage {key} is of another size than its tensors need")
                empty = torch.empty(0, dtype=dtype)
                storages[key] = torch.frombuffer(content, dtype=dtype) if content else empty
            return storages[key]

        if f"{roots[0]}byteorder" in names and read("byteorder", 10) != b"little":
            raise ValueError("its numbers are not little-endian")
        return _TensorsOnly(io.BytesIO(read("data.pkl", _PICKLE_BYTES)), storage).load()


_MAGIC = 0x1950A86A20F9469CFC6C


def read_legacy(file: BinaryIO) -> Any:
    """Three pickles that say what it is, one of the content, one of keys; then the storages."""
    left, storages = os.fstat(file.fileno()).st_size, dict[str, Tensor]()

    def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= numel * dtype.itemsize
            if numel < 0 or left < 0:
                raise ValueError(f"storage {key} is larger than the file")
            storages[key] = torch.empty(numel, dtype=dtype)  # filled below
        return storages[key]

    head = io.BytesIO(file.read(_PICKLE_BYTES))
    magic, version, system, content, keys = (_TensorsOnly(head, storage).load() for _ in range(5))
    if (magic, version) != (_MAGIC, 1001):
        raise ValueError("it begins otherwise")
    if not system["little_endian"]:
        raise ValueError("its numbers are not little-endian")
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise ValueError("its storages are not those that its tensors need")
    file.seek(head.tell())
    for key in map(str, keys):
        count = int.from_bytes(file.read(8), "little")
        into = storages[key].view(torch.uint8).numpy()
        if count != storages[key].numel() or file.readinto(into) != into.nbytes:
            raise ValueError(f"storage {key} ends early")
    return content
