"""Large pages, which make a training step on a CPU a little faster and smaller."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SCRIPT = """
import svdcli, torch
held = torch.ones(64 << 20, dtype=torch.uint8)
print(open("/proc/self/smaps").read())
"""


@pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="this system has no large pages"
)
def test_tensors_lie_in_large_pages() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    large = sum(map(int, re.findall(r"AnonHugePages: +(\d+) kB", run.stdout)))
    assert large >= 60 << 10
