"""The training recipe: one TOML file per run, closed vocabulary, validated whole before anything starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from svdcli.recipe.adapter import Lora
from svdcli.recipe.reading import parse, read_tree
from svdcli.recipe.section import Fraction, Momentum, Positive, Section, Side, Width
from svdcli.recipe.tasks import (
    ImageToVideoTask,
    InterpolationTask,
    MultiViewTask,
    TextToImageTask,
    TextToVideoTask,
    VAETask,
)


class Data(Section):
    """Which clips are trained on."""

    source: Path
    """a folder of videos and of folders of numbered frames, or a folder or URL of shards with their index"""
    exclude: tuple[str, ...] = ()
    """file name patterns that are left out altogether"""
    include: tuple[str, ...] = ()
    """file name patterns of which a clip must match one; absent: all do"""
    camera: str | None = None
    """the camera class that clips must have in the index of their shards, such as pan_left; absent: any"""
    held_out: tuple[str, ...] = ()
    """file name patterns that are kept for evaluation only"""
    held_out_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """share of the source videos that is kept for evaluation besides, chosen by their names; of few one at least"""
    width: Side
    """pixels"""
    height: Side
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
    """which layers stay as they are; those of the ids are among the temporal: an image network has neither. In mixed
    precision the UNet's frozen matrices are held in the half precision that a step computes in, so that they take half
    the memory and no gradient, moment or average"""
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
    deepspeed: each the whole network and a share of the rest, where that package is installed"""
    zero_stage: Literal[1, 2] = 2
    """what deepspeed shares out: Adam's two moments (1), and the gradients too (2)"""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    checkpoint: Literal["none", "blocks", "layers"] | Fraction = "none"
    """of which blocks the activations are computed again for the gradients, instead of kept: none, all, or a share;
    layers: of all, and of the feed-forwards in them once more, which takes the least memory"""
    offload: bool = False
    """what is kept of those blocks, their inputs, waits in the host's memory"""
    compile: bool = False
    """each block through torch.compile, which takes minutes at the start, and again for each further size and length"""
    num_threads: Positive | None = None
    """CPU threads; absent: torch's own choice"""

    @property
    def checkpoint_share(self) -> float:
        """`checkpoint` as a share of the blocks."""
        if isinstance(self.checkpoint, str):
            return 0.0 if self.checkpoint == "none" else 1.0
        return self.checkpoint

    @model_validator(mode="after")
    def _check_offload(self) -> Machine:
        if self.offload and not self.checkpoint_share:
            raise ValueError("offload moves what checkpoint keeps: set machine.checkpoint too")
        return self

    @model_validator(mode="after")
    def _check_zero(self) -> Machine:
        if self.strategy != "deepspeed" and self.zero_stage != 2:
            raise ValueError("zero_stage is deepspeed's: set machine.strategy to it, or leave it out")
        if self.strategy == "deepspeed" and self.compile:
            raise ValueError("compile needs machine.strategy auto, ddp or fsdp")
        return self


class Recipe(Section):
    """A training run, whole."""

    task: Annotated[
        VAETask | TextToImageTask | TextToVideoTask | ImageToVideoTask | InterpolationTask | MultiViewTask,
        Field(discriminator="kind"),
    ]
    data: Data
    optim: Optim
    run: Run
    machine: Machine = Machine()
    adapter: Lora | None = None
    """what trains beside the frozen weights of task.start; absent: all of the network trains"""

    @model_validator(mode="after")
    def _check_adapter(self) -> Recipe:
        if self.adapter is None:
            return self
        if isinstance(self.task, VAETask):
            raise ValueError("an adapter is of a diffusion task; an autoencoder trains whole")
        if self.task.start is None:
            raise ValueError("an adapter needs task.start, the bundle whose weights it adapts")
        if self.optim.freeze != "none":
            raise ValueError("with an adapter all else is frozen: leave out optim.freeze")
        if self.machine.strategy in ("fsdp", "deepspeed"):
            raise ValueError("an adapter is small: train it with machine.strategy auto or ddp")
        return self

    @model_validator(mode="after")
    def _check_strategy(self) -> Recipe:
        strategy = self.machine.strategy
        if strategy in ("fsdp", "deepspeed"):
            small = self.optim.state != "full"
            if small and not (strategy == "deepspeed" and self.optim.state == "host"):
                raise ValueError(f"optim.state = {self.optim.state!r} needs machine.strategy auto or ddp")
            if self.task.kind == "vae":
                raise ValueError(f"an autoencoder is small: train it with ddp, not with {strategy}")
            if getattr(self.task, "image_share", 0):  # they wait for one another's gradients for ever, or die
                raise ValueError(
                    "task.image_share leaves layers out on some devices: set machine.strategy to ddp"
                )
            if self.machine.precision == "16-mixed":
                raise ValueError(f"machine.strategy = {strategy!r} needs precision 32-true or bf16-mixed")
        return self

    @model_validator(mode="after")
    def _check_frozen(self) -> Recipe:
        if (
            self.optim.freeze == "spatial"
            and isinstance(self.task, TextToVideoTask)
            and self.task.image_share
        ):
            raise ValueError("task.image_share trains nothing where optim.freeze is spatial")
        return self

    @model_validator(mode="after")
    def _check_size(self) -> Recipe:
        if isinstance(self.task, VAETask):
            sides = [side for size in self.data.sizes for side in size]
            if self.task.crop > min(sides):
                raise ValueError(f"task.crop = {self.task.crop} does not fit into data.width x data.height")
            if self.data.sampling == "shuffle":
                raise ValueError("an autoencoder draws its crops from any video: leave out data.sampling")
            if any(side % self.task.downscale for side in sides):
                raise ValueError(f"data.width and data.height must be multiples of {self.task.downscale}")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML recipe, or the JSON that a run folder keeps of one, and apply `section.key=value` overrides.

    Raises RecipeError, which names the key and its neighbour, and UsageError for an override that is none.
    """
    return parse_recipe(read_tree(path, overrides), str(path))


def parse_recipe(tree: dict[str, Any], name: str) -> Recipe:
    """A parsed TOML tree, called `name` in errors -> Recipe. Raises RecipeError for its first fault."""
    return parse(Recipe, tree, name)
