"""What the network is told beside the noisy clip: one type, built by one function, for training and sampling.

The quirks of the published weights have their names here (svd-facts §2.2, §4.3): `fps_id`, the order of the
ids, the concat latent that is the posterior's mode, unscaled and not multiplied by c_in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from svdcli.model.attention import Context
from svdcli.model.mask_latent import MaskLatent

Network = Callable[..., Tensor]
"""network(x, c_noise, context, ids), with `as_images` for pictures"""
Rate = TypeVar("Rate", float, Tensor)


def fps_id(fps: Rate) -> Rate:
    """The id that the network knows a frame rate by: trained as fps − 1."""
    return fps - 1.0


@dataclass(frozen=True)
class Conditioning:
    """Conditions of a batch of clips."""

    context: Context
    """tokens (B, N, D)"""
    concat: Tensor
    """what stands beside the noisy latents, (B, 1 or T, channels, h, w), never scaled by σ; with text no channel"""
    vector_ids: Tensor
    """(B, K) float32: fps id, motion bucket, augmentation σ; with text the first two, of images none; of the views of an
    object see `condition_on_view`"""
    null_tokens: Tensor | None = None
    """tokens of the null form, (B, N, D), such as those of the empty text; absent: zeros"""

    def null(self) -> Conditioning:
        """The unconditional form for guidance: null tokens, concat latents are zero, the ids stay."""
        tokens = torch.zeros_like(self.context.tokens) if self.null_tokens is None else self.null_tokens
        return Conditioning(Context(tokens), torch.zeros_like(self.concat), self.vector_ids)

    def stacked(self, other: Conditioning) -> Conditioning:
        """Both batches as one, this one first."""
        return Conditioning(
            Context(torch.cat([self.context.tokens, other.context.tokens])),
            torch.cat([self.concat, other.concat]),
            torch.cat([self.vector_ids, other.vector_ids]),
        )

    def bind(self, network: Network) -> Callable[[Tensor, Tensor], Tensor]:
        """network(x, c_noise, context, ids) -> F(x_in, c_noise) for the denoiser.

        The concat latents join behind the input, which the denoiser has scaled already. Without ids these are pictures,
        between which a network with temporal layers mixes nothing.
        """
        if not self.vector_ids.shape[-1]:
            network = partial(network, as_images=True)

        def conditioned(x: Tensor, c_noise: Tensor) -> Tensor:
            if not self.concat.shape[2]:
                return network(x, c_noise, self.context, self.vector_ids)
            concat = self.concat.to(x.dtype).expand(-1, x.shape[1], -1, -1, -1)
            return network(torch.cat([x, concat], dim=2), c_noise, self.context, self.vector_ids)

        return conditioned


def condition_on_image(
    embedding: Tensor, latent: Tensor, fps: Tensor, motion_bucket: Tensor, augment: Tensor,
    mask: Tensor | None = None,
) -> Conditioning:  # fmt: skip
    """Image-to-video conditioning of a batch, each clip with its own values.

    embedding: (B, D) of the clean picture. latent: (B, c, h, w), unscaled posterior mode of the
    noise-augmented picture. fps (frames a second), motion_bucket and augment (σ of the noise on pixels in
    [-1, 1]): (B,). mask: (B, 1, h, w), 1 where the picture may move, for a network that takes one.
    """
    latent = latent if mask is None else torch.cat([latent, mask.to(latent)], dim=1)
    ids = torch.stack([fps_id(fps), motion_bucket, augment], dim=1).float()
    return Conditioning(Context(embedding[:, None]), latent[:, None], ids.to(embedding.device))


def condition_on_view(
    embedding: Tensor, latent: Tensor, augment: Tensor, angles: Tensor | None = None
) -> Conditioning:
    """Multi-view conditioning of a batch of orbits: one view of each object is given, the orbit's last.

    embedding: (B, D) of the clean view. latent: (B, c, h, w), unscaled posterior mode of the noise-augmented view. augment:
    (B,), σ of that noise. angles, radians, see `Pose`: (B, 1) the polar angle of the whole orbit (SVD paper app. D.6), (B,
    T, 2) polar angle and azimuth of each view (SV3D paper §3), absent where no camera is told.
    The ids are in SV3D's order: augmentation, polar angle, azimuth.
    """
    ids = augment.to(embedding.device, torch.float32)[:, None]
    if angles is not None:
        angles = angles.to(embedding.device, torch.float32)
        ids = ids[:, None].expand(-1, angles.shape[1], -1) if angles.ndim == 3 else ids
        ids = torch.cat([ids, angles], dim=-1)
    return Conditioning(Context(embedding[:, None]), latent[:, None], ids)


@dataclass(frozen=True)
class Ends:
    """The first and the last frame of a batch of clips, which are given."""

    embeddings: Tensor
    """of the clean pictures, (B, 2, D)"""
    latents: Tensor
    """(B, 2, c, h, w), scaled"""
    noise: Tensor
    """of the augmentation, (B, 2, c, h, w)"""
    fps: Tensor
    """frames a second of the whole clip, (B,)"""
    motion_bucket: Tensor
    augment: Tensor
    """σ of the noise on the scaled latents"""


def condition_on_ends(
    ends: Ends, mask_latent: MaskLatent, num_frames: int, keep: Tensor | None = None
) -> Conditioning:
    """Interpolation conditioning of a batch (SVD paper §4.4, app. D.5): two tokens, latents and a mask beside each frame.

    The noise augmentation is added in latent space. keep: (B, 2), 1 or 0 for each clip's embeddings and latents, zeros
    as in the null form, where no frame is given; absent: all are kept.
    """
    keep = torch.ones(len(ends.fps), 2) if keep is None else keep
    keep = keep.to(ends.latents)
    noisy = ends.latents + ends.augment[:, None, None, None, None].to(ends.latents) * ends.noise.to(
        ends.latents
    )
    concat = mask_latent(noisy, num_frames) * keep[:, 1, None, None, None, None]
    tokens = ends.embeddings * keep[:, 0, None, None].to(ends.embeddings)
    ids = torch.stack([fps_id(ends.fps), ends.motion_bucket, ends.augment], dim=1).float()
    return Conditioning(Context(tokens), concat, ids.to(tokens.device))


def condition_on_text(
    tokens: Tensor, fps: Tensor | None, motion_bucket: Tensor | None, null_tokens: Tensor | None = None,
    size: tuple[int, int] = (1, 1),
) -> Conditioning:  # fmt: skip
    """Text conditioning of a batch of clips, each with its own values; of pictures without rate and motion.

    tokens: (B, N, D), those of the null text where a caption is dropped. fps (frames a second), motion_bucket: (B,).
    null_tokens: (B, N, D), for guidance. size: height and width of the latents, where nothing else says it.
    """
    batch = tokens.shape[0]
    ids = tokens.new_zeros((batch, 0), dtype=torch.float32)
    if fps is not None and motion_bucket is not None:
        ids = torch.stack([fps_id(fps), motion_bucket], dim=1).float().to(tokens.device)
    return Conditioning(Context(tokens), tokens.new_zeros((batch, 1, 0, *size)), ids, null_tokens)


def augment_picture(pixels: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """pixels + σ · noise, before the encoder: pixels (B, 3, H, W) in [-1, 1], sigma (B,)."""
    return pixels + sigma[:, None, None, None].to(pixels) * noise.to(pixels)
