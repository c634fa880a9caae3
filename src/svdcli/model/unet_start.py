"""A start for training a small image-to-video UNet from nothing: it already predicts that the picture stands still.

If each latent differs from that of the picture by a normal deviate of variance τ², the best denoiser is a blend of the noisy clip
and the picture, in the network's terms F = a(σ) x_in + b(σ) s, with s the picture's scaled latent, a = σ (1 − τ²) / (τ² + σ²)
and b = −σ √(1 + σ²) / (τ² + σ²). For a small τ² that is near −s + g(σ) (x_in − s/2), with g falling from above two to nothing
around σ = 0.75. A SiLU is such a gate, where the noise level shifts its input: SiLU(κ + ζ) − SiLU(κ − ζ) ≈ 2 ζ SiLU'(κ). All of
it travels from conv_in to conv_out by the outermost skip; every other branch is silent and learns what moves. Signals pass the
norms as in `vae_start`.
"""

from __future__ import annotations

import math

import torch

from svdcli.model.blocks import ResBlock
from svdcli.model.unet import UNet
from svdcli.model.vae_start import carry, set_bias

PER_SIGNAL = 8
"""Trunk channels a latent channel: the picture and its negative, the noisy clip and its negative, ballast twice, two free."""
BALLAST, GATE_BALLAST = 2.0, 3.0
PICTURE_GAIN, PICTURE_SHARE, GATE_GAIN = 1.05, 0.5, 2.4
"""−b at high noise, the share of the picture taken from the noisy clip before the gate, and g at low noise."""
GATE_SLOPE, GATE_CENTRE = 4.2, -0.05
"""κ = −slope · (sin c_noise − centre): half open at σ = 0.8."""
GATE_INPUT, GATE_SHARPNESS = 0.4, 4.0


@torch.no_grad()
def start_still(unet: UNet, scaling_factor: float) -> None:
    """Set the weights of a fresh UNet. `scaling_factor` is the autoencoder's: the concat latents come unscaled.

    Raises ValueError where the finest level has not eight channels a latent channel in a norm group of their own.
    """
    config = unet.config
    signals, width = config.out_channels, config.block_out_channels[0]
    if not can_start_still(unet):
        raise ValueError("this start needs one norm group of eight channels for each latent channel")
    unet.reset()
    final = f"up_blocks.{config.num_levels - 1}.resnets.{config.per_level('layers_per_block')[0]}"
    last = unet.get_submodule(f"{final}.spatial_res_block")
    assert isinstance(last, ResBlock) and last.conv_shortcut is not None
    for k in range(signals):
        at, skip = PER_SIGNAL * k, width + PER_SIGNAL * k
        picture, noisy = {signals + k: scaling_factor}, {k: 1.0}
        carry(unet.conv_in, {at: picture, at + 1: negative(picture), at + 2: noisy, at + 3: negative(noisy)})
        carry(unet.conv_in, {at + 4: {}, at + 5: {}})
        set_bias(unet.conv_in, at + 4, BALLAST, -BALLAST)
        kept = {at + i: {skip + i: 1.0} for i in (0, 1, 4, 5)}
        carry(last.conv_shortcut, kept | {at + 2: {}, at + 3: {}})
    gain = _set_gate(unet, last, signals, width)
    spread = math.sqrt((2 + 2 * 0.5 + 2 * BALLAST**2) / PER_SIGNAL)
    for k in range(signals):
        at = PER_SIGNAL * k
        moving = {at: gain, at + 1: -gain}
        carry(last.conv2, {at + 2: moving, at + 3: negative(moving)})
        still = {at: -PICTURE_GAIN * spread, at + 1: PICTURE_GAIN * spread}
        carry(unet.conv_out, {k: still | {at + 2: spread, at + 3: -spread}})


def can_start_still(unet: UNet) -> bool:
    """Whether the finest level has the room for `start_still`."""
    config = unet.config
    group = config.block_out_channels[0] // config.norm_num_groups
    return (
        config.in_channels == 2 * config.out_channels
        and config.norm_num_groups == config.out_channels
        and group == PER_SIGNAL
    )


def negative(inputs: dict[int, float]) -> dict[int, float]:
    return {channel: -gain for channel, gain in inputs.items()}


def _set_gate(unet: UNet, block: ResBlock, signals: int, width: int) -> float:
    """Make the last block pass the noisy clip at low noise and stop it at high; returns the gain that makes it g."""
    wide = math.sqrt((4 + 4 + 4 * BALLAST**2) / (2 * PER_SIGNAL))  # the divisor of norm1, for unit signals
    tall = math.sqrt(
        (2 * GATE_INPUT**2 + 4 + 2 * GATE_BALLAST**2) / PER_SIGNAL
    )  # that of norm2, at a shift of one
    _set_noise_level(unet)
    assert block.time_emb_proj is not None
    for k in range(signals):
        at, skip = PER_SIGNAL * k, width + PER_SIGNAL * k
        scale = wide * GATE_INPUT
        signal = {
            skip + 2: scale,
            skip + 3: -scale,
            skip: -PICTURE_SHARE * scale,
            skip + 1: PICTURE_SHARE * scale,
        }
        carry(block.conv1, {at: signal, at + 1: negative(signal)} | {at + i: {} for i in (2, 3, 4, 5)})
        set_bias(block.conv1, at + 4, GATE_BALLAST, -GATE_BALLAST)
        block.norm2.weight[at : at + 2] = GATE_SHARPNESS
        shift = GATE_SLOPE * tall / GATE_SHARPNESS
        for row, sign in (
            (at, 1.0),
            (at + 1, 1.0),
            (at + 2, -1.0),
            (at + 3, -1.0),
            (at + 4, 0.0),
            (at + 5, 0.0),
        ):
            block.time_emb_proj.weight[row] = 0.0
            block.time_emb_proj.weight[row, 0] = -sign * shift
            block.time_emb_proj.weight[row, 1] = sign * shift
            block.time_emb_proj.bias[row] = sign * shift * GATE_CENTRE
    return GATE_GAIN * tall / (2 * GATE_SHARPNESS * GATE_INPUT)


def _set_noise_level(unet: UNet) -> None:
    """The first two channels of the embedding become ± sin(c_noise), untouched by the ids."""
    sine = unet.config.block_out_channels[0] // 2  # the sine of the slowest wave
    first, second = unet.time_embedding.linear_1, unet.time_embedding.linear_2
    for row, sign in ((0, 1.0), (1, -1.0)):
        first.weight[row] = 0.0
        first.weight[row, sine], first.bias[row] = sign, 0.0
        second.weight[row] = 0.0
        second.weight[row, 0], second.weight[row, 1], second.bias[row] = sign, -sign, 0.0
        unet.add_embedding.linear_2.weight[row] = 0.0
        unet.add_embedding.linear_2.bias[row] = 0.0
