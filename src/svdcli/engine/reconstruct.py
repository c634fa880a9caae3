"""A clip through the autoencoder alone: the most that a model which works on its latents can show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from svdcli.engine.generate import decode, encode_clean
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence

Frames = npt.NDArray[np.uint8]


def reconstruct(residence: Residence, frames: Frames, chunk: int, overlap: int) -> Frames:
    """Frames (T, H, W, 3) -> the same, encoded and decoded, `chunk` frames at a time as `decode` has it."""
    return decode(residence, encode_clean(residence, to_pixels(frames), chunk), chunk, overlap)[0]
