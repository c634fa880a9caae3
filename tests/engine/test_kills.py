"""Killed at any instant, a run loses nothing: it goes on, and ends as one that never was interrupted."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from svdcli.engine.state import saved_run


@pytest.mark.slow
def test_killed_at_random_instants_it_ends_as_if_it_never_was(toy: ModuleType, tmp_path: Path) -> None:
    """A checkpoint a step, so that many kills fall into the writing of one."""
    settings = {
        "run": {"num_steps": 12, "checkpoint_every": 1, "keep": 2},
        "optim": {"state": "8bit", "ema": "power", "ema_snapshot_every": 4},
    }
    recipe, rng = toy.toy_recipe(tmp_path / "killed", **settings), random.Random(0)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(exclude_none=True))
    kills, steps = 0, [0]
    while kills < 3:
        process = subprocess.Popen([sys.executable, toy.__file__, str(tmp_path / "recipe.json")])
        before = saved_run(recipe.run.folder)
        while saved_run(recipe.run.folder) == before and process.poll() is None:  # until it trains
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.2))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
        steps.append((saved_run(recipe.run.folder) or (0, ""))[0])  # and it is whole
    assert kills >= 2 and steps == sorted(steps) and steps[-1] > 0
    toy.train_toy(recipe)
    straight = toy.toy_recipe(tmp_path / "straight", **settings)
    toy.train_toy(straight)
    a, b = (torch.load(r.run.folder / "checkpoint.pt") for r in (recipe, straight))
    assert a["step"] == b["step"] == 12
    for part in ("network", "averages", "optimizer"):
        torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
    names = [
        sorted(p.name for p in (r.run.folder / "averages").glob("*.safetensors")) for r in (recipe, straight)
    ]
    assert names[0] == names[1] and len(names[0]) == 6
