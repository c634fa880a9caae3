"""A task that trains a tiny UNet on noise, for what concerns the loop and not the data. Run as a script: trains
`recipe.json` beside it, in as many processes as it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import svdcli.engine.train as loop
from svdcli.engine.launch import launch
from svdcli.engine.state import TrainState
from svdcli.model.unet import UNet, UNetConfig
from svdcli.recipe.recipe import Recipe, parse_recipe

CONFIG = UNetConfig(
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    block_out_channels=(8, 16),
    num_attention_heads=(1, 2),
    cross_attention_dim=8,
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=24,
    layers_per_block=1,
    norm_num_groups=4,
)


class Toy:
    """See `Task`."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = nn.ModuleDict({"unet": UNet(CONFIG)})["unet"]

    def batch(self, seed: list[int]) -> Tensor:
        generator = torch.Generator().manual_seed(hash(tuple(seed)) % 2**31)
        return torch.randn(1, 3, 8, 8, 8, generator=generator)

    def loss(
        self, network: nn.Module, batch: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        out = network(batch, torch.zeros(1), torch.ones(1, 1, 8), torch.ones(1, 3))
        return (out - batch[:, :, 4:]).square().mean(), {}

    def notes(self) -> list[str]:
        return []

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"held_out_loss": self.loss(network, self.batch([9]), torch.Generator())[0].item()}

    def export(self, network: nn.Module, folder: Path, recipe_text: str) -> None:
        torch.save(network.state_dict(), folder / "exported.pt")


TASK = {
    "kind": "i2v",
    "vae": "none",
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "num_attention_heads": [1, 2],
    "attention_levels": [True, False],
    "context_dim": 8,
    "num_frames": [3],
    "fps": [5.0, 9.0],
}


def toy_recipe(folder: Path, **sections: dict[str, Any]) -> Recipe:
    """Four steps of the toy task, with keys of sections changed."""
    tree: dict[str, dict[str, Any]] = {
        "task": TASK,
        "data": {"source": "none", "width": 64, "height": 64},
        "optim": {"lr": 1e-2, "warmup_steps": 0},
        "run": {"folder": str(folder), "num_steps": 4, "batch_size": 1},
        "machine": {"accelerator": "cpu"},
    }
    for name, values in sections.items():
        tree[name] = tree[name] | values
    return parse_recipe(tree, "toy")


def train_toy(recipe: Recipe) -> TrainState:
    """The loop without what looks at the dataset."""
    recipe.run.folder.mkdir(parents=True, exist_ok=True)
    fabric = launch(recipe.machine)
    with patch.object(loop, "make_task", lambda *_: Toy()):
        task, network, state = loop.prepare(fabric, recipe)
    loop.fit(fabric, task, network, state, recipe, lambda step, figures: None, lambda: False)
    loop.save(fabric, state, recipe)
    average = state.whole_average()
    if fabric.global_rank == 0:
        task.export(average, recipe.run.folder, "")
    fabric.barrier()
    return state


if __name__ == "__main__":
    torch.set_num_threads(1)
    file = Path(sys.argv[1])
    train_toy(parse_recipe(json.loads(file.read_text()), "toy"))
