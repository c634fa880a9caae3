"""The autoencoder: SD 2.1's image encoder and SVD's temporal, deflickering decoder (svd-facts §2.3).

State-dict keys equal those of the published weights in the diffusers layout (`AutoencoderKLTemporalDecoder`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from svdcli.model import image_vae
from svdcli.model.attention import FrameAttention
from svdcli.model.blocks import (
    NUM_GROUPS,
    Downsample,
    ResBlock,
    SpatioTemporalResBlock,
    Upsample,
    norm_silu,
    over_space,
    over_time,
    time_conv,
)

EPS = 1e-6


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder; the field names are those of a diffusers `vae/config.json`. Defaults: SVD."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    sample_size: int = 768
    scaling_factor: float = 0.18215
    force_upcast: bool = True
    norm_num_groups: int = NUM_GROUPS

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VAEConfig:
        """From a parsed `config.json`; keys that do not shape the network are left out.

        Raises ValueError for an image autoencoder of another architecture than Stable Diffusion's.
        """
        if values.get("_class_name") == image_vae.CLASS:
            image_vae.require_known(values)
        known = {f.name for f in fields(cls)}
        chosen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
        }
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        return {"_class_name": "AutoencoderKLTemporalDecoder", **asdict(self)}

    @property
    def downscale(self) -> int:
        """Pixels a latent, per side."""
        return 2 ** (len(self.block_out_channels) - 1)


class EncoderLevel(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, groups: int, downsample: bool
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nn.ModuleList(ResBlock(width, out_channels, None, EPS, groups) for width in inputs)
        if downsample:
            self.downsamplers = nn.ModuleList([Downsample(out_channels, asymmetric=True)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, None)
        return self.downsamplers[0](x) if hasattr(self, "downsamplers") else x


class EncoderMid(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])
        self.resnets = nn.ModuleList(ResBlock(channels, channels, None, EPS, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, None)), None)


class Encoder(nn.Module):
    """Frames (B T, 3, H, W) -> moments (B T, 2c, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            EncoderLevel(widths[max(i - 1, 0)], width, config.layers_per_block, groups, i < len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.mid_block = EncoderMid(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(norm_silu(self.conv_norm_out, self.mid_block(x)))


def decoder_block(in_channels: int, out_channels: int, groups: int) -> SpatioTemporalResBlock:
    """A residual block of the temporal decoder, whose α weighs the temporal path and starts at ½."""
    return SpatioTemporalResBlock(
        in_channels, out_channels, None, groups, eps=EPS, temporal_eps=1e-5, mix=0.0, alpha_is_temporal=True
    )


class DecoderLevel(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, groups: int, upsample: bool
    ) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_layers - 1)
        self.resnets = nn.ModuleList(decoder_block(width, out_channels, groups) for width in inputs)
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])

    def forward(self, x: Tensor, num_frames: int | None) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x, None, num_frames)
        return self.upsamplers[0](x) if hasattr(self, "upsamplers") else x


class DecoderMid(nn.Module):
    """The published layout always stores one attention; with a single residual block it stays unused."""

    def __init__(self, channels: int, groups: int, num_layers: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels, groups)])
        self.resnets = nn.ModuleList(decoder_block(channels, channels, groups) for _ in range(num_layers))

    def forward(self, x: Tensor, num_frames: int | None) -> Tensor:
        x = self.resnets[0](x, None, num_frames)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=False):
            x = resnet(attention(x), None, num_frames)
        return x


class TemporalDecoder(nn.Module):
    """Latents (B T, c, h, w) -> frames (B T, 3, H, W)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = DecoderMid(widths[0], groups, config.layers_per_block)
        self.up_blocks = nn.ModuleList(
            DecoderLevel(
                widths[max(i - 1, 0)], width, config.layers_per_block + 1, groups, i < len(widths) - 1
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)
        self.time_conv_out = nn.Conv3d(config.out_channels, config.out_channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, z: Tensor, num_frames: int | None) -> Tensor:
        x = self.mid_block(self.conv_in(z), num_frames)
        for level in self.up_blocks:
            x = level(x, num_frames)
        x = self.conv_out(norm_silu(self.conv_norm_out, x))
        if num_frames is None:
            return x
        return over_space(time_conv(self.time_conv_out, over_time(x, num_frames)), x.shape)


class VAE(nn.Module):
    """Pixels ⇄ latents. Latents are *unscaled* here; `scaling_factor` is for those that diffusion sees."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = TemporalDecoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, T, 3, H, W) in [-1, 1] -> posterior mean and log variance, each (B, T, c, h, w)."""
        frames = pixels.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        mean, log_var = self.quant_conv(self.encoder(frames)).unflatten(0, pixels.shape[:2]).chunk(2, dim=2)
        return mean, log_var.clamp(-30.0, 20.0)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, T, 3, H, W) in [-1, 1] -> latents (B, T, c, h, w): the posterior's mode, unscaled."""
        return self.moments(pixels)[0]

    def decode(self, latents: Tensor, *, as_images: bool = False) -> Tensor:
        """Unscaled latents (B, T, c, h, w) -> pixels (B, T, 3, H, W), near [-1, 1].

        The T frames see one another, unless they are decoded as images, by the spatial layers alone.
        """
        folded = latents.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return self.decoder(folded, None if as_images else latents.shape[1]).unflatten(0, latents.shape[:2])
