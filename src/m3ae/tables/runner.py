"""Runs the cells of a plan: each once, whoever else works on the same folder."""

import ctypes
import dataclasses
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from m3ae.config import to_yaml
from m3ae.files import read_json_object, write_json, write_text
from m3ae.processes import usable_cores
from m3ae.tables import claims
from m3ae.tables.cells import Cell
from m3ae.tables.claims import HEARTBEAT_SECONDS, Claim

log = logging.getLogger("m3ae")
POLL_SECONDS = 0.2  # between looks at the runs of this process
LOOK_SECONDS = 5.0  # between looks at the folder, where other processes work too
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
# Where what `torchrun` says of a failure begins, after what the run itself said.
_TORCHRUN = re.compile(r"^[EW]\d{4} .*torch/distributed/elastic/", re.MULTILINE)


@dataclass
class Running:
    """A cell under way in this process."""

    cell: Cell
    claim: Claim
    process: subprocess.Popen
    started: float
    touched: float


@dataclass
class Runner:
    """`run()` works on cells until none is left that it could do or wait for."""

    cells: Sequence[Cell]  # in the order to run; a pre-training before what starts from it
    out: Path
    launcher: str
    jobs: int = 1

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.begun = claims.clock(self.out)
        self.running: list[Running] = []

    def run(self) -> dict[str, str]:
        """Why each cell that is not finished is not, by id; {} where all are."""
        left = [cell for cell in self.cells if not is_done(cell, self.out)]
        done = len(self.cells) - len(left)
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            with tqdm(total=len(self.cells), initial=done, unit="cell", smoothing=0) as self.bar:
                while left := [cell for cell in left if not is_done(cell, self.out)]:
                    self.bar.n = len(self.cells) - len(left)
                    self.bar.refresh()
                    self._start(left)
                    if not self.running and not any(self._hope(cell) for cell in left):
                        break
                    self._wait()
                self.bar.n = len(self.cells) - len(left)
        finally:
            signal.signal(signal.SIGTERM, previous)
            self._stop()
        return {cell.id: self.why_not(cell) for cell in left}

    def _hope(self, cell: Cell) -> bool:
        """Whether a cell may still get done: by another process, or once its pre-training is."""
        if cell.lacks or self._failed(cell):
            return False
        return cell.init is None or is_done(cell.init, self.out) or self._hope(cell.init)

    def _start(self, left: Sequence[Cell]) -> None:
        mine = {one.cell.id for one in self.running}
        for cell in left:
            if len(self.running) >= self.jobs:
                return
            ready = cell.init is None or is_done(cell.init, self.out)
            if cell.id in mine or cell.lacks or self._failed(cell) or not ready:
                continue
            if (owned := claims.claim(cell.folder(self.out))) is None:
                continue
            if is_done(cell, self.out) or self._failed(cell):  # by another one, just before
                owned.release()
                continue
            self.running.append(self._launch(cell, owned))

    def _launch(self, cell: Cell, owned: Claim) -> Running:
        folder = cell.folder(self.out)
        write_json(folder / "cell.json", cell.identity)
        (folder / "failed.json").unlink(missing_ok=True)
        _note_config(cell, self.out)
        command = cell.command(self.out, self.launcher)
        command = [sys.executable if word == "python" else word for word in command]
        beside = Path(sys.executable).parent  # torchrun is there, whether or not it is on the path
        environment = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', '')}"}
        if self.launcher == "python" and self.jobs > 1:
            cores = usable_cores()
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.jobs)))
        with open(folder / "output.txt", "ab") as file:
            file.write(f"$ {' '.join(cell.command(self.out, self.launcher))}\n".encode())
            file.flush()
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                env=environment,
                preexec_fn=partial(_end_with_parent, os.getpid()),
            )
        owned.note_child(process.pid)
        self.bar.set_postfix_str(cell.name)
        now = time.monotonic()
        return Running(cell, owned, process, now, now)

    def _wait(self) -> None:
        """Until a run of ours ends, or `LOOK_SECONDS`: another process may have ended one."""
        started, busy = time.monotonic(), len(self.running)
        while time.monotonic() - started < LOOK_SECONDS and len(self.running) == busy:
            time.sleep(POLL_SECONDS)
            self._look()

    def _look(self) -> None:
        """What has ended, and a heartbeat for what has not."""
        for one in list(self.running):
            pid, status, usage = os.wait4(one.process.pid, os.WNOHANG)
            now = time.monotonic()
            if pid:
                one.process.returncode = os.waitstatus_to_exitcode(status)
                self.running.remove(one)
                self._finish(one, now - one.started, usage.ru_utime + usage.ru_stime)
            elif now - one.touched > HEARTBEAT_SECONDS:
                one.touched = now
                if not one.claim.touch():
                    log.warning("%s: taken over by another process", one.cell.id)
                    self.running.remove(one)
                    _end(one.process)

    def _finish(self, one: Running, seconds: float, cpu_seconds: float) -> None:
        cell, folder = one.cell, one.cell.folder(self.out)
        times = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)}
        if one.process.returncode == 0 and any(folder.glob("**/evaluation.json")):
            if cell.kind == "finetune":  # its selected weights and predictions stay
                for path in list(folder.glob("**/checkpoints")):
                    shutil.rmtree(path)
            write_json(folder / "done.json", times)
            tqdm.write(f"done    {cell.id}  {seconds:.0f} s", file=sys.stderr)
        else:
            code = one.process.returncode
            write_json(folder / "failed.json", {"code": code, "line": last_line(folder)})
            tqdm.write(f"FAILED  {cell.id}: {self.why_not(cell)}", file=sys.stderr)
        one.claim.release()

    def _failed(self, cell: Cell) -> bool:
        """Whether a cell failed since this process began; one that failed before is tried again."""
        path = cell.folder(self.out) / "failed.json"
        return path.is_file() and path.stat().st_mtime > self.begun

    def _stop(self) -> None:
        """End what is under way; it continues from its checkpoint."""
        for one in self.running:
            one.process.terminate()
        for one in self.running:
            _end(one.process)
            one.claim.release()

    def why_not(self, cell: Cell) -> str:
        """One line on why a cell is not finished."""
        return why_not(cell, self.out)


def is_done(cell: Cell, out: Path) -> bool:
    """Whether a cell is finished."""
    return (cell.folder(out) / "done.json").is_file()


def why_not(cell: Cell, out: Path) -> str:
    """One line on why a cell is not finished."""
    folder = cell.folder(out)
    if cell.lacks:
        return f"data are lacking: {', '.join(cell.lacks)}"
    if (folder / "failed.json").is_file():
        failed = read_json_object(folder / "failed.json")
        return f"it failed (status {failed.get('code')}): {failed.get('line')}"
    if cell.init is not None and not is_done(cell.init, out):
        return f"its pre-training {cell.init.id} is not finished: {why_not(cell.init, out)}"
    if claims.is_held(folder):
        return "another process runs it"
    return "interrupted; the same command continues it" if folder.is_dir() else "not run"


def last_line(folder: Path) -> str:
    """The last line of what a run printed in its last try."""
    with open(folder / "output.txt", "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
        text = file.read().decode("utf-8", "replace")
    text = re.split(r"^\$ .*$", text, flags=re.MULTILINE)[-1]
    own = _TORCHRUN.split(text)[0]
    text = own if own.strip() else text
    lines = [line.split("\r")[-1].strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "no output")


def _note_config(cell: Cell, out: Path) -> None:
    """Give an interrupted run the config of its command, which may name other paths now.

    The same by identity, so it goes on; it would refuse to, since it knows folders by name alone.
    """
    config, folder = cell.config_of_run(out), cell.folder(out)
    runs = {folder: config}
    if cell.kind == "finetune":
        for name in ("paper", "strict"):  # of protocol=both, where each trains on other rows
            place = folder / name
            runs[place] = dataclasses.replace(config, protocol=name, output=str(place))
    for place, one in runs.items():
        for path in (place / "config.yaml", *place.glob("checkpoints/step-*/config.yaml")):
            if path.is_file():
                write_text(path, to_yaml(one))


def _end(process: subprocess.Popen) -> None:
    """Ask a process to end, and make it after ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end_with_parent(parent: int) -> None:
    """In a child: SIGTERM when the runner is gone, even by SIGKILL (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it went before
            os._exit(1)
