"""What the tasks that condition on captions share: which caption a clip is told by, the network, its loss, its bundle.

Images are clips of one frame, without rate and motion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.examples import Example, Examples, Wish
from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss, draw_sigma
from svdcli.engine.generate import Sampling, told_by_tokens
from svdcli.engine.memory import Residence
from svdcli.engine.tasks import Preview
from svdcli.engine.tasks.clips import place_of
from svdcli.engine.tasks.latents import LatentTask
from svdcli.engine.tasks.parts import as_reference, load_unet, require_same, save_text_bundle
from svdcli.errors import InputError
from svdcli.model.bundle import load_text_encoder, open_bundle
from svdcli.model.conditioning import Conditioning, condition_on_text
from svdcli.model.settings import Settings
from svdcli.model.text_encoder import TextEncoder, require_tokenizer
from svdcli.model.unet import UNet, UNetConfig
from svdcli.model.vae import VAEConfig
from svdcli.recipe.tasks import TextTask as TextKeys

Captions = tuple[str, str, str]
"""Of a clip's middle frame, of the video, and the summary of both; each may be empty."""


@dataclass(frozen=True)
class TextBatch:
    """Clips of one length, or images, and what is known of each."""

    latents: Tensor
    """(B, T, c, h, w), scaled"""
    texts: tuple[str, ...]
    """a caption each; empty: the null text"""
    fps: Tensor | None = None
    """(B,); of images None"""
    motion_bucket: Tensor | None = None
    examples: tuple[Example, ...] = ()
    """where they come from"""

    @property
    def are_images(self) -> bool:
        return self.fps is None


# ---- captions ------------------------------------------------------------------------------------------


def choose_caption(captions: Captions, mix: Sequence[float], draw: float) -> str:
    """One of the captions that are there, by their shares of the mix (SVD paper §3.1); draw in [0, 1)."""
    shares = [share if caption.strip() else 0.0 for caption, share in zip(captions, mix, strict=True)]
    total = sum(shares)
    if not total:
        return ""
    bounds = np.cumsum(shares) / total
    return captions[min(int(np.searchsorted(bounds, draw, side="right")), len(captions) - 1)]


def draw_texts(captions: Iterable[Captions], task: TextKeys, rng: np.random.Generator) -> tuple[str, ...]:
    """Of each clip's captions the one it is told by, or "" where it is dropped; two draws a clip, whatever it has."""
    texts = []
    for own in captions:
        dropped, which = rng.random(2)
        texts.append("" if dropped < task.drop_text else choose_caption(own, task.caption_mix, which))
    return tuple(texts)


def require_text(bundle: Path | str, context_dim: int) -> None:
    """Raise InputError unless a bundle has a text encoder of that width and a tokenizer. Reads no weights."""
    files = open_bundle(bundle)
    width = files.configs.get("text_encoder", {}).get("hidden_size")
    if width != context_dim:
        what = "has no text_encoder/config.json" if width is None else f"makes tokens of width {width}"
        raise InputError(
            f"{files.name} {what}, and task.context_dim is {context_dim}.",
            "Give the text encoder that the image model was trained with as task.text.",
        )
    require_tokenizer(files.tokenizer() or files.path / "tokenizer")


# ---- the network ---------------------------------------------------------------------------------------


class Painter(nn.Module):
    """The UNet with its conditioning as one forward pass, so that a wrapped module sees the whole of training."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, c_noise: Tensor, batch: TextBatch, tokens: Tensor) -> Tensor:
        """Noisy latents (B, T, c, h, w) times c_in, c_noise (B,), tokens (B, N, D) -> F."""
        conditioning = condition_on_text(tokens, batch.fps, batch.motion_bucket)
        return conditioning.bind(self.unet)(x, c_noise)


def new_image_unet(task: TextKeys, vae: VAEConfig, width: int) -> UNet:
    """An image network from scratch, as the recipe shapes it, silent at first: it denoises by c_skip x."""
    attends = task.attention_levels
    unet = UNet(
        UNetConfig(
            in_channels=vae.latent_channels,
            out_channels=vae.latent_channels,
            down_block_types=tuple(f"{'CrossAttn' * a}DownBlock2D" for a in attends),
            up_block_types=tuple(f"{'CrossAttn' * a}UpBlock2D" for a in reversed(attends)),
            block_out_channels=task.block_out_channels,
            norm_num_groups=task.norm_num_groups,
            norm_eps=1e-5,
            projection_class_embeddings_input_dim=0,
            layers_per_block=task.layers_per_block,
            cross_attention_dim=task.context_dim,
            num_attention_heads=task.num_attention_heads,
            num_frames=1,
            sample_size=width // 8,
            temporal=False,
        )
    )
    unet.reset()
    return unet


class TextTask(LatentTask):
    """See `LatentTask`. A task on images, or, before a `ClipTask`, on clips and images."""

    task: TextKeys
    network: Painter
    encoder: TextEncoder | None
    _images: Examples | None = None

    def prepare_unet(self) -> UNet:
        """The recipe's start, or a new image network; and the text encoder beside it."""
        task = self.task
        self.encoder = None
        if task.text is not None:
            self.encoder = load_text_encoder(as_reference(task.text), torch.float32).to(self.device).eval()
        if task.start is None:
            return new_image_unet(task, self.vae.config, self.data.width)
        unet = load_unet(task.start)
        require_same(unet.config, task)
        return unet

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Captions -> (B, N, D). Without a text encoder one token of zeros each."""
        if self.encoder is None:
            return torch.zeros(len(texts), 1, self.task.context_dim, device=self.device)
        return self.encoder(texts)

    def draw_images(self, seed: list[int], rng: np.random.Generator) -> TextBatch:
        """Single frames of videos, chosen as clips are, and their captions."""
        if self._images is None:
            wish = Wish((1,), (1e-3, 1e-3), math.inf, self.data.sampling, self.data.max_corrupt_share)
            self._images = Examples(self.train_set, wish, self.batches)
        drawn = self._images.draw(seed, rng)
        return TextBatch(self.scaled(drawn), self.draw_texts(drawn, rng), examples=tuple(drawn))

    def draw_texts(self, drawn: Iterable[Example], rng: np.random.Generator) -> tuple[str, ...]:
        """The caption that each clip is told by."""
        return draw_texts((self.train_set.captions(e.window.video) for e in drawn), self.task, rng)

    def preview(self, batch: TextBatch, generator: torch.Generator) -> list[Preview]:
        sigma = draw_sigma(generator, len(batch.texts), self.task.p_mean, self.task.p_std)
        found = []
        for i, (example, text) in enumerate(zip(batch.examples, batch.texts, strict=True)):
            ids = f"sigma {sigma[i]:.3g}; {place_of(example)}; {text!r}"
            if batch.fps is not None and batch.motion_bucket is not None:
                ids = f"fps id {batch.fps[i] - 1:.3g}, motion bucket {batch.motion_bucket[i]:.0f}, {ids}"
            found.append(Preview(f"{example.window.video.name}: {ids}", example.pixels))
        return found

    def loss(
        self, network: nn.Module, batch: TextBatch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        sigma = draw_sigma(generator, len(batch.texts), self.task.p_mean, self.task.p_std)
        losses = self.losses(network, batch, sigma, generator)
        figures = {"sigma": sigma.mean().item(), "num_frames": float(batch.latents.shape[1])}
        for source in (self.examples, self._images):
            figures |= source.figures() if source is not None else {}
        return losses.mean(), figures | {"null_text": batch.texts.count("") / len(batch.texts)}

    def losses(
        self, network: nn.Module, batch: TextBatch, sigma: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss of each clip (B,) at the noise levels (B,)."""
        tokens = self.tokens(batch.texts)
        denoiser = Denoiser(lambda x, c_noise: network(x, c_noise, batch, tokens))
        noise = torch.randn(batch.latents.shape, generator=generator).to(self.device)
        return denoising_loss(denoiser, batch.latents, sigma.to(self.device), noise, self.task.huber)

    def held_out_losses(
        self, network: nn.Module, clip: TextBatch, sigma: Tensor, generator: torch.Generator
    ) -> Tensor:
        return self.losses(network, clip, sigma, generator)

    def told(
        self, residence: Residence, index: int, frames: npt.NDArray[np.uint8], sampling: Sampling
    ) -> Conditioning:
        """The clip's own caption."""
        tokens = self.tokens((self.held_out_text(index), ""))
        return told_by_tokens(tokens[:1], tokens[1:], sampling, self.vae.config.downscale)

    def held_out_text(self, index: int) -> str:
        """The caption that the most of training would tell that clip of `evaluated` by."""
        captions = self.held_out.captions(self.judged[index])
        order = np.argsort([-share for share in self.task.caption_mix], kind="stable")
        return next((captions[i] for i in order if captions[i].strip()), "")

    def save(self, network: Painter, folder: Path, settings: Settings) -> None:
        """The bundle of the averaged weights, in full precision, in `bundle/`."""
        save_text_bundle(network.unet, self.vae, self.encoder, settings, folder / "bundle")
