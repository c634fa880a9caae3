"""The section `annotate` of a curation recipe: which annotators run, their models, and what each of them heeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from svdcli.recipe.section import Fraction, Positive, Section

AnnotatorName = Literal[
    "motion",
    "camera",
    "text",
    "quality",
    "duplicates",
    "clip_embedding",
    "aesthetic",
    "caption_image",
    "caption_video",
    "caption_summary",
    "similarity",
]
Above = Annotated[float, Field(gt=0)]


class Motion(Section):
    """How far pixels travel."""

    method: Literal["farneback", "raft"] = "farneback"
    """Farnebäck on pictures of 16 pixels, or RAFT at 450 pixels as for the paper's high-quality set"""
    weights: Path | None = None
    """of RAFT (large): a safetensors or .pth file of torchvision's"""
    saturated: Fraction = 0.2
    """a clip is flagged where flow lost track in more than this share of its time"""


class Camera(Section):
    """What the camera does."""

    still: Above = 0.01
    """a camera whose picture drifts less is static, shortest sides a second"""


class Text(Section):
    """How much of the picture text covers."""

    side: Annotated[int, Field(ge=64, multiple_of=32)] = 256
    """shortest side of the pictures that text is looked for in, pixels"""
    confidence: Fraction = 0.5
    """boxes that the detector is less sure of are left out"""


class ClipModel(Section):
    """The CLIP model that embeds key frames and captions."""

    model: str = "openai/clip-vit-large-patch14"
    """hub id, which must be in the hub's cache, or folder of a CLIP model of transformers"""
    batch: Positive = 32
    """clips a call, three pictures each"""
    device: str | None = None
    """absent: that of the run"""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"


class Aesthetic(Section):
    """The aesthetic score of CLIP embeddings."""

    head: Path | None = None
    """LAION's linear or MLP head for the CLIP model: a safetensors or .pth file"""


class Transformer(Section):
    """A model of transformers on this machine."""

    kind: Literal["transformers"] = "transformers"
    model: str
    """hub id, which must be in the hub's cache, or folder"""
    prompt: str | None = None
    """absent: the captioner's own; a captioner without a chat template, such as BLIP, is given none then"""
    max_tokens: Positive = 64
    batch: Positive = 8
    """clips a call"""
    device: str | None = None
    """absent: that of the run"""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"


class Server(Section):
    """A server that speaks OpenAI's chat completions, such as vLLM."""

    kind: Literal["server"]
    url: str
    """its base, such as http://localhost:8000/v1"""
    model: str
    prompt: str | None = None
    """absent: the captioner's own"""
    max_tokens: Positive = 64
    key_variable: str = "OPENAI_API_KEY"
    """environment variable that holds the key; where it is unset none is sent"""
    timeout: Above = 120.0
    """seconds that a request may take"""
    retries: Annotated[int, Field(ge=0)] = 4
    """how often a request that failed for a passing reason is sent again"""
    backoff: Above = 1.0
    """seconds before the first retry; each later one waits twice as long"""
    parallel: Positive = 4
    """requests under way at once"""


Captioner = Annotated[Transformer | Server, Field(discriminator="kind")]


class Captions(Section):
    """Who describes clips: of the middle frame (the paper's CoCa), of the video (V-BLIP), of both texts (an LLM)."""

    image: Captioner | None = None
    video: Captioner | None = None
    summary: Captioner | None = None
    video_frames: Positive = 8
    """frames that the video captioner sees, evenly over the clip"""

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        prompt = self.summary.prompt if self.summary else None
        if prompt is not None and not ("{image}" in prompt and "{video}" in prompt):
            raise ValueError("the prompt of the summary must hold {image} and {video}, where the captions go")
        return self


class Annotate(Section):
    """What is measured of every clip."""

    run: tuple[AnnotatorName, ...] = get_args(AnnotatorName)
    """which annotators; a score whose model is absent is not computed, and a filter on it stops"""
    motion: Motion = Motion()
    camera: Camera = Camera()
    text: Text = Text()
    clip: ClipModel = ClipModel()
    aesthetic: Aesthetic = Aesthetic()
    captions: Captions = Captions()
