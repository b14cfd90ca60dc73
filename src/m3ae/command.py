"""How a command ends: a user's mistake is one line on stderr and an exit status."""

import sys
from collections.abc import Callable
from typing import Any


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
