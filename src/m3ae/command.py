"""How a command begins and ends: --help is the script's docstring, a user's mistake one line."""

import argparse
import sys
from collections.abc import Callable
from typing import Any


def parser_for(text: str | None) -> argparse.ArgumentParser:
    """A parser whose --help shows a script's docstring as it stands."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=text, formatter_class=form)


def exit_status(body: Callable[[], Any], mistake: int = 1) -> int:
    """Run a command's work -> 0; `mistake` after a user's one, 130 after an interruption."""
    try:
        body()
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return mistake
    return 0
