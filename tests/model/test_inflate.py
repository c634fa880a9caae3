"""Image networks with time added: silent at first, counted, trained apart; and what SD 2.1's v means to our denoiser."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNetSpatioTemporalConditionModel
from torch import Tensor

from svdcli.diffusion.denoiser import Denoiser
from svdcli.model.inflate import grown, inflate, is_new, is_temporal, video_config
from svdcli.model.unet import UNet, UNetConfig

SHAPE = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 32,
    "layers_per_block": 2,
    "use_linear_projection": True,
}
SD21 = SHAPE | {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
}


@pytest.fixture(scope="module")
def reference() -> UNet2DConditionModel:
    """diffusers' image network, tiny, all weights random."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SHAPE).eval().requires_grad_(False)
    for tensor in unet.parameters():
        tensor.add_(torch.randn_like(tensor) * 0.05)
    return unet


@pytest.fixture
def image(reference: UNet2DConditionModel) -> UNet:
    unet = UNet(UNetConfig.from_dict({**reference.config, "_class_name": "UNet2DConditionModel"}))
    unet.load_state_dict(reference.state_dict())
    return unet.eval()


def clip(num_frames: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (2, T, 4, 8, 8), c_noise (2,), 7 tokens of text."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, num_frames, 4, 8, 8, generator=generator)
    return x, torch.tensor([-0.3, 0.9]), torch.randn(2, 7, 32, generator=generator)


def differs(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()


def test_an_image_network_equals_diffusers(image: UNet, reference: UNet2DConditionModel) -> None:
    x, c_noise, context = clip()
    with torch.no_grad():
        ours = image(x, c_noise, context)
        theirs = [reference(x[:, t], c_noise, context).sample for t in range(5)]
    assert differs(ours, torch.stack(theirs, 1)) < 1e-5
    assert set(image.state_dict()) == set(reference.state_dict())
    again = UNet2DConditionModel.from_config(image.config.to_dict()).eval()
    again.load_state_dict(image.state_dict())
    with torch.no_grad():
        assert differs(again(x[:, 0], c_noise, context).sample, theirs[0]) == 0


def test_a_video_begins_as_the_pictures_of_its_frames(image: UNet, reference: UNet2DConditionModel) -> None:
    """Frame by frame, against diffusers; whatever the ids; and not only as images."""
    x, c_noise, context = clip()
    with torch.no_grad():
        video = inflate(image, num_frames=5).eval()
        out = video(x, c_noise, context, torch.tensor([[5.0, 127.0], [23.0, 3.0]]))
        for t in range(5):
            picture = reference(x[:, t], c_noise, context).sample
            assert differs(out[:, t], picture) < 1e-5
            assert torch.equal(out[:, t], video(x[:, t : t + 1], c_noise, context, as_images=True)[:, 0])
        for name, parameter in video.named_parameters():
            if is_new(name):
                parameter.add_(0.1 * torch.randn(parameter.shape))
        moved = video(x, c_noise, context, torch.tensor([[5.0, 127.0], [23.0, 3.0]]))
        assert differs(moved[:, 0], out[:, 0]) > 1e-2
        stills = video(x, c_noise, context, as_images=True)
    assert differs(stills, out) < 1e-6


def test_every_silent_branch_can_learn(image: UNet) -> None:
    """The first step moves every zeroed layer; behind the second, all new parameters have a gradient."""
    video = inflate(image, num_frames=5)
    silent = {n for n, p in video.named_parameters() if is_new(n) and n.endswith("weight") and not p.any()}
    x, c_noise, context = clip()
    ids = torch.tensor([[5.0, 127.0], [23.0, 3.0]])

    def gradients() -> set[str]:
        video.zero_grad(set_to_none=True)
        video(x, c_noise, context, ids).square().mean().backward()
        return {n for n, p in video.named_parameters() if p.grad is not None and p.grad.any()}

    assert silent and silent <= gradients()
    with torch.no_grad():
        for name, parameter in video.named_parameters():
            if name in silent:
                parameter.add_(1e-2 * torch.randn(parameter.shape))
    assert {n for n, _ in video.named_parameters() if is_new(n)} <= gradients()


def test_the_full_size_is_that_of_the_paper() -> None:
    """svd-facts §2.1: 865,910,724 of SD 2.1, 656,076,838 temporal, 1,521,987,562 without the ids' MLP."""
    with torch.device("meta"):
        image = UNet(UNetConfig.from_dict(SD21))
        base = inflate(image, num_frames=14, num_ids=0)
        conditioned = UNet(video_config(image.config, num_frames=25, num_ids=2))

    def count(unet: UNet, temporal: bool | None = None) -> int:
        return sum(p.numel() for n, p in unet.named_parameters() if temporal in (None, is_temporal(n)))

    assert count(image) == count(base, temporal=False) == 865_910_724
    assert count(base, temporal=True) == 656_076_838 and count(base) == 1_521_987_562
    assert count(conditioned) == 1_521_987_562 + 2 * 256 * 1280 + 1280 * 1280 + 2 * 1280
    with torch.device("meta"):
        i2v = grown(conditioned, in_channels=8, num_ids=3)
    assert count(i2v) == 1_524_623_082
    assert {n: p.shape for n, p in i2v.named_parameters()} == {
        n: p.shape for n, p in _published().named_parameters()
    }


def _published() -> UNet:
    with torch.device("meta"):
        return UNet(UNetConfig())


def test_an_inflated_network_is_diffusers_own(image: UNet) -> None:
    """Its state dict loads there; diffusers' ε of 1e-6 where Stability has 1e-5 is the only difference."""
    video = inflate(image, num_frames=5).eval()
    config = {k: v for k, v in video.config.to_dict().items() if k not in ("norm_num_groups", "norm_eps")}
    theirs = UNetSpatioTemporalConditionModel.from_config(config).eval()
    theirs.load_state_dict(video.state_dict())
    x, c_noise, context = clip()
    ids = torch.tensor([[5.0, 127.0], [23.0, 3.0]])
    with torch.no_grad():
        out = theirs(x[:1], c_noise[0], context[:1], ids[:1]).sample
        assert differs(video(x[:1], c_noise[:1], context[:1], ids[:1]), out) < 1e-3


def test_a_network_grows_inputs_that_change_nothing(image: UNet) -> None:
    video = inflate(image, num_frames=5).eval()
    with torch.no_grad():
        video.add_embedding.linear_2.weight.normal_()
    x, c_noise, context = clip()
    ids = torch.tensor([[5.0, 127.0], [23.0, 3.0]])
    large = grown(video, in_channels=8, num_ids=3).eval()
    with torch.no_grad():
        before = video(x, c_noise, context, ids)
        after = large(torch.cat([x, x], 2), c_noise, context, torch.cat([ids, ids[:, :1]], 1))
    assert differs(after, before) < 1e-5
    with pytest.raises(ValueError, match="cannot shrink"):
        grown(large, in_channels=4, num_ids=3)
    with pytest.raises(ValueError, match="temporal layers already"):
        inflate(video, num_frames=5)


def test_our_denoiser_of_sd_2_1_is_its_own_estimate(image: UNet, reference: UNet2DConditionModel) -> None:
    """D with c_noise replaced by the discrete t: x0 of a v-predicting network, α = 1/√(1 + σ²), signs and all."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
    )
    noisy, _, context = clip(1)
    for t in (3, 400, 960):
        alpha2 = scheduler.alphas_cumprod[t]
        sigma = ((1 - alpha2) / alpha2).sqrt().repeat(2)
        assert torch.allclose(alpha2.sqrt(), (1 + sigma[0] ** 2).rsqrt(), rtol=1e-5)
        x = noisy * alpha2.rsqrt()  # our x = x0 + σ n is theirs, α x0 + √(1 − α²) n, over α
        denoise = Denoiser(lambda x_in, _, t=t: image(x_in, torch.full((2,), float(t)), context))
        with torch.no_grad():
            v = reference(noisy[:, 0], t, context).sample
            scheduler.set_timesteps(1000)
            theirs = scheduler.step(v, t, noisy[:, 0]).pred_original_sample
            assert differs(denoise(x, sigma)[:, 0], theirs) < 1e-5


def test_other_image_networks_are_refused() -> None:
    for name, value in (
        ("use_linear_projection", False),
        ("class_embed_type", "timestep"),
        ("act_fn", "gelu"),
    ):
        with pytest.raises(ValueError, match=name):
            UNetConfig.from_dict(SD21 | {name: value})
    with pytest.raises(ValueError, match="AttnDownBlock2D"):
        UNetConfig.from_dict(SD21 | {"down_block_types": ["AttnDownBlock2D"] * 4})


def test_shapes_survive_the_round_trip() -> None:
    image = UNetConfig.from_dict(SD21)
    assert UNetConfig.from_dict(image.to_dict()) == image
    video = video_config(image, 14, 2)
    assert UNetConfig.from_dict(video.to_dict()) == video and "temporal" not in video.to_dict()
    assert "norm_eps" not in UNetConfig().to_dict()
