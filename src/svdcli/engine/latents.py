"""Latents of clips, encoded once and kept on disk under everything that changes them."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from svdcli.data.footage import Footage, Frames, Video
from svdcli.io.files import atomic_path
from svdcli.model.vae import VAE

BATCH = 16
MAPPED = 64
"""Files kept mapped."""


class Latents:
    """The unscaled latents of a footage, a file a clip, encoded when a clip first comes up.

    A file lies under the encoder (its weights, its configuration with the scaling factor, the precision) and
    the clip (its source's name, size and time or content, the size, the rates, the rows: see
    `Footage.identity`): whatever changes one of these makes another file. Without a `cache` nothing is kept.
    """

    def __init__(self, vae: VAE, footage: Footage, cache: Path | None, device: torch.device) -> None:
        self.vae, self.footage, self.device = vae, footage, device
        self.folder = cache / f"latents-{encoder_key(vae)}" if cache is not None else None
        self._mapped: OrderedDict[Path, npt.NDArray[np.float16]] = OrderedDict()

    def take(
        self, video: Video, numbers: Sequence[int], pixels: Frames | None = None
    ) -> npt.NDArray[np.float16]:
        """Latents (T, c, h, w) of a video's frames by number; `pixels` are those frames, where they are at hand."""
        if self.folder is None:
            frames = self.footage.take(video, numbers) if pixels is None else pixels
            return encode_frames(self.vae, frames, self.device)
        return np.asarray(self.of(video)[np.asarray(numbers)])

    def of(self, video: Video) -> npt.NDArray[np.float16]:
        """Latents (N, c, h, w) of all frames of a video, memory-mapped."""
        assert self.folder is not None
        path = self.folder / f"{self.footage.identity(video)}.npy"
        if path in self._mapped:
            self._mapped.move_to_end(path)
            return self._mapped[path]
        if not path.exists():
            self._encode(video, path)
        self._mapped[path] = np.load(path, mmap_mode="r")
        while len(self._mapped) > MAPPED:
            self._mapped.popitem(last=False)
        return self._mapped[path]

    def _encode(self, video: Video, path: Path) -> None:
        starts = range(0, video.num_frames, BATCH)
        numbers = [range(start, min(start + BATCH, video.num_frames)) for start in starts]
        rows = [encode_frames(self.vae, self.footage.take(video, part), self.device) for part in numbers]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate(rows))


def encoder_key(vae: VAE) -> str:
    """Names what an encoder makes of a picture: its weights, bit for bit, its configuration, its precision."""
    key = hashlib.sha256(json.dumps(asdict(vae.config), sort_keys=True).encode())
    for name, value in sorted(vae.state_dict().items()):
        if not name.startswith("decoder."):
            key.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            key.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return key.hexdigest()[:16]


@torch.no_grad()
def encode_frames(vae: VAE, frames: npt.NDArray[np.uint8], device: torch.device) -> npt.NDArray[np.float16]:
    """(N, H, W, 3) uint8 -> unscaled latents (N, c, h, w), all at once."""
    pixels = to_pixels(frames).to(device)
    return vae.encode(pixels[None])[0].cpu().numpy().astype(np.float16)


def to_pixels(frames: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).float().div_(127.5).sub_(1.0).movedim(-1, -3)
