"""Words into pictures, by any text-to-image model that diffusers loads: the first half of text to image to video.

What it is: the one place that imports diffusers, inside functions, as it is an extra. What it is not: a sampler of our own
image bundles, which `svd sample --prompt` runs without it.
"""

from __future__ import annotations

import gc
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from svdcli.engine.generate import Sampling
from svdcli.engine.memory import Residence
from svdcli.engine.subjects import Still, Told
from svdcli.errors import InputError, MachineError
from svdcli.io.images import Fit
from svdcli.model import hub

_ANOTHER = "Give a text-to-image model, such as Stable Diffusion."


@dataclass(frozen=True)
class Painter:
    """A text-to-image model and how it is run."""

    folder: Path
    """a diffusers pipeline"""
    name: str
    steps: int | None = None
    """absent: the model's own, as the next one"""
    guidance: float | None = None
    negative: str = ""

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "image_model": self.name,
            "image_steps": self.steps,
            "image_guidance": self.guidance,
            "negative": self.negative,
        }


@dataclass(frozen=True)
class Painted:
    """A picture that was made of words and is to move, for an image-to-video bundle."""

    text: str
    picture: Path
    painter: Painter
    seed: int
    fit: Fit = "crop"

    @property
    def name(self) -> str:
        return self.picture.name

    @property
    def source(self) -> str:
        return self.text

    def tell(self, residence: Residence, seed: int, sampling: Sampling) -> Told:
        told = Still(self.picture, self.fit).tell(residence, seed, sampling)
        own = {"prompt": self.text, "picture": str(self.picture), "image_seed": self.seed}
        return replace(told, facts={**told.facts, **own, **self.painter.facts()})


def find_painter(ref: str, steps: int | None, guidance: float | None, negative: str) -> Painter:
    """The pipeline of that folder or hub id, if it is on this machine and diffusers is. Reads no weights, fetches nothing.

    Raises MachineError where diffusers is absent, and InputError where there is no such pipeline.
    """
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise MachineError(
            "--image-model needs diffusers, which is not installed.", "pip install 'svdcli[image]'"
        ) from error
    path = Path(ref).expanduser()
    if path.is_file():
        raise InputError(
            f"{path.name} is a single file, and --image-model takes a diffusers folder.",
            "Give the folder or hub id of the model: most are published as both.",
        )
    found = [path] if path.exists() else hub.snapshots(ref) if hub.is_hub_id(ref) else []
    for folder in found:
        if (folder / hub.INDEX).is_file():
            return Painter(folder, ref, steps, guidance, negative)
    if path.exists():
        raise InputError(f"{path} holds no {hub.INDEX}.", "Give the folder of a diffusers pipeline.")
    fetch = f"Fetch it with `hf download {ref}`" if hub.is_hub_id(ref) else "Check the path"
    raise InputError(f"The image model {ref} is not on this machine.", f"{fetch}, or give a folder.")


def paint(
    painter: Painter, texts: Sequence[str], seed: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype,
    on_picture: Callable[[], None] = lambda: None,
) -> list[npt.NDArray[np.uint8]]:  # fmt: skip
    """A picture (H, W, 3) of each text, of about the aspect ratio of size (width, height) and the model's own area.

    The model is in memory only meanwhile. Raises InputError where the pipeline is damaged, is none of text to image, or its
    safety checker refuses a picture.
    """
    pipe = _load(painter, dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    known = inspect.signature(pipe.__call__).parameters
    asked = {"num_inference_steps": painter.steps, "guidance_scale": painter.guidance,
             "negative_prompt": painter.negative or None, **_sides(pipe, *size)}  # fmt: skip
    options = {name: value for name, value in asked.items() if value is not None and name in known}
    pictures = []
    for text in texts:
        generator = torch.Generator().manual_seed(seed)
        try:
            result = pipe(prompt=text, generator=generator, output_type="np", **options)
        except (ValueError, TypeError) as error:
            raise InputError(f"{painter.name} cannot paint {text!r}: {_said(error)}.", _ANOTHER) from error
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise InputError(
                f"The safety checker of {painter.name} refused its picture of {text!r}.",
                "Use another --seed or other words.",
            )
        pictures.append(np.rint(np.clip(result.images[0], 0, 1) * 255).astype(np.uint8))
        on_picture()
    del pipe
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return pictures


def _load(painter: Painter, dtype: torch.dtype) -> Any:
    """The pipeline, from this machine and from safetensors alone."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # later versions call torch_dtype dtype, earlier ones know only this
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                painter.folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True
            )
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise InputError(
            f"diffusers cannot load {painter.name}: {_said(error)}.", "Fetch it again, whole."
        ) from error
    known = inspect.signature(pipe.__call__).parameters
    if "prompt" not in known or "image" in known or "num_frames" in known:
        raise InputError(
            f"{painter.name} is a {type(pipe).__name__}, which makes no picture of words alone.",
            _ANOTHER,
        )
    return pipe


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _sides(pipe: Any, width: int, height: int) -> dict[str, int]:
    """Height and width of that aspect ratio and of the area that the model was made for, where it says which."""
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    native = getattr(pipe, "default_sample_size", None)
    if native is None:
        network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        native = getattr(getattr(network, "config", None), "sample_size", None)
    if not isinstance(native, int):
        return {}
    side, whole = native * scale, math.lcm(8, 2 * scale)
    stretch = math.sqrt(width / height)
    sides = {"height": side / stretch, "width": side * stretch}
    return {name: max(whole, round(value / whole) * whole) for name, value in sides.items()}
