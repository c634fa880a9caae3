"""ZeRO: two processes that share out AdamW's state train what one does that accumulates their batches.

Skipped where the package `deepspeed` is not installed, as in CI: it is built on the machine that it runs on.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from svdcli.errors import RecipeError

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason='needs pip install "svdcli[deepspeed]"'
)
OPTIM = {"schedule": "constant", "weight_decay": 0.0, "temporal_lr_scale": 2.0}
"""No decay: weights that a step leaves unused would decay under ZeRO, and elsewhere not."""
LR = 1e-2


def run(toy: ModuleType, folder: Path, **sections: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    recipe = toy.toy_recipe(folder, **({"optim": OPTIM} | sections))
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".json")
    file.write_text(recipe.model_dump_json(exclude_none=True))
    script = [sys.executable, toy.__file__, str(file)]
    return subprocess.run(script, capture_output=True, text=True, timeout=1200, env=dict(os.environ))


def trained(toy: ModuleType, folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """-> the checkpoint of a run to its end."""
    done = run(toy, folder, **sections)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "stdout is data"
    return torch.load(folder / "checkpoint.pt")


def zero(**keys: Any) -> dict[str, Any]:
    return {"devices": 2, "strategy": "deepspeed"} | keys


def assert_alike(some: dict[str, Any], other: dict[str, Any], rtol: float = 1e-3) -> None:
    """Moments tell gradients, which agree; weights are where these brought them, but where a gradient is next to nothing and
    AdamW, which divides it by its own size, makes a step of the rounding."""
    assert some["step"] == other["step"] and some["network"].keys() == other["network"].keys()
    for name, held in other["optimizer"].items():
        for key in ("exp_avg", "exp_avg_sq") if held else ():
            expected = held[key]
            size = expected.abs().max().item()
            torch.testing.assert_close(
                some["optimizer"][name][key], expected, rtol=rtol, atol=rtol * size + 1e-9
            )
    for weights in ((c["network"] for c in (some, other)), (c["averages"]["module"] for c in (some, other))):
        differences = flat_difference(*weights)
        assert differences.mean() < 1e-3 * LR and differences.max() < LR / 2


def flat_difference(some: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
    return torch.cat([(some[name] - other[name]).abs().flatten() for name in some])


def assert_equal(some: Any, other: Any) -> None:
    """Bit for bit."""
    if isinstance(some, dict):
        assert some.keys() == other.keys()
        for key in some:
            assert_equal(some[key], other[key])
    else:
        assert torch.equal(some, other) if isinstance(some, Tensor) else some == other


@needs_deepspeed
@pytest.mark.slow
def test_two_processes_equal_one_go_on_exactly_and_go_on_alone(toy: ModuleType, tmp_path: Path) -> None:
    """Two processes accumulate two batches each, their blocks computed again; one accumulates four."""
    machine = zero(checkpoint=0.5)
    shared = trained(toy, tmp_path / "zero", machine=machine, run={"num_steps": 2, "accumulate": 2})
    one = trained(toy, tmp_path / "one", run={"num_steps": 2, "accumulate": 4})
    assert_alike(shared, one)
    exported = torch.load(tmp_path / "zero" / "exported.pt")
    assert_equal(exported, shared["averages"]["module"])

    straight = trained(toy, tmp_path / "straight", machine=machine, run={"num_steps": 3, "accumulate": 2})
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "checkpoint.pt").write_bytes((tmp_path / "zero" / "checkpoint.pt").read_bytes())
    resumed = trained(toy, tmp_path / "zero", machine=machine, run={"num_steps": 3, "accumulate": 2})
    for part in ("network", "averages", "optimizer", "step"):
        assert_equal(resumed[part], straight[part])
    alone = trained(toy, tmp_path / "alone", run={"num_steps": 3, "accumulate": 4})
    assert_alike(alone, straight)


@needs_deepspeed
@pytest.mark.slow
def test_moments_shared_out_alone_and_moments_on_the_host(toy: ModuleType, tmp_path: Path) -> None:
    """In half precision too, which is autocast's as elsewhere, with weights in full."""
    steps = {"num_steps": 2}
    two = trained(toy, tmp_path / "two", machine=zero(), run=steps)
    one = trained(toy, tmp_path / "one", machine=zero(zero_stage=1), run=steps)
    assert_alike(one, two)
    host = trained(toy, tmp_path / "host", machine=zero(), run=steps, optim=OPTIM | {"state": "host"})
    assert_alike(host, two)
    half = {"precision": "bf16-mixed"}
    mixed = trained(toy, tmp_path / "half", machine=zero(**half), run=steps)
    plain = trained(toy, tmp_path / "plain", machine=half, run=steps | {"accumulate": 2})
    assert all(w.dtype == torch.float32 for w in mixed["network"].values())
    name = "conv_out.weight"
    change = [c["optimizer"][name]["exp_avg"] for c in (mixed, plain, two)]
    torch.testing.assert_close(change[0], change[1], rtol=0.02, atol=0.02 * change[1].abs().max().item())
    assert not torch.equal(change[0], change[2])


@needs_deepspeed
@pytest.mark.slow
def test_a_gradient_that_is_not_finite_stops_the_run(toy: ModuleType, tmp_path: Path) -> None:
    machine = zero(devices=1)
    done = run(toy, tmp_path / "a", machine=machine, run={"num_steps": 4}, optim=OPTIM | {"lr": 1e30})
    assert done.returncode != 0 and "is not finite" in done.stderr


@pytest.mark.parametrize(
    "sections, key",
    [
        ({"optim": {"state": "8bit"}}, "optim.state"),
        ({"machine": {"precision": "16-mixed"}}, "precision"),
        ({"machine": {"compile": True}}, "compile"),
        ({"machine": {"zero_stage": 3}}, "zero_stage"),
        ({"machine": {"strategy": "ddp", "zero_stage": 1}}, "zero_stage"),
    ],
)
def test_what_it_cannot_do_is_a_recipe_error(
    toy: ModuleType, tmp_path: Path, sections: dict[str, dict[str, Any]], key: str
) -> None:
    machine = {"strategy": "deepspeed"} | sections.get("machine", {})
    with pytest.raises(RecipeError, match=key):
        toy.toy_recipe(tmp_path, **(sections | {"machine": machine}))
