"""An image UNet becomes a video UNet (SVD paper §2, app. D.2; svd-facts §2.1), and a video UNet takes more inputs.

At the start the temporal layers are silent, so that every frame is what the image network makes of it alone, to the
bit: the last convolution of each temporal residual block is zero, as Stability's code has it, and so is every way out
of a temporal transformer: the last linear layer of its attentions, its feed-forwards and its frame embedding. That is
stricter than Stability's, whose transformers begin at random behind the mixing weight (mix_factor 0.5, kept here).
Each of these layers sees a gradient from the first step. So it is with what a network grows later: its weights are zero.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import nn

from svdcli.model.attention import SpatioTemporalTransformer, TemporalBlock
from svdcli.model.blocks import TemporalResBlock, silence
from svdcli.model.embedding import sinusoid
from svdcli.model.unet import UNet, UNetConfig

TEMPORAL = re.compile(r"\.(temporal_res_block|temporal_transformer_blocks|time_pos_embed|time_mixer)\.")
RESNET = re.compile(r"(\.resnets\.\d+)\.")
ID_WIDTH = 256
"""Width of the embedding of each vector id, in every published network."""


def is_temporal(name: str) -> bool:
    """Whether a parameter of that name belongs to a video network's temporal layers (656,076,838 numbers in SVD)."""
    return TEMPORAL.search("." + name) is not None


def is_new(name: str) -> bool:
    """Whether a video network has a parameter of that name and the image network that it began as does not.

    These are the temporal layers and the layers of the ids.
    """
    return is_temporal(name) or name.startswith("add_embedding.") or ".add_embedding." in name


def video_config(image: UNetConfig, num_frames: int, num_ids: int, id_width: int = ID_WIDTH) -> UNetConfig:
    """The configuration of an image network with temporal layers, `num_ids` vector ids, and its own norms' ε."""
    return replace(
        image,
        down_block_types=_with_time(image.down_block_types),
        up_block_types=_with_time(image.up_block_types),
        temporal=True,
        num_frames=num_frames,
        addition_time_embed_dim=id_width,
        projection_class_embeddings_input_dim=num_ids * id_width,
        norm_eps=image.norm_eps or 1e-5,
    )


def _with_time(kinds: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(kind.replace("Block2D", "BlockSpatioTemporal") for kind in kinds)


@torch.no_grad()
def inflate(image: UNet, num_frames: int, num_ids: int = 2, id_width: int = ID_WIDTH) -> UNet:
    """An image network -> a video network whose frames at first equal its pictures, whatever the ids.

    It takes over the image network's tensors, not copies. New layers draw from torch's global generator. `num_frames`
    is what the configuration suggests to sample with. Raises ValueError for a network that is one of video already.
    """
    if image.config.temporal:
        raise ValueError("the network has temporal layers already")
    with torch.device(image.conv_in.weight.device):
        video = UNet(video_config(image.config, num_frames, num_ids, id_width))
    spatial = {RESNET.sub(r"\1.spatial_res_block.", name): t for name, t in image.state_dict().items()}
    outcome = video.load_state_dict(spatial, strict=False, assign=True)
    assert not outcome.unexpected_keys and all(is_new(name) for name in outcome.missing_keys)
    video.requires_grad_(True)
    silence_time(video)
    return video.to(image.conv_in.weight.dtype)


@torch.no_grad()
def silence_time(video: UNet) -> None:
    """Zero what the temporal layers and the ids add: clips are then denoised frame by frame."""
    for module in video.modules():
        if isinstance(module, TemporalResBlock):
            silence(module.conv2)
        elif isinstance(module, TemporalBlock):
            ways_out = (module.ff_in.net[2], module.attn1.to_out[0], module.attn2.to_out[0], module.ff.net[2])
            for layer in ways_out:
                assert isinstance(layer, nn.Linear)
                silence(layer)
        elif isinstance(module, SpatioTemporalTransformer):
            silence(module.time_pos_embed.linear_2)
    if video.config.num_vector_ids:
        silence(video.add_embedding.linear_2)


@torch.no_grad()
def posed(unet: UNet, id_widths: tuple[int, ...], settled: tuple[float, ...] = ()) -> UNet:
    """An image-to-video or multi-view network that is told the augmentation, and then angles of cameras, see `condition_on_view`.

    What it was told before the augmentation stays for good what `settled` says, its fps id and motion bucket: its share
    of the first layer goes into the bias. Weights of the angles are zero at first, unless it has them, so that its output is what
    it was, whatever the angles. Raises ValueError where the augmentation's embedding has another width.
    """
    old = unet.config
    widths, count = old.widths_of_ids, len(settled)
    if widths[count] != id_widths[0]:
        raise ValueError(f"the augmentation is told by {widths[count]} numbers, not {id_widths[0]}")
    uniform = len({*id_widths}) == 1
    config = replace(
        old,
        addition_time_embed_dim=id_widths[0],
        projection_class_embeddings_input_dim=sum(id_widths),
        id_widths=() if uniform else id_widths,
    )
    state = unet.state_dict()
    weight, bias = (state[f"add_embedding.linear_1.{leaf}"] for leaf in ("weight", "bias"))
    before, kept = weight.split([sum(widths[:count]), sum(widths[count:])], dim=1)
    waves = [sinusoid(torch.tensor(value), width) for value, width in zip(settled, widths, strict=False)]
    if waves:
        bias = bias + before @ torch.cat(waves).to(weight)
    wide = weight.new_zeros(weight.shape[0], sum(id_widths))
    same = id_widths[: len(widths) - count] == widths[count:]
    shared = kept.shape[1] if same else id_widths[0]
    wide[:, :shared] = kept[:, :shared]
    with torch.device(weight.device):
        new = UNet(config)
    state |= {"add_embedding.linear_1.weight": wide, "add_embedding.linear_1.bias": bias}
    new.load_state_dict(state, assign=True)
    return new.requires_grad_(True).to(unet.conv_in.weight.dtype)


@torch.no_grad()
def grown(unet: UNet, in_channels: int, num_ids: int) -> UNet:
    """The same network with more inputs: latents to concatenate and vector ids, whose weights are zero at first.

    So its output is unchanged, whatever the new inputs are. Raises ValueError where it would lose some.
    """
    old = unet.config
    if in_channels < old.in_channels or num_ids < old.num_vector_ids:
        raise ValueError(
            f"a network of {old.in_channels} channels and {old.num_vector_ids} ids cannot shrink to "
            f"{in_channels} and {num_ids}"
        )
    width = num_ids * old.addition_time_embed_dim
    config = replace(old, in_channels=in_channels, projection_class_embeddings_input_dim=width)
    with torch.device(unet.conv_in.weight.device):
        new = UNet(config)
    state = unet.state_dict()
    for name in ("conv_in.weight", "add_embedding.linear_1.weight"):
        if name in state:
            wide = torch.zeros_like(new.get_parameter(name), dtype=state[name].dtype)
            wide[:, : state[name].shape[1]] = state[name]
            state[name] = wide
    new.load_state_dict(state, strict=False, assign=True)
    if num_ids and not old.num_vector_ids:
        silence(new.add_embedding.linear_2)
    return new.requires_grad_(True).to(unet.conv_in.weight.dtype)
