"""What a training run is, between two steps: weights, their average, the optimizer, the step.

Saved whole or not at all.
"""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svdcli.errors import InputError
from svdcli.io.files import atomic_path

CHECKPOINT = "checkpoint.pt"


@dataclass
class TrainState:
    """All that a resumed run needs: data order and noise follow from the seed and the step."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    """of the losses, in 16-mixed precision only"""
    step: int = 0

    @classmethod
    def start(
        cls,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None = None,
    ) -> TrainState:
        """At step 0, where the average equals the weights."""
        average = copy.deepcopy(network).eval().requires_grad_(False)
        return cls(network, average, optimizer, scaler)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average ← d average + (1 − d) weights, with d = min(decay, (1 + n) / (10 + n)) after n steps."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        averages = [p.detach() for p in self.average.parameters()]
        weights = [p.detach() for p in self.network.parameters()]
        torch._foreach_lerp_(averages, weights, 1.0 - decay)

    def save(self, folder: Path, recipe_text: str) -> None:
        """Write the checkpoint; a kill or a full disk at any instant leaves the last whole one."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "recipe": recipe_text,
        }
        if self.scaler is not None:
            state["scaler"] = self.scaler.state_dict()
        with atomic_path(folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def load(self, folder: Path) -> None:
        """Continue from the checkpoint. Raises InputError where it is damaged or does not fit."""
        state = _read(folder)
        hyperparameters = [{**group, "params": None} for group in self.optimizer.param_groups]
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"The checkpoint in {folder} is of another network.",
                "Choose another run.folder, or delete that one.",
            ) from error
        for group, wanted in zip(self.optimizer.param_groups, hyperparameters, strict=True):
            group.update({k: v for k, v in wanted.items() if k in ("betas", "weight_decay")})  # the recipe's
        if self.scaler is not None and "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])


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


def _damaged(folder: Path) -> InputError:
    return InputError(
        f"The checkpoint {folder / CHECKPOINT} is damaged, or was not written by svd.",
        "Choose another run.folder, or delete that one to begin anew.",
    )
