import math

import pytest
import torch

from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss, draw_sigma, v_target, weight
from svdcli.errors import UsageError


def batch(n=3):
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(n, 2, 4, 3, 3, generator=generator) for _ in range(2))
    return x0, noise


def linear_network(dtype=torch.float32):
    """A network with parameters that sees both its inputs: F = x_in W + b c_noise."""
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(3, 3, generator=generator).to(dtype).requires_grad_()
    b = torch.ones((), dtype=dtype).requires_grad_()
    return (w, b), lambda x_in, c_noise: x_in @ w + b * c_noise.view(-1, 1, 1, 1, 1)


def plain_loss(network, x0, sigma, noise):
    """The formula of the papers, lambda |D - x0|^2, in float64."""
    x0, sigma, noise = x0.double(), sigma.double(), noise.double()
    s = sigma.view(-1, 1, 1, 1, 1)
    x = x0 + s * noise
    f = network(x / (1 + s * s).sqrt(), sigma.log() / 4)
    d = x / (1 + s * s) - s / (1 + s * s).sqrt() * f
    return ((1 + s * s) / (s * s) * (d - x0).square()).flatten(1).mean(1)


def test_value_and_gradient_equal_the_plain_formula_over_the_whole_range_of_sigma():
    x0, noise = batch()
    sigma = torch.tensor([0.002, 1.0, 700.0])
    ours, network = linear_network()
    truth, network64 = linear_network(torch.float64)
    loss = denoising_loss(Denoiser(network), x0, sigma, noise)
    expected = plain_loss(network64, x0, sigma, noise)
    assert loss.shape == (3,)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    got = torch.autograd.grad(loss.sum(), ours)
    want = torch.autograd.grad(expected.sum(), truth)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_the_weight_cancels_c_out_so_the_v_form_has_unit_weight():
    x0, noise = batch()
    sigma = torch.tensor([0.01, 1.0, 300.0])
    offset = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1)
    off = Denoiser(lambda x_in, c_noise: v_target(x0, sigma, noise) + offset)
    torch.testing.assert_close(denoising_loss(off, x0, sigma, noise), torch.tensor([1.0, 4.0, 9.0]))


def test_weight_is_the_closed_form():
    torch.testing.assert_close(
        weight(torch.tensor([0.002, 1.0, 700.0])), torch.tensor([250001.0, 2.0, 1 + 1 / 490000])
    )


def test_each_clip_has_its_own_loss():
    x0, noise = batch()
    _, network = linear_network()
    sigma = torch.tensor([0.1, 1.0, 10.0])
    together = denoising_loss(Denoiser(network), x0, sigma, noise)
    alone = denoising_loss(Denoiser(network), x0[1:2], sigma[1:2], noise[1:2])
    torch.testing.assert_close(together[1:2], alone)


def test_shapes_that_would_broadcast_are_refused():
    x0, noise = batch()
    denoiser = Denoiser(lambda x, c: x)
    with pytest.raises(ValueError, match="noise has shape"):
        denoising_loss(denoiser, x0, torch.ones(3), noise[:1])
    with pytest.raises(ValueError, match="3 clips"):
        denoising_loss(denoiser, x0, torch.ones(1), noise)


def test_sigma_is_log_normal_and_repeats_with_its_generator():
    a = draw_sigma(torch.Generator().manual_seed(3), 20000, 1.0, 1.6)
    b = draw_sigma(torch.Generator().manual_seed(3), 20000, 1.0, 1.6)
    assert a.dtype == torch.float32 and a.shape == (20000,)
    assert torch.equal(a, b)
    assert a.log().mean().item() == pytest.approx(1.0, abs=0.05)
    assert a.log().std().item() == pytest.approx(1.6, abs=0.05)
    fixed = draw_sigma(torch.Generator(), 4, -1.2, 0.0)
    torch.testing.assert_close(fixed, torch.full((4,), math.exp(-1.2)))


@pytest.mark.parametrize(
    ("mean", "std", "name"), [(math.nan, 1, "p_mean"), (0, math.inf, "p_std"), (0, -1, "p_std")]
)
def test_bad_distribution_is_named(mean, std, name):
    with pytest.raises(UsageError, match=name):
        draw_sigma(torch.Generator(), 1, mean, std)


def test_huber_is_square_for_small_errors_and_linear_for_large_ones() -> None:
    x0, noise, sigma = torch.zeros(1, 1, 1, 1, 2), torch.zeros(1, 1, 1, 1, 2), torch.tensor([1.0])
    for error, expected in ((1e-3, 1e-6), (100.0, 2 * 0.3 * (100.0 - 0.3))):
        denoise = Denoiser(lambda x, c_noise, e=error: torch.full_like(x, e))
        loss = denoising_loss(denoise, x0, sigma, noise, huber=0.3)
        assert loss.item() == pytest.approx(expected, rel=1e-3)


def test_leading_frames_are_clean_and_do_not_count():
    x0, noise = batch()
    sigma, leads = torch.tensor([0.5, 2.0, 9.0]), torch.tensor([0, 1, 1])
    seen = []

    def network(x_in, c_noise):
        seen.append((x_in, c_noise))
        return torch.zeros_like(x_in)

    loss = denoising_loss(Denoiser(network), x0, sigma, noise, leads=leads)
    target = v_target(x0, sigma, noise).square().flatten(2).mean(2)
    torch.testing.assert_close(loss, torch.stack([target[0].mean(), target[1, 1], target[2, 1]]))
    x_in, c_noise = seen[0]
    torch.testing.assert_close(x_in[1:, 0], x0[1:, 0], rtol=1e-4, atol=1e-5)
    assert c_noise[1, 0].item() == pytest.approx(math.log(0.002) / 4) and c_noise[0, 0] == c_noise[0, 1]
    none = denoising_loss(Denoiser(network), x0, sigma, noise, leads=torch.zeros(3))
    torch.testing.assert_close(none, denoising_loss(Denoiser(network), x0, sigma, noise))
