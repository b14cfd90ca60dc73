"""Tensors out of files, folders and hub repositories. Nothing stored in a file is ever executed."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from m3ae.files import one_line, printable, read_json_object
from m3ae.hub import ask_hub
from m3ae.models.pickles import Inert, Module, read_archive, read_legacy

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
_MOST_NAMES, _LONGEST_NAME = 100_000, 1000  # of tensors in an archive, characters of a path


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
    whole = {id(x): x.float() if x.is_floating_point() else x for x in state.values()}
    return {key: whole[id(x)] for key, x in state.items()}


def unwrapped(content: Mapping[str, Any], source: str) -> State:
    """The tensors of a model from under `state_dict`, `model`, ... and without `module.`, ...

    A prefix goes where all names have it. Raises ValueError where there is no tensor, or a whole
    pickled model.
    """
    around: list[int] = []
    while name := next((name for name in _WRAPPINGS if _wraps(content.get(name))), None):
        if id(content) in around:
            raise ValueError(f"{source}: {name} holds itself")
        around.append(id(content))
        if isinstance(content[name], Inert):
            raise ValueError(f"{source}: {_pickled(name)}")
        # These may be weights too, an average's or a student's.
        beside = (key for key, x in content.items() if key != name and isinstance(x, Mapping))
        if others := sorted(map(str, beside)):
            log.info("%s: read %s, not %s", source, name, printable(", ".join(others)))
        content = content[name]
    state = {str(key): tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}
    if not state:
        raise ValueError(f"{source}: no tensors in it; a file of a model's state_dict is needed")
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _wraps(value: object) -> bool:
    return isinstance(value, Mapping | Inert)


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


# ------------------------------------------------------------------------------------- formats


def _read_file(path: Path) -> Mapping[str, Any]:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)


def _read_parts(source: str | Path, index: Path) -> State:
    """The tensors of all files that an index names, which must be those that it lists."""
    listed = read_json_object(index).get("weight_map")
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
    function of the file is looked up or called. Of an archive come its tensors, by the attribute
    path of their modules. Memory stays within a few times the file's size. Raises ValueError when
    the file is no checkpoint.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content = read_archive(file) if zipped else read_legacy(file)
            if isinstance(content, Module):
                content = dict(_named_tensors(content))
    except Exception as error:  # a damaged file can make the unpickler fail in any way
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"{path} is no PyTorch checkpoint, or is cut short: {reason}") from error
    if isinstance(content, Inert):
        raise ValueError(f"{path}: {_pickled('it')}")
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    return content


def _named_tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors in modules, mappings and sequences, by their path: `visual.conv1.weight`."""
    seen = 0

    def walk(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
        nonlocal seen
        seen += 1
        if seen > _MOST_NAMES or len(path) > _LONGEST_NAME:
            raise ValueError("its modules hold one another without end")
        if isinstance(value, Tensor):
            yield path, value
            return
        value = value.state if isinstance(value, Module) else value
        parts = enumerate(value) if isinstance(value, list | tuple) else ()
        for name, part in value.items() if isinstance(value, Mapping) else parts:
            yield from walk(part, f"{path}.{name}" if path else str(name))

    return walk(root, "")
