"""What a training run is, between two steps: weights, their average, the optimizer, the step.

Saved whole or not at all, and alike under every strategy: a run that began on one device goes on over many.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from svdcli.engine import deepspeed
from svdcli.engine.adam import HostAdamW
from svdcli.engine.adapter import load_weights, saved_weights
from svdcli.engine.ema import Averages
from svdcli.engine.shards import gathered, like, place, whole
from svdcli.errors import InputError, SvdError
from svdcli.io.files import atomic_path

CHECKPOINT = "checkpoint.pt"
KEPT = "checkpoints"
"""folder of those that the rule keeps beside the last one"""


@dataclass
class TrainState:
    """All that a resumed run needs: data order and noise follow from the seed and the step."""

    network: nn.Module
    averages: Averages
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    """of the losses, in 16-mixed precision only"""
    step: int = 0
    plain: nn.Module | None = None
    """where the network is sharded, in the first process: one that is not, in host memory, for what is exported"""

    @property
    def average(self) -> nn.Module:
        """The averaged weights, which are evaluated and exported."""
        return self.averages.module

    @property
    def sharded(self) -> bool:
        """Whether each process holds a share only, so that saving and evaluating needs all of them."""
        return any(isinstance(p, DTensor) for p in self.network.parameters())

    @property
    def shares(self) -> bool:
        """Whether saving needs all processes: `sharded`, or each holds a share of the optimizer's state."""
        return self.sharded or deepspeed.is_zero(self.optimizer)

    def whole_average(self) -> nn.Module:
        """`average`, whole in the first process; collective where the network is sharded."""
        if not self.sharded:
            return self.average
        weights = whole(self.average.state_dict())
        if self.plain is None:
            return self.average
        self.plain.load_state_dict(weights)
        return self.plain

    def save(self, folder: Path, recipe_text: str, write: bool = True) -> None:
        """Write the checkpoint; a kill or a full disk at any instant leaves the last whole one.

        Collective where `shares`: then one process alone is to `write`.
        """
        state = {
            "network": whole(saved_weights(self.network)),
            "averages": self.averages.state_dict(),
            "optimizer": {name: held for name, held in self._moments() if write},
            "step": self.step,
            "recipe": recipe_text,
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        if write:
            with atomic_path(folder / CHECKPOINT) as temporary:
                torch.save(state, temporary)

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint. Raises InputError where it is damaged or does not fit."""
        state = _read(folder)
        try:
            load_weights(self.network, place(state["network"], self.network.state_dict()))
            self.averages.load_state_dict(state.get("averages") or {"module": state["average"], "narrow": {}})
            self._load_moments(state["optimizer"])
            self.step = state["step"]
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"The checkpoint in {folder} is of another network.",
                "Choose another run.folder, or delete that one.",
            ) from error
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def _moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the optimizer holds of each parameter, by its name."""
        zero = deepspeed.is_zero(self.optimizer)
        for name, parameter in self._trained().items():
            held = (
                deepspeed.moments(self.optimizer, parameter)
                if zero
                else self.optimizer.state.get(parameter, {})
            )
            yield name, {k: gathered(v) if isinstance(v, Tensor) else v for k, v in held.items()}

    def _load_moments(self, saved: Mapping[str, Any]) -> None:
        """Parameters that train since, and did not before, begin without moments."""
        named = self._trained()
        if "param_groups" in saved:  # as checkpoints were before they named their parameters
            saved = dict(zip(named, saved["state"].values(), strict=True)) if saved["state"] else {}
        if deepspeed.is_zero(self.optimizer):
            deepspeed.load_moments(self.optimizer, {p: saved.get(name) or {} for name, p in named.items()})
            return
        on_host = isinstance(self.optimizer, HostAdamW)
        for name, parameter in named.items():
            held = saved.get(name) or {}
            self.optimizer.state.pop(parameter, None)
            if held:
                self.optimizer.state[parameter] = {
                    key: _placed(key, value, parameter, on_host) for key, value in held.items()
                }


def _placed(key: str, value: Any, parameter: Tensor, on_host: bool) -> Any:
    """A part of the optimizer's state where the optimizer wants it."""
    if not isinstance(value, Tensor) or key == "step" or on_host:
        return value
    return like(value.to(parameter.device), parameter)


# ---- checkpoints on disk -------------------------------------------------------------------------------


def keep_checkpoint(folder: Path, step: int, keep: int, keep_every: int | None) -> None:
    """Keep the checkpoint that was just written under its step too, and remove those that the rule gives up.

    Kept are the last `keep` (`checkpoint.pt` is the first of them) and all at multiples of `keep_every`. A second
    name costs no space until the next checkpoint takes the first one.
    """
    kept = folder / KEPT
    if keep > 1 or (keep_every and step % keep_every == 0):
        kept.mkdir(exist_ok=True)
        with atomic_path(kept / f"{step:09d}.pt") as temporary:
            try:
                os.link(folder / CHECKPOINT, temporary)
            except OSError:  # a file system without links
                shutil.copyfile(folder / CHECKPOINT, temporary)
    steps = sorted(int(path.stem) for path in kept.glob("[0-9]*.pt"))
    last = [s for s in steps if s <= step][-keep:] if keep > 1 else []
    for old in steps:
        if old <= step and old not in last and not (keep_every and old % keep_every == 0):
            with suppress(OSError):
                (kept / f"{old:09d}.pt").unlink()


def saved_run(folder: Path) -> tuple[int, str] | None:
    """Step and recipe (JSON) of the checkpoint in a run folder, or None where there is none.

    Raises InputError where it is damaged.
    """
    if not (folder / CHECKPOINT).exists():
        return None
    state = _read(folder, mapped=True)
    try:
        return int(state["step"]), str(state["recipe"])
    except KeyError as error:
        raise _damaged(folder) from error


def _read(folder: Path, mapped: bool = False) -> dict[str, Any]:
    try:
        state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True, mmap=mapped)
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise _damaged(folder) from error
    if not isinstance(state, dict):
        raise _damaged(folder)
    return state


def _damaged(folder: Path) -> SvdError:
    kept = sorted((folder / KEPT).glob("[0-9]*.pt"))
    other = f"Copy {kept[-1]} over it, to go on from there" if kept else "Choose another run.folder"
    return InputError(
        f"The checkpoint {folder / CHECKPOINT} is damaged, or was not written by svd.",
        f"{other}, or delete the folder to begin anew.",
    )
