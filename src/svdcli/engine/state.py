"""What a training run is, between two steps: weights, their average, the optimizer, the step. Saved whole or not at all."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path

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
    step: int = 0

    @classmethod
    def start(cls, network: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
        average = copy.deepcopy(network).eval().requires_grad_(False)
        return cls(network, average, optimizer)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average ← d · average + (1 − d) · weights, with d = min(decay, (1 + n) / (10 + n)) after n steps."""
        decay = min(decay, (1 + self.step) / (10 + self.step))
        averages = [p for p in self.average.parameters()]
        weights = [p.detach() for p in self.network.parameters()]
        torch._foreach_lerp_(averages, weights, 1.0 - decay)

    def save(self, folder: Path, recipe_text: str) -> None:
        """Write the checkpoint; a kill at any instant leaves the last whole one."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "recipe": recipe_text,
        }
        with atomic_path(folder / CHECKPOINT) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    def load(self, folder: Path) -> str:
        """Continue from the checkpoint; returns the recipe that it was made with. Raises InputError where it does not fit."""
        state = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
        except RuntimeError as error:
            raise InputError(
                f"the checkpoint in {folder} is of another network", "Choose another run.folder, or delete that one."
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        return state["recipe"]
