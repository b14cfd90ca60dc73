"""How a command begins and ends: --help is the script's docstring, a user's mistake one line."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any

from m3ae.files import one_line


def parser_for(text: str | None) -> ArgumentParser:
    """A parser whose --help shows a script's docstring as it stands."""
    return ArgumentParser(description=text, formatter_class=RawDescriptionHelpFormatter)


def run(work: Callable[..., Any], parser: ArgumentParser, argv: Sequence[str] | None) -> int:
    """Do a command's work on the parsed arguments; returns `exit_status`."""
    args = parser.parse_args(argv)
    return exit_status(lambda: work(args))


def exit_status(body: Callable[[], Any], mistake: int = 1) -> int:
    """Run a command's work -> 0; `mistake` after a user's one, 130 after an interruption."""
    try:
        body()
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return mistake
    return 0
