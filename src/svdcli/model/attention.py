"""Transformers of the UNet: attention within a frame, attention over time, and the one-token shortcut."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from svdcli.model.blocks import SLICE, Mixer, is_plain, lightly
from svdcli.model.embedding import EmbeddingMLP, sinusoid
from svdcli.model.gradients import by_hand, gated_linear

FEED_FORWARD_ROWS = 1 << 25
"""Inference keeps the hidden layer of a feed-forward below this many numbers, by slicing the tokens."""
FEED_FORWARD_CACHED = {"cpu": 1 << 20}
"""On a CPU so few that they stay in the cache, and that the allocator has the memory at hand."""
FEWEST_TOKENS = 1024
"""For that, a slice is not made shorter than this, as each slice reads all weights."""

SHORT = 256
"""Up to so many tokens, plain products of matrices are faster on a CPU than its fused attention."""


class Context:
    """Context tokens (B, N, D) of a batch of clips, and what cross-attention made of them.

    With a single token softmax is 1, so that a cross-attention's output does not depend on its query: it is
    one vector per clip, the same at every noise level. Each attention computes it once and leaves it here; not where
    gradients are wanted, as each step of training has a context of its own.
    """

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.vectors: dict[nn.Module, Tensor] = {}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) v, each (rows, heads, N, d), the same for all rows; `SHORT` ones slice by slice."""
    exact = q.dtype == torch.float32 and not torch.is_grad_enabled()
    if q.device.type != "cpu" or not exact or q.shape[2] > SHORT:
        return F.scaled_dot_product_attention(q, k, v)
    heads, tokens, width = q.shape[1:]
    size, nothing, parts = max(1, SLICE["cpu"] // (heads * tokens**2)), q.new_empty(1, 1, 1), []
    for some in zip(q.split(size), k.split(size), v.split(size), strict=True):
        query, key, value = (part.flatten(0, 1).contiguous() for part in some)
        scores = torch.baddbmm(nothing, query, key.mT, beta=0, alpha=width**-0.5)
        parts.append((scores.softmax(dim=-1) @ value).unflatten(0, (-1, heads)))
    return torch.cat(parts)


class Attention(nn.Module):
    """Multi-head attention with the projections named as in the published weights."""

    def __init__(
        self, width: int, num_heads: int, context_width: int | None = None, bias: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(width, width, bias=bias)
        self.to_k = nn.Linear(context_width or width, width, bias=bias)
        self.to_v = nn.Linear(context_width or width, width, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention within each row: (rows, N, D) -> (rows, N, D)."""
        q, k, v = (self.heads(project(x)).transpose(1, 2) for project in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](attend(q, k, v).transpose(1, 2).flatten(2))

    def over_time(self, x: Tensor, num_frames: int) -> Tensor:
        """Self-attention over the frames of each place: (B T, N, D) -> (B T, N, D)."""
        q, k, v = (
            rearrange(project(x), "(b t) n (h d) -> (b n) h t d", t=num_frames, h=self.num_heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out[0](rearrange(attend(q, k, v), "(b n) h t d -> (b t) n (h d)", n=x.shape[1]))

    def cross(self, x: Tensor, context: Context) -> Tensor:
        """x (B T, N, D) attends to its clip's context -> (B T, N, D), or (B T, 1, D) to broadcast."""
        tokens = context.tokens.to(x.dtype)
        repeats = x.shape[0] // tokens.shape[0]
        if tokens.shape[1] == 1:
            vector = context.vectors.get(self)
            if vector is None:
                vector = self.to_out[0](self.to_v(tokens))
                if not torch.is_grad_enabled():
                    context.vectors[self] = vector
            return vector.repeat_interleave(repeats, dim=0)
        q = rearrange(self.to_q(x), "(b t) n (h d) -> b h (t n) d", t=repeats, h=self.num_heads)
        k, v = (self.heads(project(tokens)).transpose(1, 2) for project in (self.to_k, self.to_v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out[0](rearrange(out, "b h (t n) d -> (b t) n (h d)", t=repeats))


class GEGLU(nn.Module):
    """x -> a · gelu(g), with a and g the two halves of one projection."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden_width)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a and g, each projected by itself, as GELU is slow on one that lies between the rows of the other."""
        if not is_plain(self.proj):
            value, gate = self.proj(x).chunk(2, dim=-1)
            return value, gate
        weights, biases = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        value, gate = (F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))
        return value, gate

    def forward(self, x: Tensor) -> Tensor:
        return gated(*self.halves(x))


def gated(value: Tensor, gate: Tensor) -> Tensor:
    """a · gelu(g)"""
    return F.gelu(gate) * value if torch.is_grad_enabled() else F.gelu(gate).mul_(value)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """(rows, N, D) -> the same. Without gradients in slices, to keep the hidden layer small."""
        tokens, hidden = x.flatten(0, 1), 8 * x.shape[-1]
        size = max(1, FEED_FORWARD_ROWS // hidden)
        if x.device.type in FEED_FORWARD_CACHED:
            size = min(size, max(FEWEST_TOKENS, FEED_FORWARD_CACHED[x.device.type] // hidden))
        if torch.is_grad_enabled():
            projection, out = self.net[0], self.net[2]
            assert isinstance(projection, GEGLU)
            value, gate = projection.halves(x)
            if isinstance(out, nn.Linear) and is_plain(out) and by_hand(value, gate, out.weight):
                return gated_linear(value, gate, out)
            return lightly(lambda *halves: out(gated(*halves)), value, gate)
        if size >= len(tokens):
            return self.net[2](self.net[0](x))
        return torch.cat([self.net[2](self.net[0](part)) for part in tokens.split(size)]).view(x.shape)


class SpatialBlock(nn.Module):
    """Attention within each frame, the context, feed-forward; each with its norm and residual."""

    def __init__(self, width: int, num_heads: int, context_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, num_heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = self.attn1(self.norm1(x)).add_(x)
        x = add_cross(self, x, context)
        return self.ff(self.norm3(x)).add_(x)


class TemporalBlock(nn.Module):
    """Attention over the frames at each place, between two feed-forwards."""

    def __init__(self, width: int, num_heads: int, context_width: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.ff_in = FeedForward(width)
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, num_heads, context_width)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, num_frames: int, context: Context) -> Tensor:
        x = self.ff_in(self.norm_in(x)).add_(x)
        x = self.attn1.over_time(self.norm1(x), num_frames).add_(x)
        x = add_cross(self, x, context)
        return self.ff(self.norm3(x)).add_(x)


def add_cross(block: SpatialBlock | TemporalBlock, x: Tensor, context: Context) -> Tensor:
    """x + cross-attention of norm2(x); a single token needs no query, hence no norm."""
    query = x if context.tokens.shape[1] == 1 else block.norm2(x)
    return x + block.attn2.cross(query, context)


class SpatioTemporalTransformer(nn.Module):
    """Spatial block, then temporal block on its output plus the frame index; one number blends them.

    With `temporal=False`, that of an image network, it holds the spatial blocks alone.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_layers: int,
        context_width: int,
        groups: int,
        temporal: bool = True,
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.proj_in = nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(
            SpatialBlock(width, num_heads, context_width) for _ in range(num_layers)
        )
        if temporal:
            self.temporal_transformer_blocks = nn.ModuleList(
                TemporalBlock(width, num_heads, context_width) for _ in range(num_layers)
            )
            self.time_pos_embed = EmbeddingMLP(width, 4 * width, width)
            self.time_mixer = Mixer(0.5)
        self.proj_out = nn.Linear(width, width)

    def frame_embedding(self, num_frames: int, like: Tensor) -> Tensor:
        """Embedding of the frame index: (T, 1, D)."""
        index = torch.arange(num_frames, device=like.device)
        return self.time_pos_embed(sinusoid(index, like.shape[-1]).to(like.dtype))[:, None]

    def forward(self, x: Tensor, context: Context, num_frames: int | None) -> Tensor:
        """x (B T, C, H, W) -> the same shape. No num_frames: images, no temporal path."""
        height, width = x.shape[-2:]
        h = lightly(lambda x: self.proj_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)), x)
        h = self.over_frames(h, context) if num_frames is None else self.over_clips(h, context, num_frames)
        h = self.proj_out(h).unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return h.add_(x)

    def over_frames(self, h: Tensor, context: Context) -> Tensor:
        """Tokens (B T, N, D) -> the same, each frame by itself."""
        for spatial in self.transformer_blocks:
            h = spatial(h, context)
        return h

    def over_clips(self, h: Tensor, context: Context, num_frames: int) -> Tensor:
        """Tokens (B T, N, D) -> the same, the frames of a clip seeing one another."""
        position = self.frame_embedding(num_frames, h).repeat(h.shape[0] // num_frames, 1, 1)
        alpha = torch.sigmoid(self.time_mixer.mix_factor).to(h.dtype)  # under autocast the two differ
        for spatial, temporal in zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True):
            h = spatial(h, context)
            h = torch.lerp(temporal(h + position, num_frames, context), h, alpha)
        return h


class FrameAttention(nn.Module):
    """The VAE's single attention: all places of a frame, one head, with its own norm and residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, 1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """x (B T, C, H, W) -> the same shape."""
        tokens = self.group_norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        q, k, v = (project(tokens)[:, None] for project in (self.to_q, self.to_k, self.to_v))
        out = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return out.unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2) + x
