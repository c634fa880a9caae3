"""A training run that is killed over and over (kill -9), each time at another instant, beside one that never was.

    python tests/benchmarks/bench_kills.py [--kills N] [--seed N]

A tiny network that writes a checkpoint each step, so that many kills fall into the writing of one. Prints where each fell; ends
with an error unless both runs end with the same weights, averages, moments and snapshots, bit for bit.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from svdcli.engine.state import CHECKPOINT, saved_run

TOY = Path(__file__).parents[1] / "engine" / "toy.py"
LONGEST_WAIT = 0.2
"""seconds after the first new checkpoint within which the kill falls"""


class Kill(NamedTuple):
    """Where one fell."""

    step: int
    """of the checkpoint that is left"""
    writing: bool
    """whether a file was left that was being written"""


def settings(num_steps: int) -> dict[str, dict[str, Any]]:
    """Sections of the recipe: with all that a checkpoint can hold, and files beside it."""
    return {
        "run": {"num_steps": num_steps, "checkpoint_every": 1, "keep": 2},
        "optim": {"state": "8bit", "ema": "power", "ema_snapshot_every": 4},
    }


class Child:
    """A process that begins with all that this one has imported, so that twenty of them take little time."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        assert self.code is not None
        return self.code


def forked(act: Callable[[], object]) -> Child:
    """What a child of this process does; this one must not have computed anything with torch before."""
    if pid := os.fork():
        return Child(pid)
    code = 1
    try:
        act()
        code = 0
    finally:
        os._exit(code)


def killed_run(toy: ModuleType, folder: Path, num_steps: int, kills: int, seed: int) -> list[Kill]:
    """Train in `folder`/killed, killed that often, then to the end. Fewer kills where it ends before."""
    recipe, rng = toy.toy_recipe(folder / "killed", **settings(num_steps)), random.Random(seed)
    fallen: list[Kill] = []
    while len(fallen) < kills:
        before, unfinished = saved_run(recipe.run.folder), hidden(recipe.run.folder)
        child = forked(lambda: toy.train_toy(recipe))
        while saved_run(recipe.run.folder) == before and child.poll() is None:  # until it trains
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, LONGEST_WAIT))
        child.kill()
        if child.wait() == 0:
            return fallen
        step = (saved_run(recipe.run.folder) or (0, ""))[0]  # and it is whole
        fallen.append(Kill(step, bool(hidden(recipe.run.folder) - unfinished)))
        print(f"kill {len(fallen)} after step {step}", file=sys.stderr, flush=True)
    forked(lambda: toy.train_toy(recipe)).wait()
    return fallen


def hidden(folder: Path) -> set[str]:
    """Names of files that were being written."""
    return {path.name for path in folder.rglob(".*")}


def differences(toy: ModuleType, folder: Path, num_steps: int) -> list[str]:
    """Parts in which the killed run ended otherwise than one that is trained straight, in `folder`/straight."""
    toy.train_toy(toy.toy_recipe(folder / "straight", **settings(num_steps)))
    killed, straight = folder / "killed", folder / "straight"
    a, b = (torch.load(run / CHECKPOINT) for run in (killed, straight))
    found = [] if a["step"] == b["step"] == num_steps else ["step"]
    for part in ("network", "averages", "optimizer"):
        try:
            torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
        except AssertionError:
            found.append(part)
    for pattern in ("averages/*.safetensors", "checkpoints/*.pt"):
        names = [sorted(path.name for path in run.glob(pattern)) for run in (killed, straight)]
        if not names[0] or names[0] != names[1]:
            found.append(pattern)
    for path in straight.glob("averages/*.safetensors"):  # their metadata comes in any order
        mine, theirs = load_file(killed / "averages" / path.name), load_file(path)
        if mine.keys() != theirs.keys() or not all(torch.equal(mine[n], t) for n, t in theirs.items()):
            found.append(path.name)
    return found


def load_toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy", TOY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, toy = Path(name), load_toy()
        kills = killed_run(toy, folder, options.steps, options.kills, options.seed)
        wrong = differences(toy, folder, options.steps)
    writing = sum(kill.writing for kill in kills)
    print(
        json.dumps(
            {"kills": len(kills), "while_writing": writing, "steps": [k.step for k in kills], "differ": wrong}
        )
    )
    return int(bool(wrong) or len(kills) < options.kills)


if __name__ == "__main__":
    sys.exit(main())
