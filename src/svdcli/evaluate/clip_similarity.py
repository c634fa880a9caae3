"""CLIP-S: the cosine of two pictures' CLIP embeddings, by whatever CLIP image tower the user has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from svdcli.errors import InputError
from svdcli.evaluate.similarity import Picture
from svdcli.model.bundle import open_bundle
from svdcli.model.image_encoder import ImageEncoder


@dataclass(frozen=True, eq=False)
class ClipSimilarity:
    """Pictures (H, W, 3) in [0, 1] -> cosine in [-1, 1]."""

    name: str
    tower: ImageEncoder

    def embed(self, pictures: list[Picture]) -> torch.Tensor:
        """N pictures of one size -> unit embeddings (N, D)."""
        stacked = torch.from_numpy(np.stack(pictures).astype(np.float32)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return functional.normalize(self.tower(stacked * 2 - 1).float(), dim=1)

    def __call__(self, a: Picture, b: Picture) -> float:
        return float((self.embed([a]) * self.embed([b])).sum())


def load_clip(reference: str, device: str = "cpu") -> ClipSimilarity:
    """A bundle (its image encoder: ViT-H/14 of an SVD), or a folder of a transformers CLIP vision model with projection.

    Preprocessing is SVD's: antialiased bicubic to the tower's size, no crop. Raises InputError.
    """
    folder = Path(reference)
    if not (folder / "config.json").is_file():
        files = open_bundle(reference)
        tower = files.part("image_encoder", torch.float32)
        assert isinstance(tower, ImageEncoder)
        return ClipSimilarity(f"{files.name} image encoder", tower.to(device).eval())
    from transformers import CLIPVisionModelWithProjection

    try:
        model = CLIPVisionModelWithProjection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{folder} holds no CLIP vision model: {reason}", "Give one in transformers' layout."
        ) from error
    tower = ImageEncoder(model.config.to_dict())
    tower.clip.load_state_dict(model.state_dict())
    return ClipSimilarity(folder.resolve().name, tower.to(device).eval())
