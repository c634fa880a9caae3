"""The training recipe: one TOML file per run, closed vocabulary, validated whole before anything starts."""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from svdcli.errors import RecipeError, UsageError

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Data(Section):
    """Which clips are trained on."""

    source: Path
    """a folder of videos"""
    exclude: tuple[str, ...] = ()
    """file name patterns that are left out altogether"""
    held_out: tuple[str, ...] = ()
    """file name patterns that are kept for evaluation only"""
    width: Annotated[int, Field(ge=64, multiple_of=8)]
    """pixels"""
    height: Annotated[int, Field(ge=64, multiple_of=8)]
    """pixels"""
    max_fps: Annotated[float, Field(gt=0)] = 16.0
    """videos are thinned to at most this frame rate when they are read, frames a second"""
    max_frames: Positive = 240
    """frames kept of one video, from its start"""


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


class ImageToVideoTask(Section):
    """Train the UNet and the image encoder to continue a frame (SVD paper §4.2, app. D.4)."""

    kind: Literal["i2v"]
    vae: Path
    """bundle or run with the autoencoder"""
    start: Path | None = None
    """bundle whose UNet and image encoder are continued"""
    block_out_channels: tuple[Positive, ...]
    norm_num_groups: Positive = 32
    num_attention_heads: tuple[Positive, ...]
    """heads a level"""
    layers_per_block: Positive = 1
    attention_levels: tuple[bool, ...]
    """which levels hold transformers"""
    context_dim: Positive
    """width of the image embedding"""
    num_frames: tuple[Positive, ...]
    """clip lengths; each step trains one of them"""
    fps: tuple[float, float]
    """range of frame rates that clips are labelled with; each is drawn on its own, so that footage plays slower and faster"""
    max_speed: Annotated[float, Field(ge=1)] = 2.0
    """how much faster or slower than life a clip may play"""
    camera_moves: Annotated[int, Field(ge=0)] = 0
    """clips made from still frames by panning and zooming, mixed in"""
    p_mean: float = 1.0
    """mean of ln σ"""
    p_std: Annotated[float, Field(gt=0)] = 1.6
    """standard deviation of ln σ"""
    augment_mean: float = -3.0
    """mean of ln σ of the noise added to the condition frame"""
    augment_std: Annotated[float, Field(ge=0)] = 0.5
    drop_embedding: Fraction = 0.05
    """share of clips whose image embedding alone is zeroed"""
    drop_latent: Fraction = 0.05
    """share whose condition latent alone is zeroed"""
    drop_both: Fraction = 0.1
    """share with both zeroed: the null condition of guidance"""
    guidance: str = "1.0:2.5"
    """what the bundle suggests to sample with: scale, or first:last over the frames"""
    num_steps: Positive = 25
    """steps that the bundle suggests"""
    sampler: Literal["euler", "heun", "euler_ancestral", "dpmpp_2m"] = "euler"
    """sampler that the bundle suggests"""


class Optim(Section):
    """AdamW, linear warm-up, cosine to `final_lr`."""

    lr: Annotated[float, Field(gt=0)]
    final_lr: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """gradients are scaled down to this norm"""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """decay a step of the averaged weights, which are what is exported; shorter at the start"""


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
    evaluate_every: Positive = 200


class Machine(Section):
    """Passed to Fabric."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Positive = 1
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    num_threads: Positive | None = None
    """CPU threads; absent: torch's own choice"""


class Recipe(Section):
    """A training run, whole."""

    task: Annotated[VAETask | ImageToVideoTask, Field(discriminator="kind")]
    data: Data
    optim: Optim
    run: Run
    machine: Machine = Machine()


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read a TOML recipe and apply `section.key=value` overrides. Raises RecipeError, which names the key and its neighbour."""
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}", "Give the path of a TOML recipe.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}", "Mend the line that it names.") from error
    for override in overrides or []:
        _set(tree, override)
    return parse_recipe(tree, str(path))


def parse_recipe(tree: dict[str, Any], name: str) -> Recipe:
    """A parsed TOML tree -> Recipe. Goes through JSON, since strict mode refuses lists for tuples."""
    try:
        return Recipe.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part not in ("vae", "i2v")]
        raise RecipeError(f"{name}: {'.'.join(where)}: {first['msg']}", _suggest(where, first["type"])) from error


def _suggest(where: list[str], kind: str) -> str:
    if kind != "extra_forbidden":
        return "Correct the value, or take the key out for its default."
    sections = [Recipe, Data, VAETask, ImageToVideoTask, Optim, Run, Machine]
    known = {name for section in sections for name in section.model_fields}
    near = difflib.get_close_matches(where[-1], known, n=1)
    return f"Did you mean {near[0]}?" if near else "There is no such key; take it out."


def _set(tree: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise UsageError(f"--set {override} is not key=value", "Write for example --set optim.lr=1e-5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UsageError(f"--set {override}: {parent} is not a section", "See the recipe for its sections.")
    tree[last] = value
