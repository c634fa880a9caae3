"""The caption of a clip's middle frame: what is there (the paper's CoCa, SVD §3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from svdcli.curate.annotate import View
from svdcli.curate.annotate.captioner import Wish, caption_rows, writer
from svdcli.curate.annotate.models import stamp
from svdcli.errors import MachineError
from svdcli.recipe.annotation import Server, Transformer

PROMPT = "Describe this picture in one sentence: what is in it, where, and what it looks like."


class CaptionImageAnnotator:
    """Columns: `caption_image`; `caption_image_model` and `caption_image_prompt`, who wrote it and what was asked."""

    name = "caption_image"
    columns: Mapping[str, type] = {
        "caption_image": str,
        "caption_image_model": str,
        "caption_image_prompt": str,
    }
    needs: tuple[str, ...] = ()

    def __init__(self, settings: Transformer | Server | None, device: str) -> None:
        self.prompt = PROMPT if settings is None or settings.prompt is None else settings.prompt
        self.author = writer(settings, device, sees=True) if settings else None
        self.batch = self.author.batch if self.author else 1
        self.version = stamp(1, settings)

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises MachineError where the captioner is absent, InputError where it writes nothing or refuses a clip."""
        if self.author is None:
            raise MachineError(
                "No captioner of pictures is named.",
                "Name one as annotate.captions.image: a model of transformers, or a server.",
            )
        wishes = [Wish(view.clip.id, self.prompt, (view.proxy.keys[1],)) for view in views]
        return caption_rows(self.author, self.name, self.prompt, wishes)
