"""Freed memory is kept: counted by the kernel, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from genalign.allocator import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(3)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(40):
        blocks = [torch.ones(2**20) for _ in range(4)]  # 4 MiB each
        del blocks
work()
before = faults()
work()
print(faults() - before)
"""


def faults(mode: str) -> int:
    start = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}  # glibc's own start, held: else luck decides
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=False, env=start)
    if done.returncode == 3:
        pytest.skip("this C library has no such setting")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_second_round_of_the_same_blocks_faults_no_page_in() -> None:
    """160 blocks of 1,024 pages: by default most are mapped anew each time; kept, none is."""
    assert faults("kept") < 100 < faults("default")
