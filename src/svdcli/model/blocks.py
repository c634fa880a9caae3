"""Convolutional blocks: the 2D residual block, its temporal companion, and the two samplers of resolution.

Everything works on frames folded to (B T, C, H, W) in channels-last memory. There (B T, H, W, C) lies in
order, so that the temporal view (B, C, T, H·W) costs nothing and a (3, 1, 1) convolution over time is a 2D
convolution with kernel (3, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from svdcli.model.gradients import by_hand, norm_conv

NUM_GROUPS = 32
"""Groups of every GroupNorm in the published weights. A narrow network must take fewer: with one or two
channels a group, the norm erases the very means (brightness, colour) that the network is to carry."""


SLICE = {"cpu": 1 << 21}
"""Numbers that a slice of frames may hold where frames do not see one another and no gradient is wanted: on a
CPU so few that the slice stays in the cache, and that the allocator has the memory at hand."""
LARGE_SLICE = 1 << 25
"""The same on a GPU, for the sake of memory alone."""
WEIGHTS_AT_ONCE = 1 << 22
"""A convolution on a CPU lays its weights out anew at each call, in two copies: of so many numbers at a time."""


def slice_size(x: Tensor, dim: int) -> int:
    """How much of a dimension a slice holds; all of it where gradients are wanted."""
    if torch.is_grad_enabled():
        return x.shape[dim]
    return max(1, SLICE.get(x.device.type, LARGE_SLICE) * x.shape[dim] // x.numel())


def by_frames(function: Callable[..., Tensor], x: Tensor, *others: Tensor | None) -> Tensor:
    """function(x, *others), slice by slice of the frames where they are many; `others` have as many, or one."""
    frames, rows = x.shape[0], slice_size(x, 0)
    if rows >= frames:
        return function(x, *others)
    out = None
    for start in range(0, frames, rows):
        here = slice(start, start + rows)
        part = function(x[here], *(o[here] if o is not None and o.shape[0] == frames else o for o in others))
        if out is None:
            shape = (frames, *part.shape[1:])
            out = torch.empty(shape, dtype=part.dtype, device=x.device, memory_format=torch.channels_last)
        out[here] = part
    assert out is not None
    return out


def by_columns(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) of x (B, C, T, H·W), slice by slice of the places where they are many; then it overwrites x."""
    columns = slice_size(x, 3)
    if columns >= x.shape[3]:
        return function(x)
    for part in x.split(columns, dim=3):
        part.copy_(function(part))
    return x


def lightly(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), of which autograd keeps the inputs alone, not what comes between them and the result.

    For a cheap function before a costly layer: on the way back the former is computed again, to the bit, and the latter is
    not, as recomputing stops where the last tensor is found that a gradient needs: the layer's input.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """GroupNorm, then SiLU, in place where no gradient needs its input."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def silence(layer: nn.Conv2d | nn.Conv3d | nn.Linear) -> None:
    """Zero the layer's weight and bias: the branch that ends in it starts by adding nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is nothing but its weights, so that they may be used without calling it.

    False where something stands in its place (a LoRA, a quantised layer) or listens: then it must be called.
    """
    listens = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) in (nn.Linear, nn.Conv2d, nn.Conv3d) and not listens


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """Convolve, on a CPU a part of the output's channels at a time where weights are many and no gradient is wanted."""
    parts = -(-weight.numel() // WEIGHTS_AT_ONCE)
    if torch.is_grad_enabled() or x.device.type != "cpu" or parts == 1:
        return F.conv2d(x, weight, bias, padding=padding)
    weights = weight.chunk(parts)
    biases = bias.split(weights[0].shape[0]) if bias is not None else (None,) * len(weights)
    return torch.cat(
        [F.conv2d(x, w, b, padding=padding) for w, b in zip(weights, biases, strict=True)], dim=1
    )


def conv_with_shift(
    conv: nn.Conv2d, x: Tensor, shift: Tensor | None = None, norm: nn.GroupNorm | None = None
) -> Tensor:
    """Convolve frames (B T, C, H, W) and add a shift (1 or B T, C') to every place of each. norm: see `normed`.

    One shift for all goes into the bias, for nothing. Several are added, each frame its own.
    """
    if is_plain(conv):
        bias, height, width = conv.bias, *conv.kernel_size
        if shift is not None and shift.shape[0] == 1:
            bias, shift = (shift[0] if bias is None else shift[0] + bias), None
        if norm is None:
            out = conv2d(x, conv.weight, bias, (height // 2, width // 2))
        else:
            out = norm_conv(norm, x, conv.weight, bias)
    else:
        out = conv(x)
    return out if shift is None else out.add_(shift[:, :, None, None])


def time_conv(
    conv: nn.Conv3d,
    x: Tensor,
    *,
    shift: Tensor | None = None,
    gain: Tensor | None = None,
    norm: nn.GroupNorm | None = None,
) -> Tensor:
    """A (3, 1, 1) convolution of clips (B, C, T, H·W): gain · conv(x) + shift, a shift (1 or B, C') a clip, or (B, C', T) a
    frame. norm: see `normed`.

    Gain, and shift where it is one, go into weight and bias, for nothing.
    """
    if is_plain(conv):
        weight, bias = conv.weight.squeeze(-1), conv.bias
        if gain is not None:
            weight, bias = weight * gain, None if bias is None else bias * gain
        if shift is not None and shift.shape[0] == 1 and shift.ndim == 2:
            bias, shift = (shift[0] if bias is None else shift[0] + bias), None
        out = F.conv2d(x, weight, bias, padding=(1, 0)) if norm is None else norm_conv(norm, x, weight, bias)
    else:
        out = conv(x[..., None])[..., 0]
        out = out if gain is None else out * gain
    if shift is None:
        return out
    return out.add_(shift[..., None] if shift.ndim == 3 else shift[:, :, None, None])


def normed(
    convolve: Callable[..., Tensor], norm: nn.GroupNorm, conv: nn.Module, x: Tensor, **changes: Tensor | None
) -> Tensor:
    """convolve(conv, silu(norm(x)), **changes), of which autograd keeps x alone; `convolve` takes norm and SiLU upon itself
    where it is given the norm.
    """
    if is_plain(conv) and by_hand(x, norm.weight, *conv.parameters()):
        return convolve(conv, x, norm=norm, **changes)
    return lightly(lambda x: convolve(conv, norm_silu(norm, x), **changes), x)


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

    def forward(self, x: Tensor, emb: Tensor | None, num_frames: int | None = None) -> Tensor:
        """x (B T, C, H, W), emb (B, D) after its SiLU -> (B T, C', H, W). Frames do not see one another: their number
        is taken only so that an image network may have this in the place of a `SpatioTemporalResBlock`.
        """
        shift = self.time_emb_proj(emb) if self.time_emb_proj is not None else None
        if shift is not None and shift.shape[0] > 1:
            shift = shift.repeat_interleave(x.shape[0] // shift.shape[0], dim=0)
        return by_frames(self.block, x, shift)

    def block(self, x: Tensor, shift: Tensor | None) -> Tensor:
        """The frames (N, C, H, W) with their shifts (1 or N, C'), each frame by itself."""
        h = normed(conv_with_shift, self.norm1, self.conv1, x, shift=shift)
        h = normed(conv_with_shift, self.norm2, self.conv2, h)
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
        """x (B, C, T, H·W), emb (B, D), or (B T, D) where frames differ -> gain · residual, of x's shape."""
        shift = self.time_emb_proj(emb) if self.time_emb_proj is not None else None
        if shift is not None and shift.shape[0] > x.shape[0]:
            shift = shift.unflatten(0, (x.shape[0], -1)).movedim(1, 2)
        h = normed(self.convolved, self.norm1, self.conv1, x, shift=shift)
        return normed(self.convolved, self.norm2, self.conv2, h, gain=gain)

    @staticmethod
    def convolved(conv: nn.Conv3d, x: Tensor, **changes: Any) -> Tensor:
        return by_columns(lambda part: time_conv(conv, part, **changes), x)


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
        twice = (2 * x.shape[-2], 2 * x.shape[-1])
        if torch.is_grad_enabled() or (size or twice) != twice or not is_plain(self.conv):
            return self.conv(F.interpolate(x, size=size or twice, mode="nearest"))
        return by_frames(self.doubled, x)

    def doubled(self, x: Tensor) -> Tensor:
        """The same without the large picture, in 4/9 of the arithmetic.

        The 3x3 places that a pixel of the large picture sees are copies of 2x2 on the small one. So each of the four
        phases of the result is a 2x2 convolution there, whose weights are sums.
        """
        weight, (height, width) = self.conv.weight, x.shape[-2:]
        sums = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # phase, tap, tap of three
        shape = (x.shape[0], weight.shape[0], 2 * height, 2 * width)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        step = max(1, WEIGHTS_AT_ONCE // weight[0].numel())
        for start in range(0, weight.shape[0], step):
            some = slice(start, start + step)
            bias = None if self.conv.bias is None else self.conv.bias[some]
            for i, j in product(range(2), range(2)):
                kernel = torch.einsum("oihw,ah,bw->oiab", weight[some], sums[i], sums[j])
                phase = F.conv2d(x, kernel, bias, padding=1)
                out[:, some, i::2, j::2] = phase[:, :, i : i + height, j : j + width]
        return out
