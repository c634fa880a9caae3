"""Killed at any instant, a run loses nothing: it goes on, and ends as one that never was interrupted."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "benchmarks" / "bench_kills.py"


@pytest.mark.slow
def test_killed_at_random_instants_it_ends_as_if_it_never_was(toy: ModuleType, tmp_path: Path) -> None:
    """Three kills here; `python tests/benchmarks/bench_kills.py` does twenty."""
    spec = importlib.util.spec_from_file_location("bench_kills", BENCH)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    kills = bench.killed_run(toy, tmp_path, 30, 3, seed=0)
    steps = [0, *(kill.step for kill in kills)]
    assert len(kills) >= 2 and steps == sorted(steps) and steps[-1] > 0
    assert bench.differences(toy, tmp_path, 30) == []
