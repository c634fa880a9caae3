"""Compiled training: the same weights, under the same names, as plain training."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import svdcli.engine.train as loop
from svdcli.engine import compiling
from svdcli.engine.compiling import compile_blocks, require_compiler
from svdcli.errors import MachineError
from svdcli.model.blocks import ResBlock


def can_compile() -> bool:
    try:
        require_compiler()
    except MachineError:
        return False
    return True


@pytest.fixture
def small_toy(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Of one level, so that there are four kinds of blocks to compile."""
    config = replace(
        toy.CONFIG,
        down_block_types=toy.CONFIG.down_block_types[:1],
        up_block_types=toy.CONFIG.up_block_types[1:],
        block_out_channels=(8,),
        num_attention_heads=(1,),
    )
    monkeypatch.setattr(toy, "CONFIG", config)
    return toy


@pytest.mark.slow
@pytest.mark.parametrize("machine", [{}, {"checkpoint": "layers", "offload": True}])
def test_traced_training_resumes_and_ends_as_plain_training(
    small_toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any]
) -> None:
    """All that torch.compile does but for generating code: every graph is traced, forward and backward, and run."""
    monkeypatch.setattr(loop, "compile_blocks", partial(compile_blocks, backend="aot_eager"))
    monkeypatch.setattr("svdcli.engine.launch.require_compiler", lambda: None)
    torch._dynamo.utils.counters.clear()
    for name, steps in (("plain", [4]), ("compiled", [2, 4])):
        for num_steps in steps:
            recipe = small_toy.toy_recipe(
                tmp_path / name,
                run={"num_steps": num_steps},
                optim={"schedule": "constant"},
                machine=machine | {"compile": name == "compiled"},
            )
            small_toy.train_toy(recipe)
    plain, compiled = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("plain", "compiled"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 4
    assert "offload" in machine or not torch._dynamo.utils.counters["graph_break"]
    for part in ("network", "averages", "optimizer"):
        torch.testing.assert_close(plain[part], compiled[part], rtol=1e-5, atol=1e-6)
    exported = torch.load(tmp_path / "compiled" / "exported.pt")
    assert exported.keys() == torch.load(tmp_path / "plain" / "exported.pt").keys()


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler and Python's headers")
def test_generated_code_trains_as_plain_training_does() -> None:
    """One block, as each takes the compiler many seconds."""
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ModuleDict({"a": ResBlock(8, 8, None, 1e-5, 4)})["a"])
        if compiled:
            compile_blocks(network)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        for _ in range(3):
            network[1](network[0](x), None).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(network.state_dict())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_a_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(MachineError, match="machine.compile needs a C") as caught:
        require_compiler()
    assert "apt install g++" in caught.value.hint
