"""Tensors out of files, folders and hub repositories. Nothing stored in a file is ever executed."""

import json
import logging
import pickle
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m3ae.hub import ask_hub

log = logging.getLogger(__name__)
State = dict[str, Tensor]

_INDEX = ".index.json"  # of a model in several files: which tensor stands in which
_FILES = (  # of a folder or hub repository, the first that is there
    *("model.safetensors", f"model.safetensors{_INDEX}"),
    *("pytorch_model.bin", f"pytorch_model.bin{_INDEX}"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
# What training programs put around a model's tensors, the first that is there, and before names.
_WRAPPINGS = ("state_dict", "model_state_dict", "model", "teacher", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_weights(source: str | Path) -> State:
    """The tensors of a model in a file, a folder or a hub id, floats as float32, without wrapping.

    Raises FileNotFoundError naming what was looked for, ValueError naming the file that is wrong.
    """
    path = Path(source)
    if path.is_file():
        source = path.parent  # of an index's other files
    elif (path := find_file(source, *_FILES)) is None:
        raise FileNotFoundError(f"{source} holds neither {' nor '.join(_FILES)}")
    content = _read_parts(source, path) if path.name.endswith(_INDEX) else _read_file(path)
    state = unwrapped(content, str(path))
    return {key: x.float() if x.is_floating_point() else x for key, x in state.items()}


def unwrapped(content: Mapping[str, Any], source: str) -> State:
    """The tensors of a model from under `state_dict`, `model`, ... and without `module.`, ...

    A prefix goes where all names have it. Raises ValueError where there is no tensor, or a whole
    pickled model.
    """
    while name := next((name for name in _WRAPPINGS if _wraps(content.get(name))), None):
        if isinstance(content[name], _Inert):
            raise ValueError(f"{source}: {_pickled(name)}")
        # These may be weights too, an average's or a student's.
        beside = (key for key, x in content.items() if key != name and isinstance(x, Mapping))
        if others := sorted(map(str, beside)):
            log.info("%s: read %s, not %s", source, name, ", ".join(others))
        content = content[name]
    state = {str(key): tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}
    if not state:
        raise ValueError(f"{source}: no tensors in it; a file of a model's state_dict is needed")
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _wraps(value: object) -> bool:
    return isinstance(value, Mapping | _Inert)


def _pickled(what: str) -> str:
    way = "torch.save(model.state_dict(), FILE) where its code is, and give that FILE"
    return f"{what} is a whole pickled model, which only its own code can open: {way}"


# ------------------------------------------------------------------------------------- places


def find_file(source: str | Path, *names: str) -> Path | None:
    """The first of these files that a folder or a hub repository has; None where it has none.

    Raises FileNotFoundError where there is no such folder or repository, or where the hub cannot be
    reached and the cache does not know.
    """
    folder = Path(source)
    if folder.exists():
        return next((folder / name for name in names if (folder / name).is_file()), None)
    source = str(source)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise FileNotFoundError(f"{source} does not exist")
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    ask_hub()
    unknown = []
    for name in names:
        try:
            return Path(hf_hub_download(source, name))
        except LocalEntryNotFoundError:  # the next file may still be in the cache
            if try_to_load_from_cache(source, name) is not _CACHED_NO_EXIST:
                unknown.append(name)
        except EntryNotFoundError:
            continue
        except HfHubHTTPError as error:
            raise FileNotFoundError(f"{source}: not on the hub ({error})") from error
    if unknown:
        why = f"is no local folder, and the hub cannot be reached for {', '.join(unknown)}"
        raise FileNotFoundError(f"{source} {why}: give a folder")
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError naming the file where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


# ------------------------------------------------------------------------------------- formats


def _read_file(path: Path) -> Mapping[str, Any]:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)


def _read_parts(source: str | Path, index: Path) -> State:
    """The tensors of all files that an index names, which must be those that it lists."""
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ValueError(f"{index}: no weight_map in it, which says what stands in which file")
    state: State = {}
    for name in sorted({str(name) for name in listed.values()}):
        if Path(name).name != name:
            raise ValueError(f"{index}: names {name}, which is no file beside it")
        if (path := find_file(source, name)) is None:
            raise FileNotFoundError(
                f"{source} lacks {name}, which {index.name} names; fetch it too"
            )
        state |= _read_file(path)
    if differing := sorted(state.keys() ^ listed.keys()):
        raise ValueError(f"{index}: lists other tensors than its files hold, e.g. {differing[0]}")
    return state


def read_safetensors(path: Path) -> State:
    """The tensors of a safetensors file; FileNotFoundError or ValueError naming it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or is cut short: {error}") from error


def read_checkpoint(path: str | Path) -> dict:
    """A pickled PyTorch checkpoint or TorchScript archive, tensors and plain values, on the CPU.

    Foreign objects in it (hyper-parameters, callbacks) become inert stand-ins: no class or
    function of the file is looked up or called but the few that rebuild a tensor. Of an archive
    come its tensors, by the attribute path of their modules. Raises ValueError when the file is no
    checkpoint.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = _read_zip(file) if zipped else _read_legacy(file)
            if isinstance(content, _Module):
                content = dict(_named_tensors(content))
    except OSError:
        raise
    except Exception as error:  # a damaged file can make the unpickler fail in any way
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no PyTorch checkpoint, or is cut short: {reason}") from error
    if isinstance(content, _Inert):
        raise ValueError(f"{path}: {_pickled('it')}")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return content


class _Inert:
    """Stands for any foreign object in a checkpoint: takes whatever it is given, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    # How pickle fills an object, a dictionary, a list (item by item, or all at once) and a set.
    __setstate__ = __setitem__ = append = extend = add = __init__

    def __call__(self, *args: Any, **kwargs: Any) -> "_Inert":
        return self


class _Module:
    """Stands for a module of a TorchScript archive: its state, and none of its methods."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _named_tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors in modules, mappings and sequences, by their path: `visual.conv1.weight`."""
    if isinstance(value, Tensor):
        yield path, value
        return
    value = value.state if isinstance(value, _Module) else value
    parts = enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in value.items() if isinstance(value, Mapping) else parts:
        yield from _named_tensors(part, f"{path}.{name}" if path else str(name))


_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _TensorsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return getattr(torch.storage if module == "torch.storage" else torch, name)
        return _Inert


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


class _ZippedTensors(_TensorsOnly):
    """The same for a zip, whose storages are records of their own: `data/0`, `data/1`, ..."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}data.pkl"))
        self.archive, self.folder = archive, f"{root}data/"
        self.storages: State = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle":  # marks around lists of tensors
            return _marked
        if module.partition(".")[0] == "__torch__":
            return _Module
        return super().find_class(module, name)

    def persistent_load(self, identity: tuple) -> Tensor:
        _, dtype, key, *_ = identity
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}{key}"))
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else empty
        return self.storages[key]


def _view(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _marked(value: Any, *_: Any) -> Any:
    return value


def _read_zip(file: BinaryIO) -> Any:
    # Never by `torch.load`, which hands archives to `torch.jit.load`, and that runs their methods.
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"{len(roots)} records named data.pkl in it, not one")
        order = f"{roots[0]}byteorder"
        if order in names and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        return _ZippedTensors(archive, roots[0]).load()


# What `torch.load` needs of a pickle module.
_TENSORS_ONLY = types.SimpleNamespace(
    __name__="pickle",
    Unpickler=_TensorsOnly,
    load=lambda file, **options: _TensorsOnly(file, **options).load(),
)


def _read_legacy(file: BinaryIO) -> Any:
    # weights_only=True refuses such files whole; the unpickler above is at least as strict about
    # what may run, and reads on.
    return torch.load(file, "cpu", pickle_module=_TENSORS_ONLY, weights_only=False)
