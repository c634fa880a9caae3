"""The section `task` of a training recipe: what is trained, one class a kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from svdcli.recipe.section import Fraction, Positive, Section, Share


class VAETask(Section):
    """Train the autoencoder: reconstruction and KL, on crops."""

    kind: Literal["vae"]
    start: Path | None = None
    """bundle or run whose autoencoder is continued"""
    block_out_channels: tuple[Positive, ...]
    """channels a level, finest first; multiples of norm_num_groups"""
    norm_num_groups: Positive = 32
    """groups of every GroupNorm; at least three channels a group, or brightness is lost"""
    layers_per_block: Positive = 1
    latent_channels: Positive
    num_frames: Positive = 1
    """neighbouring frames a clip; 1 trains the spatial layers on images"""
    crop: Annotated[int, Field(ge=32, multiple_of=8)]
    """side of the square crops, pixels"""
    train: Literal["all", "decoder"] = "all"
    """the decoder alone leaves the latents as they are"""
    kl_weight: Annotated[float, Field(ge=0)] = 1e-6
    """weight of the KL divergence, in nats a latent, beside the reconstruction"""
    gradient_weight: Annotated[float, Field(ge=0)] = 0.0
    """weight of the L1 error of finite differences, which keeps edges"""
    perceptual_weight: Annotated[float, Field(ge=0)] = 0.0
    """weight of the perceptual distance (shift-tolerant LPIPS); needs the extra `perceptual`"""
    adversarial_weight: Annotated[float, Field(ge=0)] = 0.0
    """weight of the verdict of a patch-wise temporal discriminator, trained beside the autoencoder"""

    @property
    def downscale(self) -> int:
        """Pixels a latent, per side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @model_validator(mode="after")
    def _check_shape(self) -> VAETask:
        _check_groups(self.block_out_channels, self.norm_num_groups)
        if self.crop % self.downscale:
            raise ValueError(f"crop must be a multiple of {self.downscale}, the scale of that many levels")
        return self


class DiffusionTask(Section):
    """What the tasks that train a UNet on latents share."""

    vae: Path
    """bundle or run with the autoencoder"""
    start: Path | None = None
    """bundle, or single file, whose network is continued; absent: a new one"""
    block_out_channels: tuple[Positive, ...]
    norm_num_groups: Positive = 32
    num_attention_heads: tuple[Positive, ...]
    """heads a level"""
    layers_per_block: Positive = 1
    attention_levels: tuple[bool, ...]
    """which levels hold transformers"""
    context_dim: Positive
    """width of the context: of the image embedding, or of a token of text"""
    p_mean: float
    """mean of ln σ"""
    p_std: Annotated[float, Field(gt=0)]
    """standard deviation of ln σ"""
    huber: Annotated[float, Field(gt=0)] | None = None
    """errors of F beyond this count linearly in training; absent: squared, as in the paper"""
    guidance: str = "1.0:2.5"
    """what the bundle suggests to sample with: scale, or first:last over the frames"""
    num_steps: Positive = 25
    """steps that the bundle suggests"""
    sampler: Literal["euler", "heun", "euler_ancestral", "dpmpp_2m"] = "euler"
    """sampler that the bundle suggests"""
    sigma_min: Annotated[float, Field(gt=0)] = 0.002
    """last noise level that the bundle suggests; a small model ends higher, where its estimate is still a mean"""
    sigma_max: Annotated[float, Field(gt=0)] = 700.0
    """first noise level that the bundle suggests"""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """of the noise that sampling starts from, as the bundle suggests; below 1 a small model is cleaner, and moves less"""
    motion_bucket: Annotated[float, Field(ge=0, le=255)] = 127.0
    """motion that the bundle suggests"""

    @property
    def has_one_token(self) -> bool:
        """Whether the context is a single token, which cross-attention neither queries nor compares."""
        return False

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        _check_groups(self.block_out_channels, self.norm_num_groups)
        levels = len(self.block_out_channels)
        for name in ("num_attention_heads", "attention_levels"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} needs {levels} values, one a level as block_out_channels has")
        for width, heads in zip(self.block_out_channels, self.num_attention_heads, strict=True):
            if width % heads:
                raise ValueError(f"{width} channels cannot be shared among {heads} num_attention_heads")
        return self


class VideoTask(DiffusionTask):
    """What the tasks on clips share."""

    num_frames: tuple[Positive, ...]
    """clip lengths; each step trains one of them"""
    fps: tuple[float, float]
    """range of frame rates that clips are labelled with; each is drawn on its own, so that footage plays
    slower and faster than life"""
    max_speed: Annotated[float, Field(ge=1)] = 2.0
    """how much faster or slower than life a clip may play"""
    camera_moves: Annotated[int, Field(ge=0)] = 0
    """clips made from still frames by panning and zooming, mixed in"""

    @model_validator(mode="after")
    def _check_clips(self) -> Self:
        if not self.num_frames or min(self.num_frames) < 2:
            raise ValueError("num_frames needs clip lengths of 2 frames or more")
        if not 0 < self.fps[0] <= self.fps[1]:
            raise ValueError("fps must be a range [lowest, highest] above 0")
        return self


class TextTask(DiffusionTask):
    """What the tasks that condition on captions share."""

    text: Path | None = None
    """bundle with the text encoder and the tokenizer; absent: no text, the context is one token of zeros"""
    drop_text: Fraction = 0.15
    """share of clips whose caption is replaced by the empty one: the null condition of guidance"""
    caption_mix: tuple[Share, Share, Share] = (0.5, 0.25, 0.25)
    """how often a clip is told by the caption of its middle frame, of the video, and by their summary; of those
    that it has"""

    @property
    def has_one_token(self) -> bool:
        return self.text is None

    @model_validator(mode="after")
    def _check_captions(self) -> Self:
        if sum(self.caption_mix) <= 0:
            raise ValueError("caption_mix needs a share above 0")
        return self


class TextToImageTask(TextTask):
    """Train the UNet on single frames, at continuous noise levels (SVD paper, app. D.2): stage 1."""

    kind: Literal["t2i"]
    p_mean: float = -1.2
    p_std: Annotated[float, Field(gt=0)] = 1.0
    train: Literal["all", "time_embedding"] = "all"
    """the time embedding alone learns what the new noise input means and leaves the rest as it is"""


class TextToVideoTask(TextTask, VideoTask):
    """Train the UNet on clips (SVD paper §3.2, §4.1, app. D.2 and D.3): stages 2 and 3. A start that is an image model
    gets temporal layers, silent at first.
    """

    kind: Literal["t2v"]
    p_mean: float = -1.2
    p_std: Annotated[float, Field(gt=0)] = 1.0
    image_share: Fraction = 0.0
    """share of batches that are images: as many frames as clips otherwise, without the temporal layers"""


class GivenTask(DiffusionTask):
    """What the tasks share that are given frames of what they make, as pictures and as noised latents."""

    image_encoder: Path | None = None
    """bundle whose image encoder is taken and kept as it is; absent: that of the start, or else a small new one, which trains"""
    augment_mean: float = -3.0
    """mean of ln σ of the noise added to the given frames"""
    augment_std: Annotated[float, Field(ge=0)] = 0.5
    export: Literal["half", "compact"] = "half"
    """precision of the bundle's weights; compact puts feed-forward layers and some others in 8 bits, a sixth less in all"""
    drop_embedding: Fraction = 0.05
    """share of clips whose image embedding alone is zeroed"""
    drop_latent: Fraction = 0.05
    """share whose condition latent alone is zeroed"""
    drop_both: Fraction = 0.1
    """share with both zeroed: the null condition of guidance"""

    @property
    def has_one_token(self) -> bool:
        return True

    @model_validator(mode="after")
    def _check_drops(self) -> Self:
        if self.drop_embedding + self.drop_latent + self.drop_both > 1:
            raise ValueError(
                "drop_embedding, drop_latent and drop_both are shares and may not exceed 1 together"
            )
        return self


class GivenFramesTask(GivenTask, VideoTask):
    """Those of them that make clips."""

    carry_detail: bool = False
    """whether the bundle suggests to carry the given frames' own pixels along the clip's motion into its decoded frames: for
    an autoencoder that loses much of them"""


class ImageToVideoTask(GivenFramesTask):
    """Train the UNet and the image encoder to continue a frame (SVD paper §4.2, app. D.4).

    A start that is a text-to-video model gets the inputs for the frame, silent at first, and a new image encoder.
    """

    kind: Literal["i2v"]
    p_mean: float = 1.0
    p_std: Annotated[float, Field(gt=0)] = 1.6
    leading: tuple[Share, Share, Share, Share] | None = None
    """how often 0, 1, 2 and 3 first frames of a clip are given clean, to be gone on from, and do not count in the loss;
    absent: none are, and the clip begins with the picture alone"""
    motion_mask: Fraction = 0.0
    """share of clips that are told where they move, in a channel of its own, and stand still elsewhere; above 0 the network
    has one input channel more than other tools know"""

    @model_validator(mode="after")
    def _check_leading(self) -> Self:
        if self.leading is None:
            return self
        if not sum(self.leading):
            raise ValueError("leading needs a share above 0")
        if self.most_leading >= min(self.num_frames):
            raise ValueError(
                "leading gives all of the shortest clips of num_frames: nothing is left to learn"
            )
        return self

    @property
    def most_leading(self) -> int:
        """Clean leading frames, at most."""
        return max((n for n, share in enumerate(self.leading or ()) if share), default=0)


class InterpolationTask(GivenFramesTask):
    """Train the UNet to find the frames between a first and a last one (SVD paper §4.4, app. D.5).

    A start that is a text-to-video or image-to-video model gets the inputs that it lacks, silent at first. The noise of
    the given frames is added to their scaled latents, not to pixels.
    """

    kind: Literal["interp"]
    num_frames: tuple[Positive, ...] = (5,)
    """clip lengths, the two given frames among them"""
    p_mean: float = 1.0
    p_std: Annotated[float, Field(gt=0)] = 1.2
    guidance: str = "1.0"
    carry_detail: bool = True
    blend: bool = False
    """what stands in the place of the frames that are to be found: the learned latent alone, as in the paper, or
    added to the blend of the given frames"""

    @model_validator(mode="after")
    def _check_between(self) -> Self:
        if min(self.num_frames) < 3:
            raise ValueError("num_frames needs 3 frames or more, as two of them are given")
        return self


class MultiViewTask(GivenTask):
    """Train the UNet to see an object from all around, given one view, the last of an orbit (SVD paper §4.5, app. D.6).

    A start that is an image, text-to-video or image-to-video model gets the inputs that it lacks, silent at first; the rate and
    the motion that it knew stay for good what its bundle suggests.
    """

    kind: Literal["multiview"]
    num_frames: tuple[Positive, ...] = (21,)
    """views of an orbit; each step trains one of these numbers"""
    pose: Literal["none", "elevation", "path"] = "elevation"
    """what is told of the cameras: nothing, as for captures without known poses; the elevation of the orbit; or elevation and
    azimuth of each view, for orbits that are not even (SV3D paper §3)"""
    backgrounds: Positive = 2
    """on how many backgrounds each transparent orbit is seen: on white, and on colours of its own"""
    mirror: bool = False
    """whether each closed orbit is also seen in a mirror, as another object: for few objects"""
    p_mean: float = 1.0
    p_std: Annotated[float, Field(gt=0)] = 1.6
    guidance: str = "triangle:1.0:2.5"

    @property
    def has_one_token(self) -> bool:
        return True

    @model_validator(mode="after")
    def _check_views(self) -> Self:
        if not self.num_frames or min(self.num_frames) < 2:
            raise ValueError("num_frames needs 2 views or more, as one of them is given")
        return self


def _check_groups(widths: tuple[int, ...], groups: int) -> None:
    if not widths:
        raise ValueError("block_out_channels needs a level at least")
    for width in widths:
        if width % groups:
            raise ValueError(f"{width} of block_out_channels is no multiple of norm_num_groups = {groups}")
