"""Which parameters train, at which rate, and by which AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from svdcli.engine.adam import AdamW8bit, HostAdamW
from svdcli.errors import RecipeError
from svdcli.model.inflate import is_new
from svdcli.model.inflate import is_temporal as is_temporal_block
from svdcli.model.unet import UNet
from svdcli.recipe.recipe import Optim

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def is_temporal(name: str) -> bool:
    """Whether the parameter of that full name sees several frames, in a UNet or in the decoder."""
    return is_temporal_block(name) or "time_conv_out" in name.split(".")


# ---- what trains ---------------------------------------------------------------------------------------


def freeze(network: nn.Module, which: str) -> None:
    """Take spatial or temporal parameters out of training, beside those that the task froze.

    What an image network has not is temporal here, the layers of the ids too: they have nothing to learn from images.

    Raises RecipeError where none is left.
    """
    for name, parameter in network.named_parameters():
        if which == ("temporal" if is_temporal(name) or is_new(name) else "spatial"):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in network.parameters()):
        raise RecipeError(f"optim.freeze = {which!r} leaves nothing to train.", "Set it to none.")


def settle_frozen(network: nn.Module, precision: str) -> None:
    """Hold the frozen matrices of UNets in the half precision that a mixed one computes in, and compute so always.

    A step rounds these matrices to that precision anyhow, so that its gradients stay the same bit for bit. Vectors
    stay float32, and in full precision all do.
    """
    dtype = HALF.get(precision)
    for unet in network.modules():
        if not isinstance(unet, UNet) or all(p.requires_grad for p in unet.parameters()):
            continue
        for name, parameter in unet.named_parameters():
            # The last convolution over time is multiplied by its gain first, in float32.
            gained = name.endswith("temporal_res_block.conv2.weight")
            if dtype and parameter.ndim >= 2 and not parameter.requires_grad and not gained:
                parameter.data = parameter.data.to(dtype)
        unet.forward = MethodType(_partly_frozen(dtype), unet)  # type: ignore[method-assign]


def _partly_frozen(dtype: torch.dtype | None) -> Callable[..., Tensor]:
    """UNet.forward for parameters of two precisions; also where no autocast surrounds it, as in evaluation."""

    def forward(self: UNet, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled():
            # torch (2.13) on a CPU dies in the gradient of a GroupNorm that trains, in channels-last memory, and
            # whose input needs none. So the input needs one, and the first frozen layers hand it through.
            x = x.detach().requires_grad_()
        with torch.autocast(x.device.type, dtype) if dtype else nullcontext():
            return UNet.forward(self, x, *arguments, **options).to(x.dtype)

    return forward


# ---- how it trains -------------------------------------------------------------------------------------


def build_optimizer(network: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """AdamW over what trains: a group for spatial and one for temporal parameters, each with its `lr_scale`."""
    groups = []
    for temporal, scale in ((False, optim.spatial_lr_scale), (True, optim.temporal_lr_scale)):
        named = network.named_parameters()
        params = [p for name, p in named if p.requires_grad and is_temporal(name) == temporal]
        if params:
            groups.append({"params": params, "lr_scale": scale})
    if optim.state == "full":
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
    small = AdamW8bit if optim.state == "8bit" else HostAdamW
    return small(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate, times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def learning_rate(optim: Optim, step: int, num_steps: int) -> float:
    """Linear warm-up to `lr`, then by the schedule to `final_lr` at the last step."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(1, num_steps - optim.warmup_steps)
    left = 1 - progress if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return optim.final_lr + (optim.lr - optim.final_lr) * left
