"""The rooms of the package: imports run down the floors only (docs/architecture.md)."""

import ast
import sys
from pathlib import Path

import pytest

import m3ae

SRC = Path(m3ae.__file__).parent
FLOORS = (
    {"files", "checkpoints", "processes", "hub", "drawing", "command", "config", "strict_yaml"}
    | {"installation", "row_file"},
    {"scoring"},
    {"data"},
    {"corpora"},
    {"models", "training"},
    {"pretraining", "downstream"},
    {"reports", "tables", "predictor"},
    {"predict", "score", "features", "convert", "serve", "probe", "export"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Rooms that may know less than all that is below them.
MAY_KNOW = {
    "scoring": {"files"},
    "data": {"files", "checkpoints", "config", "hub", "processes"},
    "corpora": {"files", "processes", "command", "config", "data", "scoring.answers"},
    "models": {"config", "checkpoints", "files", "hub", "strict_yaml", "data.masking"},
    "training": {
        *("config", "files", "checkpoints", "processes"),
        *("strict_yaml", "installation", "command"),
        *("data.sampler", "data.contents"),
    },
}


def room_of(module: str) -> str:
    return module.split(".")[1]


def modules_of(source: str) -> set[str]:
    """Modules that a source imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name.name}" for name in node.names]
            deep = (SRC.parent / Path(*node.module.split("."))).is_dir()
            found.update(names if deep else [node.module])
    return found


def imports_of(source: str) -> set[str]:
    """The package's own among them, as m3ae.ROOM[.FILE]."""
    return {module for module in modules_of(source) if module.startswith("m3ae.")}


def wrong_arrows(sources: dict[str, str]) -> list[str]:
    """`file -> module: why` of each import that goes up, sideways or beyond what a room may know.

    sources: text by module name, e.g. m3ae.data.shards.
    """
    wrong, arrows = [], {module: imports_of(text) for module, text in sources.items()}
    for module, imported in sorted(arrows.items()):
        room = room_of(module)
        for other in sorted(imported):
            target = room_of(other)
            if module in arrows.get(other, ()) and module != other:
                wrong.append(f"{module} -> {other}: the two import each other")
            if target == room:
                continue
            if FLOOR[target] >= FLOOR[room] and FLOOR[room] > 0:
                wrong.append(f"{module} -> {other}: {target} is not below {room}")
            allowed = MAY_KNOW.get(room)
            path = other.removeprefix("m3ae.")
            if allowed is not None and not any(
                path == a or path.startswith(a + ".") for a in allowed
            ):
                wrong.append(f"{module} -> {other}: {room} may not know it")
    return wrong


def test_scoring_rests_on_numpy_and_scipy():
    """A number of anyone's predictions that takes torch, or minutes of installing, to count."""
    allowed = {"m3ae", "numpy", "scipy", *sys.stdlib_module_names}
    for module, text in sources().items():
        if room_of(module) == "scoring":
            found = {name.partition(".")[0] for name in modules_of(text)}
            assert found <= allowed, f"{module}: {found - allowed}"


def sources() -> dict[str, str]:
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        name = path.relative_to(SRC.parent).with_suffix("").as_posix().replace("/", ".")
        if name != "m3ae.__init__":
            found[name.removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


def test_imports_run_down_the_floors():
    """An arrow up or sideways, two files that import each other, a room of no floor."""
    assert {room_of(module) for module in sources()} <= FLOOR.keys()
    assert wrong_arrows(sources()) == []


@pytest.mark.parametrize(
    "module, line, why",
    [
        ("m3ae.data.shards", "from m3ae.downstream.model import HEADS", "downstream is not below"),
        ("m3ae.models.m3ae", "import m3ae.training.engine", "training is not below models"),
        ("m3ae.training.engine", "from m3ae.models import M3AE", "models is not below training"),
        ("m3ae.training.loop", "def f():\n    from m3ae.data.shards import Shards", "may not know"),
        ("m3ae.scoring.answers", "from m3ae.scoring.predictions import Row", "import each other"),
    ],
)
def test_wrong_arrows_are_named(module, line, why):
    """A test of the floors that passes whatever is imported."""
    changed = sources()
    changed[module] += f"\n{line}\n"
    found = wrong_arrows(changed)
    assert found and all(module in arrow for arrow in found)
    assert any(why in arrow for arrow in found)
