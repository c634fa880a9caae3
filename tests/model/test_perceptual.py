"""The perceptual distance and the discriminator."""

from __future__ import annotations

import pytest
import torch

from svdcli.errors import MachineError
from svdcli.model import perceptual
from svdcli.model.discriminator import PatchDiscriminator
from svdcli.model.perceptual import PerceptualDistance, load_perceptual

REFERENCE = 0.404936
"""What stlpips-pytorch 0.0.2 itself gives for `waves`, net="alex", variant="shift_tolerant"."""


def waves() -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(96.0), indexing="ij")
    a = torch.stack([torch.sin(x / 7), torch.cos(y / 5), torch.sin((x + y) / 11)])
    b = torch.stack([torch.sin(x / 7 + 0.5), torch.cos(y / 4), torch.sin((x - y) / 11)])
    return a[None], 0.8 * b[None]


@pytest.fixture(scope="module")
def network() -> PerceptualDistance:
    pytest.importorskip(
        "stlpips_pytorch", reason="the weights are not installed: pip install 'svdcli[perceptual]'"
    )
    return load_perceptual()


def test_the_distance_is_that_of_the_package(network: PerceptualDistance) -> None:
    assert network(*waves()).item() == pytest.approx(REFERENCE, rel=1e-4)


def test_more_noise_is_farther_and_blur_is_seen(network: PerceptualDistance) -> None:
    picture = waves()[0]
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    distances = [network(picture, picture + strength * noise).item() for strength in (0.0, 0.1, 0.3, 0.9)]
    assert distances[0] == 0
    assert distances == sorted(distances)


def test_gradients_reach_the_picture_alone(network: PerceptualDistance) -> None:
    a, b = waves()
    network(a.requires_grad_(), b).sum().backward()
    assert a.grad is not None and a.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.parameters())


def test_without_its_weights_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(MachineError, match="stlpips-pytorch") as caught:
        load_perceptual()
    assert "pip install" in caught.value.hint


def test_a_discriminator_learns_to_tell_clips_apart() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator((8, 16))
    real, fake = torch.rand(2, 3, 3, 32, 32), torch.zeros(2, 3, 3, 32, 32)
    assert network(real).shape == (2, 1, 3, 8, 8)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(30):
        loss = (1 - network(real)).relu().mean() + (1 + network(fake)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert network(real).mean() > network(fake).mean() + 1
