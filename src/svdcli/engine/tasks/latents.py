"""What the tasks that train a UNet on latents share: footage, its latents, and the held-out loss a noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.camera import with_camera_moves
from svdcli.data.dataset import open_dataset
from svdcli.data.examples import Batches, Example, Examples
from svdcli.data.footage import Footage, Video
from svdcli.engine.generate import Sampling, decode, denoise
from svdcli.engine.latents import Latents
from svdcli.engine.memory import Residence
from svdcli.engine.samples import NUM_SAMPLES, Held, Sample
from svdcli.engine.tasks import data_notes
from svdcli.engine.tasks.parts import load_vae
from svdcli.model.conditioning import Conditioning
from svdcli.model.settings import Settings
from svdcli.recipe.recipe import Data
from svdcli.recipe.tasks import DiffusionTask

DECODE_CHUNK, DECODE_OVERLAP = 8, 3
EVALUATION_SIGMAS = (0.2, 0.7, 2.0, 6.0, 20.0)
CAMERA_FPS, CAMERA_FRAMES = 12.0, 32


class LatentTask:
    """See `Task`. What follows says which clips are judged, and what a network loses on one of them."""

    examples: Examples | None = None
    """of clips"""

    def __init__(
        self, task: DiffusionTask, data: Data, batches: Batches, device: torch.device, cache: Path
    ) -> None:
        self.data, self.batches, self.device = data, batches, device
        self.vae = load_vae(task.vae).to(device).eval().requires_grad_(False)
        train_set, self.held_out = self.open_footage(data, cache)
        self.num_moves = getattr(task, "camera_moves", 0)  # of clips only
        self.train_set = with_camera_moves(train_set, self.num_moves, CAMERA_FRAMES, CAMERA_FPS, seed=0)
        self.latents = Latents(self.vae, self.train_set, cache if data.latent_cache else None, device)

    def open_footage(self, data: Data, cache: Path) -> tuple[Footage, Footage]:
        """What is trained on, and what is held out."""
        return open_dataset(data, cache)

    def scaled(self, examples: Sequence[Example]) -> Tensor:
        """Examples of one length and size -> their latents (B, T, c, h, w), scaled."""
        rows = [self.latents.take(e.window.video, e.window.numbers, e.pixels) for e in examples]
        return torch.from_numpy(np.stack(rows)).float().mul_(self.vae.config.scaling_factor).to(self.device)

    def encoded(self, pixels: Tensor) -> Tensor:
        """Pixels (B, T, 3, H, W) in [-1, 1] -> latents, scaled."""
        return self.vae.encode(pixels) * self.vae.config.scaling_factor

    @property
    def judged(self) -> Sequence[Video]:
        """Every other held-out video: enough, in half the time."""
        return self.held_out.videos[::2]

    def evaluated(self) -> list[tuple[int, npt.NDArray[np.uint8], float]]:
        """-> of each held-out clip that is judged: its number, its frames (T, H, W, 3), and their rate."""
        raise NotImplementedError

    def held_out_clip(self, index: int, frames: npt.NDArray[np.uint8], fps: float) -> Any:
        """One of `evaluated` as a batch."""
        raise NotImplementedError

    def held_out_losses(self, network: Any, clip: Any, sigma: Tensor, generator: torch.Generator) -> Tensor:
        """What a network loses on such a batch at the noise level (1,) -> (1,)."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self, network: Any) -> dict[str, float]:
        """Held-out loss at fixed noise levels, on the clips of `evaluated`; the noise is always the same."""
        bins: dict[float, list[float]] = {sigma: [] for sigma in EVALUATION_SIGMAS}
        for index, frames, fps in self.evaluated():
            clip = self.held_out_clip(index, frames, fps)
            for sigma in EVALUATION_SIGMAS:
                generator = torch.Generator().manual_seed(index)
                losses = self.held_out_losses(network, clip, torch.tensor([sigma]), generator)
                bins[sigma].append(losses.item())
        figures = {f"held_out_loss_{sigma}": float(np.mean(values)) for sigma, values in bins.items()}
        return figures | {"held_out_loss": float(np.mean(list(figures.values())))}

    def settings(self) -> Settings:
        """How the bundle is best sampled."""
        raise NotImplementedError

    def parts(self, network: Any) -> dict[str, nn.Module]:
        """A network as the parts that sampling knows."""
        return {"unet": network.unet, "vae": self.vae}

    def told(
        self, residence: Residence, index: int, frames: npt.NDArray[np.uint8], sampling: Sampling
    ) -> Conditioning:
        """What sampling tells the network of one of `evaluated`."""
        raise NotImplementedError

    def sampling(self, frames: npt.NDArray[np.uint8], fps: float) -> Sampling:
        """How a clip of `evaluated` is sampled: as the bundle suggests."""
        return Sampling.of(self.settings())

    def sample(self, networks: Mapping[str, nn.Module]) -> list[Sample]:
        """Held-out clips as they went on, and as each network makes them; see `Samples`."""
        samples = []
        for index, frames, fps in self.evaluated()[:NUM_SAMPLES]:
            video, sampling = self.judged[index], self.sampling(frames, fps)
            numbers = range(0, video.num_frames, max(1, round(video.fps / fps)))[: sampling.num_frames]
            views = {"held-out": self.held_out.take(video, numbers) if len(frames) > 1 else frames}
            for name, network in networks.items():
                residence = Held(self.parts(network), self.device)
                conditioning = self.told(residence, index, frames, sampling)
                latents = denoise(residence, conditioning, [index], sampling)[0]
                views[name] = decode(residence, latents, DECODE_CHUNK, DECODE_OVERLAP)[0]
            samples.append(Sample(video.name, fps, views))
        return samples

    def notes(self) -> list[str]:
        kind = f"clips ({self.num_moves} of them camera moves)" if self.num_moves else "videos"
        left_out = self.examples.left_out if self.examples else 0
        return data_notes(self.train_set, self.held_out, kind, left_out)

    def suggested(self, kind: str, task: DiffusionTask, num_frames: int, fps: float) -> Settings:
        """How the bundle is best sampled, as far as the tasks agree on it."""
        return Settings(
            task=kind,
            num_frames=num_frames,
            width=self.data.width,
            height=self.data.height,
            fps=fps,
            motion_bucket=task.motion_bucket,
            guidance=task.guidance,
            num_steps=task.num_steps,
            sigma_min=task.sigma_min,
            sigma_max=task.sigma_max,
            temperature=task.temperature,
            sampler=task.sampler,
        )
