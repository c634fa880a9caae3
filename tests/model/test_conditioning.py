"""What the network is told, and in which order: the quirks of the published weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from svdcli.diffusion.denoiser import Denoiser
from svdcli.model.attention import Context
from svdcli.model.conditioning import Conditioning, augment_picture, condition_on_image, fps_id
from svdcli.model.unet import UNet, UNetConfig


def make_conditioning(batch: int = 2) -> Conditioning:
    generator = torch.Generator().manual_seed(0)
    return condition_on_image(
        torch.randn(batch, 24, generator=generator),
        torch.randn(batch, 4, 4, 6, generator=generator),
        fps=torch.tensor([7.0, 25.0, 12.0])[:batch],
        motion_bucket=torch.tensor([127.0, 40.0, 200.0])[:batch],
        augment=torch.tensor([0.02, 0.3, 0.0])[:batch],
    )


class Recorder:
    """A network that keeps what it was given."""

    def __call__(self, x: Tensor, c_noise: Tensor, context: Context, vector_ids: Tensor) -> Tensor:
        self.x, self.c_noise, self.context, self.vector_ids = x, c_noise, context, vector_ids
        return x[:, :, :4]


def test_frame_rates_are_known_by_one_less() -> None:
    assert fps_id(7) == 6
    assert fps_id(6.5) == 5.5
    assert torch.equal(fps_id(torch.tensor([7.0, 30.0])), torch.tensor([6.0, 29.0]))


def test_ids_are_fps_motion_augmentation_of_each_clip() -> None:
    expected = torch.tensor([[6.0, 127.0, 0.02], [24.0, 40.0, 0.3]])
    assert torch.equal(make_conditioning().vector_ids, expected)


def test_ids_are_float32_from_any_numbers() -> None:
    """Half precision does not hold 127 of 255 buckets apart, nor σ = 0.02 well."""
    numbers = (
        torch.tensor([25]),
        torch.tensor([255], dtype=torch.int64),
        torch.tensor([0.02], dtype=torch.float64),
    )
    ids = condition_on_image(torch.zeros(1, 8).bfloat16(), torch.zeros(1, 4, 2, 2), *numbers).vector_ids
    assert ids.dtype == torch.float32
    assert torch.equal(ids, torch.tensor([[24.0, 255.0, 0.02]]))


def test_one_token_and_one_latent_for_all_frames() -> None:
    conditioning = make_conditioning()
    assert conditioning.context.tokens.shape == (2, 1, 24)
    assert conditioning.concat.shape == (2, 1, 4, 4, 6)


@pytest.mark.parametrize("sigma", [700.0, 1.0, 0.002])
def test_the_concat_latent_is_never_scaled(sigma: float) -> None:
    """c_in shrinks the noisy latents and nothing else: behind them each frame finds the latent as it was."""
    conditioning, network = make_conditioning(), Recorder()
    x = sigma * torch.randn(2, 3, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    Denoiser(conditioning.bind(network))(x, torch.full((2,), sigma))
    assert network.x.shape == (2, 3, 8, 4, 6)
    torch.testing.assert_close(network.x[:, :, :4], x / (1 + sigma**2) ** 0.5)
    assert torch.equal(network.x[:, :, 4:], conditioning.concat.expand(-1, 3, -1, -1, -1))
    assert network.context is conditioning.context
    assert torch.equal(network.vector_ids, conditioning.vector_ids)


def test_a_latent_for_each_frame_stays_with_its_frame() -> None:
    concat = torch.randn(1, 3, 4, 4, 6)
    conditioning, network = (
        Conditioning(Context(torch.zeros(1, 1, 24)), concat, torch.zeros(1, 3)),
        Recorder(),
    )
    conditioning.bind(network)(torch.zeros(1, 3, 4, 4, 6), torch.zeros(1))
    assert torch.equal(network.x[:, :, 4:], concat)


def test_the_concat_latent_takes_the_networks_precision() -> None:
    network = Recorder()
    Denoiser(make_conditioning().bind(network), torch.bfloat16)(torch.zeros(2, 3, 4, 4, 6), torch.ones(2))
    assert network.x.dtype == torch.bfloat16
    assert network.vector_ids.dtype == torch.float32


def test_null_drops_the_picture_and_keeps_the_ids() -> None:
    conditioning = make_conditioning()
    null = conditioning.null()
    assert null.context.tokens.shape == conditioning.context.tokens.shape
    assert null.concat.shape == conditioning.concat.shape
    assert torch.count_nonzero(null.context.tokens) == 0 and torch.count_nonzero(null.concat) == 0
    assert torch.equal(null.vector_ids, conditioning.vector_ids)
    assert torch.count_nonzero(conditioning.context.tokens) and torch.count_nonzero(conditioning.concat)


def test_null_is_what_training_shows_when_it_drops_both() -> None:
    """Training multiplies embedding and latent by 0; sampling must ask for the very same thing."""
    embedding, latent, ids = torch.randn(1, 24), torch.randn(1, 4, 4, 6), [torch.ones(1) for _ in range(3)]
    dropped = condition_on_image(embedding * 0.0, latent * 0.0, *ids)
    null = condition_on_image(embedding, latent, *ids).null()
    for a, b in (
        (dropped.context.tokens, null.context.tokens),
        (dropped.concat, null.concat),
        (dropped.vector_ids, null.vector_ids),
    ):
        assert torch.equal(a, b)


def test_null_does_not_inherit_what_was_computed_of_the_picture() -> None:
    conditioning = make_conditioning()
    conditioning.context.vectors[torch.nn.Identity()] = torch.ones(1)
    assert not conditioning.null().context.vectors
    assert not conditioning.stacked(conditioning.null()).context.vectors


def test_stacked_is_both_passes_in_one() -> None:
    torch.manual_seed(0)
    unet = UNet(
        UNetConfig(
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            num_attention_heads=2,
            cross_attention_dim=24,
            layers_per_block=1,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24,
            norm_num_groups=4,
        )
    ).eval()
    conditioning = make_conditioning()
    null = conditioning.null()
    x, c_noise = torch.randn(2, 3, 4, 4, 6), torch.tensor([0.3, -1.0])
    with torch.no_grad():
        both = conditioning.stacked(null).bind(unet)(torch.cat([x, x]), torch.cat([c_noise, c_noise]))
        apart = [c.bind(unet)(x, c_noise) for c in (conditioning, null)]
    torch.testing.assert_close(both, torch.cat(apart), rtol=1e-4, atol=1e-5)
    assert (apart[0] - apart[1]).abs().max() > 1e-2


def test_augmentation_noise_has_each_clips_own_strength() -> None:
    pixels, noise = torch.zeros(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    noisy = augment_picture(pixels + 0.5, noise, torch.tensor([0.0, 0.3]))
    assert torch.equal(noisy[0], pixels[0] + 0.5)
    torch.testing.assert_close(noisy[1], 0.5 + 0.3 * noise[1])
