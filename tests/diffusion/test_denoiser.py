import pytest
import torch

from svdcli.diffusion.denoiser import LEAD_SIGMA, Denoiser, led_by, precondition


def test_coefficients_are_the_v_form_of_svd():
    sigma = torch.tensor([0.002, 1.0, 700.0])
    c = precondition(sigma)
    s = sigma.double()
    torch.testing.assert_close(c.c_skip.double(), 1 / (s**2 + 1), rtol=1e-7, atol=0)
    torch.testing.assert_close(c.c_out.double(), -s / (s**2 + 1).sqrt(), rtol=1e-7, atol=0)
    torch.testing.assert_close(c.c_in.double(), 1 / (s**2 + 1).sqrt(), rtol=1e-7, atol=0)
    torch.testing.assert_close(c.c_noise, torch.tensor([-1.553652, 0.0, 1.637770]), rtol=1e-6, atol=0)
    assert all(v.dtype == torch.float32 for v in c)


def test_the_input_has_unit_variance_at_every_level():
    generator = torch.Generator().manual_seed(0)
    for sigma in (0.1, 5.0, 700.0):
        x = torch.randn(20000, generator=generator) + sigma * torch.randn(20000, generator=generator)
        assert (precondition(torch.tensor([sigma])).c_in * x).std().item() == pytest.approx(1, abs=0.02)


def test_a_network_that_predicts_v_gives_back_the_clean_latents():
    generator = torch.Generator().manual_seed(0)
    x0, n = (torch.randn(2, 3, 4, 2, 2, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.5, 80.0])
    s = sigma.view(2, 1, 1, 1, 1)
    denoise = Denoiser(lambda x_in, c_noise: (n - s * x0) / (1 + s * s).sqrt())
    torch.testing.assert_close(denoise(x0 + s * n, sigma), x0, rtol=1e-4, atol=1e-4)


def test_network_runs_in_its_own_dtype_and_the_rest_in_float32():
    seen = {}

    def network(x_in, c_noise):
        seen.update(x=x_in.dtype, c=c_noise.dtype)
        return torch.zeros_like(x_in)

    x = torch.full((1, 1, 1, 1, 1), 1.0001)  # not a bfloat16 number
    out = Denoiser(network, torch.bfloat16)(x, torch.tensor([0.002]))
    assert seen == {"x": torch.bfloat16, "c": torch.float32}
    assert out.dtype == torch.float32
    assert out.item() == pytest.approx(1.0001 / (1 + 4e-6), rel=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (2, 3), (2, 4, 1)])
def test_sigma_is_one_value_per_clip_or_frame(shape):
    with pytest.raises(ValueError, match="2 clips"):
        Denoiser(lambda x, c: x)(torch.zeros(2, 4, 1, 1, 1), torch.ones(shape))


def test_a_sigma_a_frame_denoises_each_frame_at_its_own():
    generator = torch.Generator().manual_seed(0)
    x, levels = torch.randn(2, 3, 1, 2, 2, generator=generator), torch.rand(2, 3, generator=generator) + 0.1
    denoise = Denoiser(
        lambda x_in, c_noise: x_in * c_noise.reshape(*c_noise.shape, *(1,) * (5 - c_noise.ndim))
    )
    together = denoise(x, levels)
    for frame in range(3):
        one = denoise(x[:, frame : frame + 1], levels[:, frame])
        torch.testing.assert_close(together[:, frame : frame + 1], one)


def test_leading_frames_are_given_clean_and_told_by_their_noise_level():
    known, seen = torch.randn(2, 1, 2, 2), []

    def denoise(x, sigma):
        seen.append((x, sigma))
        return torch.zeros_like(x)

    x0 = led_by(denoise, known)(torch.ones(2, 4, 1, 2, 2), torch.tensor([5.0, 7.0]))
    (x, sigma), s = seen[0], LEAD_SIGMA
    assert torch.equal(x[:, :2], known.expand(2, -1, -1, -1, -1)) and (x[:, 2:] == 1).all()
    torch.testing.assert_close(sigma, torch.tensor([[s, s, 5.0, 5.0], [s, s, 7.0, 7.0]]))
    assert torch.equal(x0[:, :2], x[:, :2]) and not x0[:, 2:].any()
