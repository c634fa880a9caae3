"""Training an adapter: only it trains, is held and is saved; stopped and resumed equals straight; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from svdcli.engine.adapter import adapt, load_weights, saved_weights
from svdcli.engine.optim import settle_frozen
from svdcli.engine.plan_training import plan_training
from svdcli.engine.recompute import recompute_blocks
from svdcli.engine.state import CHECKPOINT
from svdcli.engine.tasks import make_task
from svdcli.engine.train import train
from svdcli.errors import InputError, RecipeError
from svdcli.model.adapters import is_adapter
from svdcli.model.bundle import open_bundle
from svdcli.model.lora import read_lora
from svdcli.recipe.recipe import Recipe, parse_recipe

Make = Callable[..., Recipe]
SHAPE = {"block_out_channels": [16, 32], "norm_num_groups": 4, "num_attention_heads": [1, 2],
         "attention_levels": [True, False], "context_dim": 16, "num_frames": [3], "fps": [5.0, 9.0]}  # fmt: skip
LORA = {"kind": "lora", "rank": 2, "dropout": 0.1}


def quiet(step: int, figures: dict[str, float]) -> None: ...


@pytest.fixture(scope="module")
def base(recipe_in: Make, trained_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image-to-video bundle of random weights."""
    folder = tmp_path_factory.mktemp("base")
    task = {"kind": "i2v", "vae": str(trained_vae)} | SHAPE
    made = make_task(recipe_in(folder, task=task), torch.device("cpu"), folder / "cache")
    for name, parameter in made.network.named_parameters():  # nothing is silent, as after training
        parameter.data += 0.05 * torch.randn(parameter.shape) if name.startswith("unet.") else 0
    made.export(made.network, folder, "{}")
    return folder / "bundle"


@pytest.fixture
def lora_recipe(recipe_in: Make, base: Path, trained_vae: Path, tmp_path: Path) -> Make:
    """A recipe of an adapter of `base`; sections may be changed."""

    def make(run: str = "a", changes: dict[str, Any] | None = None, **adapter: Any) -> Recipe:
        task = {"kind": "i2v", "vae": str(trained_vae), "start": str(base)} | SHAPE
        tree = recipe_in(tmp_path / run, changes, task).model_dump(mode="json", exclude_unset=True)
        return parse_recipe(tree | {"adapter": LORA | adapter}, "test")

    return make


# ---- what trains, and what is held ---------------------------------------------------------------------


def test_stopped_and_resumed_equals_straight_and_holds_the_adapter_alone(
    lora_recipe: Make, base: Path
) -> None:
    constant = {"optim.schedule": "constant"}
    straight = train(lora_recipe("straight", constant), quiet)
    train(lora_recipe("parts", {"run.num_steps": 3} | constant), quiet)
    resumed = train(lora_recipe("parts", {"run.num_steps": 6} | constant), quiet)
    found, wanted = dict(resumed.network.named_parameters()), dict(straight.network.named_parameters())
    assert all(torch.equal(found[n], p) for n, p in wanted.items())
    means = dict(resumed.average.named_parameters())
    assert all(torch.equal(means[n], p) for n, p in straight.average.named_parameters())

    saved = torch.load(lora_recipe("straight").run.folder / CHECKPOINT, weights_only=True)
    for held in (saved["network"], saved["averages"]["module"], saved["optimizer"]):
        assert held and all(map(is_adapter, held))
    original = open_bundle(base).part("unet", torch.float32).state_dict()
    for name, parameter in straight.network.unet.named_parameters():  # type: ignore[union-attr]
        if not is_adapter(name):
            assert torch.equal(parameter, original[name.replace(".base_layer", "")]), name
    assert any(".lora_B." in n and p.abs().max() > 0 for n, p in wanted.items())


def test_the_result_loads_and_the_bundle_is_not_copied(lora_recipe: Make, base: Path) -> None:
    recipe = lora_recipe("a", {"run.num_steps": 2}, trigger="pan_left", dropout=0.0)
    train(recipe, quiet)
    file = read_lora(recipe.run.folder / "lora.safetensors")
    assert (file.info.base, file.info.task, file.info.trigger) == (str(base), "i2v", "pan_left")
    assert file.ranks == [2] and file.fitted(open_bundle(base))
    assert read_lora(recipe.run.folder / "peft").changes.keys() == file.changes.keys()
    assert not (recipe.run.folder / "bundle").exists()
    assert not (
        recipe.run.folder / "lora-comfyui.safetensors"
    ).exists()  # norms of 4 channels a group: not for others


@pytest.mark.parametrize(
    "changes",
    [{"optim.state": "8bit"}, {"optim.state": "host"}, {"run.accumulate": 2},
     {"machine.precision": "bf16-mixed", "machine.checkpoint": "layers", "machine.offload": True},
     {"optim.ema": "power", "optim.ema_snapshot_every": 1}],
    ids=lambda changes: next(iter(changes.values())),
)  # fmt: skip
def test_every_way_to_train_works(lora_recipe: Make, changes: dict[str, Any]) -> None:
    recipe = lora_recipe("a", {"run.num_steps": 2} | changes, use_dora=True)
    state = train(recipe, quiet)
    assert state.step == 2 and read_lora(recipe.run.folder / "lora.safetensors").kind == "DoRA"
    half = changes.get("machine.precision") is not None
    for name, parameter in state.network.named_parameters():
        matrix = parameter.ndim >= 2 and "position_embedding" not in name
        frozen_half = half and matrix and not is_adapter(name)
        if "temporal_res_block.conv2" not in name:
            assert parameter.dtype == (torch.bfloat16 if frozen_half else torch.float32), name


def test_recomputed_and_offloaded_gradients_are_the_same(lora_recipe: Make) -> None:
    found = []
    for how in (None, {"layers": False}, {"layers": True}, {"layers": True, "offload": True}):
        recipe = lora_recipe("a", dropout=0.0)
        torch.manual_seed(0)
        task = make_task(recipe, torch.device("cpu"), recipe.run.folder.parent / "cache")
        adapt(task.network, recipe)
        settle_frozen(task.network, "32-true")
        if how is not None:
            recompute_blocks(task.network, 1.0, **how)
        loss, _ = task.loss(task.network, task.batch([0]), torch.Generator().manual_seed(0))
        loss.backward()
        found.append({n: p.grad for n, p in task.network.named_parameters() if p.grad is not None})
    assert found[0] and all(map(is_adapter, found[0]))
    for other in found[1:]:
        assert all(torch.equal(other[n], g) for n, g in found[0].items())


# ---- refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"rank": 4}, "began with adapter.rank = 2, not 4"),
        ({"targets": "all"}, 'adapter.targets = "temporal"'),
    ],
)
def test_a_run_goes_on_with_its_own_adapter_only(
    lora_recipe: Make, adapter: dict[str, Any], said: str
) -> None:
    train(lora_recipe("a", {"run.num_steps": 1}, targets="temporal"), quiet)
    with pytest.raises(RecipeError, match=said):
        train(lora_recipe("a", {"run.num_steps": 2}, **adapter), quiet)
    plain = lora_recipe("a", {"run.num_steps": 2}).model_copy(update={"adapter": None})
    with pytest.raises(RecipeError, match="trains an adapter, and this recipe all weights"):
        train(plain, quiet)


def test_a_checkpoint_of_another_adapter_does_not_load(lora_recipe: Make) -> None:
    networks = []
    for targets in ("temporal", "all"):
        recipe = lora_recipe("a", targets=targets)
        task = make_task(recipe, torch.device("cpu"), recipe.run.folder.parent / "cache")
        adapt(task.network, recipe)
        networks.append(task.network)
    with pytest.raises(RuntimeError, match="other layers"):
        load_weights(networks[0], saved_weights(networks[1]))
    with pytest.raises(RuntimeError):
        load_weights(nn.Linear(2, 2), saved_weights(networks[0]))


def test_a_start_that_is_not_here_is_said_first(lora_recipe: Make) -> None:
    recipe = lora_recipe("a", {"task.start": "no/such"})
    with pytest.raises(InputError, match="no/such"):
        train(recipe, quiet)


# ---- on paper ------------------------------------------------------------------------------------------


def test_the_plan_counts_the_adapter(lora_recipe: Make) -> None:
    plan = plan_training(lora_recipe("a"))
    full = plan_training(lora_recipe("a").model_copy(update={"adapter": None}))
    trained = plan.parameters["trained"]
    assert 0 < trained < full.parameters["trained"] / 20
    assert plan.memory["gradients"] == plan.memory["averages"] == 4 * trained
    assert plan.memory["optimizer"] == 8 * trained
    assert plan.parameters["total"] == full.parameters["total"] + trained
