"""The spatio-temporal UNet of Stable Video Diffusion (SVD paper §2, app. D; svd-facts §2.1), and the image UNet below it.

State-dict keys equal those of the published weights in the diffusers layout, key for key: of
`UNetSpatioTemporalConditionModel`, and without temporal layers (`temporal=False`, Stable Diffusion 2.1) of
`UNet2DConditionModel`. At SVD's configuration it has 1,524,623,082 parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from svdcli.model import image_config
from svdcli.model.attention import Context, SpatioTemporalTransformer
from svdcli.model.blocks import (
    NUM_GROUPS,
    Downsample,
    ResBlock,
    SpatioTemporalResBlock,
    TemporalResBlock,
    Upsample,
    norm_silu,
    silence,
)
from svdcli.model.embedding import EmbeddingMLP, sinusoid


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the UNet; the field names are the keys of a diffusers `unet/config.json`. Defaults: SVD-XT."""

    in_channels: int = 8
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlockSpatioTemporal",) * 3 + (
        "DownBlockSpatioTemporal",
    )
    up_block_types: tuple[str, ...] = ("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    addition_time_embed_dim: int = 256
    projection_class_embeddings_input_dim: int = 768
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int | tuple[int, ...] = 1024
    transformer_layers_per_block: int | tuple[int, ...] = 1
    num_attention_heads: int | tuple[int, ...] = (5, 10, 20, 20)
    num_frames: int = 25
    sample_size: int | None = None
    norm_num_groups: int = NUM_GROUPS
    norm_eps: float | None = None
    """of the residual blocks' norms; None: as diffusers has it for video, 1e-6 where the level attends or rises. Image
    networks and Stability's own code have 1e-5 throughout."""
    temporal: bool = True
    """False: an image network, which holds no temporal layers and takes no ids"""
    id_widths: tuple[int, ...] = ()
    """widths of the ids' embeddings where they differ, as in SV3D_p (256, 512, 512); empty: all addition_time_embed_dim"""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UNetConfig:
        """From a parsed `config.json`; keys that do not shape the network are left out.

        Raises ValueError for an image network of another architecture than Stable Diffusion 2's.
        """
        if values.get("_class_name") == image_config.CLASS:
            values = image_config.read(values)
        known = {f.name for f in fields(cls)}
        chosen: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
        }
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """As a diffusers `config.json` says it."""
        values = asdict(self)
        if not values.pop("temporal"):
            return image_config.written(values)
        for name in ("norm_eps", "id_widths"):  # other tools do not know them
            if not values[name]:
                del values[name]
        return {"_class_name": "UNetSpatioTemporalConditionModel", **values}

    @property
    def num_levels(self) -> int:
        return len(self.block_out_channels)

    @property
    def num_vector_ids(self) -> int:
        """How many scalars (fps, motion bucket, augmentation σ) the vector condition takes; 0: it has no layers for any."""
        return len(self.widths_of_ids)

    @property
    def widths_of_ids(self) -> tuple[int, ...]:
        """Of each scalar's embedding."""
        width = self.addition_time_embed_dim
        return self.id_widths or (width,) * (self.projection_class_embeddings_input_dim // width)

    @property
    def takes_mask(self) -> bool:
        """Whether an image-to-video network is told, in one channel more, where the picture may move."""
        return self.in_channels == 2 * self.out_channels + 1

    def per_level(self, name: str) -> tuple[int, ...]:
        """A setting that may be one number for all levels, as one number a level."""
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * self.num_levels


class Level(nn.Module):
    """Residual blocks of one resolution, each with a transformer behind it where the level attends."""

    attentions: nn.ModuleList
    downsamplers: nn.ModuleList
    upsamplers: nn.ModuleList

    def __init__(
        self,
        resnets: Sequence[nn.Module],
        attentions: Sequence[nn.Module],
        sampler: tuple[str, nn.Module] | None,
    ) -> None:
        super().__init__()
        if attentions:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)
        if sampler:
            self.add_module(sampler[0], nn.ModuleList([sampler[1]]))

    def layer(self, index: int, x: Tensor, emb: Tensor, context: Context, num_frames: int | None) -> Tensor:
        x = self.resnets[index](x, emb, num_frames)
        return self.attentions[index](x, context, num_frames) if hasattr(self, "attentions") else x


class DownLevel(Level):
    def forward(
        self, x: Tensor, emb: Tensor, context: Context, num_frames: int | None
    ) -> tuple[Tensor, list[Tensor]]:
        """-> the level's output, and what the way up will want of it."""
        skips = []
        for index in range(len(self.resnets)):
            x = self.layer(index, x, emb, context, num_frames)
            skips.append(x)
        if hasattr(self, "downsamplers"):
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class UpLevel(Level):
    def forward(
        self, x: Tensor, skips: list[Tensor], emb: Tensor, context: Context, num_frames: int | None
    ) -> Tensor:
        """Takes its skips off the end of the list, the deepest first."""
        for index in range(len(self.resnets)):
            x = self.layer(index, torch.cat([x, skips.pop()], dim=1), emb, context, num_frames)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x, tuple(skips[-1].shape[-2:]))
        return x


class MidLevel(Level):
    def forward(self, x: Tensor, emb: Tensor, context: Context, num_frames: int | None) -> Tensor:
        x = self.resnets[0](x, emb, num_frames)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x, context, num_frames), emb, num_frames)
        return x


class UNet(nn.Module):
    """Predicts F of the EDM preconditioning from a noisy clip, its noise level and its conditioning."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        if config.id_widths and sum(config.id_widths) != config.projection_class_embeddings_input_dim:
            raise ValueError(
                f"id_widths {config.id_widths} do not add up to the width of the vector condition"
            )
        self.config = config
        widths = config.block_out_channels
        emb_width = 4 * widths[0]
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = EmbeddingMLP(widths[0], emb_width)
        if config.num_vector_ids:
            self.add_embedding = EmbeddingMLP(config.projection_class_embeddings_input_dim, emb_width)
        self.down_blocks = nn.ModuleList(self._down_level(i, emb_width) for i in range(config.num_levels))
        self.up_blocks = nn.ModuleList(
            self._up_level(i, emb_width) for i in reversed(range(config.num_levels))
        )
        self.mid_block = self._mid_level(emb_width)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], 1e-5)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def _transformer(self, level: int, num_layers: int | None = None) -> SpatioTemporalTransformer:
        config = self.config
        heads, context = config.per_level("num_attention_heads"), config.per_level("cross_attention_dim")
        depth = num_layers or config.per_level("transformer_layers_per_block")[level]
        return SpatioTemporalTransformer(
            config.block_out_channels[level],
            heads[level],
            depth,
            context[level],
            config.norm_num_groups,
            config.temporal,
        )

    def _resnet(self, in_channels: int, out_channels: int, emb_width: int, eps: float) -> nn.Module:
        """A residual block, with its temporal companion in a video network. `eps`: diffusers' for a video network."""
        eps, groups = self.config.norm_eps or eps, self.config.norm_num_groups
        if not self.config.temporal:
            return ResBlock(in_channels, out_channels, emb_width, eps, groups)
        return SpatioTemporalResBlock(in_channels, out_channels, emb_width, groups, eps=eps)

    def _down_level(self, level: int, emb_width: int) -> DownLevel:
        config, widths = self.config, self.config.block_out_channels
        attends = config.down_block_types[level].startswith("CrossAttn")
        num_layers = config.per_level("layers_per_block")[level]
        inputs = [widths[max(level - 1, 0)]] + [widths[level]] * (num_layers - 1)
        resnets = [
            self._resnet(width, widths[level], emb_width, 1e-6 if attends else 1e-5) for width in inputs
        ]
        attentions = [self._transformer(level) for _ in resnets] if attends else []
        sampler = ("downsamplers", Downsample(widths[level])) if level < config.num_levels - 1 else None
        return DownLevel(resnets, attentions, sampler)

    def _up_level(self, level: int, emb_width: int) -> UpLevel:
        config, widths = self.config, self.config.block_out_channels
        attends = config.up_block_types[config.num_levels - 1 - level].startswith("CrossAttn")
        num_layers = config.per_level("layers_per_block")[level] + 1
        below = widths[min(level + 1, config.num_levels - 1)]
        inputs = [below] + [widths[level]] * (num_layers - 1)
        skips = [widths[level]] * (num_layers - 1) + [widths[max(level - 1, 0)]]
        resnets = [
            self._resnet(width + skip, widths[level], emb_width, 1e-6)
            for width, skip in zip(inputs, skips, strict=True)
        ]
        attentions = [self._transformer(level) for _ in resnets] if attends else []
        sampler = ("upsamplers", Upsample(widths[level])) if level > 0 else None
        return UpLevel(resnets, attentions, sampler)

    def _mid_level(self, emb_width: int) -> MidLevel:
        width = self.config.block_out_channels[-1]
        resnets = [self._resnet(width, width, emb_width, 1e-5) for _ in range(2)]
        return MidLevel(resnets, [self._transformer(-1)], None)

    def embed(self, c_noise: Tensor, vector_ids: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Noise level (B,) and ids (B, K) -> the embedding that shifts every block (B, D), after its SiLU.

        Without ids, as for images: of the noise level alone. A noise level or ids of each frame, (B, T) or (B, T, K), make
        it one a frame, (B T, D).
        """
        config = self.config
        if vector_ids is not None and vector_ids.shape[-1] != config.num_vector_ids:
            raise ValueError(
                f"the network takes {config.num_vector_ids} vector ids, not {vector_ids.shape[-1]}"
            )
        emb = self.time_embedding(sinusoid(c_noise, config.block_out_channels[0]).to(dtype))
        if vector_ids is not None and config.num_vector_ids:
            each = zip(vector_ids.unbind(-1), config.widths_of_ids, strict=True)
            told = self.add_embedding(torch.cat([sinusoid(*one) for one in each], dim=-1).to(dtype))
            if emb.ndim != told.ndim:
                emb, told = (t if t.ndim == 3 else t[:, None] for t in (emb, told))
            emb = emb + told
        return nn.functional.silu(emb.flatten(0, -2))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        context: Tensor | Context,
        vector_ids: Tensor | None = None,
        as_images: bool = False,
    ) -> Tensor:
        """Predict F (B, T, C_out, h, w), of x's dtype.

        x: (B, T, C_in, h, w), scaled noisy latents with the concat latents behind them. c_noise: (B,), ¼ ln σ, or (B, T)
        where frames differ in their noise. context: (B, N, D) or a `Context`, which keeps the one-token vectors from step to
        step. vector_ids: (B, K), fps id, motion bucket, augmentation σ in this order, or of a multi-view network those of
        `condition_on_view`, which may be each view's own, (B, T, K). `as_images`: the temporal layers and the ids stay out,
        each frame is denoised by itself; an image network knows nothing else. Raises ValueError where the
        number of ids is not the network's.
        """
        batch, length = x.shape[:2]
        as_images = as_images or not self.config.temporal
        num_frames = None if as_images else length
        emb = self.embed(c_noise, None if as_images else vector_ids, x.dtype)
        context = context if isinstance(context, Context) else Context(context)
        h = self.conv_in(x.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        skips = [h]
        for level in self.down_blocks:
            h, outputs = level(h, emb, context, num_frames)
            skips += outputs
        h = self.mid_block(h, emb, context, num_frames)
        for level in self.up_blocks:
            h = level(h, skips, emb, context, num_frames)
        h = self.conv_out(norm_silu(self.conv_norm_out, h))
        return h.unflatten(0, (batch, length))

    @torch.no_grad()
    def reset(self) -> None:
        """Start for training: residual branches and F itself are silent: the denoiser begins as c_skip · x."""
        for module in self.modules():
            if isinstance(module, ResBlock | TemporalResBlock):
                silence(module.conv2)
            elif isinstance(module, SpatioTemporalTransformer):
                silence(module.proj_out)
        silence(self.conv_out)
