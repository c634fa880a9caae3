"""Killed at any instant, a run loses nothing: it goes on, and ends as one that never was interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "benchmarks" / "bench_kills.py"


@pytest.mark.slow
def test_killed_at_random_instants_it_ends_as_if_it_never_was() -> None:
    """Three kills here; `python tests/benchmarks/bench_kills.py` does twenty."""
    command = [sys.executable, str(BENCH), "--kills", "3", "--steps", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["differ"] == [] and found["steps"] == sorted(found["steps"]) and found["steps"][-1] > 0
