"""Noise that depends on the seed alone: not on the batch, the device, or what else was drawn.

Every sample has its own generator, on the CPU, and every use (the starting latent, the augmentation of the
conditioning frame, the noise of stochastic samplers) its own stream. So sample i of a batch is the picture
that its seed gives alone, and a sampler that draws more noise leaves the augmentation as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from svdcli.errors import UsageError

Stream = Literal["latent", "augment", "step"]


def stream_seed(seed: int, stream: Stream) -> int:
    """The generator seed of one stream of one sample.

    "latent" is the seed itself, so the starting noise is torch.randn after manual_seed(seed), as elsewhere
    in the field; the others are hashed from (name, seed), so neighbouring seeds share nothing.
    """
    if stream == "latent":
        return seed
    digest = hashlib.sha256(f"{stream}:{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


class NoiseSource:
    """Unit normal noise for a batch of B = len(seeds) samples of one shape.

    `seeds` are integers in [0, 2^64) (torch's CPU generator tells only their low 32 bits apart), `shape` is
    that of one sample, (T, C, h, w) for latents. Raises UsageError for a seed out of range.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], stream: Stream = "latent") -> None:
        if stream not in get_args(Stream):
            raise ValueError(f"unknown noise stream {stream!r}")
        for seed in seeds:
            if not 0 <= seed < 2**64:
                raise UsageError(f"seed is {seed}, outside 0 to 2^64 - 1.", "Choose a whole number in it.")
        self.seeds = tuple(seeds)
        self.shape = tuple(shape)
        self._generators = [torch.Generator().manual_seed(stream_seed(s, stream)) for s in self.seeds]

    def stream(self, name: Stream, shape: Sequence[int] | None = None) -> NoiseSource:
        """The named stream of the same seeds, at its first draw; `shape` where it differs (pixels, say)."""
        return NoiseSource(self.seeds, self.shape if shape is None else shape, name)

    def draw(self) -> Tensor:
        """The next noise of every sample: (B, *shape) float32 on the CPU."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self._generators])
