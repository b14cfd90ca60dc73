"""Ends that are no error of the run's own: a signal that asks for it, a stall.

SIGTERM and SIGUSR1 (what schedulers send before they take the machine) let the step under way
finish; then a checkpoint is written and the run ends with `STOPPED`.
"""

import faulthandler
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from m3ae.processes import STACKS, STOP_SIGNALS, show_stacks_on_signal

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later
# torchrun ends the others with SIGTERM where one process failed, and with SIGKILL 30 s later. One
# that waits for the failed one meanwhile ends by itself.
GRACE_SECONDS = 20


class StoppedError(Exception):
    """A signal asked the run to end, and all processes agreed on after which step."""


class Stop:
    """Whether a signal asked this process to end, and when something last went on in it.

    `stage`: outside the loop a signal ends the process at once, as nothing would be lost; in the
    `loop` it is noted, and looked at between steps; at its `end` the checkpoint is being written.
    """

    def __init__(self, several: bool = False) -> None:
        self.several = several  # processes, that torchrun started
        self.stage, self.asked, self.last = "outside", False, time.monotonic()

    def beat(self) -> None:
        """Something went on."""
        self.last = time.monotonic()

    def note(self, number: int, _: FrameType | None = None) -> None:
        """The handler of the signals."""
        if self.stage == "outside":
            say(f"stopped by {signal.Signals(number).name}; the same command goes on")
            os._exit(STOPPED)
        self.asked = True
        if self.several and number == signal.SIGTERM:
            timer = threading.Timer(GRACE_SECONDS, self._give_up)
            timer.daemon = True
            timer.start()

    def _give_up(self) -> None:
        if self.stage == "loop":
            say(f"error: asked to end by SIGTERM, but no step ended for {GRACE_SECONDS} s")
            os._exit(STOPPED)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle the signals in the block."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python handles signals in the main thread alone
            return
        before = {number: signal.signal(number, self.note) for number in STOP_SIGNALS}
        show_stacks_on_signal()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def watched(self, minutes: float, title: str) -> Iterator[None]:
        """In the block, end this process where nothing goes on for so long, with its stacks."""
        over = threading.Event()
        self.beat()
        given = (over, minutes * 60, title)
        threading.Thread(target=self._watch, args=given, name="watch", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event, seconds: float, title: str) -> None:
        while not over.wait(min(1.0, seconds / 4)):
            if time.monotonic() - self.last > seconds:
                stalled = f"nothing went on for {seconds:.0f} s (train.timeout_minutes)"
                say(f"error: {title}: {stalled}; its threads and loading processes are here:")
                faulthandler.dump_traceback(file=2)
                children = multiprocessing.active_children()
                for child in children if STACKS else ():
                    os.kill(child.pid, STACKS)
                time.sleep(3)  # so that all say theirs before torchrun ends them
                for child in children:
                    child.kill()
                os._exit(1)


def say(line: str) -> None:
    """A line on stderr past all buffers and captures: the process is about to end."""
    os.write(2, (line + "\n").encode())
