"""A patch-wise temporal discriminator for training the autoencoder (Video-LDM, 2304.08818, §3.1.1): 3D convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Clips (B, T, 3, H, W) in [-1, 1] -> a score for each patch, (B, 1, T, h, w); above 0 is "real". H and W 16 or more.

    Spectral norms keep its features from running ahead of the decoder; the last layer is free, or no verdict could be clear.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            spectral_norm(nn.Conv3d(i, o, (3, 4, 4), stride=(1, 2, 2), padding=1))
            for i, o in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.score = nn.Conv3d(widths[-1], 1, 3, padding=1)

    def forward(self, clips: Tensor) -> Tensor:
        x = clips.transpose(1, 2)
        for conv in self.convs:
            x = functional.leaky_relu(conv(x), 0.2)
        return self.score(x)  # type: ignore[no-any-return]
