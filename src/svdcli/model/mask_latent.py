"""What an interpolation model is shown beside each noisy frame: a given frame's latent, or a learned one where it is to be found.

SVD paper §4.4 and app. D.5: the latents {z_s, z_m, ..., z_m, z_e}, with z_m learned, of one shape with a latent, and
behind them a binary mask, 1 where a frame is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class MaskLatentConfig:
    """The content of `mask_latent/config.json`."""

    channels: int
    height: int
    """of the latents that it was trained at"""
    width: int
    blend: bool = False
    """whether it is added to the blend of the given frames, see `MaskLatent`"""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MaskLatentConfig:
        return cls(values["channels"], values["height"], values["width"], bool(values.get("blend", False)))

    def to_dict(self) -> dict[str, Any]:
        return {"_class_name": "MaskLatent", **asdict(self)}


class MaskLatent(nn.Module):
    """The learned latent z_m, zero at first; at another size it is scaled to that.

    With `blend`, which the paper has not, it is added to the linear blend of the two given latents: a network that at
    first repeats what it is shown then begins as a cross-fade.
    """

    def __init__(self, config: MaskLatentConfig) -> None:
        super().__init__()
        self.config = config
        self.latent = nn.Parameter(torch.zeros(config.channels, config.height, config.width))

    def forward(self, ends: Tensor, num_frames: int) -> Tensor:
        """Latents of the given frames (B, 2, c, h, w) -> latents and mask of all (B, T, c + 1, h, w)."""
        first, last = ends[:, :1], ends[:, 1:]
        between = self._sized(ends).to(ends.dtype).expand(len(ends), num_frames - 2, -1, -1, -1)
        if self.config.blend:
            share = torch.linspace(0, 1, num_frames, device=ends.device)[1:-1, None, None, None]
            between = between + torch.lerp(first, last, share.to(ends.dtype))
        given = torch.zeros(num_frames, device=ends.device, dtype=ends.dtype)
        given[0] = given[-1] = 1
        mask = given[:, None, None, None].expand(len(ends), -1, 1, *ends.shape[-2:])
        return torch.cat([torch.cat([first, between, last], dim=1), mask], dim=2)

    def _sized(self, like: Tensor) -> Tensor:
        size = like.shape[-2:]
        if self.latent.shape[-2:] == size:
            return self.latent
        return F.interpolate(self.latent[None], size=size, mode="bilinear", align_corners=False)[0]
