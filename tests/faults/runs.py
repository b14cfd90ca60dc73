"""Runs in processes of their own, so that they can be killed, signalled and compared bit by bit."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from m3ae.checkpoints import checkpoints
from tests.recipe import ROOT

TORCHRUN = str(Path(sys.executable).parent / "torchrun")
# Two processes of half a micro-batch each have the batches of one.
TWO = ["train.batch_per_process=4", "eval.batch=2"]


# Forked from a clean process that has imported all that takes seconds: autograd refuses to run in a
# fork of one that has used its threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["run_pretrain", "run_finetune"])


class Forked:
    """A run of so many processes, begun at once; what they say goes to the file `place`.

    main: a function of a module, or a partial of one, that takes the arguments. hosts: a folder
    with one for each process, `host-RANK`, in which it runs as alone on its host, and `said-RANK`.
    """

    def __init__(
        self,
        main: Callable,
        arguments: list[str],
        processes: int = 1,
        place: Path | None = None,
        hosts: Path | None = None,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [_environment(rank, processes, port, hosts) for rank in range(processes)]
        given = [(main, arguments, rank, place, hosts) for rank in ranks]
        self.processes = [_SERVER.Process(target=_run, args=one) for one in given]
        for process in self.processes:
            process.start()

    @property
    def pids(self) -> list[int]:
        """Their numbers, by rank."""
        return [process.pid for process in self.processes]

    def poll(self) -> list[int] | None:
        """The exit codes (-9: killed) once all processes have ended."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else codes

    def wait(self, seconds: float = 300) -> list[int]:
        """The exit codes once all processes have ended."""
        assert wait_for(self.poll, seconds=seconds)
        return self.poll()

    def kill(self) -> list[int]:
        """SIGKILL to all processes and their loading processes, as when the power fails."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # it has ended, or has not begun
                process.kill()
        return self.wait()


def _environment(rank: int, count: int, port: int, hosts: Path | None) -> dict[str, str]:
    """What torchrun tells a process."""
    given = {"RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    alone = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    given |= alone if hosts else {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    return {key: str(value) for key, value in given.items()}


def _run(
    main: Callable,
    arguments: list[str],
    rank: dict[str, str],
    place: Path | None,
    hosts: Path | None,
) -> None:
    os.setpgid(0, 0)
    if hosts:
        place = hosts / f"said-{rank['RANK']}"
        (hosts / f"host-{rank['RANK']}").mkdir(exist_ok=True)
        os.chdir(hosts / f"host-{rank['RANK']}")
    output = os.open(place or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    if rank["WORLD_SIZE"] != "1":
        os.environ.update(rank)
    sys.exit(main(arguments))


def start(
    arguments: list[str],
    processes: int = 1,
    script: str = "run_pretrain.py",
    stderr: int = subprocess.PIPE,
    **options: object,
) -> subprocess.Popen:
    """A run under torchrun, or of one process, in a session of its own; options: of torchrun."""
    command = [str(ROOT / script), *arguments]
    if processes == 1:
        command = [sys.executable, *command]
    else:
        given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command = [TORCHRUN, "--standalone", "--nproc_per_node", str(processes), *given, *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.Popen(
        command, env=environment, stderr=stderr, text=True, start_new_session=True
    )


def workers(agent: subprocess.Popen) -> list[int]:
    """The processes that torchrun started, or the one itself."""
    found = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
    return [pid for pid, command in commands.items() if b"run_" in command] or [agent.pid]


def wait_for(holds: Callable[[], object], running: Any = None, seconds: float = 90) -> bool:
    """Until it holds; False where the run ended first."""
    end = time.monotonic() + seconds
    while not holds():
        if running is not None and running.poll() is not None:
            return False
        assert time.monotonic() < end, "it never came to this"
        time.sleep(0.002)
    return True


def lines(run: Path, kind: str | None = None) -> list[dict]:
    """The whole lines of a log so far."""
    path = run / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in found if kind in (None, line["kind"])]


def last_step(run: Path) -> int:
    """The last step that the log tells of."""
    return max((line["step"] for line in lines(run, "train")), default=0)


def phase(run: Path, every: int) -> str:
    """What a run was at when it was killed, by what it left."""
    if any((run / "checkpoints").glob("*.part")):
        return "save"
    step = last_step(run)
    if step % every == 0 and not any(line["step"] == step for line in lines(run, "eval")):
        return "evaluation" if step else "start"
    return "training"


def end_of(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's last checkpoint, by name."""
    folder = checkpoints(run)[-1]
    found = dict(load_file(folder / "model.safetensors"))
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    found |= {f"{n} {key}": value for n, kept in optimizer.items() for key, value in kept.items()}
    for path in folder.glob("rng-*.pt"):
        found[path.name] = torch.load(path, weights_only=True)["torch"]
    return found


def logged(run: Path) -> list[dict]:
    """The log without what depends on the clock or on how often the run was begun."""
    clocks = ("seconds", "samples_per_s", "data_wait_s", "peak_memory_gib", "mfu")
    return [{key: x for key, x in line.items() if key not in clocks} for line in lines(run)]


def differing(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ: tensors by name, the log, the final evaluation."""
    ours, theirs = end_of(one), end_of(other)
    found = [key for key in ours.keys() | theirs.keys() if not _equal(ours, theirs, key)]
    found += ["log"] * (logged(one) != logged(other))
    results = [json.loads((run / "evaluation.json").read_text()) for run in (one, other)]
    for result in results:
        result.pop("seconds", None)
    return found + ["evaluation"] * (results[0] != results[1])


def _equal(ours: dict, theirs: dict, key: str) -> bool:
    return key in ours and key in theirs and torch.equal(ours[key], theirs[key])
