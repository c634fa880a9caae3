"""How well captions fit: cosine similarity of CLIP between each caption and the three key frames (SVD app. C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from svdcli.curate.annotate import View
from svdcli.curate.annotate.clip_embedding import ClipTowers, computed, frame_embeddings
from svdcli.curate.annotate.models import stamp
from svdcli.errors import InputError, MachineError

CAPTIONS = ("caption_image", "caption_video", "caption_summary")


class SimilarityAnnotator:
    """Columns: `similarities`, of each caption that there is, image, video, summary, with first, middle and last frame
    (3, 6 or 9 numbers, -1..1); `similarity_image`, `similarity_video`, `similarity_summary`, the means over the frames,
    absent where the caption is; `similarity`, the mean of all.
    """

    name = "similarity"
    columns: Mapping[str, type] = {
        "similarity": float,
        "similarities": list,
        "similarity_image": float,
        "similarity_video": float,
        "similarity_summary": float,
    }

    def __init__(self, towers: ClipTowers, captions: Sequence[str], versions: Sequence[int]) -> None:
        """`captions`: the captioners that run; `versions`: of all that it reads."""
        self.towers = towers
        self.needs: tuple[str, ...] = ("clip_embedding", *captions)
        self.batch = towers.settings.batch
        self.version = stamp(1, self.needs, tuple(versions))

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises MachineError where the CLIP model, its embeddings or every captioner is absent, InputError for a clip
        that has no caption.
        """
        texts = {(view.clip.id, name): text for view in views for name, text in _captions(view).items()}
        vectors = dict(zip(texts, self.towers.embed_texts(list(texts.values())), strict=True))
        return [self._row(view, vectors) for view in views]

    def _row(self, view: View, vectors: Mapping[tuple[str, str], Any]) -> dict[str, Any]:
        frames, clip = frame_embeddings(view), view.clip.id
        model, other = self.towers.settings.model, view.scores["clip_embedding"]["clip_model"]
        if model != other:
            raise MachineError(
                f"The embeddings of the frames are those of {other}, and captions are to be embedded with {model}.",
                "Run svd curate annotate with clip_embedding again.",
            )
        by_caption = {name: frames @ vectors[clip, name] for name in CAPTIONS if (clip, name) in vectors}
        means = {
            name.replace("caption", "similarity"): float(by_caption[name].mean())
            if name in by_caption
            else None
            for name in CAPTIONS
        }
        values = np.concatenate(list(by_caption.values()))
        return {
            "clip": clip,
            "similarity": float(values.mean()),
            "similarities": [float(value) for value in values],
        } | means


def _captions(view: View) -> dict[str, str]:
    """Those that there are. Raises MachineError where no captioner could run, InputError where each failed."""
    found, absent = {}, []
    for name in CAPTIONS:
        if view.scores.get(name):
            try:
                found[name] = str(computed(view, name)[name])
            except MachineError as error:
                absent.append(error.message)
    if absent and not found:
        hint = "Name a captioner as annotate.captions.image, .video or .summary."
        raise MachineError(absent[0], hint)
    if not found:
        raise InputError(
            f"The clip {view.clip.id} has no caption.", "Run svd curate annotate with captions first."
        )
    return found
