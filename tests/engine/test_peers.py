"""Defects of published trainers that no other test names (their origins in brackets)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from svdcli.engine.tasks import i2v, make_task
from svdcli.engine.tasks.given import Batch
from svdcli.engine.tasks.i2v import ImageToVideo
from svdcli.engine.tasks.parts import load_unet
from svdcli.engine.train import train
from svdcli.model.vae import VAE
from svdcli.recipe.recipe import Recipe

Make = Callable[..., Recipe]
TASK: dict[str, Any] = {
    "kind": "i2v",
    "block_out_channels": [16, 32],
    "norm_num_groups": 8,
    "num_attention_heads": [1, 2],
    "attention_levels": [False, True],
    "context_dim": 16,
    "num_frames": [3],
    "fps": [5.0, 9.0],
}


@pytest.fixture
def recipe(recipe_in: Make, trained_vae: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(changes: dict[str, Any] | None = None) -> Recipe:
        task = TASK | {"vae": str(trained_vae)}
        return recipe_in(tmp_path / "run", {"run.batch_size": 3, "run.num_steps": 1} | (changes or {}), task)

    return make


@pytest.fixture
def task(recipe: Callable[..., Recipe], tmp_path: Path) -> ImageToVideo:
    torch.manual_seed(0)
    made = make_task(recipe(), torch.device("cpu"), tmp_path / "cache")
    assert isinstance(made, ImageToVideo)
    with torch.no_grad():
        for parameter in made.network.unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def one_of(batch: Batch, index: int) -> Batch:
    """A batch of a single clip of it."""
    one = slice(index, index + 1)
    return Batch(
        batch.latents[one],
        batch.picture[one],
        batch.fps[one],
        batch.motion_bucket[one],
        batch.augment[one],
        batch.examples[one],
    )


@torch.no_grad()
def test_a_batch_loses_what_its_clips_lose_one_by_one(
    task: ImageToVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of one clip is taken for all, ids and noise of the condition included (SVD_Xtend's `cond_sigmas[0]`)."""
    batch = task.batch([0, 1, 0, 0])
    draws = {shape: torch.randn(shape) for shape in (batch.picture.shape, batch.latents.shape)}
    sigma, keep = torch.tensor([0.3, 1.0, 4.0]), torch.ones(3, 2)

    def losses(chosen: slice, some: Batch) -> Tensor:
        noise = {tuple(drawn[chosen].shape): drawn[chosen] for drawn in draws.values()}
        with monkeypatch.context() as patch:
            patch.setattr(i2v.torch, "randn", lambda shape, generator=None: noise[tuple(shape)])
            return task.losses(task.network, some, sigma[chosen], keep[chosen], torch.Generator())

    together = losses(slice(0, 3), batch)
    alone = torch.cat([losses(slice(i, i + 1), one_of(batch, i)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    swapped = replace(batch, augment=batch.augment[[0, 0, 0]])
    assert not torch.allclose(losses(slice(0, 3), swapped), together, rtol=1e-3)  # it can fail


def test_all_frames_of_a_clip_have_one_noise_level(
    task: ImageToVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every clip its own (generative-models draws one for each frame of a flattened video)."""
    batch, seen = task.batch([0, 2, 0, 0]), []
    real = i2v.denoising_loss
    monkeypatch.setattr(i2v, "denoising_loss", lambda *a: (seen.append(a[2]), real(*a))[1])
    hook = task.network.unet.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    task.loss(task.network, batch, torch.Generator().manual_seed(0))
    hook.remove()
    sigma, c_noise = seen
    assert sigma.shape == c_noise.shape == (3,) and len(set(sigma.tolist())) == 3
    torch.testing.assert_close(c_noise, 0.25 * sigma.log())


def test_the_autoencoder_works_in_full_precision_in_a_half_precision_run(
    recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SVD_Xtend casts it to half precision, in which published ones overflow (diffusers' `force_upcast`)."""
    seen: list[tuple[torch.dtype, torch.dtype, bool]] = []
    real = VAE.moments

    def moments(vae: VAE, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((pixels.dtype, vae.quant_conv.weight.dtype, torch.is_autocast_enabled("cpu")))
        return real(vae, pixels)

    monkeypatch.setattr(VAE, "moments", moments)
    halves: list[torch.dtype] = []
    monkeypatch.setattr(
        i2v.Continuation,
        "forward",
        lambda self, x, *rest, real=i2v.Continuation.forward: (
            halves.append(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else None,
            real(self, x, *rest),
        )[1],
    )
    train(recipe({"machine.precision": "bf16-mixed"}), lambda step, figures: None)
    assert halves == [torch.bfloat16] and len(seen) > 1  # the network was in half precision
    assert set(seen) == {(torch.float32, torch.float32, False)}


def test_training_goes_on_from_full_precision_where_there_is_one(
    tiny_bundle_path: Path, tmp_path: Path
) -> None:
    """SVD_Xtend begins from `variant="fp16"`, its weights rounded before the first step."""
    bundle = Path(shutil.copytree(tiny_bundle_path, tmp_path / "bundle"))
    whole = bundle / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(whole)
    save_file(
        {n: t.half() for n, t in weights.items()},
        bundle / "unet" / "diffusion_pytorch_model.fp16.safetensors",
    )
    state = load_unet(bundle).state_dict()
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in weights.items())
    assert any(not torch.equal(t, t.half().float()) for t in weights.values())
