"""A start for training the autoencoder: the principal components of 8×8 patches, built into its convolutions.

A random start spends its first thousand steps on finding what a linear analysis knows. Here the encoder begins as exactly that
analysis, one component a latent channel, and the decoder as the mean colour of each patch; the residual blocks are silent and
learn the rest. A channel's deviation is in proportion to the root of its component's: were all equal, diffusion would weigh
fine detail like brightness; were they left alone, brightness would outweigh everything. Signals pass the norms and SiLUs unharmed
as a pair: SiLU(x) − SiLU(−x) = x, beside a pair of constants that keeps the norm's divisor nearly the same for every picture.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from svdcli.model.blocks import ResBlock, TemporalResBlock
from svdcli.model.vae import VAE, VAEConfig

INITIAL_LOG_VAR = -8.0
"""Log variance of the posterior: at 0 its noise would drown the latents for hundreds of steps."""
SIGNAL, BALLAST = 0.5, 4.0
"""Typical standard deviation of the signals before a norm, and the constant beside them."""
PATCH = 8
CELLS = 48
"""Values in a 4×4 block of pixels, the largest that the encoder carries whole."""


def patch_components(pixels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, H, W) -> the first principal components (count, 3, 8, 8) of their patches and their deviations (count,)."""
    patches = (
        pixels.unfold(2, PATCH, PATCH)
        .unfold(3, PATCH, PATCH)
        .permute(0, 2, 3, 1, 4, 5)
        .reshape(-1, 3 * PATCH**2)
    )
    values, vectors = torch.linalg.eigh(torch.cov(patches.double().T))
    components = vectors.flip(1)[:, :count].T.reshape(count, 3, PATCH, PATCH)
    return components.float(), values.flip(0)[:count].clamp_min(1e-8).sqrt().float()


@torch.no_grad()
def start_from_patches(vae: VAE, pixels: Tensor) -> None:
    """Set all weights. Pixels (N, 3, H, W) in [-1, 1] are a sample of the training set.

    Raises ValueError unless the autoencoder has four levels (8×8 pixels a latent) wide enough for its components.
    """
    if not can_start_from_patches(vae.config):
        raise ValueError("this start needs four levels, wide enough for the components of 8×8 patches")
    num = vae.config.latent_channels
    _silence(vae)
    components, deviations = patch_components(pixels, num)
    gains = SIGNAL / (deviations.mean() * deviations).sqrt()
    _set_encoder(vae, components, gains)
    _set_decoder(vae, components.mean(dim=(2, 3)) / gains[:, None], pixels.mean(dim=(0, 2, 3)))


def can_start_from_patches(config: VAEConfig) -> bool:
    """Whether an autoencoder of this shape has the room for `start_from_patches`."""
    num, widths = config.latent_channels, config.block_out_channels
    room = config.downscale == PATCH and widths[1] >= CELLS and min(widths) >= 12 + num
    return room and widths[-1] >= max(4 * num, widths[-2] + 1)


def conv(root: nn.Module, name: str) -> nn.Conv2d:
    """A 2D convolution by its name in the state dict."""
    found = root.get_submodule(name)
    assert isinstance(found, nn.Conv2d), name
    return found


def set_bias(layer: nn.Conv2d, first: int, *values: float) -> None:
    """Set the biases of successive output channels."""
    assert layer.bias is not None
    for channel, value in enumerate(values, first):
        layer.bias[channel] = value


def _silence(vae: VAE) -> None:
    """Plain paths random and variance-preserving, residual branches, attention and temporal layers silent."""
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.3 * module.weight[0].numel() ** -0.5)
            nn.init.zeros_(cast(Tensor, module.bias))
    for module in vae.modules():
        if isinstance(module, ResBlock | TemporalResBlock):
            nn.init.kaiming_normal_(module.conv1.weight)
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(cast(Tensor, module.conv2.bias))
    for name, parameter in vae.named_parameters():
        if ".attentions.0.to_out." in name or name == "decoder.time_conv_out.bias":
            nn.init.zeros_(parameter)
    nn.init.dirac_(vae.decoder.time_conv_out.weight)


def carry(layer: nn.Conv2d, rows: dict[int, dict[int, float]]) -> None:
    """Give output channels exactly these inputs (channel -> gain) through the middle of the kernel."""
    middle = layer.kernel_size[0] // 2
    for row, inputs in rows.items():
        layer.weight[row] = 0.0
        set_bias(layer, row, 0.0)
        for channel, gain in inputs.items():
            layer.weight[row, channel, middle, middle] = gain


def _pair(signal: int, position: int) -> dict[int, dict[int, float]]:
    """Rows that place a signal and its negative at a position, and leave the next two for the ballast."""
    return {position: {signal: 1.0}, position + 1: {signal: -1.0}, position + 2: {}, position + 3: {}}


def _set_encoder(vae: VAE, components: Tensor, gains: Tensor) -> None:
    encoder, num = vae.encoder, len(components)
    quarter = range(2)
    carry(encoder.conv_in, {c: {c: 1.0} for c in range(3)})
    # colour and place in a 2×2 block -> channel 4 c + 2 y + x
    halves = conv(encoder, "down_blocks.0.downsamplers.0.conv")
    for c in range(3):
        for y in quarter:
            for x in quarter:
                halves.weight[4 * c + 2 * y + x] = 0.0
                halves.weight[4 * c + 2 * y + x, c, y, x] = 1.0
    # those in a 4×4 block -> channel 12 (2 sy + sx) + 4 c + 2 y + x
    quarters = conv(encoder, "down_blocks.1.downsamplers.0.conv")
    # the component -> channel k
    whole = conv(encoder, "down_blocks.2.downsamplers.0.conv")
    whole.weight[:num] = 0.0
    for sy in quarter:
        for sx in quarter:
            first = 12 * (2 * sy + sx)
            quarters.weight[first : first + 12] = 0.0
            for cell in range(12):
                quarters.weight[first + cell, cell, sy, sx] = 1.0
            # (num, 3, block row, row, cell row, block column, column, cell column), of this 2×2 of cells in each 4×4 block
            cells = components.reshape(num, 3, 2, 2, 2, 2, 2, 2)[:, :, :, sy, :, :, sx]
            parts = cells.permute(0, 1, 3, 5, 2, 4).reshape(num, 12, 2, 2)
            whole.weight[:num, first : first + 12, :2, :2] = parts * gains[:, None, None, None]
    for level, carried in ((1, 12), (2, CELLS)):
        if vae.config.block_out_channels[level] != vae.config.block_out_channels[level - 1]:
            shortcut = conv(encoder, f"down_blocks.{level}.resnets.0.conv_shortcut")
            carry(shortcut, {i: {i: 1.0} for i in range(carried)})
    group = vae.config.block_out_channels[-1] // num
    last = conv(encoder, "down_blocks.3.resnets.0.conv_shortcut")
    for k in range(num):
        carry(last, _pair(k, group * k))
        set_bias(last, group * k + 2, BALLAST, -BALLAST)
        carry(encoder.conv_out, {k: {group * k: 1.0, group * k + 1: -1.0}})
    carry(encoder.conv_out, {num + k: {} for k in range(num)})
    carry(vae.quant_conv, {k: {k: 1.0} for k in range(num)} | {num + k: {} for k in range(num)})
    set_bias(vae.quant_conv, num, *[INITIAL_LOG_VAR] * num)


def _set_decoder(vae: VAE, colours: Tensor, mean: Tensor) -> None:
    """Colours (count, 3): the mean colour that a unit of each signal adds."""
    decoder, num = vae.decoder, len(colours)
    carry(decoder.conv_in, {k: {k: 1.0} for k in range(num)})
    # what the encoder's norm divided the signals by, near enough for a start
    group = vae.config.block_out_channels[-1] // num
    divisor = ((2 * SIGNAL**2 + 2 * BALLAST**2) / group) ** 0.5
    for c in range(3):
        carry(decoder.conv_in, {num + c: {k: float(colours[k, c]) * divisor for k in range(num)}})
        set_bias(decoder.conv_in, num + c, float(mean[c]))
    same = {i: {i: 1.0} for i in range(num + 3)}
    widths = vae.config.block_out_channels[::-1]
    for level in range(3):
        if level > 0 and widths[level] != widths[level - 1]:
            carry(conv(decoder, f"up_blocks.{level}.resnets.0.spatial_res_block.conv_shortcut"), same)
        if level < 2:
            carry(conv(decoder, f"up_blocks.{level}.upsamplers.0.conv"), same)
    last = conv(decoder, "up_blocks.2.upsamplers.0.conv")
    group = vae.config.block_out_channels[0] // vae.config.norm_num_groups
    gain = ((2 * SIGNAL**2 + 2 * BALLAST**2) / 4) ** 0.5
    for c in range(3):
        carry(last, _pair(num + c, group * c))
        set_bias(last, group * c + 2, BALLAST, -BALLAST)
        carry(decoder.conv_out, {c: {group * c: gain, group * c + 1: -gain}})
    carry(last, {3 * group + k: {k: 1.0} for k in range(num)})
    if widths[3] != widths[2]:
        final = conv(decoder, "up_blocks.3.resnets.0.spatial_res_block.conv_shortcut")
        carry(final, {i: {i: 1.0} for i in range(3 * group + num)})
