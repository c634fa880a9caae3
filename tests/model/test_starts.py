"""The analytic starts of training: what an untrained network already does."""

from __future__ import annotations

import pytest
import torch

from svdcli.diffusion.denoiser import precondition
from svdcli.model.unet import UNet, UNetConfig
from svdcli.model.unet_start import start_still
from svdcli.model.vae import VAE, VAEConfig
from svdcli.model.vae_start import patch_components, start_from_patches


def small_unet(**changes: object) -> UNet:
    shape = {
        "in_channels": 16,
        "out_channels": 8,
        "block_out_channels": (64, 64),
        "down_block_types": ("DownBlockSpatioTemporal", "CrossAttnDownBlockSpatioTemporal"),
        "up_block_types": ("CrossAttnUpBlockSpatioTemporal", "UpBlockSpatioTemporal"),
        "num_attention_heads": (2, 2),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 48,
        "norm_num_groups": 8,
    }
    return UNet(UNetConfig(**(shape | changes)))  # type: ignore[arg-type]


def textured(count: int, height: int = 48, width: int = 64) -> torch.Tensor:
    """Smooth random pictures (N, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, height // 8, width // 8, generator=generator)
    fine = torch.rand(count, 3, height // 2, width // 2, generator=generator)
    up = [torch.nn.functional.interpolate(x, (height, width), mode="bilinear") for x in (coarse, fine)]
    return (0.8 * up[0] + 0.2 * up[1]) * 2 - 1


@pytest.mark.parametrize(("num", "width"), [(8, 64), (16, 96)])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0, 20.0, 700.0])
def test_an_untrained_unet_denoises_towards_the_still_picture(sigma: float, num: int, width: int) -> None:
    torch.manual_seed(0)
    unet = small_unet(in_channels=2 * num, out_channels=num, block_out_channels=(width, 64))
    scaling_factor, variance = 1.3, 0.04
    start_still(unet, scaling_factor)
    picture = torch.randn(1, 1, num, 8, 12)
    x0 = picture + variance**0.5 * torch.randn(1, 3, num, 8, 12)
    noise = torch.randn_like(x0)
    c = precondition(torch.tensor([sigma]))
    noisy = x0 + sigma * noise
    x_in = torch.cat([c.c_in * noisy, (picture / scaling_factor).expand(1, 3, -1, -1, -1)], dim=2)
    with torch.no_grad():
        f = unet(x_in, c.c_noise, torch.randn(1, 1, 16), torch.tensor([[6.0, 127.0, 0.02]]))
    denoised = c.c_skip * noisy + c.c_out * f
    best = variance * sigma**2 / (variance + sigma**2)  # what the posterior mean leaves
    error = (denoised - x0).square().mean().item()
    silent = (c.c_skip * noisy - x0).square().mean().item()
    assert error < best + 0.1
    assert error < 0.7 * silent


def test_a_still_start_needs_its_room() -> None:
    with pytest.raises(ValueError, match="norm group"):
        start_still(small_unet(norm_num_groups=16, out_channels=16, in_channels=32), 1.0)


def test_an_untrained_autoencoder_is_the_principal_components_of_patches() -> None:
    torch.manual_seed(0)
    pixels = textured(6)
    config = VAEConfig(
        down_block_types=("DownEncoderBlock2D",) * 4,
        block_out_channels=(32, 48, 48, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
    )
    vae = VAE(config).eval()
    start_from_patches(vae, pixels)
    components, deviations = patch_components(pixels, 8)
    assert (deviations.diff() <= 1e-6).all()
    with torch.no_grad():
        latents = vae.encode(pixels[:, None])[:, 0]
        decoded = vae.decode(latents[:, None], as_images=True)[:, 0]
    projected = torch.nn.functional.conv2d(pixels, components, stride=8)
    for k in range(4):
        pair = torch.stack([latents[:, k].flatten(), projected[:, k].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.98
    means = torch.nn.functional.avg_pool2d(pixels, 8)
    error = (torch.nn.functional.avg_pool2d(decoded, 8) - means).square().mean()
    assert error < 0.15 * (means - means.mean()).square().mean()


def test_a_patch_start_needs_four_levels() -> None:
    vae = VAE(
        VAEConfig(
            down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32), layers_per_block=1
        )
    )
    with pytest.raises(ValueError, match="four levels"):
        start_from_patches(vae, textured(2))
