"""The loop, by equality: stopped and resumed, killed and resumed, in two processes; and how it ends when it must."""

from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from svdcli.engine.launch import check_machine
from svdcli.engine.optim import learning_rate
from svdcli.engine.state import CHECKPOINT, TrainState, saved_run
from svdcli.engine.tasks.vae import Autoencoder
from svdcli.engine.train import rewind_log, train
from svdcli.errors import InputError, MachineError, RecipeError, UsageError
from svdcli.recipe.recipe import Machine, Optim, Recipe

Make = Callable[..., Recipe]


def no_report(step: int, figures: dict[str, float]) -> None: ...


def signalled(step: int, number: signal.Signals) -> Callable[[int, dict[str, float]], None]:
    """A report that sends this process a signal behind a step."""
    return lambda done, figures: os.kill(os.getpid(), number) if done == step else None


def tensors(state: TrainState) -> dict[str, Tensor]:
    """All of a state, flat."""
    found = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    found |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    for index, values in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
    return found


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys() and a
    return [name for name in a if not torch.equal(a[name], b[name])]


def metrics(folder: Path) -> list[tuple[int, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return [(int(step), name) for step, name, _ in csv.reader(file)]


@pytest.fixture(scope="module")
def straight(recipe_in: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Six steps without a pause."""
    return tensors(train(recipe_in(tmp_path_factory.mktemp("straight") / "a"), no_report))


# ---- resuming ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_stopped_and_resumed_equals_straight_bit_for_bit(
    make_recipe: Make, straight: dict[str, Tensor], number: signal.Signals
) -> None:
    recipe, said = make_recipe(), []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, signalled(3, number), said.append)
    assert signal.getsignal(number) is before
    assert saved_run(recipe.run.folder)[0] == 3  # type: ignore[index]
    assert "Step 3 of 6 is saved" in said[-1] and "same command" in said[-1]
    assert not (recipe.run.folder / "vae").exists()  # a run that was stopped has no result yet
    steps: list[int] = []
    resumed = train(recipe, lambda step, figures: steps.append(step))
    assert steps == [4, 5, 6] and differing(tensors(resumed), straight) == []
    assert (recipe.run.folder / "vae" / "config.json").exists()
    assert [step for step, name in metrics(recipe.run.folder) if name == "loss"] == [1, 2, 3, 4, 5, 6]


def test_an_adversarial_run_resumes_bit_for_bit(recipe_in: Make, tmp_path: Path) -> None:
    changes = {"task.adversarial_weight": 0.1, "task.num_frames": 2}
    whole = train(recipe_in(tmp_path / "whole", changes), no_report)
    with pytest.raises(KeyboardInterrupt):
        train(recipe_in(tmp_path / "parts", changes), signalled(3, signal.SIGINT))
    parts = train(recipe_in(tmp_path / "parts", changes), no_report)
    assert parts.step == 6 and "discriminator.score.bias" in dict(whole.network.named_parameters())
    assert differing(tensors(parts), tensors(whole)) == []


SCRIPT = """
import os, signal, sys
from pathlib import Path
from svdcli.engine.train import train
from svdcli.recipe.recipe import parse_recipe
import json, torch
torch.set_num_threads(1)
{body}
"""


def write_script(tmp_path: Path, recipe: Recipe, body: str) -> list[str]:
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(exclude_none=True))
    load = f"recipe = parse_recipe(json.loads(Path({str(tmp_path / 'recipe.json')!r}).read_text()), 'test')\n"
    (tmp_path / "script.py").write_text(SCRIPT.format(body=load + body))
    return [sys.executable, str(tmp_path / "script.py")]


@pytest.mark.slow
def test_killed_and_resumed_equals_straight(
    make_recipe: Make, straight: dict[str, Tensor], tmp_path: Path
) -> None:
    recipe = make_recipe({"run.checkpoint_every": 3})
    kill = "train(recipe, lambda step, figures: os.kill(os.getpid(), signal.SIGKILL) if step == 4 else None)"
    done = subprocess.run(write_script(tmp_path, recipe, kill), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert saved_run(recipe.run.folder)[0] == 3  # type: ignore[index]
    assert (4, "loss") in metrics(recipe.run.folder)
    resumed = train(recipe, no_report)
    assert differing(tensors(resumed), straight) == []
    assert [step for step, name in metrics(recipe.run.folder) if name == "loss"] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_is_done_is_not_trained_further(make_recipe: Make) -> None:
    recipe, steps = make_recipe({"run.num_steps": 2}), []
    first = tensors(train(recipe, no_report))
    again = train(recipe, lambda step, figures: steps.append(step))
    assert steps == [] and differing(tensors(again), first) == []


def test_minutes_stop_with_a_checkpoint_and_a_result(make_recipe: Make) -> None:
    recipe = make_recipe({"run.minutes": 1e-9})
    assert train(recipe, no_report).step == 0
    assert saved_run(recipe.run.folder)[0] == 0  # type: ignore[index]
    assert (recipe.run.folder / "vae").is_dir()
    assert train(make_recipe({"run.num_steps": 1}), no_report).step == 1  # the limit was not of the run


def test_a_changed_recipe_is_refused_before_anything_starts(make_recipe: Make) -> None:
    train(make_recipe({"run.num_steps": 1}), no_report)
    with pytest.raises(RecipeError, match="began with data.width = 64"):
        train(make_recipe({"data.width": 72}), no_report)


def test_rows_behind_the_checkpoint_leave_the_log(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("1,loss,0.5\n2,loss,0.4\n3,loss,0.3\n3,lo")
    rewind_log(tmp_path, 2)
    assert metrics(tmp_path) == [(1, "loss"), (2, "loss")]


# ---- two processes -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates_two_batches(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe({"run.num_steps": 2, "machine.devices": 2, "machine.strategy": "ddp"})
    body = (
        "state = train(recipe, lambda step, figures: None)\n"
        f"torch.save(state.network.state_dict(), {str(tmp_path)!r} + f'/rank{{os.environ[\"LOCAL_RANK\"]}}.pt')\n"
        f"torch.save(state.average.state_dict(), {str(tmp_path)!r} + f'/mean{{os.environ[\"LOCAL_RANK\"]}}.pt')\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    done = subprocess.run(
        write_script(tmp_path, recipe, body), capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    for kind in ("rank", "mean"):
        assert differing(*(torch.load(tmp_path / f"{kind}{rank}.pt") for rank in (0, 1))) == []
    one = make_recipe({"run.num_steps": 2, "run.accumulate": 2, "run.folder": tmp_path / "runs" / "one"})
    expected = train(one, no_report).network.state_dict()
    for name, value in torch.load(tmp_path / "rank0.pt").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    straight = make_recipe({"run.num_steps": 2, "run.folder": tmp_path / "runs" / "half"})
    assert differing(dict(train(straight, no_report).network.state_dict()), dict(expected))  # it can fail


# ---- gradients -----------------------------------------------------------------------------------------


def test_gradients_are_clipped(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: object, **kwargs: object) -> object:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])).item())
        return real(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    figures: list[dict[str, float]] = []
    recipe = make_recipe({"run.num_steps": 2, "optim.clip_norm": 0.01})
    train(recipe, lambda step, new: figures.append(new))
    assert all(f["grad_norm"] > 0.1 for f in figures)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_and_harms_nothing(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Autoencoder.loss, []

    def loss(self: Autoencoder, *args: object) -> tuple[Tensor, dict[str, float]]:
        calls.append(1)
        value, figures = real(self, *args)  # type: ignore[arg-type]
        return value * (math.nan if len(calls) == 4 else 1.0), figures

    monkeypatch.setattr(Autoencoder, "loss", loss)
    recipe = make_recipe({"run.checkpoint_every": 2})
    with pytest.raises(MachineError, match="The loss of step 3 is not finite") as caught:
        train(recipe, no_report)
    assert "optim.lr" in caught.value.hint
    state = torch.load(recipe.run.folder / CHECKPOINT)
    assert state["step"] == 2
    assert all(
        v.isfinite().all() for v in [*state["network"].values(), *state["averages"]["module"].values()]
    )
    steps: list[int] = []
    train(recipe, lambda step, figures: steps.append(step))
    assert steps == [3, 4, 5, 6]


def test_learning_rate() -> None:
    optim = Optim(lr=1.0, final_lr=0.2, warmup_steps=4)
    assert [learning_rate(optim, step, 12) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(optim, 8, 12) == pytest.approx(0.6) and learning_rate(optim, 12, 12) == 0.2


# ---- before the launch ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"data.source": "no/such/folder"}, InputError, "is not a folder"),
        ({"data.held_out": []}, InputError, "0 held out"),
        ({"task.start": "no/such/run"}, InputError, "no/such/run holds no vae/config.json"),
        ({"run.folder": "/proc/none/run"}, UsageError, "cannot be written|cannot be made"),
    ],
)
def test_what_a_user_gets_wrong_is_known_before_the_launch(
    make_recipe: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], error: type, said: str
) -> None:
    monkeypatch.setattr("svdcli.engine.train.launch", lambda machine: pytest.fail("launched"))
    with pytest.raises(error, match=said):
        train(make_recipe(changes), no_report)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_absent_devices_are_machine_errors() -> None:
    with pytest.raises(MachineError, match="no CUDA device"):
        check_machine(Machine(accelerator="cuda"))
    check_machine(Machine(devices=2))


def test_too_many_devices_are_a_machine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_machine(Machine(accelerator="cuda", devices=2))
    with pytest.raises(MachineError, match="asks for 3 CUDA devices, and 2 are here"):
        check_machine(Machine(devices=3))
