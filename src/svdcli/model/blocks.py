"""Convolutional blocks: the 2D residual block, its temporal companion, and the two samplers of resolution.

Everything works on frames folded to (B T, C, H, W) in channels-last memory. There (B T, H, W, C) lies in
order, so that the temporal view (B, C, T, H·W) costs nothing and a (3, 1, 1) convolution over time is a 2D
convolution with kernel (3, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_GROUPS = 32
"""Groups of every GroupNorm in the published weights. A narrow network must take fewer: with one or two
channels a group, the norm erases the very means (brightness, colour) that the network is to carry."""


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm, then SiLU, in place where no gradient needs its input."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def silence(layer: nn.Conv2d | nn.Conv3d | nn.Linear) -> None:
    """Zero the layer's weight and bias: the branch that ends in it starts by adding nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def conv_with_shift(conv: nn.Conv2d | nn.Conv3d, x: Tensor, shift: Tensor | None, weight: Tensor) -> Tensor:
    """Convolve and add a shift (B, C) to every place of a clip.

    One clip: the shift goes into the bias, for nothing. Several: it is added, each clip's own to its own
    frames.
    """
    padding = [size // 2 for size in weight.shape[2:]]
    if shift is not None and shift.shape[0] == 1:
        bias = shift[0] if conv.bias is None else shift[0] + conv.bias
        return F.conv2d(x, weight, bias, padding=padding)
    out = F.conv2d(x, weight, conv.bias, padding=padding)
    if shift is None:
        return out
    return out.add_(shift.repeat_interleave(out.shape[0] // shift.shape[0], dim=0)[:, :, None, None])


class ResBlock(nn.Module):
    """GroupNorm-SiLU-conv twice with a shift by the noise-level embedding between, and a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, emb_width: int | None, eps: float, groups: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_width, out_channels) if emb_width else None
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, emb: Tensor | None) -> Tensor:
        """x (B T, C, H, W), emb (B, D) after its SiLU -> (B T, C', H, W)."""
        shift = self.time_emb_proj(emb) if self.time_emb_proj is not None else None
        h = conv_with_shift(self.conv1, norm_silu(self.norm1, x), shift, self.conv1.weight)
        h = self.conv2(norm_silu(self.norm2, h))
        return h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))


class TemporalResBlock(nn.Module):
    """The same over time: (3, 1, 1) convolutions, norms over all frames of a clip. Residual only."""

    def __init__(self, channels: int, emb_width: int | None, eps: float, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.time_emb_proj = nn.Linear(emb_width, channels) if emb_width else None
        self.norm2 = nn.GroupNorm(groups, channels, eps)
        self.conv2 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, x: Tensor, emb: Tensor | None, gain: Tensor) -> Tensor:
        """x (B, C, T, H·W), emb (B, D) -> gain · residual, of x's shape; the gain goes into conv2."""
        shift = self.time_emb_proj(emb) if self.time_emb_proj is not None else None
        h = conv_with_shift(self.conv1, norm_silu(self.norm1, x), shift, self.conv1.weight.squeeze(-1))
        bias = self.conv2.bias * gain if self.conv2.bias is not None else None
        return F.conv2d(norm_silu(self.norm2, h), self.conv2.weight.squeeze(-1) * gain, bias, padding=(1, 0))


class Mixer(nn.Module):
    """One learned number that blends the spatial and the temporal path."""

    def __init__(self, init: float) -> None:
        super().__init__()
        self.mix_factor = nn.Parameter(torch.tensor([init]))


class SpatioTemporalResBlock(nn.Module):
    """A ResBlock, then its temporal companion blended in.

    The blend of x and x + r is x + gain · r. In the UNet α = sigmoid(mix) weighs the *spatial* path, so gain
    = 1 − α; in the temporal decoder α weighs the *temporal* path, so gain = α (Stability's `merge_strategy`,
    svd-facts §2.1 and §2.3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_width: int | None,
        groups: int,
        *,
        eps: float,
        temporal_eps: float | None = None,
        mix: float = 0.5,
        alpha_is_temporal: bool = False,
    ) -> None:
        super().__init__()
        self.spatial_res_block = ResBlock(in_channels, out_channels, emb_width, eps, groups)
        self.temporal_res_block = TemporalResBlock(out_channels, emb_width, temporal_eps or eps, groups)
        self.time_mixer = Mixer(mix)
        self.alpha_is_temporal = alpha_is_temporal

    def forward(self, x: Tensor, emb: Tensor | None, num_frames: int | None) -> Tensor:
        """x (B T, C, H, W), emb (B, D) -> (B T, C', H, W). No num_frames: images, no temporal path."""
        x = self.spatial_res_block(x, emb)
        if num_frames is None:
            return x
        mix = self.time_mixer.mix_factor
        gain = torch.sigmoid(mix if self.alpha_is_temporal else -mix)
        residual = self.temporal_res_block(over_time(x, num_frames), emb, gain)
        residual = over_space(residual, x.shape)
        return x.add(residual) if torch.is_grad_enabled() else x.add_(residual)


def over_time(x: Tensor, num_frames: int) -> Tensor:
    """(B T, C, H, W) channels-last -> (B, C, T, H·W) channels-last; a view where the memory allows."""
    frames, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(-1, num_frames, height * width, channels).permute(0, 3, 1, 2)


def over_space(x: Tensor, shape: torch.Size) -> Tensor:
    """(B, C, T, H·W) channels-last -> (B T, C, H, W), of the given shape; the way back from `over_time`."""
    frames, channels, height, width = shape
    return x.permute(0, 2, 3, 1).reshape(frames, height, width, channels).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve the resolution by a strided convolution. The VAE's encoder pads only right and below."""

    def __init__(self, channels: int, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Nearest-neighbour to twice the resolution (or to a given size, for odd skips), then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
