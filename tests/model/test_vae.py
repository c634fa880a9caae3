"""The autoencoder against diffusers on random weights, and the promises that diffusers does not make."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdcli.model.blocks import TemporalResBlock
from svdcli.model.vae import VAE, VAEConfig

SVD_NUM_PARAMETERS = 97_742_847

TINY = VAEConfig(
    block_out_channels=(32, 64),
    down_block_types=("DownEncoderBlock2D",) * 2,
    layers_per_block=2,
    latent_channels=4,
)
SHALLOW = VAEConfig(
    block_out_channels=(32, 32, 64),
    down_block_types=("DownEncoderBlock2D",) * 3,
    layers_per_block=1,
    latent_channels=8,
)


def make_reference(config: VAEConfig) -> nn.Module:
    """The same autoencoder of diffusers, which knows no other number of groups than 32."""
    from diffusers import AutoencoderKLTemporalDecoder

    values = {k: v for k, v in config.to_dict().items() if k not in ("_class_name", "norm_num_groups")}
    return AutoencoderKLTemporalDecoder(**values).eval()


@torch.no_grad()
def redraw(module: nn.Module, seed: int = 0) -> None:
    """Random weights that keep the signal's scale: nothing is zero or one, mix factors included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


def make_pair(config: VAEConfig) -> tuple[VAE, nn.Module]:
    vae, reference = VAE(config).eval(), make_reference(config)
    redraw(vae)
    reference.load_state_dict(vae.state_dict())
    return vae, reference


@pytest.fixture(scope="module")
def pair() -> tuple[VAE, nn.Module]:
    """Ours and diffusers', of equal random weights."""
    return make_pair(TINY)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def encode_with(reference: nn.Module, pixels: Tensor) -> Any:
    return reference.encode(pixels.flatten(0, 1)).latent_dist


def decode_with(reference: nn.Module, latents: Tensor) -> Tensor:
    frames = reference.decode(latents.flatten(0, 1), num_frames=latents.shape[1]).sample
    return frames.unflatten(0, latents.shape[:2])


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


# The published weights fit.


def test_the_full_size_has_the_published_parameters() -> None:
    with torch.device("meta"):
        vae, reference = VAE(VAEConfig()), make_reference(VAEConfig())
    assert sum(p.numel() for p in vae.parameters()) == SVD_NUM_PARAMETERS
    ours = {name: tuple(value.shape) for name, value in vae.state_dict().items()}
    assert ours == {name: tuple(value.shape) for name, value in reference.state_dict().items()}


def test_config_survives_a_file() -> None:
    stored = json.loads(
        json.dumps(SHALLOW.to_dict() | {"_diffusers_version": "0.24.0.dev0", "act_fn": "silu"})
    )
    assert VAEConfig.from_dict(stored) == SHALLOW
    assert (VAEConfig().downscale, TINY.downscale, SHALLOW.downscale) == (8, 2, 4)


# The same numbers as diffusers.


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (18, 10), (9, 13)])
def test_encoding_agrees_with_diffusers(pair: tuple[VAE, nn.Module], size: tuple[int, int]) -> None:
    vae, reference = pair
    pixels = draw(2, 3, 3, *size).clamp(-1, 1)
    with torch.no_grad():
        posterior = encode_with(reference, pixels)
        mean, log_var = vae.moments(pixels)
        assert torch.equal(vae.encode(pixels), mean)
    assert relative_error(mean.flatten(0, 1), posterior.mode()) <= 1e-5
    assert relative_error(log_var.flatten(0, 1), posterior.logvar) <= 1e-5


@pytest.mark.parametrize(
    ("batch", "frames", "h", "w"), [(1, 14, 6, 8), (1, 25, 4, 4), (2, 3, 7, 5), (1, 1, 8, 6), (3, 1, 4, 4)]
)
def test_decoding_agrees_with_diffusers(
    pair: tuple[VAE, nn.Module], batch: int, frames: int, h: int, w: int
) -> None:
    vae, reference = pair
    latents = draw(batch, frames, 4, h, w)
    with torch.no_grad():
        assert relative_error(vae.decode(latents), decode_with(reference, latents)) <= 1e-5


def test_agrees_with_diffusers_at_another_shape() -> None:
    vae, reference = make_pair(SHALLOW)
    pixels, latents = draw(1, 2, 3, 16, 12), draw(1, 3, 8, 3, 4)
    with torch.no_grad():
        assert relative_error(vae.encode(pixels).flatten(0, 1), encode_with(reference, pixels).mode()) <= 1e-5
        assert relative_error(vae.decode(latents), decode_with(reference, latents)) <= 1e-5


def test_fewer_groups_agree_with_diffusers_given_fewer_groups() -> None:
    config = VAEConfig(
        **{k: v for k, v in TINY.to_dict().items() if k != "_class_name"} | {"norm_num_groups": 8}
    )
    vae, reference = make_pair(config)
    for module in reference.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 8
    pixels, latents = draw(1, 2, 3, 8, 8), draw(1, 3, 4, 4, 4)
    with torch.no_grad():
        assert relative_error(vae.encode(pixels).flatten(0, 1), encode_with(reference, pixels).mode()) <= 1e-5
        assert relative_error(vae.decode(latents), decode_with(reference, latents)) <= 1e-5


def test_bfloat16_is_no_further_off_than_diffusers() -> None:
    vae, reference = VAE(TINY).eval(), make_reference(TINY)
    redraw(vae)
    vae.bfloat16().float()  # weights and inputs that bfloat16 holds exactly: what is left is the arithmetic
    reference.load_state_dict(vae.state_dict())
    pixels, latents = (x.bfloat16() for x in (draw(1, 1, 3, 8, 8), draw(1, 3, 4, 4, 4)))
    with torch.no_grad():
        exact = encode_with(reference, pixels.float()).mode(), decode_with(reference, latents.float())
        vae.bfloat16()
        reference.bfloat16()
        ours = vae.encode(pixels).flatten(0, 1), vae.decode(latents)
        theirs = encode_with(reference, pixels).mode(), decode_with(reference, latents)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == torch.bfloat16
        ours_off, theirs_off = ((y.float() - c).norm() / c.norm() for y in (a, b))
        assert ours_off <= 1.5 * theirs_off + 1e-3
        assert theirs_off < 0.1  # else the comparison says nothing


def test_gradients_agree_with_diffusers(pair: tuple[VAE, nn.Module]) -> None:
    gradients = []
    for network in pair:
        pixels, latents = draw(1, 2, 3, 8, 6).requires_grad_(), draw(2, 3, 4, 4, 3).requires_grad_()
        ours = isinstance(network, VAE)
        mean = network.encode(pixels).flatten(0, 1) if ours else encode_with(network, pixels).mode()
        frames = network.decode(latents) if ours else decode_with(network, latents)
        for out in (mean, frames):
            out.mul(torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found = {name: p.grad for name, p in network.named_parameters()}
        gradients.append(found | {"pixels": pixels.grad, "latents": latents.grad})
        network.zero_grad(set_to_none=True)
    ours, theirs = gradients
    scale = max(g.abs().max().item() for g in theirs.values())
    for name, expected in theirs.items():
        assert (ours[name] - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6 * scale, name


# Promises beyond diffusers.


def test_a_clip_of_a_batch_is_the_clip_alone(pair: tuple[VAE, nn.Module]) -> None:
    latents, pixels = draw(2, 3, 4, 4, 4), draw(2, 3, 3, 8, 8)
    with torch.no_grad():
        together, codes = pair[0].decode(latents), pair[0].encode(pixels)
        for i in range(2):
            assert relative_error(together[i : i + 1], pair[0].decode(latents[i : i + 1])) <= 1e-5
            assert relative_error(codes[i : i + 1], pair[0].encode(pixels[i : i + 1])) <= 1e-5


def test_frames_are_encoded_apart_and_decoded_together(pair: tuple[VAE, nn.Module]) -> None:
    latents, pixels = draw(1, 3, 4, 4, 4), draw(1, 3, 3, 8, 8)
    with torch.no_grad():
        assert relative_error(pair[0].encode(pixels)[:, :1], pair[0].encode(pixels[:, :1])) <= 1e-5
        assert relative_error(pair[0].decode(latents)[:, :1], pair[0].decode(latents[:, :1])) > 1e-2


def test_gradient_mode_changes_nothing(pair: tuple[VAE, nn.Module]) -> None:
    """Without gradients much is done in place: to the same result, and never to the caller's tensors."""
    latents, pixels = draw(2, 3, 4, 4, 4), draw(2, 1, 3, 8, 8)
    before = latents.clone(), pixels.clone()
    with torch.no_grad():
        silent = pair[0].decode(latents), pair[0].encode(pixels)
    assert torch.equal(latents, before[0]) and torch.equal(pixels, before[1])
    torch.testing.assert_close(pair[0].decode(latents).detach(), silent[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pair[0].encode(pixels).detach(), silent[1], rtol=1e-5, atol=1e-5)


def test_images_are_decoded_by_the_spatial_layers_alone(pair: tuple[VAE, nn.Module]) -> None:
    latents = draw(1, 3, 4, 4, 4)
    temporal = [m for m in pair[0].modules() if isinstance(m, TemporalResBlock | nn.Conv3d)]
    hooks = [m.register_forward_hook(lambda *_: pytest.fail("a temporal layer ran")) for m in temporal]
    with torch.no_grad():
        images = pair[0].decode(latents, as_images=True)
        alone = pair[0].decode(latents[:, 1:2], as_images=True)
    for hook in hooks:
        hook.remove()
    assert relative_error(images[:, 1:2], alone) <= 1e-5
    with torch.no_grad():
        assert relative_error(pair[0].decode(latents), images) > 1e-2


def test_images_are_what_a_decoder_of_silent_temporal_layers_makes() -> None:
    vae = VAE(TINY).eval()
    redraw(vae)
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "mix_factor" in name:
                parameter.fill_(-50.0)
        nn.init.dirac_(vae.decoder.time_conv_out.weight)
        nn.init.zeros_(vae.decoder.time_conv_out.bias)
        latents = draw(1, 3, 4, 4, 4)
        assert relative_error(vae.decode(latents), vae.decode(latents, as_images=True)) <= 1e-5


def test_the_log_variance_is_bounded() -> None:
    vae = VAE(TINY).eval()
    with torch.no_grad():
        vae.quant_conv.bias[4:] = torch.tensor([-1e3, 1e3, 0.0, 0.0])
        log_var = vae.moments(draw(1, 1, 3, 8, 8))[1]
    assert log_var[:, :, 0].unique().item() == -30.0 and log_var[:, :, 1].unique().item() == 20.0


def test_runs_under_autocast(pair: tuple[VAE, nn.Module]) -> None:
    latents, pixels = draw(1, 2, 4, 4, 4), draw(1, 1, 3, 8, 8)
    with torch.no_grad():
        exact = pair[0].decode(latents), pair[0].encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = pair[0].decode(latents), pair[0].encode(pixels)
    for a, b in zip(mixed, exact, strict=True):
        assert relative_error(a.detach().float(), b) < 0.1


@pytest.mark.parametrize("grad", [True, False])
def test_no_layer_is_passed_by(grad: bool) -> None:
    """What stands in the place of a layer, as a LoRA does, is called, also where shortcuts are taken."""

    class Scaled(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base, self.weight, self.bias = base, base.weight, base.bias

        def forward(self, x: Tensor) -> Tensor:
            return 1.5 * self.base(x)

    wrapped, scaled = make_pair(TINY)[0], make_pair(TINY)[0]
    layers = (nn.Linear, nn.Conv2d, nn.Conv3d)
    for module in list(wrapped.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, layers):
                setattr(module, name, Scaled(child))
    with torch.no_grad():
        for layer in (m for m in scaled.modules() if isinstance(m, layers)):
            for parameter in layer.parameters():
                parameter.mul_(1.5)
    latents, pixels = draw(1, 3, 4, 4, 4), draw(1, 2, 3, 8, 6)
    with torch.set_grad_enabled(grad):
        assert relative_error(wrapped.decode(latents), scaled.decode(latents)) <= 1e-5
        assert relative_error(wrapped.encode(pixels), scaled.encode(pixels)) <= 1e-5
