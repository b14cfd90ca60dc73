"""Files: written whole or not at all, read with a word on what is wrong."""

import glob
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m3ae.processes import machine, started


def need(path: Path, what: str, *others: Path) -> Path:
    """The first of the paths that exists; else FileNotFoundError saying what `path` should be."""
    for place in (path, *others):
        if place.exists():
            return place
    raise FileNotFoundError(f"{path}: not there; it should be {what}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in the block that names no file, as of a full disk, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Path]:
    """A file to be written and closed in the block, which then takes the place of `path`.

    So `path` is the old file or the whole new one. With `sync`, after a power cut too, and what
    processes of this machine that were killed here left behind is removed.
    """
    here, me = hashlib.sha256(machine().encode()).hexdigest()[:8], os.getpid()
    temporary = path.with_name(f"{path.name}.{here}-{me}-{started(me)}.tmp")  # others may write too
    try:
        with naming(path):
            yield temporary
            if sync:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    for left in path.parent.glob(f"{glob.escape(path.name)}.{here}-*.tmp") if sync else ():
        pid, since = left.name.removesuffix(".tmp").split("-")[-2:]
        if since != "None" and started(int(pid)) != since:  # without /proc nobody can tell
            left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file so that it is either the old one or the whole new one.

    Raises ValueError naming it for a text that UTF-8 cannot hold.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        wrong = printable(text[max(0, error.start - 40) : error.end])
        raise ValueError(f"{path}: cannot hold what is not UTF-8: {wrong}") from error
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write a JSON file as `write_text` does; half a character as the escape that JSON has."""
    write_text(path, escaped(json.dumps(value, indent=indent, ensure_ascii=False)) + "\n")


def escaped(text: str) -> str:
    r"""A text whose lone surrogates, which UTF-8 cannot hold, are shown as \ud800."""
    return text if is_unicode(text) else text.encode("utf-8", "backslashreplace").decode()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A text file; ValueError naming it where it is not UTF-8."""
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error


def read_json(path: Path) -> Any:
    """What a JSON file holds; ValueError naming it where it is none."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError naming the file where it is none."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def most_expanded(path: Path) -> int:
    """Bytes that a compressed file may hold, so that a small one does not fill the memory.

    Predictions and tables are compressed to a tenth or a thirtieth; zeros to a thousandth.
    """
    return max(2**25, 200 * path.stat().st_size)


def read_regular(path: Path, most: int) -> bytes:
    """A file's bytes; OSError where it is no plain file (a device, a pipe) or has too many."""
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(f"{path}: no plain file")
    if facts.st_size > most:
        raise OSError(f"{path}: {facts.st_size} bytes, more than {most}")
    return path.read_bytes()


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, the mark of bytes that were not UTF-8."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def printable(text: object) -> str:
    r"""A text from data for a terminal or log: what cannot be seen as its escape, e.g. \x1b.

    Else a file's name or a caption could move the cursor, colour what follows, or hide it.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def one_line(error: object) -> str:
    """An error's message, or another text of lines, as one printable line."""
    return printable(" ".join(str(error).split()))


def redecoded(text: str, encoding: str | None) -> str:
    """A text with lone surrogates read again in another encoding, if its bytes are text in that.

    Raises ValueError for an encoding that nobody knows.
    """
    if encoding is None or is_unicode(text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode(encoding)
    except LookupError as error:
        raise ValueError(f"{encoding}: no encoding of texts, such as latin-1 or cp1252") from error
    except UnicodeError:
        return text
