"""YAML into frozen dataclasses, strictly: no unknown, missing, duplicate or mistyped key passes."""

import copy
import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from m3ae.files import one_line, printable, read_text


class _Loader(yaml.SafeLoader):
    """YAML whose `1e-5` is a float, whose only booleans are true and false, without duplicates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), list("tf"))


class _Dumper(yaml.SafeDumper):
    """Quotes also the words that `_Loader`, unlike YAML 1.1, reads as numbers, such as 1e5."""


_MOST_NODES = 100_000  # in a file; ours have a few hundred
_FLOAT = re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.(inf|nan)$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key, mark = loader.construct_object(key_node, deep=True), key_node.start_mark
        if not isinstance(key, str):
            raise ValueError(f"{mark.name}, line {mark.line + 1}: key {key!r} is no word")
        if key in seen:
            raise ValueError(f"{mark.name}, line {mark.line + 1}: duplicate key {key!r}")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, name: str) -> Any:
    """The content of a YAML text; `name` says in errors where it came from."""
    return copy.deepcopy(_parse(text, name))


@functools.lru_cache(1000)
def _parse(text: str, name: str) -> Any:
    """As `parse`; a table's cells read the same few files hundreds of times."""
    try:
        loader = _Loader(text)
        loader.name = name
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _MOST_NODES:
            raise ValueError(f"its aliases (*name) make more than {_MOST_NODES} values of it")
        return loader.construct_document(node)
    # Numbers of thousands of digits, dates of no month, brackets within brackets without end ...
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError) as error:
        said = one_line(error)
        if isinstance(error, ValueError) and said.startswith(name):
            raise
        raise ValueError(f"{name}: not valid YAML: {said}") from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below a node, each as often as aliases repeat it; its own alias counts as too many."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = [x for part in parts for x in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_size(part, known) for part in flat)
    return known[id(node)]


def dump(content: dict) -> str:
    """YAML that `parse` reads back as the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_file(path: Path) -> dict[str, Any]:
    """One file's keys and values, `base:` among them; ValueError where it has none."""
    content = parse(read_text(path), str(path)) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, got {type(content).__name__}")
    return content


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    """The file merged over its chain of `base:` files."""
    if path.resolve() in seen:
        raise ValueError(f"{path}: `base:` leads back to this file")
    if not path.is_file():
        raise FileNotFoundError(f"config {path} does not exist")
    content = read_file(path)
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ValueError(f"{path}: base: expected the name of a file, got {base!r}")
    return merge(read(path.parent / base, (*seen, path.resolve())), content)


def merge(base: dict, top: dict) -> dict:
    """`top` over `base`, mapping by mapping; lists and values are replaced."""
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def build(cls: type, content: Any, where: str = "") -> Any:
    """A config dataclass from plain keys and values; `where` is put before every key in errors.

    Raises ValueError naming the key, and the nearest valid one where it is unknown.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where or 'config'}: expected a section, got {content!r}")
    hints = typing.get_type_hints(cls)
    for key in content:
        if key not in hints:
            raise ValueError(f"unknown key {where}{printable(key)}{_nearest(key, hints, where)}")
    optional = {field.name for field in dataclasses.fields(cls) if has_default(field)}
    missing = [where + key for key in hints if key not in content and key not in optional]
    if missing:
        raise ValueError(f"missing key {', '.join(missing)}: put `base:` at the top or set it")
    return cls(**{key: _typed(content[key], hints[key], where + key) for key in content})


def has_default(field: dataclasses.Field) -> bool:
    """Whether a key may be left out; those of configs of runs have no default in code."""
    return field.default is not dataclasses.MISSING


def _nearest(key: str, valid: typing.Iterable[str], where: str) -> str:
    close = difflib.get_close_matches(str(key), list(valid), n=1, cutoff=0.5)
    return f"; did you mean {where}{close[0]}?" if close else f"; valid: {', '.join(valid)}"


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` checked against the annotation; an int is good for a float, nothing else bends."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where + ".")
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _typed(value, inner, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise ValueError(f"{where}: {value!r} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(_typed(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a mapping, got {value!r}")
        return {
            str(key): _typed(item, arguments[1], f"{where}.{key}") for key, item in value.items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if not is_finite(value):
            raise ValueError(f"{where}: a number of {len(str(value))} digits")
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def is_finite(number: int | float) -> bool:
    """Whether a number is neither nan nor infinite, nor too large for a float."""
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as `section.key`; an empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found
