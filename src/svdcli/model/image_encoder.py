"""The CLIP image embedding that stands in for text (SVD paper app. D.4; svd-facts §2.2).

The network is transformers' `CLIPVisionModelWithProjection`; what is ours is the preprocessing, which is part
of the model: antialiased bicubic resize to 224×224 without a crop, on pixels in [-1, 1], then CLIP's mean and
standard deviation.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder(nn.Module):
    """A picture -> one embedding, the only token of the context.

    The state-dict keys of `clip` equal those of the published weights.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """`config`: the keys of a transformers `image_encoder/config.json`."""
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self.config = CLIPVisionConfig(
            **{k: v for k, v in config.items() if k not in ("architectures", "model_type")}
        )
        self.clip = CLIPVisionModelWithProjection(self.config)

    @property
    def width(self) -> int:
        """Width of the embedding."""
        return self.config.projection_dim

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> embeddings (B, D)."""
        side = cast(int, self.config.image_size)
        return self.clip(self.preprocess(pixels, side)).image_embeds

    def preprocess(self, pixels: Tensor, side: int) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> CLIP's input (B, 3, side, side), of the network's dtype."""
        small = (resize_antialiased(pixels.float(), side) + 1.0) / 2.0
        mean = small.new_tensor(CLIP_MEAN)[:, None, None]
        std = small.new_tensor(CLIP_STD)[:, None, None]
        return ((small - mean) / std).to(next(self.clip.parameters()).dtype)


def resize_antialiased(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side): Gaussian blur against aliasing, then bicubic with aligned corners.

    The blur's σ per axis is (factor − 1) / 2, its kernel spans ±2σ and is odd, at least 3 wide; edges are
    reflected. An axis that does not shrink stays sharp.
    """
    for axis in (-2, -1):
        if x.shape[axis] > side:
            x = _blur(x, (x.shape[axis] / side - 1.0) / 2.0, axis)
    return F.interpolate(x, size=(side, side), mode="bicubic", align_corners=True)


def _blur(x: Tensor, sigma: float, axis: int) -> Tensor:
    size = int(max(4.0 * sigma, 3)) | 1
    offsets = torch.arange(size, dtype=x.dtype, device=x.device) - size // 2
    kernel = torch.exp(-offsets.square() / (2 * sigma * sigma))
    kernel = (kernel / kernel.sum()).view((1, 1, size, 1) if axis == -2 else (1, 1, 1, size))
    half = size // 2
    padded = F.pad(x, (0, 0, half, half) if axis == -2 else (half, half, 0, 0), mode="reflect")
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, -1, -1), groups=x.shape[1])
