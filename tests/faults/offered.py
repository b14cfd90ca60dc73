"""How a hostile file is offered: what it may cost, how a valid one is damaged, how often."""

import os
import pickle
import resource
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TRIES = int(os.environ.get("M3AE_FAULT_TRIES", "5"))
ALL = TRIES >= 1000  # rather than a sample
MEMORY, MOST = 300 * 2**20, 3 * 2**30  # above the idle process
whole = pytest.mark.skipif(not ALL, reason="of `make test-faults`")


def some(kinds: Iterable[str], each: int = 4) -> list[str]:
    """All kinds, or every fourth in the sample."""
    return list(kinds)[:: 1 if ALL else each]


often = settings(
    max_examples=TRIES,
    deadline=None,
    database=None,
    derandomize=not ALL,
    suppress_health_check=list(HealthCheck),
)


def cost(work: Callable[[], object]) -> tuple[object, int]:
    """What a child process gets of `work`, its value or the exception, and its growth in bytes."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        # A test that fails must not take the machine with it.
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST, mapped + MOST))
        try:
            found: object = work()
        except MemoryError:
            found = AssertionError("out of memory")
        except BaseException as error:
            found = error
        try:
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            message = pickle.dumps((found, 1024 * (after - before)))
        except Exception:  # what was found cannot be sent
            message = pickle.dumps((AssertionError(traceback.format_exc()), 0))
        os.write(writer, message)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        message = file.read()
    os.waitpid(child, 0)
    assert message, "the process was killed"
    return pickle.loads(message)


def refused(work: Callable[[], object], name: str) -> None:
    """Assert that `work` raises a documented error, one line with the file's name, cheaply."""
    found, grown = cost(work)
    assert isinstance(found, ValueError | OSError), f"{name}: {found!r}"
    assert name in str(found) and "\n" not in str(found), str(found)
    assert grown < MEMORY, f"{name}: {grown / 2**20:.0f} MB"


def accepted_or_refused(work: Callable[[], object], path: Path, named: bool = True) -> None:
    """Assert that `work` ends, or raises a documented error naming file or folder."""
    try:
        work()
    except (ValueError, OSError) as error:
        assert not isinstance(error, UnicodeError), repr(error)
        found = path.name in str(error) or str(path.parent) in str(error)
        assert found or not named, repr(error)
        assert "\n" not in str(error), repr(error)


_BYTES = st.binary(max_size=40)
# What means something to a parser of JSON, YAML or CSV.
_WORDS = [b"null", b"NaN", b"-1", b"1e999", b"9" * 400, b"[" * 3000, b"{}", b'"', b"\\ud800", b"0"]
_WORDS += [b"\x00", b"\xff\xfe", b"\r", b"\n", b",", b":", b"\t", b"- ", b"true"]
# (kind, where as a share of the file, bytes): what happens to one file.
DAMAGE = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.floats(0, 1), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(b"")),
        st.tuples(st.just("insert"), st.floats(0, 1), _BYTES),
        st.tuples(st.just("remove"), st.floats(0, 1), _BYTES),
        st.tuples(st.just("whole"), st.just(0.0), st.binary(max_size=300)),
        st.tuples(st.just("insert"), st.floats(0, 1), st.sampled_from(_WORDS)),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, damage: list[tuple[str, float, bytes]]) -> bytes:
    """A file's bytes after all of that was done to it."""
    for kind, share, part in damage:
        at = int(share * len(content))
        if kind == "flip":
            flipped = bytes(a ^ b for a, b in zip(content[at:], part, strict=False))
            content = content[:at] + flipped + content[at + len(flipped) :]
        elif kind == "cut":
            content = content[:at]
        elif kind == "insert":
            content = content[:at] + part + content[at:]
        elif kind == "remove":
            content = content[:at] + content[at + len(part) :]
        else:
            content = part
    return content
