"""AdamW with its two moments held small: in eight bits each, or in the host's memory.

Both step as `torch.optim.AdamW` does (Loshchilov & Hutter 2019, algorithm 2) and go on exactly from what they
saved: rounding is random, but a pure function of the parameter's place and its step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256
"""Numbers that share one scale (Dettmers et al. 2021, 2110.02861, take 2048; smaller holds outliers closer)."""
SMALLEST = 4096
"""Parameters with fewer numbers keep float32: norms and biases weigh nothing and matter much."""
EPS = 1e-8
MEAN_POWER, SQUARE_POWER = 2, 4
"""A code c of C stands for (c/C)^power of the block's largest: fine near zero, where most moments lie."""
MEAN_CODES, SQUARE_CODES = 127, 255


class _AdamW(torch.optim.Optimizer):
    """What the two share: the hyperparameters, and the walk over parameters that have a gradient."""

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update. `closure` is of torch's signature and must be absent."""
        assert closure is None
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                place += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                self._update(parameter, state, group["lr"], group["betas"], place)

    def _update(
        self, parameter: Tensor, state: dict[str, Any], lr: float, betas: tuple[float, float], place: int
    ) -> None:
        raise NotImplementedError


def _advance(
    mean: Tensor, square: Tensor, grad: Tensor, betas: tuple[float, float], step: int
) -> tuple[Tensor, float]:
    """Moves both moments on, in place -> direction and how far to go along it, in units of the rate."""
    mean.lerp_(grad, 1 - betas[0])
    square.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    divisor = (square.sqrt() / (1 - betas[1] ** step) ** 0.5).add_(EPS)
    return mean / divisor, 1 / (1 - betas[0] ** step)


def _update_in_float(
    parameter: Tensor, state: dict[str, Any], lr: float, betas: tuple[float, float], device: torch.device
) -> None:
    """With moments in float32 that live on `device`."""
    assert parameter.grad is not None
    if "exp_avg" not in state:
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(parameter, device=device, dtype=torch.float32)
    grad = parameter.grad.to(device, torch.float32)
    direction, length = _advance(state["exp_avg"], state["exp_avg_sq"], grad, betas, state["step"])
    parameter.add_(direction.to(parameter.device), alpha=-lr * length)


class HostAdamW(_AdamW):
    """Moments in float32 in the host's memory, and moved on there: gradients go down, updates come up."""

    def _update(
        self, parameter: Tensor, state: dict[str, Any], lr: float, betas: tuple[float, float], place: int
    ) -> None:
        _update_in_float(parameter, state, lr, betas, torch.device("cpu"))


class AdamW8bit(_AdamW):
    """Moments in eight bits each: a code a number, and one float32 scale a block of 256.

    Codes are rounded at random to one of their two neighbours, such that the mean is right: rounding to the
    nearest would hold the second moment where it is, as a step decays it by less than half a code.
    """

    def _update(
        self, parameter: Tensor, state: dict[str, Any], lr: float, betas: tuple[float, float], place: int
    ) -> None:
        if parameter.numel() < SMALLEST:
            _update_in_float(parameter, state, lr, betas, parameter.device)
            return
        assert parameter.grad is not None
        grad = blocks(parameter.grad)
        if "mean" not in state:
            mean, square = torch.zeros_like(grad), torch.zeros_like(grad)
        else:
            mean = decode(state["mean"], state["mean_scale"], MEAN_POWER, MEAN_CODES)
            square = decode(state["square"], state["square_scale"], SQUARE_POWER, SQUARE_CODES)
        direction, length = _advance(mean, square, grad, betas, state["step"])
        update = direction.flatten()[: parameter.numel()].view(parameter.shape)
        parameter.add_(update, alpha=-lr * length)
        chance = torch.Generator(parameter.device).manual_seed(1_000_003 * state["step"] + place)
        state["mean"], state["mean_scale"] = encode(mean, MEAN_POWER, MEAN_CODES, chance)
        codes, state["square_scale"] = encode(square, SQUARE_POWER, SQUARE_CODES, chance)
        # Never zero: a mean, however small, divided by a second moment of zero would be a step of any size.
        state["square"] = codes.clamp_(min=1)


def blocks(x: Tensor) -> Tensor:
    """x of any shape -> float32 (number of blocks, 256), zeros behind its end."""
    flat = x.float().reshape(-1)
    return F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)


def encode(x: Tensor, power: int, num_codes: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blocks (N, 256) -> codes (N, 256), int8 from −num_codes or uint8 from 0, and float32 scales (N, 1).

    num_codes up to 127 holds signed numbers, one above them numbers from 0 on.
    """
    signed = num_codes <= 127
    scale = x.abs().amax(dim=1, keepdim=True)
    share = (x.abs() / scale.clamp(min=torch.finfo(torch.float32).tiny)).clamp_(max=1.0)
    root = share.sqrt() if power == 2 else share.sqrt().sqrt_()
    below = root.mul_(num_codes).floor_().clamp_(max=num_codes - 1)
    low, high = _raised(below / num_codes, power), _raised((below + 1) / num_codes, power)
    up = torch.rand(x.shape, generator=chance, device=x.device) < (share - low) / (high - low)
    codes = below + up
    return (codes.copysign_(x).to(torch.int8) if signed else codes.to(torch.uint8)), scale


def decode(codes: Tensor, scale: Tensor, power: int, num_codes: int) -> Tensor:
    """The way back: codes (N, 256), scales (N, 1) -> float32 (N, 256)."""
    share = codes.float() / num_codes
    return _raised(share, power).copysign_(share).mul_(scale)


def _raised(x: Tensor, power: int) -> Tensor:
    """x² or x⁴, as products: a general power takes ten times as long."""
    square = x * x
    return square if power == 2 else square.mul_(square)
