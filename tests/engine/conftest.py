"""Tiny footage and tiny recipes, so that a whole training run takes a second."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from svdcli.engine.tasks import clips, make_task
from svdcli.io.video import write_video
from svdcli.recipe.recipe import Recipe, parse_recipe

VAE_TASK = {
    "kind": "vae",
    "block_out_channels": [8, 8, 8],
    "norm_num_groups": 4,
    "latent_channels": 2,
    "crop": 32,
}


@pytest.fixture(scope="session")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of 64×64 pixels, 24 frames at 12 a second, each drifting at its own speed."""
    folder, rng = tmp_path_factory.mktemp("footage"), np.random.default_rng(0)
    for number in range(4):
        tiles = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        frames = np.stack([np.roll(tiles, t * (number + 1), axis=1) for t in range(24)])
        write_video(folder / f"v{number}.mp4", frames, 12.0, {}, "mp4")
    return folder


MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def recipe_in(footage: Path) -> MakeRecipe:
    """A recipe whose run lies in a folder, `{"section.key": value}` changed."""

    def make(
        folder: Path, changes: dict[str, Any] | None = None, task: dict[str, Any] | None = None
    ) -> Recipe:
        tree: dict[str, Any] = {
            "task": copy.deepcopy(task or VAE_TASK),
            "data": {"source": str(footage), "held_out": ["v3*"], "width": 64, "height": 64},
            "optim": {"lr": 1e-3, "warmup_steps": 2},
            "run": {"folder": str(folder), "num_steps": 6, "batch_size": 2},
            "machine": {"accelerator": "cpu"},
        }
        for key, value in (changes or {}).items():
            section, _, name = key.partition(".")
            tree[section][name] = str(value) if isinstance(value, Path) else value
        return parse_recipe(tree, "test")

    return make


@pytest.fixture
def make_recipe(recipe_in: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """`recipe_in` the test's own folder."""
    return lambda *args, **kwargs: recipe_in(tmp_path / "runs" / "a", *args, **kwargs)


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module toy.py beside this file."""
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def trained_vae(recipe_in: MakeRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an autoencoder of 8×8 pixels a latent, exported as it begins."""
    folder = tmp_path_factory.mktemp("vae")
    changes = {"task.block_out_channels": [16, 16, 16, 32], "task.latent_channels": 4}
    task = make_task(recipe_in(folder, changes), torch.device("cpu"), folder / "cache")
    task.export(task.network, folder, "{}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _few_clips() -> Iterator[None]:
    """Motion is calibrated on a few clips, where a real run takes hundreds."""
    patch = pytest.MonkeyPatch()
    patch.setattr(clips, "CALIBRATION_CLIPS", 12)
    yield
    patch.undo()
