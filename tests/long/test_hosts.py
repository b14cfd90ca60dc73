"""torchrun on two hosts: network namespaces joined by a cable (`make test-long`; needs root)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import run_pretrain
from m3ae.training.logs import read_log
from tests.recipe import ROOT

NAMES, ADDRESSES = ("m3ae-a", "m3ae-b"), ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture()
def hosts():
    """Two namespaces that see each other alone."""
    for name in NAMES:
        ip("netns", "add", name)
    try:
        ends = [f"{name}-eth" for name in NAMES]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(NAMES, ends, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            for device in (end, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield ends
    finally:
        for name in NAMES:
            ip("netns", "del", name)


def test_two_hosts(small_run, tmp_path, hosts):
    """A run that looks for its peers on its own host, or for files on the other's disk."""
    assert run_pretrain.main(small_run(name="alone")) == 0
    torchrun, running = str(Path(sys.executable).parent / "torchrun"), []
    for name, end, address in zip(NAMES, hosts, ADDRESSES, strict=True):
        place = tmp_path / name
        place.mkdir()
        join = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"]
        join += ["--rdzv_endpoint", f"{ADDRESSES[0]}:29511", "--rdzv_id", "1"]
        # Names of these hosts resolve to nothing, so they are told which one keeps the store.
        join += ["--local_addr", address, "--rdzv_conf", f"is_host={int(name == NAMES[0])}"]
        run = [str(ROOT / "run_pretrain.py"), *small_run("output=run")]
        run += ["train.batch_per_process=4", "eval.batch=4"]
        command = ["ip", "netns", "exec", name, torchrun, *join, *run]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": end}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        running.append(
            subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
        )
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    one, two = (
        [line["loss"] for line in read_log(run, "train")]
        for run in (tmp_path / "alone", tmp_path / NAMES[0] / "run")
    )
    assert two == pytest.approx(one, rel=1e-5)
    assert not (tmp_path / NAMES[1] / "run" / "checkpoints").exists()
