"""The loss, learned from: of Gaussian data the exact denoiser is known, and a toy network finds it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss, draw_sigma
from svdcli.diffusion.noise import NoiseSource
from svdcli.diffusion.samplers import euler, initial_state
from svdcli.diffusion.schedules import karras

MEAN, STD = 0.6, 0.5
"""of the data: every number of a clip is N(MEAN, STD²)"""
LEVELS = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0)


def exact(x: Tensor, sigma: float) -> Tensor:
    """E[x0 | x] for x = x0 + σ n: the precision-weighted mean of x and the data's mean."""
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


class Toy(nn.Module):
    """F(x_in, c_noise), number by number: x_in and 1 with weights that a small network makes of c_noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x_in: Tensor, c_noise: Tensor) -> Tensor:
        slope, offset = self.net(c_noise[:, None]).view(-1, 2, 1, 1, 1, 1).unbind(1)
        return slope * x_in + offset


def data(num_clips: int, generator: torch.Generator) -> Tensor:
    return MEAN + STD * torch.randn(num_clips, 2, 1, 4, 4, generator=generator)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    """Trained with our loss and our noise levels."""
    torch.manual_seed(0)
    network, generator = Toy(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        x0 = data(256, generator)
        sigma = draw_sigma(generator, len(x0), p_mean=-0.4, p_std=1.6)
        noise = torch.randn(x0.shape, generator=generator)
        loss = denoising_loss(Denoiser(network), x0, sigma, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Denoiser(network.requires_grad_(False))


@pytest.mark.parametrize("level", LEVELS)
def test_the_exact_denoiser_of_gaussian_data_is_learned(denoiser: Denoiser, level: float) -> None:
    """Within 5 % of the size of what the exact one makes."""
    generator = torch.Generator().manual_seed(2)
    x0 = data(2000, generator)
    x = x0 + level * torch.randn(x0.shape, generator=generator)
    got, want = denoiser(x, torch.full((len(x),), level)), exact(x, level)
    error = (got - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < 0.05
    worse = (x - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert level < 0.1 or worse > 0.05  # the bound says something where there is something to denoise


def test_what_it_samples_is_distributed_as_the_data(denoiser: Denoiser) -> None:
    """The loss, the denoiser and the sampler agree on what σ is."""
    noise = NoiseSource([7], (500, 1, 4, 4))
    sigmas = karras(24, 0.02, 40.0)
    samples = euler(denoiser, initial_state(noise, sigmas), sigmas, noise=noise)
    assert samples.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert samples.std().item() == pytest.approx(STD, rel=0.1)
