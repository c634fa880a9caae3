"""The state of a run: its average, its checkpoint, whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svdcli.engine.ema import Averages
from svdcli.engine.optim import build_optimizer
from svdcli.engine.state import CHECKPOINT, KEPT, TrainState, keep_checkpoint, saved_run
from svdcli.errors import InputError, MachineError
from svdcli.recipe.recipe import Optim


def make_state(width: int = 3, scaled: bool = False, **optim: Any) -> TrainState:
    torch.manual_seed(0)
    network, settings = nn.Linear(width, 2), Optim(**({"lr": 0.1, "ema_decay": 0.9} | optim))
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    return TrainState(network, Averages(network, settings), build_optimizer(network, settings), scaler)


def advance(state: TrainState, times: int = 1) -> None:
    for _ in range(times):
        state.network(torch.ones(1, state.network.in_features)).square().sum().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.averages.update(state.network, state.step)


def test_the_average_starts_as_the_weights_and_follows() -> None:
    state = make_state(ema_decay=0.75)
    assert torch.equal(state.average.weight, state.network.weight)
    assert not any(p.requires_grad for p in state.average.parameters()) and not state.average.training
    before = state.average.weight.clone()
    advance(state)  # d = (1 + 1) / (10 + 1)
    expected = before * 2 / 11 + state.network.weight.detach() * 9 / 11
    torch.testing.assert_close(state.average.weight, expected)
    before = state.average.weight.clone()
    state.averages.update(state.network, 1000)
    torch.testing.assert_close(state.average.weight, before * 0.75 + state.network.weight.detach() * 0.25)


@pytest.mark.parametrize("optim", [{}, {"state": "host"}, {"state": "8bit"}, {"ema": "power"}], ids=str)
def test_what_is_saved_comes_back_and_goes_on_alike(tmp_path: Path, optim: dict[str, str]) -> None:
    width = 4000 if optim else 3  # eight bits want a parameter of some size
    state = make_state(width, scaled=True, **optim)
    advance(state, 3)
    assert state.scaler is not None
    state.scaler.scale(torch.ones(()))  # its scale is made when it is first used
    state.scaler.update(512.0)
    state.save(tmp_path, "{}")
    again = make_state(width, scaled=True, **optim)
    again.load(tmp_path)
    assert again.step == 3 and saved_run(tmp_path) == (3, "{}")
    assert again.scaler is not None and again.scaler.get_scale() == 512.0
    for both in (state, again):
        advance(both, 2)
    assert torch.equal(again.network.weight, state.network.weight)
    assert torch.equal(again.average.weight, state.average.weight)
    for name, tensor in state.averages.narrow.items():
        assert torch.equal(again.averages.narrow[name], tensor)
    assert bool(state.averages.narrow) == (optim.get("ema") == "power")


def test_checkpoints_from_before_parameters_had_names_are_read(tmp_path: Path) -> None:
    state = make_state()
    advance(state, 2)
    old = {
        "network": state.network.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": 2,
        "recipe": "{}",
    }
    torch.save(old, tmp_path / CHECKPOINT)
    again = make_state()
    again.load(tmp_path)
    for both in (state, again):
        advance(both)
    assert torch.equal(again.network.weight, state.network.weight)
    assert torch.equal(again.average.weight, state.average.weight)


def test_what_was_frozen_begins_without_moments(tmp_path: Path) -> None:
    state = make_state()
    advance(state)
    state.network.bias.requires_grad_(False)
    state.save(tmp_path, "{}")
    again = make_state()
    again.load(tmp_path)
    held = again.optimizer.state
    assert again.network.weight in held and again.network.bias not in held


@pytest.mark.parametrize(
    ("keep", "every", "kept"),
    [(1, None, []), (3, None, [4, 5, 6]), (1, 3, [3, 6]), (2, 4, [4, 5, 6])],
)
def test_checkpoints_are_kept_by_rule(tmp_path: Path, keep: int, every: int | None, kept: list[int]) -> None:
    state = make_state()
    for step in range(1, 7):
        advance(state)
        state.save(tmp_path, "{}")
        keep_checkpoint(tmp_path, step, keep, every)
    found = sorted((tmp_path / KEPT).glob("*"))
    assert [int(path.stem) for path in found] == kept
    assert [torch.load(path)["step"] for path in found] == kept and saved_run(tmp_path) == (6, "{}")
    if kept:
        (tmp_path / CHECKPOINT).write_bytes(b"lost")
        with pytest.raises(InputError, match="damaged") as caught:
            saved_run(tmp_path)
        assert f"Copy {found[-1]} over it" in caught.value.hint


def test_the_recipe_decides_what_the_optimizer_is_told(tmp_path: Path) -> None:
    make_state(weight_decay=0.01).save(tmp_path, "{}")
    again = make_state(weight_decay=0.5)
    again.load(tmp_path)
    assert again.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert again.optimizer.param_groups[0]["params"]


def test_a_write_that_fails_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state()
    state.save(tmp_path, "{}")
    before = (tmp_path / CHECKPOINT).read_bytes()

    def fill_the_disk(_: object, path: Path) -> None:
        path.write_bytes(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    advance(state)
    monkeypatch.setattr(torch, "save", fill_the_disk)
    with pytest.raises(MachineError, match="disk is full"):
        state.save(tmp_path, "{}")
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [CHECKPOINT]


def test_checkpoints_that_cannot_be_used_are_input_errors(tmp_path: Path) -> None:
    assert saved_run(tmp_path) is None
    make_state(width=4).save(tmp_path, "{}")
    with pytest.raises(InputError, match="of another network"):
        make_state().load(tmp_path)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (tmp_path / CHECKPOINT).write_bytes(content)
        for use in (saved_run, make_state().load):
            with pytest.raises(InputError, match="damaged"):
                use(tmp_path)
    torch.save({"something": 1}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="damaged"):
        saved_run(tmp_path)
