"""Training an adapter: what the loop does otherwise where a recipe has a section `adapter`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from svdcli.data.motion import MotionCalibration
from svdcli.engine.tasks import Task
from svdcli.engine.tasks.parts import as_reference
from svdcli.io.files import atomic_folder
from svdcli.model.adapters import changes_of, inject, is_adapted, is_adapter, peft_config, unet_of
from svdcli.model.bundle import open_bundle
from svdcli.model.lora import LoraInfo
from svdcli.model.lora_saving import peft_tensors, save_comfyui, save_diffusers
from svdcli.model.saving import is_standard, part_of
from svdcli.model.weights import ToWrite, write_weights
from svdcli.recipe.recipe import Recipe
from svdcli.recipe.tasks import DiffusionTask

LORA, COMFYUI, PEFT = "lora.safetensors", "lora-comfyui.safetensors", "peft"
PEFT_PREFIX = "base_model.model."


def adapt(network: nn.Module, recipe: Recipe) -> None:
    """Freeze a task's network and put the recipe's adapter into its UNet, where it has one. Raises RecipeError."""
    if recipe.adapter is None:
        return
    assert isinstance(recipe.task, DiffusionTask)
    network.requires_grad_(False)
    inject(unet_of(network), recipe.adapter, recipe.task.has_one_token)


def keep_calibration(task: Task, recipe: Recipe) -> None:
    """Motion buckets mean to an adapter what they mean to the bundle that it adapts, where that says it."""
    start = getattr(recipe.task, "start", None)
    if recipe.adapter is None or start is None or not hasattr(task, "calibration"):
        return
    knots = open_bundle(as_reference(start)).settings.motion_calibration
    if knots:
        task.calibration = MotionCalibration.from_knots(knots)


# ---- what a checkpoint holds ---------------------------------------------------------------------------


def saved_weights(network: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint holds of a network: all of it, or its adapter alone, as the rest is in task.start."""
    state = network.state_dict()
    return {n: t for n, t in state.items() if is_adapter(n)} if is_adapted(network) else state


def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what was saved. Raises RuntimeError where it is of another network or another adapter."""
    if is_adapted(network) and state.keys() != saved_weights(network).keys():
        raise RuntimeError("the adapter has other layers")
    network.load_state_dict(dict(state), strict=not is_adapted(network))


# ---- the result ----------------------------------------------------------------------------------------


def export_adapter(network: nn.Module, folder: Path, recipe: Recipe) -> None:
    """Write the adapter of a network, in half precision, for each of those that load it.

    lora.safetensors for svd and diffusers, peft/ for `PeftModel.from_pretrained`, and lora-comfyui.safetensors, but for
    a DoRA and for networks that ComfyUI cannot hold.
    """
    assert recipe.adapter is not None and isinstance(recipe.task, DiffusionTask)
    unet, half = unet_of(network), torch.float16
    changes, config = changes_of(unet), peft_config(unet)
    info = LoraInfo(
        base=str(recipe.task.start),
        task=recipe.task.kind,
        targets=recipe.adapter.targets,
        trigger=recipe.adapter.trigger,
        recipe=recipe.model_dump_json(),
    )
    save_diffusers(folder / LORA, changes, config, info, half)
    if not recipe.adapter.use_dora and is_standard(part_of(unet)):
        save_comfyui(folder / COMFYUI, changes, unet.config.to_dict(), info, half)
    with atomic_folder(folder / PEFT) as peft:
        tensors = peft_tensors(changes, PEFT_PREFIX)
        entries = {n: ToWrite(tuple(t.shape), half, lambda t=t: t) for n, t in tensors.items()}  # type: ignore[misc]
        write_weights(peft / "adapter_model.safetensors", entries)
        text = json.dumps(config | {"inference_mode": True}, indent=2, sort_keys=True)
        (peft / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
