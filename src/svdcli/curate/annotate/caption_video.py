"""The caption of a clip as a whole: what happens (the paper's V-BLIP, SVD §3.1), from moments spread over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from svdcli.curate.annotate import View
from svdcli.curate.annotate.captioner import Wish, caption_rows, writer
from svdcli.curate.annotate.models import stamp
from svdcli.curate.annotate.moments import frames_at
from svdcli.errors import MachineError
from svdcli.recipe.annotation import Server, Transformer

PROMPT = (
    "These are moments of one video, in order. Describe in one sentence what happens and how things move."
)
SIDE = 336
"""shortest side of the pictures at most, pixels"""


class CaptionVideoAnnotator:
    """Columns: `caption_video`; `caption_video_model` and `caption_video_prompt`, who wrote it and what was asked."""

    name = "caption_video"
    columns: Mapping[str, type] = {
        "caption_video": str,
        "caption_video_model": str,
        "caption_video_prompt": str,
    }
    needs: tuple[str, ...] = ()

    def __init__(self, settings: Transformer | Server | None, num_frames: int, device: str) -> None:
        self.num_frames = num_frames
        self.prompt = PROMPT if settings is None or settings.prompt is None else settings.prompt
        self.author = writer(settings, device, sees=True) if settings else None
        self.batch = self.author.batch if self.author else 1
        self.version = stamp(1, settings, num_frames)

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises MachineError where the captioner is absent, InputError where a clip cannot be read or is refused."""
        if self.author is None:
            raise MachineError(
                "No captioner of videos is named.",
                "Name one as annotate.captions.video: a model of transformers that takes several pictures, or a server.",
            )
        wishes = [Wish(view.clip.id, self.prompt, self._pictures(view)) for view in views]
        return caption_rows(self.author, self.name, self.prompt, wishes)

    def _pictures(self, view: View) -> tuple[Any, ...]:
        """The middles of so many equal parts of the clip."""
        seconds = view.clip.end - view.clip.start
        times = (np.arange(self.num_frames) + 0.5) / self.num_frames * seconds
        return tuple(frames_at(view.video, list(times), SIDE))
