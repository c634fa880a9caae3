"""Latents of a frame set, encoded once and kept on disk under everything that changes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from svdcli.io.files import atomic_path
from svdcli.model.vae import VAE

BATCH = 16


def latent_rows(
    vae: VAE, frames: npt.NDArray[np.uint8], cache: Path, device: torch.device
) -> npt.NDArray[np.float16]:
    """Frames (N, H, W, 3) uint8 -> unscaled latents (N, c, h, w) float16, memory-mapped from the cache.

    The key is made of the encoder's weights, the number of frames, and every seventh of them: other
    weights or another dataset make another file.
    """
    key = hashlib.sha256(str(frames.shape).encode())
    for name, value in sorted(vae.state_dict().items()):
        if not name.startswith("decoder."):
            key.update(value.float().cpu().numpy().tobytes())
    for row in range(0, len(frames), 7):
        key.update(np.ascontiguousarray(frames[row]).tobytes())
    path = cache / f"latents-{key.hexdigest()[:16]}.npy"
    if not path.exists():
        rows = [encode_frames(vae, frames[i : i + BATCH], device) for i in range(0, len(frames), BATCH)]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate(rows))
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def encode_frames(vae: VAE, frames: npt.NDArray[np.uint8], device: torch.device) -> npt.NDArray[np.float16]:
    """(N, H, W, 3) uint8 -> unscaled latents (N, c, h, w), all at once."""
    pixels = to_pixels(frames).to(device)
    return vae.encode(pixels[None])[0].cpu().numpy().astype(np.float16)


def to_pixels(frames: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).float().div_(127.5).sub_(1.0).movedim(-1, -3)
