"""What a run writes about itself: log.jsonl, TensorBoard events, environment.json."""

import dataclasses
import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from m3ae.config import to_yaml
from m3ae.data.contents import contents
from m3ae.files import naming, printable, read_text, write_json, write_text
from m3ae.processes import usable_cores
from m3ae.strict_yaml import flat
from m3ae.training.distributed import Processes

log = logging.getLogger("m3ae")


class _ThroughProgressBars(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record).split("\n")
        tqdm.write("\n".join(map(printable, lines)), file=sys.stderr)


def start_logging(first: bool) -> None:
    """Messages to stderr, past the progress bars; from the first process only, errors from all."""
    handler = _ThroughProgressBars()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO if first else logging.ERROR)


class RunLog:
    """The run's log.jsonl, one JSON object a line, and TensorBoard events where installed.

    Lines of steps beyond `step`, left by a run that went on after its last checkpoint, are removed:
    those steps are run again. With a `tracker` (see `start_tracker`) numbers go there too.
    """

    def __init__(self, run: Path, step: int, active: bool, tracker: Any = None) -> None:
        self.path, self.active, self.tracker = run / "log.jsonl", active, tracker
        self.board = None
        if not active:
            return
        if self.path.exists():
            lines = read_text(self.path).splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            steps = [line["step"] for line in _parsed(self.path, whole)]
            kept = [line for line, its in zip(whole, steps, strict=True) if its <= step]
            if len(kept) < len(lines):
                write_text(self.path, "".join(kept))
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a line; numbers go to TensorBoard too, those of a dictionary by its keys.

        Raises ValueError for a number that is not finite: it is no JSON.
        """
        if not self.active:
            return
        line = json.dumps({"kind": kind, "step": step} | values, allow_nan=False)
        with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        numbers = {
            f"{kind}/{key}": value
            for key, value in flat(values).items()
            if isinstance(value, int | float)
        }
        if self.board is not None:
            for key, value in numbers.items():
                self.board.add_scalar(key, value, step)
        if self.tracker is not None and numbers:
            self.tracker.log(numbers, step=step)

    def has(self, kind: str, step: int) -> bool:
        """Whether there is a line of that kind and step."""
        there = self.active and self.path.exists()
        return there and any(line["step"] == step for line in read_log(self.path.parent, kind))

    def close(self) -> None:
        """Flush the TensorBoard events, end the tracker's run."""
        if self.board is not None:
            self.board.close()
        if self.tracker is not None:
            self.tracker.finish()


def start_tracker(name: str | None, config: Any, processes: Processes) -> Any:
    """The package that `train.tracker` names (trackio or wandb), with a run of this one's begun.

    Called by its folder, in project m3ae, and gone on with where that has one. None in all but the
    first process, or where no tracker is named. ValueError where the package is not installed.
    """
    if name is None or not processes.first:
        return None
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"train.tracker: {name} is not installed; pip install {name}")
    tracker = importlib.import_module(name)
    run = config.output.strip("/").replace("/", "-")
    place = {"id": run, "dir": config.output} if name == "wandb" else {}
    values = flat(dataclasses.asdict(config))
    tracker.init(project="m3ae", name=run, config=values, resume="allow", **place)
    return tracker


def read_log(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind of a run's log."""
    path = run / "log.jsonl"
    lines = _parsed(path, read_text(path).splitlines())
    return [entry for entry in lines if entry["kind"] == kind]


def _parsed(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    """Lines of a log; ValueError naming it and the first that is none."""
    found = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            fits = type(entry["step"]) is int and type(entry["kind"]) is str
        except (ValueError, LookupError, TypeError, RecursionError):
            fits = False
        if not fits:
            raise ValueError(f"{path}, line {number}: no line of a log: {printable(line[:80])}")
        found.append(entry)
    return found


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory so far: of the GPU's tensors, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # not on every platform, so only where it is needed

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def record_run(run: Path, config: Any, facts: dict[str, Any], processes: Processes) -> None:
    """A run's config.yaml (resolved) and environment.json, from the first process."""
    if processes.first:
        run.mkdir(parents=True, exist_ok=True)
        write_text(run / "config.yaml", to_yaml(config))
        facts = {"seed": config.seed} | facts | environment(processes)
        facts["contents"] = contents(config)  # so that the data may move before the run goes on
        write_json(run / "environment.json", facts)


def log_facts(facts: dict[str, Any]) -> None:
    """Figures of a run, a line each; whole numbers with thousands separated."""
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else value
        log.info("%-*s  %s", width, name.replace("_", " "), shown)


def environment(processes: Processes) -> dict[str, Any]:
    """Versions, hardware, commit and command: what a number must be quoted with."""
    device = processes.device
    packages = ("torch", "torchvision", "transformers", "numpy", "pillow", "safetensors")
    root = Path(__file__).parents[3]
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    git = subprocess.run(describe, capture_output=True, text=True, check=False)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "command": " ".join(["python", *sys.argv]),
        "commit": git.stdout.strip() or "not a git checkout",
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "device": name,
        "processes": processes.count,
        "threads": torch.get_num_threads(),
        "cpu_cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
