"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

SCRIPT = """
import platform, resource, torch
from pnf.fast import RealNVP
torch.set_num_threads(1)
if platform.libc_ver()[0] != "glibc":
    print(0)
    raise SystemExit
flow, x = RealNVP((12, 16, 16), hidden=32, blocks=4, num_couplings=7, scales=1), torch.randn(16, 12, 16, 16)
optimizer = torch.optim.Adam(flow.parameters(), fused=True)
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    optimizer.zero_grad()
    (-flow.log_prob(x).mean()).backward()
    optimizer.step()
    found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(found)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults")
def test_activations_find_the_memory_of_the_step_before() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
