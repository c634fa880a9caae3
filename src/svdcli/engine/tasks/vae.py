"""The autoencoder's training: reconstruct crops of images, then, for the temporal layers, of clips."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call

from svdcli.data.dataset import open_dataset
from svdcli.data.footage import Footage
from svdcli.data.reader import Tally
from svdcli.engine.generate import to_frames
from svdcli.engine.latents import encode_frames, to_pixels
from svdcli.engine.samples import NUM_SAMPLES, Sample
from svdcli.engine.tasks import Preview, data_notes
from svdcli.engine.tasks.parts import load_vae, require_same, save_vae
from svdcli.errors import InputError
from svdcli.model.blocks import ResBlock, TemporalResBlock
from svdcli.model.discriminator import PatchDiscriminator
from svdcli.model.perceptual import load_perceptual
from svdcli.model.vae import VAE, VAEConfig
from svdcli.model.vae_start import can_start_from_patches, start_from_patches
from svdcli.recipe.recipe import Data
from svdcli.recipe.tasks import VAETask

EVALUATION_FRAMES = 64
LONGEST_EVALUATED = 8
SCALING_FRAMES, SCALING_BATCH = 64, 8
START_FRAMES = 64


class Reconstruction(nn.Module):
    """The autoencoder as one forward pass, so that a wrapped module sees the whole of training.

    With a discriminator where the task is adversarial; its weights are trained, averaged and saved with the rest.
    """

    def __init__(self, vae: VAE, discriminator: PatchDiscriminator | None) -> None:
        super().__init__()
        self.vae, self.discriminator = vae, discriminator

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Scores | None]:
        """Pixels (B, T, 3, H, W), noise like the latents -> reconstruction, posterior mean, log variance, scores."""
        mean, log_var = self.vae.moments(pixels)
        sample = mean + (0.5 * log_var).exp() * noise
        out = self.vae.decode(sample, as_images=pixels.shape[1] == 1)
        scores = self._scores(self.discriminator, pixels, out) if self.discriminator is not None else None
        return out, mean, log_var, scores

    @staticmethod
    def _scores(discriminator: PatchDiscriminator, pixels: Tensor, out: Tensor) -> Scores:
        """One optimizer trains both sides: each sees the other as a constant."""
        real, fake = discriminator(torch.cat([pixels, out.detach()])).chunk(2)
        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        frozen |= {name: b.clone() for name, b in discriminator.named_buffers()}
        return Scores(real, fake, functional_call(discriminator, frozen, (out,)))


class Scores(NamedTuple):
    """What the discriminator says of clips: of real and made ones, for its own training; of the made ones, for the decoder's."""

    real: Tensor
    fake: Tensor
    judged: Tensor

    def losses(self) -> tuple[Tensor, Tensor]:
        """Hinge losses of discriminator and decoder (Lim and Ye 2017, 1705.02894)."""
        return (1 - self.real).relu().mean() + (1 + self.fake).relu().mean(), -self.judged.mean()


def new_vae(task: VAETask, width: int) -> VAE:
    """An autoencoder as the recipe shapes it, for pictures of about that width; its weights are yet to be set."""
    return VAE(
        VAEConfig(
            down_block_types=("DownEncoderBlock2D",) * len(task.block_out_channels),
            block_out_channels=task.block_out_channels,
            layers_per_block=task.layers_per_block,
            latent_channels=task.latent_channels,
            sample_size=width,
            scaling_factor=1.0,
            force_upcast=False,
            norm_num_groups=task.norm_num_groups,
        )
    )


def freeze_but_trained(vae: VAE, task: VAETask) -> None:
    """Take out of training what `task.train` does not name."""
    if task.train == "decoder":
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)


class Autoencoder:
    """See `Task`."""

    def __init__(self, task: VAETask, data: Data, batch_size: int, device: torch.device, cache: Path) -> None:
        self.task, self.batch_size, self.device = task, batch_size, device
        self.train_set, self.held_out = open_dataset(data, cache)
        self.tally = Tally(data.max_corrupt_share)
        if max(v.num_frames for v in self.train_set.videos) < task.num_frames:
            raise InputError(
                f"No video has the {task.num_frames} frames of task.num_frames.",
                "Ask for fewer, or add footage.",
            )
        if task.start is not None:
            vae = load_vae(task.start)
            require_same(vae.config, task)
        else:
            vae = new_vae(task, data.width)
            self._begin(vae)
        freeze_but_trained(vae, task)
        self.network = Reconstruction(vae, PatchDiscriminator() if task.adversarial_weight else None)
        self.perceptual = load_perceptual().to(device) if task.perceptual_weight else None

    def _begin(self, vae: VAE) -> None:
        """Give a new autoencoder its weights: the components of patches where its shape takes them, else random."""
        if not can_start_from_patches(vae.config):
            start_at_random(vae)
            return
        start_from_patches(vae, to_pixels(self._random_frames(np.random.default_rng(0), START_FRAMES)))

    def _random_frames(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.uint8]:
        """(N, H, W, 3), each of any video."""
        found: list[npt.NDArray[np.uint8]] = []
        while len(found) < count:
            frame = self.tally.attempt(lambda: random_frame(self.train_set, rng))
            found += [] if frame is None else [frame]
        return np.stack(found)

    def batch(self, seed: list[int]) -> Tensor:
        """Random crops (B, T, 3, S, S) in [-1, 1], half of them mirrored; all videos are as likely."""
        rng, side = np.random.default_rng(seed), self.task.crop
        clips: list[npt.NDArray[np.uint8]] = []
        while len(clips) < self.batch_size:  # of what cannot be read another takes the place
            clip = self.tally.attempt(lambda: random_crop(self.train_set, rng, self.task.num_frames, side))
            clips += [] if clip is None else [clip]
        return to_pixels(np.stack(clips)).to(self.device)

    def loss(
        self, network: nn.Module, batch: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        config = self.network.vae.config
        shape = (*batch.shape[:2], config.latent_channels, *(s // config.downscale for s in batch.shape[-2:]))
        noise = torch.randn(shape, generator=generator).to(batch)
        out, mean, log_var, scores = network(batch, noise)
        error = out - batch
        l1, mse = error.abs().mean(), error.square().mean()
        kl = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        loss = l1 + self.task.gradient_weight * edges + self.task.kl_weight * kl
        figures = {"l1": l1.item(), "psnr_db": psnr_db(mse.item()), "kl": kl.item()}
        if self.perceptual is not None:
            distance = self.perceptual(out.flatten(0, 1), batch.flatten(0, 1)).mean()
            loss = loss + self.task.perceptual_weight * distance
            figures["perceptual"] = distance.item()
        if scores is not None:
            own, adversarial = scores.losses()
            loss = loss + own + self.task.adversarial_weight * adversarial
            figures |= {"discriminator": own.item(), "adversarial": adversarial.item()}
        return loss, figures | self.tally.figures()

    def preview(self, batch: Tensor, generator: torch.Generator) -> list[Preview]:
        crops = to_frames(batch)
        side = "x".join(map(str, (*crops.shape[2:4], crops.shape[1])))
        return [Preview(f"crop {i + 1} of {len(crops)}, {side}", crop) for i, crop in enumerate(crops)]

    def notes(self) -> list[str]:
        return data_notes(self.train_set, self.held_out)

    @torch.no_grad()
    def evaluate(self, network: Reconstruction) -> dict[str, float]:
        """Mean PSNR (dB) of whole held-out frames, in clips of up to 8 so that the temporal layers act."""
        vae = network.vae
        scores, latents = [], []
        per_video = max(1, EVALUATION_FRAMES // len(self.held_out.videos))
        for video in self.held_out.videos:
            count = min(per_video, LONGEST_EVALUATED, video.num_frames)
            pixels = to_pixels(self.held_out.take(video, range(count))[None]).to(self.device)
            z = vae.encode(pixels)
            out = vae.decode(z, as_images=self.task.num_frames == 1).clamp(-1, 1)
            errors = (out - pixels).square().mean(dim=(0, 2, 3, 4))
            scores.append(np.mean([psnr_db(e) for e in errors.tolist()]))
            latents.append(z.flatten())
        return {"held_out_psnr_db": float(np.mean(scores)), "latent_std": torch.cat(latents).std().item()}

    @torch.inference_mode()
    def sample(self, networks: Mapping[str, nn.Module]) -> list[Sample]:
        """Held-out frames, and their reconstruction by each network; see `Samples`."""
        samples = []
        for video in self.held_out.videos[:NUM_SAMPLES]:
            frames = self.held_out.take(video, range(min(LONGEST_EVALUATED, video.num_frames)))
            pixels = to_pixels(frames[None]).to(self.device)
            views = {"held-out": frames}
            for name, network in networks.items():
                vae = network.vae
                assert isinstance(vae, VAE)
                views[name] = to_frames(
                    vae.decode(vae.encode(pixels), as_images=self.task.num_frames == 1)[0]
                )
            samples.append(Sample(video.name, video.fps, views))
        return samples

    def export(self, network: Reconstruction, folder: Path, recipe_text: str) -> None:
        """The autoencoder with its scaling factor set to 1 / standard deviation of the training latents."""
        rng, latents = np.random.default_rng(0), []
        for _ in range(SCALING_FRAMES // SCALING_BATCH):
            frames = self._random_frames(rng, SCALING_BATCH)
            latents.append(encode_frames(network.vae, frames, self.device))
        deviation = float(np.concatenate(latents).astype(np.float32).std(ddof=1))
        save_vae(network.vae, folder, scaling_factor=round(1.0 / deviation, 5))


@torch.no_grad()
def start_at_random(vae: VAE) -> None:
    """Plain paths keep the signal's variance; residual branches and temporal layers are silent."""
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            _zero(module.bias)
    for module in vae.modules():
        if isinstance(module, ResBlock | TemporalResBlock):
            _zero(module.conv2.weight, module.conv2.bias)
    _zero(vae.decoder.time_conv_out.bias)
    nn.init.dirac_(vae.decoder.time_conv_out.weight)


def _zero(*parameters: Tensor | None) -> None:
    for parameter in parameters:
        if parameter is not None:
            nn.init.zeros_(parameter)


def psnr_db(mse: float) -> float:
    """PSNR in dB of a mean squared error over the range [-1, 1]."""
    return 10.0 * float(np.log10(4.0 / max(mse, 1e-12)))


def random_crop(
    frames: Footage, rng: np.random.Generator, num_frames: int, side: int
) -> npt.NDArray[np.uint8]:
    """(T, side, side, 3) of neighbouring frames."""
    long_enough = [v for v in frames.videos if v.num_frames >= num_frames]
    video = long_enough[rng.integers(len(long_enough))]
    first = int(rng.integers(video.num_frames - num_frames + 1))
    clip = frames.take(video, range(first, first + num_frames))
    top, left = rng.integers(clip.shape[1] - side + 1), rng.integers(clip.shape[2] - side + 1)
    clip = clip[:, top : top + side, left : left + side]
    return clip[:, :, ::-1] if rng.random() < 0.5 else clip


def random_frame(frames: Footage, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(H, W, 3): a random frame of a random video."""
    video = frames.videos[int(rng.integers(len(frames.videos)))]
    return frames.take(video, [int(rng.integers(video.num_frames))])[0]
