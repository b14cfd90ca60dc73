"""Images a second that preparation makes (raw, 288 px) from 800 x 600 JPEG, and its memory.

    python benchmarks/prepare.py                               about 8 minutes on two quiet cores
    python benchmarks/prepare.py --images 200 --rounds 1 --workers 1

`plain`: read, decode and resize with Pillow, nothing kept. `one_process`: the whole preparation
with --workers 0, up to files on disk. Both take at most 768 images, in turn, in the same process
and thread; the best round of each counts. `..._cpu` counts the process's own seconds
on the core, which other programs and the disk do not lengthen.
`processes`: preparation with that many worker processes, their start included, so that it scales
only where a run is much longer than a start; a process gets 3,072 images (a chunk) at a time.
`images_per_cpu_s` counts the seconds of all processes on their cores: what it loses against one
process is work that more processes cause, and not the other programs on the machine.
Generated images: grey (L files) and colour. Memory is each run's own, measured in a process of its
own: the sum of the peaks of it and of all its workers, from /proc (so Linux alone);
`N_tokenizer`: N workers with --tokenizer, where the first process loads transformers. Prints JSON.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from pictures import save_picture
from PIL import Image

from m3ae.corpora import prepare
from m3ae.data.images import resized_size

PX = 288
SINGLE = 768  # images of the runs in one process
CHUNK = 3072  # images that preparation gives to a process at a time
DISTINCT = 64  # files of each kind; a larger corpus names them again
TARGET = 0.95  # of plain Pillow's images a second


def write_images(folder: Path, kind: str) -> list[Path]:
    """Blurred noise with some grain, which compresses to about 150 KB."""
    rng, paths = np.random.default_rng(0), []
    for number in range(DISTINCT):
        path = folder / f"{kind}-{number:03d}.jpg"
        save_picture(path, rng, 1 if kind == "grey" else 3)
        paths.append(path)
    return paths


def clocks() -> np.ndarray:
    """Seconds by the clock and on the core, (2,)."""
    return np.array([time.perf_counter(), time.process_time()])


def plain(paths: list[Path], images: int) -> np.ndarray:
    """Seconds (clock, core) to decode and resize that many images."""
    started = clocks()
    for number in range(images):
        image = Image.open(io.BytesIO(paths[number % len(paths)].read_bytes()))
        image.resize(resized_size(image.size, PX), Image.Resampling.BICUBIC)
    return clocks() - started


def prepared(
    paths: list[Path], images: int, workers: int, out: Path, more: Sequence[str] = ()
) -> np.ndarray:
    """Seconds (clock, core) to prepare a corpus of that many images, which is then deleted."""
    places = ["--raw", str(paths[0].parent), "--out", str(out)]
    options = ["--px", str(PX), "--workers", str(workers), *more]
    args = prepare.corpus_parser(None).parse_args([*places, *options])
    text = "A generated picture of nothing, number {}, without findings."
    items = [
        prepare.Item(f"image-{number}", paths[number % len(paths)], (text.format(number),))
        for number in range(images)
    ]
    quiet = io.StringIO()
    started = clocks()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        report = prepare.prepare({"train": items}, {}, args, source="generated")
    seconds = clocks() - started
    if report["splits"]["train"]["counts"]["images"] != images:
        raise RuntimeError("some generated image was left out")
    shutil.rmtree(out)
    return seconds


def alone(
    pipe: object, paths: list[Path], images: int, workers: int, out: Path, more: Sequence[str]
) -> None:
    """In a process of its own: sends the seconds (clock, all cores) and the peak memory in MiB."""
    peaks, done = {}, threading.Event()
    watch = threading.Thread(target=watch_memory, args=(peaks, done))
    watch.start()
    seconds, own_core = prepared(paths, images, workers, out, more)
    done.set()
    watch.join()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = own_core + children.ru_utime + children.ru_stime
    pipe.send((np.array([seconds, cores]), sum(peaks.values()) / 2**10))


def watch_memory(peaks: dict[str, int], done: threading.Event) -> None:
    """Keep the peak resident KiB of this process and each child, four times a second.

    Not `getrusage`: a child's begins with the memory of the process that started it.
    """
    mine = str(os.getpid())
    while True:
        ended = done.wait(0.25)
        lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
        for process in [mine, *" ".join(lists).split()]:
            with contextlib.suppress(OSError):  # it has just ended
                found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
                if found:
                    peaks[process] = int(found[1])
        if ended:
            return


def prepared_alone(
    paths: list[Path], images: int, workers: int, out: Path, more: Sequence[str] = ()
) -> tuple[np.ndarray, float]:
    """Seconds (clock, all cores) and peak memory in MiB of a preparation in a fresh process."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=alone, args=(far, paths, images, workers, out, more))
    process.start()
    far.close()  # so that a process that dies ends recv
    answer = near.recv()
    process.join()
    return answer


def measure(paths: list[Path], args: argparse.Namespace, out: Path) -> dict[str, object]:
    """The figures of one kind of image."""
    singles: dict[str, list[np.ndarray]] = {"plain": [], "one_process": []}
    parallel: dict[int, list[np.ndarray]] = {workers: [] for workers in args.workers}
    memory: dict[str, float] = {}
    single = min(args.images, SINGLE)
    prepared(paths, 16, 0, out)  # warms up
    plain(paths, len(paths))
    for number in range(args.rounds):
        singles["plain"].append(plain(paths, single))
        singles["one_process"].append(prepared(paths, single, 0, out))
        for workers in args.workers:
            seconds, memory[str(workers)] = prepared_alone(paths, args.images, workers, out)
            parallel[workers].append(seconds)
        print(f"{paths[0].name}: round {number + 1} of {args.rounds}", file=sys.stderr)
    few = min(args.images, 2 * CHUNK * max(args.workers, default=1))  # no more is held at a time
    _, memory["0"] = prepared_alone(paths, few, 0, out)
    if args.workers:
        most, more = max(args.workers), ("--tokenizer", "train:2000")
        _, memory[f"{most}_tokenizer"] = prepared_alone(paths, few, most, out, more)
    rates = {}
    for name, seconds in singles.items():
        rates[name], rates[f"{name}_cpu"] = single / np.min(seconds, axis=0)
    scaled = {
        workers: args.images / np.min(seconds, axis=0) for workers, seconds in parallel.items()
    }
    return {
        "images_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        **{
            f"one_process_over_plain{clock}": round(
                rates[f"one_process{clock}"] / rates[f"plain{clock}"], 3
            )
            for clock in ("", "_cpu")
        },
        "processes": {
            str(workers): {
                "images_per_s": round(rate, 1),
                "over_one_process": round(rate / rates["one_process"], 2),
                "images_per_cpu_s": round(core_rate, 1),
            }
            for workers, (rate, core_rate) in scaled.items()
        },
        "peak_memory_mib": {run: round(memory[run]) for run in sorted(memory)},
        "bytes_a_file": round(sum(path.stat().st_size for path in paths) / len(paths)),
    }


def main(argv: list[str] | None = None) -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, default=6144, help="of each kind (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="*",
        default=[1, 2],
        metavar="N",
        help="numbers of worker processes (default: 1 2)",
    )
    args = parser.parse_args(argv)
    if args.images < 1 or args.rounds < 1 or any(workers < 1 for workers in args.workers):
        parser.error("--images, --rounds and --workers must be 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        kinds = {}
        for kind in ("grey", "colour"):
            (Path(folder) / kind).mkdir()
            paths = write_images(Path(folder) / kind, kind)
            kinds[kind] = measure(paths, args, Path(folder) / "out")
    result = {
        "images": args.images,
        "rounds": args.rounds,
        "target_one_process_over_plain": TARGET,
        "target_peak_memory_mib": 1024,
        **kinds,
        "pillow": PIL.__version__,
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
