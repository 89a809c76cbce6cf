"""Cut the link between two hosts that train one run, and print the outcome.

    sudo python tests/faults/cut_link.py

The hosts are network namespaces of this machine, so it needs root and iproute2. Both must end with one line that names
the remedy. With the link mended, both must resume and reach the bits of an undisturbed run (docs/scaling.md).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from pnf_process import train_args

HOSTS = ("pnf-a", "pnf-b")
PATIENCE = 20

PNF = f"""
import sys
from datetime import timedelta
from pnf.training import processes
processes.PATIENCE = timedelta(seconds={PATIENCE})
from pnf.cli import main
sys.exit(main())
"""
"""The command with a shorter timeout than its ten minutes."""

SETTINGS = {"steps": 4000, "accumulate": 2, "log-every": 10, "checkpoint-every": 100}


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


@contextmanager
def hosts() -> Iterator[None]:
    """Make two hosts, 10.77.0.1 and 10.77.0.2, with a link between them."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "pnf0", "netns", HOSTS[0], "type", "veth", "peer", "name", "pnf0", "netns", HOSTS[1])
        for i, host in enumerate(HOSTS):
            ip("-n", host, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "pnf0")
            for device in ("lo", "pnf0"):
                ip("-n", host, "link", "set", device, "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], check=False)


def start(rank: int, args: list[str]) -> subprocess.Popen[str]:
    """Start the command on a host, as its user would."""
    command = ["ip", "netns", "exec", HOSTS[rank], sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--node-rank", str(rank), "--nproc-per-node", "1", "--master-addr", "10.77.0.1"]
    command += ["--master-port", "29555", "--no-python", sys.executable, "-c", PNF, *args]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "pnf0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(args: list[str]) -> None:
    """Run both hosts to the end."""
    for node in [start(rank, args) for rank in range(2)]:
        output, _ = node.communicate(timeout=600)
        assert node.returncode == 0, output


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, hosts():
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        finish(train_args(whole, **SETTINGS))
        nodes = [start(rank, train_args(cut, **SETTINGS)) for rank in range(2)]
        while not (cut / "checkpoints/f1y.ckpt").exists():
            assert all(node.poll() is None for node in nodes), nodes[0].communicate()[0]
            time.sleep(0.1)
        ip("-n", HOSTS[0], "link", "set", "pnf0", "down")
        began = time.perf_counter()
        for rank, node in enumerate(nodes):
            output, _ = node.communicate(timeout=600)
            told = [line for line in output.splitlines() if line.startswith("pnf: ")]
            assert node.returncode != 0, output
            assert len(told) == 1, output
            print(f"host {rank}, {time.perf_counter() - began:.0f} s after the link was cut: {told[0]}")
        ip("-n", HOSTS[0], "link", "set", "pnf0", "up")
        finish(["train", "--resume", str(cut)])
        same = [(run / "model/model.safetensors").read_bytes() for run in (whole, cut)]
        assert same[0] == same[1], "the resumed run differs from an undisturbed one"
        print("resumed: the bits of an undisturbed run")


if __name__ == "__main__":
    main()
