"""Samplers: from noise at sigmas[0] down to a clean sample, knowing only a `Denoise`.

Every sampler has one signature, `(denoise, x, sigmas, *, noise, on_step, ...) -> x0`:
x (B, T, C, h, w) is the state at sigmas[0] (see `initial_state`); sigmas (n + 1,) descend and end in 0;
`noise` is the batch's NoiseSource, of which a stochastic sampler draws the "step" stream from its beginning,
so pass the same source as for x; `on_step` is called after each of the n steps. The state is float32 whatever
the network computes in. Raises UsageError for an option out of range, ValueError for sigmas or noise that
do not fit.

All of them take the step of the probability-flow ODE dx/dsigma = (x - D) / sigma (EDM eq. 1 and 3) as
x_next = D + (sigma_next / sigma) (x - D): the same Euler step, and exactly D where sigma_next = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from svdcli.diffusion.denoiser import Denoise
from svdcli.diffusion.noise import NoiseSource
from svdcli.errors import UsageError


@dataclass(frozen=True)
class StepInfo:
    """What a caller sees after a step, for progress, previews and tests. Only read its tensors."""

    index: int
    """The step just done, 0 to total - 1."""
    total: int
    sigma: float
    """The noise level that the step started from (before churn)."""
    x0: Tensor
    """The newest denoised estimate (B, T, C, h, w)."""
    x: Tensor
    """The state after the step (B, T, C, h, w)."""


OnStep = Callable[[StepInfo], None] | None


def initial_state(noise: NoiseSource, sigmas: Tensor, temperature: float = 1.0) -> Tensor:
    """Where sampling starts: n sqrt(1 + sigma_max^2) times the temperature, (B, T, C, h, w) float32 on the CPU.

    The spread of data of variance 1 plus noise, as SVD and diffusers do, where EDM alg. 1 has n sigma_max. With less noise than
    the network is told of, it takes away more than there is: samples vary less and come nearer to their mean.
    """
    return noise.stream("latent").draw() * (temperature * math.sqrt(1 + float(sigmas[0]) ** 2))


def euler(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """First-order steps, the sampler of SVD: EDM alg. 2 without its correction, n evaluations.

    Deterministic while s_churn = 0; the churn options are those of `heun`.
    """
    churn = _Churn(s_churn, s_tmin, s_tmax, s_noise, num_steps=len(sigmas) - 1)
    x, levels, source = _begin(x, sigmas, noise)
    for i, (s, s_next) in enumerate(levels):
        x, s_hat = churn.raise_noise(x, s, source)
        x0 = denoise(x, _full(x, s_hat))
        x = _move(x, x0, s_hat, s_next)
        _tell(on_step, i, levels, x0, x)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Second-order steps, EDM alg. 1 (s_churn = 0) and alg. 2: 2n - 1 evaluations.

    With churn, a step at sigma in [s_tmin, s_tmax] first adds noise of strength s_noise to reach
    sigma_hat = (1 + gamma) sigma, gamma = min(s_churn / n, sqrt(2) - 1).
    """
    churn = _Churn(s_churn, s_tmin, s_tmax, s_noise, num_steps=len(sigmas) - 1)
    x, levels, source = _begin(x, sigmas, noise)
    for i, (s, s_next) in enumerate(levels):
        x, s_hat = churn.raise_noise(x, s, source)
        x0 = denoise(x, _full(x, s_hat))
        x_next = _move(x, x0, s_hat, s_next)
        if s_next > 0:
            slope = (x - x0) / s_hat
            x0 = denoise(x_next, _full(x, s_next))
            slope_next = (x_next - x0) / s_next
            x_next = x + (s_next - s_hat) * 0.5 * (slope + slope_next)
        x = x_next
        _tell(on_step, i, levels, x0, x)
    return x


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseSource,
    on_step: OnStep = None,
    eta: float = 1.0,
) -> Tensor:
    """Euler to sigma_down, then fresh noise sigma_up n back to sigma_next: n evaluations, stochastic.

    sigma_up = eta sigma_next sqrt(1 - sigma_next^2 / sigma^2), at most sigma_next, and
    sigma_down^2 + sigma_up^2 = sigma_next^2 (DDPM's posterior at eta = 1, Euler at 0; DDIM eq. 16, Song et
    al. 2020, arXiv 2010.02502).
    """
    _check_strength("eta", eta)
    x, levels, source = _begin(x, sigmas, noise)
    for i, (s, s_next) in enumerate(levels):
        x0 = denoise(x, _full(x, s))
        s_up = min(s_next, eta * s_next * math.sqrt(1 - (s_next / s) ** 2))
        s_down = math.sqrt(s_next**2 - s_up**2)
        x = _move(x, x0, s, s_down)
        if s_up > 0:
            x = x + s_up * _draw(source, x)
        _tell(on_step, i, levels, x0, x)
    return x


def dpmpp_2m(
    denoise: Denoise, x: Tensor, sigmas: Tensor, *, noise: NoiseSource, on_step: OnStep = None
) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095, alg. 2): second order with n evaluations.

    With t = -ln sigma and h the step in t, x_next = e^-h x + (1 - e^-h) D', D' = D + (D - D_before) / (2 r),
    r = h_before / h. As e^-h = sigma_next / sigma, this is the Euler step towards the extrapolated D'. The
    first step and the one to 0 are plain Euler. `noise` is not drawn from.
    """
    x, levels, _ = _begin(x, sigmas, noise)
    x0_before, h_before = None, 0.0
    for i, (s, s_next) in enumerate(levels):
        x0 = denoise(x, _full(x, s))
        aim = x0
        h = math.log(s / s_next) if s_next > 0 else math.inf
        if x0_before is not None and s_next > 0:
            aim = x0 + (x0 - x0_before) * (h / (2 * h_before))
        x = _move(x, aim, s, s_next)
        x0_before, h_before = x0, h
        _tell(on_step, i, levels, x0, x)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m": dpmpp_2m,
}


def num_evaluations(name: str, num_steps: int) -> int:
    """Calls of `denoise` that a sampler makes for num_steps. Raises UsageError for an unknown name."""
    if name not in SAMPLERS:
        raise UsageError(f"sampler {name!r} is unknown.", f"Choose {', '.join(SAMPLERS)}.")
    return 2 * num_steps - 1 if name == "heun" else num_steps


class _Churn:
    """The noise injection of EDM alg. 2, lines 4 to 6."""

    def __init__(self, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float, num_steps: int) -> None:
        for name, value in (("s_churn", s_churn), ("s_tmin", s_tmin), ("s_noise", s_noise)):
            _check_strength(name, value)
        if not s_tmax >= s_tmin:
            raise UsageError(f"s_tmax is {s_tmax}, below s_tmin, {s_tmin}.", "EDM uses 0.05 to 50.")
        self.gamma = min(s_churn / num_steps, math.sqrt(2) - 1)
        self.s_tmin, self.s_tmax, self.s_noise = s_tmin, s_tmax, s_noise

    def raise_noise(self, x: Tensor, sigma: float, source: NoiseSource) -> tuple[Tensor, float]:
        """x at sigma -> x_hat at sigma_hat."""
        if self.gamma == 0 or not self.s_tmin <= sigma <= self.s_tmax:
            return x, sigma
        sigma_hat = sigma * (1 + self.gamma)
        added = math.sqrt(sigma_hat**2 - sigma**2) * self.s_noise
        return x + added * _draw(source, x), sigma_hat


def _check_strength(name: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise UsageError(f"{name} is {value}, but must be 0 or more.", f"Leave {name} out for its default.")


def _begin(
    x: Tensor, sigmas: Tensor, noise: NoiseSource
) -> tuple[Tensor, list[tuple[float, float]], NoiseSource]:
    """The float32 state, the (sigma, sigma_next) of every step, and the stream of step noise."""
    if len(sigmas) < 2 or float(sigmas[-1]) != 0:
        raise ValueError("sigmas must hold at least one level and end in 0")
    values = sigmas.tolist()
    return x.float(), list(zip(values, values[1:], strict=False)), noise.stream("step")


def _full(x: Tensor, sigma: float) -> Tensor:
    return torch.full(x.shape[:1], sigma, dtype=torch.float32, device=x.device)


def _move(x: Tensor, x0: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The Euler step of the ODE from sigma to sigma_next, towards x0."""
    x0 = x0.float()
    if sigma_next < sigma / 2:
        return x0 + (x - x0) * (sigma_next / sigma)
    # The same for short steps, whose 1 - sigma_next / sigma float32 would round.
    return x + (x0 - x) * ((sigma - sigma_next) / sigma)


def _draw(source: NoiseSource, x: Tensor) -> Tensor:
    eps = source.draw()
    if eps.shape != x.shape:
        raise ValueError(f"noise has shape {tuple(eps.shape)}, the state {tuple(x.shape)}")
    return eps.to(x.device)


def _tell(on_step: OnStep, index: int, levels: list[tuple[float, float]], x0: Tensor, x: Tensor) -> None:
    if on_step is not None:
        on_step(StepInfo(index, len(levels), levels[index][0], x0, x))
