"""Both captions of a clip in one sentence, by a language model (SVD §3.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from svdcli.curate.annotate import View
from svdcli.curate.annotate.captioner import Wish, caption_rows, writer
from svdcli.curate.annotate.clip_embedding import computed
from svdcli.curate.annotate.models import stamp
from svdcli.errors import MachineError
from svdcli.recipe.annotation import Server, Transformer

PROMPT = (
    "Two captions of one video follow. Of its middle picture: {image}\nOf the whole: {video}\n"
    "Write one sentence that says what both say, and nothing else."
)


class CaptionSummaryAnnotator:
    """Columns: `caption_summary`; `caption_summary_model` and `caption_summary_prompt`, the latter with {image} and
    {video} where the captions stood.
    """

    name = "caption_summary"
    columns: Mapping[str, type] = {
        "caption_summary": str,
        "caption_summary_model": str,
        "caption_summary_prompt": str,
    }
    needs: tuple[str, ...] = ("caption_image", "caption_video")

    def __init__(
        self, settings: Transformer | Server | None, device: str, versions: Sequence[int] = ()
    ) -> None:
        """`versions`: of the captions that it reads."""
        self.prompt = PROMPT if settings is None or settings.prompt is None else settings.prompt
        self.author = writer(settings, device, sees=False) if settings else None
        self.batch = self.author.batch if self.author else 1
        self.version = stamp(1, settings, tuple(versions))

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises MachineError where the language model or a caption is absent, InputError where it refuses a clip."""
        if self.author is None:
            raise MachineError(
                "No language model that sums up captions is named.",
                "Name one as annotate.captions.summary: a model of transformers, or a server.",
            )
        wishes = [Wish(view.clip.id, self._asked(view)) for view in views]
        return caption_rows(self.author, self.name, self.prompt, wishes)

    def _asked(self, view: View) -> str:
        """The prompt with the captions in it; what looks like a placeholder within a caption stays as it is."""
        both = {
            kind: str(computed(view, f"caption_{kind}")[f"caption_{kind}"]) for kind in ("image", "video")
        }
        return re.sub(r"\{(image|video)\}", lambda match: both[match[1]], self.prompt)
