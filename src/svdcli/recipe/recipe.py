"""The training recipe: one TOML file per run, closed vocabulary, validated whole before anything starts."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from svdcli.errors import RecipeError, UsageError

Positive = Annotated[int, Field(gt=0)]
Side = Annotated[int, Field(ge=64, multiple_of=8)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
Width = Annotated[float, Field(gt=0.0, lt=0.288)]
"""of a power average: 0.288 is that of the plain mean over the run"""
FREE_ON_RESUME = ("run.minutes", "run.num_steps", "run.sample_every", "run.log", "machine")
"""Keys that may change, without a word, when a run is resumed."""
SAID_ON_RESUME = (
    "run.folder",
    "run.checkpoint_every",
    "run.keep",
    "run.keep_every",
    "run.evaluate_every",
    "optim",
    "data.source",
    "task.vae",
    "task.start",
    "task.text",
)
"""Keys that may change when a run is resumed, and are then named. All others began with the run and stay."""
KEPT_ON_RESUME = ("optim.state", "optim.ema", "optim.ema_widths")
"""Those of them that may not after all, since the checkpoint is made by them."""


class Section(BaseModel):
    """What all sections share: they never change, and know no key but their own."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Data(Section):
    """Which clips are trained on."""

    source: Path
    """a folder of videos and of folders of numbered frames, or a folder or URL of shards with their index"""
    exclude: tuple[str, ...] = ()
    """file name patterns that are left out altogether"""
    held_out: tuple[str, ...] = ()
    """file name patterns that are kept for evaluation only"""
    held_out_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """share of the source videos that is kept for evaluation besides, chosen by their names"""
    width: Annotated[int, Field(ge=64, multiple_of=8)]
    """pixels"""
    height: Annotated[int, Field(ge=64, multiple_of=8)]
    """pixels"""
    buckets: tuple[tuple[Side, Side], ...] = ()
    """further sizes [width, height]; a clip is scaled and cropped to the one nearest to its aspect ratio, and a
    batch is of one size"""
    max_fps: Annotated[float, Field(gt=0)] = 16.0
    """videos are thinned to at most this frame rate when they are read, frames a second"""
    max_frames: Positive = 240
    """frames kept of one video, from its start"""
    frames_fps: Annotated[float, Field(gt=0)] | None = None
    """frame rate of folders of numbered frames, which cannot say it themselves"""
    sampling: Literal["uniform_videos", "shuffle"] = "uniform_videos"
    """uniform_videos: each clip of a batch from any video, all as likely, at a speed that a stride of its frames
    gives; shuffle: every video once a round, in a new order each, frames by their time at the rate drawn"""
    reader: Literal["decord", "pyav"] = "decord"
    """what decodes; pyav minds edit lists, decord is faster"""
    frame_cache: bool | None = None
    """keep all frames, decoded and scaled, in one file beside the runs; absent: for videos of one size, not shards"""
    latent_cache: bool = True
    """keep latents on disk, a file a clip"""
    max_corrupt_share: Fraction = 0.05
    """the run stops where more than this share of the clips cannot be read"""

    @property
    def location(self) -> str:
        """The source as it was written: a path takes one of the two slashes of a URL."""
        return re.sub(r"^([a-z][a-z0-9+.-]+):/+", r"\1://", str(self.source))

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """All buckets, (width, height), that of the two keys first."""
        return tuple(dict.fromkeys(((self.width, self.height), *self.buckets)))


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
    train: Literal["all", "temporal", "spatial"] = "all"
    """temporal: what a video network has and an image network has not, the layers of the ids among it"""

    @model_validator(mode="after")
    def _check_train(self) -> Self:
        if self.train == "temporal" and self.image_share:
            raise ValueError("image_share trains nothing where train is temporal")
        return self


class ImageToVideoTask(VideoTask):
    """Train the UNet and the image encoder to continue a frame (SVD paper §4.2, app. D.4).

    A start that is a text-to-video model gets the inputs for the frame, silent at first, and a new image encoder.
    """

    kind: Literal["i2v"]
    p_mean: float = 1.0
    p_std: Annotated[float, Field(gt=0)] = 1.6
    augment_mean: float = -3.0
    """mean of ln σ of the noise added to the condition frame"""
    augment_std: Annotated[float, Field(ge=0)] = 0.5
    export: Literal["half", "compact"] = "half"
    """precision of the bundle's weights; compact puts feed-forward layers and some others in 8 bits, a sixth less in all"""
    drop_embedding: Fraction = 0.05
    """share of clips whose image embedding alone is zeroed"""
    drop_latent: Fraction = 0.05
    """share whose condition latent alone is zeroed"""
    drop_both: Fraction = 0.1
    """share with both zeroed: the null condition of guidance"""

    @model_validator(mode="after")
    def _check_drops(self) -> Self:
        if self.drop_embedding + self.drop_latent + self.drop_both > 1:
            raise ValueError(
                "drop_embedding, drop_latent and drop_both are shares and may not exceed 1 together"
            )
        return self


TASKS: dict[str, type[Section]] = {
    "vae": VAETask,
    "t2i": TextToImageTask,
    "t2v": TextToVideoTask,
    "i2v": ImageToVideoTask,
}
"""The section `task` by its `kind`."""


class Optim(Section):
    """AdamW: how fast which layers move, what it keeps in memory, and the average of the weights."""

    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """how the rate goes from `lr`, behind a linear warm-up, to `final_lr` at the last step; constant: not at all"""
    final_lr: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    spatial_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    """times the rate, for the layers that see one frame"""
    temporal_lr_scale: Annotated[float, Field(gt=0)] = 1.0
    """times the rate, for the layers that see many"""
    freeze: Literal["none", "spatial", "temporal"] = "none"
    """which layers stay as they are. In mixed precision the UNet's frozen matrices are held in the half precision
    that a step computes in, so that they take half the memory and no gradient, moment or average"""
    state: Literal["full", "8bit", "host"] = "full"
    """Adam's two moments a weight: in float32, in eight bits each, or in float32 in the host's memory"""
    betas: tuple[Momentum, Momentum] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """gradients are scaled down to this norm"""
    ema: Literal["exponential", "power"] = "exponential"
    """which average of the weights is evaluated and exported: of the last steps alike however long the run is, or
    of a share of all steps, with snapshots from which any other share is made afterwards (Karras et al. 2024)"""
    ema_decay: Momentum = 0.999
    """decay a step of the exponential average; shorter at the start"""
    ema_widths: tuple[Width, Width] = (0.05, 0.1)
    """standard deviations of the two power averages, as shares of the run; the second is evaluated and exported"""
    ema_snapshot_every: Positive = 1000
    """steps between the snapshots of the power averages"""

    @model_validator(mode="after")
    def _check_schedule(self) -> Optim:
        if self.schedule == "constant" and self.final_lr:
            raise ValueError("final_lr has no meaning with the constant schedule; leave it out")
        if self.ema_widths[0] == self.ema_widths[1]:
            raise ValueError("ema_widths needs two different widths")
        return self


class Run(Section):
    """How long, how large, how often."""

    folder: Path
    """where checkpoints, metrics and the result go; the same command again resumes there"""
    seed: int = 0
    num_steps: Positive
    batch_size: Positive
    """clips a step on each device"""
    accumulate: Positive = 1
    """batches a step"""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """save and stop after this long, to be resumed by the same command"""
    checkpoint_every: Positive = 200
    keep: Positive = 1
    """how many of the last checkpoints stay"""
    keep_every: Positive | None = None
    """checkpoints at the multiples of so many steps stay for good"""
    evaluate_every: Positive = 200
    sample_every: Positive | None = None
    """steps between sample videos, which show the averaged and the raw weights side by side; absent: none"""
    log: tuple[Literal["csv", "tensorboard", "wandb"], ...] = ("csv",)
    """where figures and samples go; metrics.csv is the record and is always written"""


class Machine(Section):
    """Passed to Fabric."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Positive = 1
    """in each node; under torchrun the number of its processes"""
    nodes: Positive = 1
    """machines; torchrun or SLURM starts the command on each"""
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    """auto: one device, or ddp on several; ddp: each device holds the whole model; fsdp: each a share of it;
    deepspeed is known, and refused with a sentence"""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint: Literal["none", "blocks"] | Fraction = "none"
    """of which blocks the activations are computed again for the gradients, instead of kept: none, all, or a share"""
    compile: bool = False
    """through torch.compile, which takes minutes at the start"""
    num_threads: Positive | None = None
    """CPU threads; absent: torch's own choice"""

    @property
    def checkpoint_share(self) -> float:
        """`checkpoint` as a share of the blocks."""
        if isinstance(self.checkpoint, str):
            return 1.0 if self.checkpoint == "blocks" else 0.0
        return self.checkpoint


class Recipe(Section):
    """A training run, whole."""

    task: Annotated[
        VAETask | TextToImageTask | TextToVideoTask | ImageToVideoTask, Field(discriminator="kind")
    ]
    data: Data
    optim: Optim
    run: Run
    machine: Machine = Machine()

    @model_validator(mode="after")
    def _check_strategy(self) -> Recipe:
        strategy = self.machine.strategy
        if strategy in ("fsdp", "deepspeed"):
            if self.optim.state != "full":
                raise ValueError(f"optim.state = {self.optim.state!r} needs machine.strategy auto or ddp")
            if self.task.kind == "vae":
                raise ValueError(f"an autoencoder is small: train it with ddp, not with {strategy}")
            if self.machine.precision == "16-mixed":
                raise ValueError(f"machine.strategy = {strategy!r} needs precision 32-true or bf16-mixed")
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Recipe:
        if isinstance(self.task, VAETask):
            sides = [side for size in self.data.sizes for side in size]
            if self.task.crop > min(sides):
                raise ValueError(f"task.crop = {self.task.crop} does not fit into data.width x data.height")
            if any(side % self.task.downscale for side in sides):
                raise ValueError(f"data.width and data.height must be multiples of {self.task.downscale}")
        return self


def _check_groups(widths: tuple[int, ...], groups: int) -> None:
    if not widths:
        raise ValueError("block_out_channels needs a level at least")
    for width in widths:
        if width % groups:
            raise ValueError(f"{width} of block_out_channels is no multiple of norm_num_groups = {groups}")


# ---- reading -------------------------------------------------------------------------------------------


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe, or the JSON that a run folder keeps of one, and apply `section.key=value` overrides.

    Raises RecipeError, which names the key and its neighbour, and UsageError for an override that is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = _from_json(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        hint = f"Give the path of a TOML recipe; a relative one starts at {Path.cwd()}."
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror}.", hint) from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise RecipeError(f"{path} is not valid {kind}: {error}.", "Mend the line that it names.") from error
    for override in overrides:
        _set(tree, override)
    return parse_recipe(tree, str(path))


def _from_json(text: str) -> dict[str, Any]:
    tree = json.loads(text)
    if not isinstance(tree, dict):
        raise json.JSONDecodeError("no object", text, 0)
    return tree


def parse_recipe(tree: dict[str, Any], name: str) -> Recipe:
    """A parsed TOML tree, called `name` in errors -> Recipe. Raises RecipeError for its first fault."""
    try:
        text = json.dumps(tree)  # through JSON, since strict mode refuses lists for tuples
    except TypeError as error:
        raise RecipeError(f"{name} holds a date or time, which no key takes.", "Take it out.") from error
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        raise _explain(error, name) from error


def _explain(error: ValidationError, name: str) -> RecipeError:
    """The first fault as a sentence, and what mends it."""
    first, count = error.errors()[0], error.error_count()
    path = [str(part) for part in first["loc"]]
    if path[:1] == ["task"]:
        del path[1:2]  # the tag that pydantic puts behind it
    where, kind = ".".join(path) or "the recipe", first["type"]
    more = f" ({count - 1} more after it)" if count > 1 else ""
    if kind == "extra_forbidden":
        return RecipeError(
            f"{name}: there is no key {where}{more}.",
            _nearest(path, str(first["loc"][1]) if len(first["loc"]) > 1 else ""),
        )
    if kind == "missing" or kind == "union_tag_not_found":
        where += ".kind" if kind == "union_tag_not_found" else ""
        return RecipeError(f"{name}: the key {where} is missing{more}.", "Add it, or give it with --set.")
    what = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict | list) else f" (not {first['input']!r})"
    return RecipeError(
        f"{name}: {where}: {what}{given}{more}.", "Correct the value, in the recipe or by --set."
    )


def _nearest(path: list[str], tag: str) -> str:
    """Names the known key that is nearest to an unknown one, in its own section first."""
    sections: dict[str, type[Section]] = {"data": Data, "optim": Optim, "run": Run, "machine": Machine}
    sections["task"] = TASKS.get(tag, ImageToVideoTask)
    own = sections[path[0]] if len(path) > 1 and path[0] in sections else Recipe
    near = difflib.get_close_matches(path[-1], own.model_fields, n=1)
    if near:
        return f"Did you mean {'.'.join([*path[:-1], near[0]])}?"
    for name, section in sections.items():
        if path[-1] in section.model_fields:
            return f"That key belongs into the section {name}."
    return f"Take it out. Known are {', '.join(own.model_fields)}."


def _set(tree: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    key = key.strip()
    if not sign or not all(key.split(".")):
        raise UsageError(f"--set {override} is not key=value.", "Write for example --set optim.lr=1e-5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word without quotes
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UsageError(
                f"--set {override}: {parent} is not a section.", "See the recipe for its sections."
            )
    tree[last] = value


# ---- resuming ------------------------------------------------------------------------------------------


def resume_recipe(saved: str, given: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe that a run goes on with, and sentences on what changed since it began.

    `saved` is the JSON that the run began with; it wins where `given` leaves a key out. Keys of
    FREE_ON_RESUME come from `given`, those of SAID_ON_RESUME too, and are named. Raises RecipeError for any
    other difference.
    """
    began_with = parse_recipe(json.loads(saved), "the recipe saved with the checkpoint")
    tree, now = began_with.model_dump(mode="json"), given.model_dump(mode="json")
    for key in FREE_ON_RESUME:
        section, _, name = key.partition(".")
        if name:
            tree[section][name] = now[section][name]
        else:
            tree[section] = now[section]
    changes = []
    for section, values in given.model_dump(mode="json", exclude_unset=True).items():
        for name, value in values.items():
            key, old = f"{section}.{name}", tree[section].get(name)
            if old == value:
                continue
            if key in KEPT_ON_RESUME or not _covers(SAID_ON_RESUME, key):
                began = f"The run in {given.run.folder} began with {key} = {json.dumps(old)}"
                raise RecipeError(
                    f"{began}, not {json.dumps(value)}.",
                    "Take the change back to resume it, or begin anew in another run.folder.",
                )
            tree[section][name] = value
            changes.append(f"{key} is now {json.dumps(value)}; the run began with {json.dumps(old)}")
    return parse_recipe(tree, "the recipe saved with the checkpoint"), changes


def _covers(keys: tuple[str, ...], key: str) -> bool:
    return key in keys or key.partition(".")[0] in keys
