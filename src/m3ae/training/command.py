"""The command line that the run scripts share."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from m3ae.command import read_run_arguments
from m3ae.config import to_yaml
from m3ae.files import naming, one_line
from m3ae.installation import check_installation
from m3ae.training.distributed import join_processes, world_size
from m3ae.training.logs import start_logging
from m3ae.training.precision import set_arithmetic
from m3ae.training.stopping import STOPPED, StoppedError


def run_script(description: str, load: Callable, body: Callable, argv: Sequence[str] | None) -> int:
    """Read the arguments, load the config, join the processes and run.

    load(path, overrides) gives a config, body(config, processes, dry_run) is the run. Returns the
    exit status: 2 for a user's mistake, which ends in one line on stderr, `stopping.STOPPED` where
    a signal asked for the end. One of several processes does not return after an error: it says it
    and ends at once, so that torchrun ends the others.
    """
    args = read_run_arguments(description, argv)
    try:
        check_installation()
        config = load(args.config, args.overrides)
        if args.print_config:
            print(to_yaml(config), end="")
            return 0
        train = config.train
        set_arithmetic(train.tf32, train.deterministic)
        with join_processes(train.threads, train.device, train.timeout_minutes) as processes:
            start_logging(processes.first)
            with naming(Path(config.output)):
                body(config, processes, args.dry_run)
    except BaseException as error:
        status = 1
        if isinstance(error, StoppedError):
            status = STOPPED
        elif isinstance(error, ValueError | OSError):
            status = 2
            print(f"error: {one_line(error)}", file=sys.stderr)
        elif world_size() > 1:
            traceback.print_exc()
        if world_size() > 1:
            # An orderly end would wait for the other processes, which may wait for this one.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        if status == 1:
            raise
        return status
    return 0
