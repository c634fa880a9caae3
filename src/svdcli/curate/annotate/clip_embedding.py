"""CLIP embeddings of a clip's first, middle and last frame, and of its captions (SVD app. C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate import View
from svdcli.curate.annotate.models import Once, load_network, load_part, quiet_transformers, stamp
from svdcli.errors import InputError, MachineError
from svdcli.recipe.annotation import ClipModel

Vectors = npt.NDArray[np.float32]
_CANARY = 2e-2
"""how far two embeddings of one picture may lie apart, in half precision too"""


class ClipTowers:
    """A CLIP model of transformers, both towers; loaded when first used, and shared by those that use it."""

    def __init__(self, settings: ClipModel, device: str) -> None:
        self.settings = settings
        self.device = settings.device or device
        self._parts = Once(self._load)

    def _load(self) -> tuple[Any, Any, Any]:
        quiet_transformers()
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        ref, what = self.settings.model, "a CLIP model"
        model = load_network(CLIPModel, ref, what, self.device, self.settings.precision)
        return model, load_part(CLIPImageProcessor, ref, what), load_part(CLIPTokenizer, ref, what)

    def embed_pictures(self, pictures: Sequence[npt.NDArray[np.uint8]]) -> Vectors:
        """Pictures (H, W, 3) 0..255 -> (N, D) of length 1. Raises MachineError where the model is absent."""
        import torch

        model, processor, _ = self._parts()
        pixels = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            seen = model.vision_model(pixels.to(model.device, model.dtype)).pooler_output
            return _unit(model.visual_projection(seen).float().cpu().numpy())

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts, cut at the model's 77 tokens -> (N, D) of length 1. Raises MachineError where the model is absent."""
        import torch

        model, _, tokenizer = self._parts()
        length = model.config.text_config.max_position_embeddings
        words = tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            read = model.text_model(input_ids=words.input_ids, attention_mask=words.attention_mask)
            return _unit(model.text_projection(read.pooler_output).float().cpu().numpy())


def _unit(vectors: npt.NDArray[Any]) -> Vectors:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


class ClipEmbeddingAnnotator:
    """Columns: `clip_embedding`, the three embeddings of length 1 one after the other (3 D numbers); `clip_model`."""

    name = "clip_embedding"
    columns: Mapping[str, type] = {"clip_embedding": list, "clip_model": str}
    needs: tuple[str, ...] = ()

    def __init__(self, towers: ClipTowers) -> None:
        self.towers = towers
        self.batch = towers.settings.batch
        self.version = stamp(1, towers.settings.model, towers.settings.precision)

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises MachineError where the model is absent.

        The first picture goes through the model once more as the last of the batch; an embedding that came back in
        another place than its picture went in would show there, and is our bug.
        """
        places = [(view.clip.id, frame) for view in views for frame in view.proxy.keys]
        found = self.towers.embed_pictures([frame for _, frame in places] + [places[0][1]])
        assert len(found) == len(places) + 1, "as many embeddings as pictures must come back"
        assert np.abs(found[0] - found[-1]).max() < _CANARY, "embeddings came back in another order"
        vectors: dict[str, list[float]] = {view.clip.id: [] for view in views}
        for (clip, _), vector in zip(places, found[:-1], strict=True):
            vectors[clip] += vector.tolist()
        model = self.towers.settings.model
        return [
            {"clip": clip, "clip_embedding": value, "clip_model": model} for clip, value in vectors.items()
        ]


def frame_embeddings(view: View) -> Vectors:
    """(3, D) of a clip, from its row of `clip_embedding`. Raises as `computed` does."""
    return np.asarray(computed(view, "clip_embedding")["clip_embedding"], np.float32).reshape(3, -1)


def computed(view: View, name: str) -> Mapping[str, Any]:
    """The row of another annotator.

    Raises MachineError, with the reason, where its model was absent, and InputError where it has none of this clip.
    """
    row = view.scores.get(name)
    again = f"Run svd curate annotate with {name} first."
    if row is None:
        raise InputError(f"There is no {name} of the clip {view.clip.id}.", again)
    if reason := row.get("not_computed"):
        raise MachineError(f"It needs {name}, which was not computed: {reason}", again)
    return row
