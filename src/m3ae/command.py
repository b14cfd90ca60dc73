"""How a command begins and ends: --help is the script's docstring, a user's mistake one line."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any

from m3ae.files import one_line


def parser_for(text: str | None) -> ArgumentParser:
    """A parser whose --help shows a script's docstring as it stands."""
    return ArgumentParser(description=text, formatter_class=RawDescriptionHelpFormatter)


def read_run_arguments(description: str | None, argv: Sequence[str] | None = None) -> Namespace:
    """The command line of the run scripts; --help, and what cannot be parsed, end the process."""
    parser = parser_for(description)
    add = parser.add_argument
    add("--config", required=True, help="a YAML file under configs/")
    add("--print-config", action="store_true", help="print the resolved config")
    dry = "check data, weights and config, print sizes, steps and epochs; train nothing"
    add("--dry-run", action="store_true", help=dry)
    add("overrides", nargs="*", metavar="key=value", help="e.g. optim.lr=2e-5")
    return parser.parse_intermixed_args(argv)  # overrides before and after options


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
