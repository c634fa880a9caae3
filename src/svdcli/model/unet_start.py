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
from dataclasses import dataclass

import torch

from svdcli.model.blocks import ResBlock
from svdcli.model.unet import UNet
from svdcli.model.vae_start import carry, set_bias

PER_SIGNAL = 4
"""Trunk channels a latent channel: the picture and its negative, the noisy clip and its negative."""
BALLAST, GATE_BALLAST = 3.0, 3.0
PICTURE_GAIN, PICTURE_SHARE, GATE_GAIN = 1.05, 0.5, 2.4
"""−b at high noise, the share of the picture taken from the noisy clip before the gate, and g at low noise."""
GATE_SLOPE, GATE_CENTRE = 4.2, -0.05
"""κ = −slope · (sin c_noise − centre): half open at σ = 0.8."""
GATE_INPUT, GATE_SHARPNESS = 0.4, 4.0


@torch.no_grad()
def start_still(unet: UNet, scaling_factor: float) -> None:
    """Set the weights of a fresh UNet. `scaling_factor` is the autoencoder's: the concat latents come unscaled.

    Raises ValueError where the norm groups of the finest level have no room, see `can_start_still`.
    """
    config = unet.config
    signals, width = config.out_channels, config.block_out_channels[0]
    if not can_start_still(unet):
        raise ValueError("this start needs one norm group of eight channels for each latent channel")
    unet.reset()
    final = f"up_blocks.{config.num_levels - 1}.resnets.{config.per_level('layers_per_block')[0]}"
    last = unet.get_submodule(f"{final}.spatial_res_block")
    assert isinstance(last, ResBlock) and last.conv_shortcut is not None
    room = Room(signals, width, config.norm_num_groups)
    for at in room.ballast():
        carry(unet.conv_in, {at: {}, at + 1: {}})
        set_bias(unet.conv_in, at, BALLAST, -BALLAST)
        carry(last.conv_shortcut, {at: {width + at: 1.0}, at + 1: {width + at + 1: 1.0}})
    gain = _set_gate(unet, last, room)
    spread = room.divisor(2 + 2 * 0.5, BALLAST)
    for k, at in enumerate(room.places()):
        picture, noisy = {signals + k: scaling_factor}, {k: 1.0}
        carry(unet.conv_in, {at: picture, at + 1: negative(picture), at + 2: noisy, at + 3: negative(noisy)})
        carry(last.conv_shortcut, {at + i: {width + at + i: 1.0} for i in (0, 1)} | {at + 2: {}, at + 3: {}})
        moving = {at: gain, at + 1: -gain}
        carry(last.conv2, {at + 2: moving, at + 3: negative(moving)})
        still = {at: -PICTURE_GAIN * spread, at + 1: PICTURE_GAIN * spread}
        carry(unet.conv_out, {k: still | {at + 2: spread, at + 3: -spread}})


@dataclass(frozen=True)
class Room:
    """Where things lie among the channels of the finest level: each norm group has some signals, then its ballast, then room."""

    signals: int
    width: int
    groups: int

    @property
    def per_group(self) -> int:
        """Signals in each group."""
        return self.signals // self.groups

    @property
    def group(self) -> int:
        """Channels of each group."""
        return self.width // self.groups

    def fits(self) -> bool:
        """Whether each group has the room for its share."""
        return self.signals % self.groups == 0 and PER_SIGNAL * self.per_group + 2 <= self.group

    def places(self) -> list[int]:
        """First channel of each signal."""
        return [
            self.group * (k // self.per_group) + PER_SIGNAL * (k % self.per_group)
            for k in range(self.signals)
        ]

    def ballast(self) -> list[int]:
        """First of each group's two channels of ballast."""
        return [self.group * g + PER_SIGNAL * self.per_group for g in range(self.groups)]

    def divisor(self, signal_power: float, ballast: float) -> float:
        """What the norm divides by, for four channels of `signal_power` together and two of ballast."""
        return math.sqrt((self.per_group * signal_power + 2 * ballast**2) / self.group)


def can_start_still(unet: UNet) -> bool:
    """Whether the finest level has the room for `start_still`.

    Each norm group takes an equal share of the latent channels, at four channels a latent channel, and two of ballast.
    """
    config = unet.config
    room = Room(config.out_channels, config.block_out_channels[0], config.norm_num_groups)
    return config.in_channels == 2 * config.out_channels and room.fits()


def negative(inputs: dict[int, float]) -> dict[int, float]:
    return {channel: -gain for channel, gain in inputs.items()}


def _set_gate(unet: UNet, block: ResBlock, room: Room) -> float:
    """Make the last block pass the noisy clip at low noise and stop it at high; returns the gain that makes it g."""
    wide = room.divisor(4, BALLAST)  # of norm1, for unit signals
    tall = room.divisor(2 * GATE_INPUT**2 + 4, GATE_BALLAST)  # of norm2, at a shift of one
    scale, shift = wide * GATE_INPUT, GATE_SLOPE * tall / GATE_SHARPNESS
    _set_noise_level(unet)
    projection = block.time_emb_proj
    assert projection is not None

    def set_shift(row: int, sign: float) -> None:
        projection.weight[row] = 0.0
        projection.weight[row, 0] = -sign * shift
        projection.weight[row, 1] = sign * shift
        projection.bias[row] = sign * shift * GATE_CENTRE

    for at in room.ballast():
        carry(block.conv1, {at: {}, at + 1: {}})
        set_bias(block.conv1, at, GATE_BALLAST, -GATE_BALLAST)
        set_shift(at, 0.0)
        set_shift(at + 1, 0.0)
    for at in room.places():
        skip = room.width + at
        share = PICTURE_SHARE * scale
        signal = {skip + 2: scale, skip + 3: -scale, skip: -share, skip + 1: share}
        carry(block.conv1, {at: signal, at + 1: negative(signal), at + 2: {}, at + 3: {}})
        block.norm2.weight[at : at + 2] = GATE_SHARPNESS
        for i, sign in enumerate((1.0, 1.0, -1.0, -1.0)):
            set_shift(at + i, sign)
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
