"""How processes are set up, and that shares of a model in two processes train as the whole in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

from svdcli.engine.launch import check_machine, is_first, processes, strategy
from svdcli.errors import MachineError, RecipeError
from svdcli.recipe.recipe import Machine


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "TORCHELASTIC_RUN_ID",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "RANK",
        "LOCAL_RANK",
        "SLURM_PROCID",
    ):
        monkeypatch.delenv(name, raising=False)


def test_strategies() -> None:
    assert strategy(Machine()) == "auto"
    assert isinstance(strategy(Machine(devices=2)), DDPStrategy)
    assert isinstance(strategy(Machine(nodes=2)), DDPStrategy)
    assert isinstance(strategy(Machine(strategy="ddp")), DDPStrategy)
    assert isinstance(strategy(Machine(strategy="fsdp", devices=8, nodes=48)), ModelParallelStrategy)


def test_torchrun_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes(Machine(devices=3, nodes=2)) == (3, 2) and is_first()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert processes(Machine()) == (8, 2) and not is_first()
    assert isinstance(strategy(Machine()), DDPStrategy)


def test_deepspeed_where_it_is_absent_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MachineError, match="not installed") as caught:
        check_machine(Machine(strategy="deepspeed"))
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
@pytest.mark.parametrize(
    "sections",
    [
        {"optim": {"state": "8bit"}},
        {"machine": {"precision": "16-mixed"}},
        {"task": {"kind": "t2v", "image_share": 0.5}},
    ],
)
def test_what_sharding_cannot_do_is_a_recipe_error(
    toy: ModuleType, tmp_path: Path, sections: dict[str, dict[str, Any]], strategy: str
) -> None:
    machine = {"strategy": strategy} | sections.get("machine", {})
    with pytest.raises(RecipeError, match="strategy"):
        toy.toy_recipe(tmp_path, **(sections | {"machine": machine}))


@pytest.mark.slow
def test_two_processes_with_a_share_each_equal_one_that_accumulates_two_batches(
    toy: ModuleType, tmp_path: Path
) -> None:
    """Blocks are recomputed too; half way the run is stopped, and resumed by one process alone."""
    machine = {"devices": 2, "strategy": "fsdp", "checkpoint": 0.5}
    recipe = toy.toy_recipe(
        tmp_path / "shares", machine=machine, run={"num_steps": 2}, optim={"schedule": "constant"}
    )
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(exclude_none=True))
    script = [sys.executable, toy.__file__, str(tmp_path / "recipe.json")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=500, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    one = toy.toy_recipe(
        tmp_path / "one", run={"num_steps": 2, "accumulate": 2}, optim={"schedule": "constant"}
    )
    toy.train_toy(one)
    shares, whole = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("shares", "one"))
    assert shares["step"] == whole["step"] == 2 and shares["network"].keys() == whole["network"].keys()
    for name, value in whole["network"].items():
        torch.testing.assert_close(shares["network"][name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            shares["averages"]["module"][name], whole["averages"]["module"][name], rtol=1e-4, atol=1e-5
        )
    exported = torch.load(tmp_path / "shares" / "exported.pt")
    assert all(torch.equal(exported[n], shares["averages"]["module"][n]) for n in exported)
    settings = {"run": {"num_steps": 3, "accumulate": 2}, "optim": {"schedule": "constant"}}
    resumed, straight = (
        toy.train_toy(toy.toy_recipe(tmp_path / name, **settings)) for name in ("shares", "one")
    )
    for a, b in zip(resumed.network.parameters(), straight.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
