"""From the options of `svd sample` and `svd decode` to what they mean, with everything checked before work starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.console import human_size, out, table
from svdcli.errors import MachineError, UsageError

if TYPE_CHECKING:
    import torch

    from svdcli.engine.generate import Sampling
    from svdcli.engine.plan import Plan, Planner
    from svdcli.model.bundle_files import BundleFiles

Fit = StrEnum("Fit", ["crop", "pad", "stretch"])
Kind = StrEnum("Kind", ["mp4", "gif", "webp", "png", "latents"])
Sampler = StrEnum("Sampler", ["euler", "heun", "euler_ancestral", "dpmpp_2m"])
Precision = StrEnum("Precision", ["float32", "float16", "bfloat16"])
Vram = StrEnum("Vram", ["auto", "high", "normal", "low", "none"])

DEFAULT_OVERLAP = 3

# Options that both commands have.
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="Precision; else float16 on a GPU, float32 on a CPU.")
]
ChunkOption = Annotated[
    int | None, typer.Option(min=1, help="Frames decoded at a time; else as many as the memory allows.")
]
OverlapOption = Annotated[
    int | None,
    typer.Option(
        min=0, show_default=str(DEFAULT_OVERLAP), help="Frames that neighbouring chunks share, and fade over."
    ),
]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", metavar="FILE[:STRENGTH]", help="Add a LoRA, at strength 1 unless said; may repeat."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]

LONG = 1.5
"""Times the frames that a bundle was trained on: clips of more are made window by window."""
TRAINED_FRAMES = {"nano": range(14, 26)}
"""Bundles that were trained on clips of several lengths; others know the one of their settings."""


def check_number(name: str, value: float | None, low: float, high: float) -> None:
    """Raise UsageError for NaN, infinity and what lies outside [low, high]."""
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise UsageError(f"{name} {value:g} is not between {low:g} and {high:g}", "See svd sample --help.")


def choose_kind(kind: Kind | None, output: str | None) -> str | None:
    """What to write: as asked, or by the suffix of the output."""
    from svdcli.io.template import kind_of

    return kind.value if kind else kind_of(output)


def choose_sampling(files: BundleFiles, size: str | None, given: dict[str, Any]) -> Sampling:
    """The bundle's own values, with those that were given in their place; all of them checked."""
    from svdcli.engine.generate import Sampling

    known = {name: value for name, value in given.items() if value is not None}
    sampling = replace(Sampling.of(files.settings), **known)
    longest = max(files.settings.num_frames, *TRAINED_FRAMES.get(files.name, ()), 1)
    if sampling.window is None and sampling.num_frames > LONG * longest:
        sampling = replace(sampling, window=longest)
    if size is not None:
        width, height = read_size(size)
        sampling = replace(sampling, width=width, height=height)
    check_size(sampling, files.downscale)
    if sampling.s_churn and sampling.sampler not in ("euler", "heun"):
        raise UsageError(f"--churn is not for the sampler {sampling.sampler}", "Use --sampler euler or heun.")
    sampling.sigmas()
    sampling.scales()
    return sampling


def read_size(text: str) -> tuple[int, int]:
    """ "1024x576" -> (1024, 576)."""
    width, sign, height = text.lower().partition("x")
    if not (sign and width.isdecimal() and height.isdecimal() and 64 <= min(int(width), int(height))):
        raise UsageError(
            f"--size {text} is not WIDTHxHEIGHT in pixels, 64 or more", "Write for example --size 1024x576."
        )
    return int(width), int(height)


def check_size(sampling: Sampling, multiple: int) -> None:
    """Raise UsageError unless both sides are whole in latents."""
    width, height = sampling.width, sampling.height
    if width % multiple or height % multiple:
        near = "x".join(str(multiple * max(1, round(side / multiple))) for side in (width, height))
        raise UsageError(
            f"the sides of {width}x{height} are not multiples of {multiple}", f"Use --size {near}."
        )


def add_loras(files: BundleFiles, given: Sequence[str]) -> BundleFiles:
    """The bundle with LoRAs in its UNet, each given as FILE or FILE:STRENGTH. Raises UsageError and InputError."""
    from svdcli.model.lora import open_lora

    loras = []
    for text in given:
        path, strength = read_lora_option(text)
        lora = open_lora(path, strength, files)
        base = Path(lora.file.info.base).name
        if base and base != files.name:
            out.warn(f"{path.name} was trained on {base}, and this is {files.name}; it may do less")
        out.say(f"{lora.file.kind} {path.name} at {strength:g}: {len(lora.changes)} layers changed")
        loras.append(lora)
    return replace(files, loras=tuple(loras))


def read_lora_option(text: str) -> tuple[Path, float]:
    """ "pan.safetensors:0.8" -> its path and 0.8; without a number behind a colon, 1."""
    path, sign, number = text.rpartition(":")
    try:
        strength = float(number) if sign and path else None
    except ValueError:
        strength = None  # the colon is of the path
    if strength is None:
        return Path(text), 1.0
    check_number("--lora", strength, -10, 10)
    return Path(path), strength


def choose_device(name: str, count: int = 1) -> torch.device:
    """The device of that name, or the best one. Raises MachineError where it, or `count` of it, is absent."""
    import torch

    mps, num_gpus = torch.backends.mps.is_available(), torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if num_gpus else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"there is no kind of device {name}", "Use auto, cpu, cuda, cuda:1 or mps."
        ) from error
    here = {"cpu": max(count, 1), "cuda": num_gpus, "mps": int(mps)}.get(device.type, 0)
    if (device.index or 0) >= here:
        raise MachineError(
            f"this machine has no device {name}", "Use --device auto; `svd doctor` shows them."
        )
    if count > 1 and device.index is not None:
        raise UsageError(
            f"--devices {count} and --device {name} contradict each other", "Leave one of them out."
        )
    if count > here:
        raise MachineError(
            f"--devices {count} asks for more than the {here} of this machine", "Ask for fewer."
        )
    return device


def choose_dtype(device: torch.device, name: str | None) -> torch.dtype:
    """The precision of that name, or the usual one of the device."""
    import torch

    return getattr(torch, name or ("float32" if device.type == "cpu" else "float16"))


def check_pictures(pictures: Sequence[Path]) -> None:
    """Read them all now, which takes a moment, so that a bad third one does not come out after two clips' work."""
    from svdcli.io.images import read_picture

    for picture in pictures:
        read_picture(picture)


def check_new(paths: Sequence[Path]) -> None:
    """Raise UsageError where a file beside an output would be replaced."""
    existing = [path for path in paths if path.exists()]
    if not existing:
        return
    if existing[0].suffixes[-2:] == [".latents", ".safetensors"]:
        from svdcli.engine.produce import decode_command

        raise UsageError(
            f"{existing[0]} holds a clip that was not finished",
            f"Finish it with `{decode_command(existing[0])}`, or begin anew with --overwrite.",
        )
    raise UsageError(f"{existing[0]} already exists", "Pass --overwrite, or choose another --output.")


def check_folders(outputs: Sequence[Path]) -> None:
    """Make the folders, and raise now where nothing can be written in one."""
    from svdcli.io.files import check_writable

    for output in {output.parent: output for output in outputs}.values():
        check_writable(output, parents=True)


def warn_unusual(files: BundleFiles, sampling: Sampling) -> None:
    """Say where the request lies outside what the model was trained on."""
    native, name = files.settings, files.name
    frames, size = sampling.num_frames, (sampling.width, sampling.height)
    if len(starts := sampling.starts()) > 1:
        out.say(
            f"{frames} frames in {len(starts)} windows of {sampling.at_once}, each going on from the one before"
        )
    elif frames != native.num_frames and frames not in TRAINED_FRAMES.get(name, ()):
        out.warn(f"{name} was trained on {native.num_frames} frames; {frames} may drift or stall")
    if sorted(size) != sorted((native.width, native.height)):
        asked = f"{sampling.width}x{sampling.height}"
        out.warn(f"{name} was trained at {native.width}x{native.height}; {asked} may look worse")
    if sampling.motion_bucket > 255:
        out.warn(f"{name} was trained on motion buckets up to 255; {sampling.motion_bucket:g} is beyond them")


def settle(planner: Planner, vram: str, devices: int) -> Plan:
    """Choose the memory mode, and say which. Raises MachineError where none fits."""
    from svdcli.engine.plan import choose, free_bytes

    free = free_bytes(planner.device) // (devices if planner.device.type == "cpu" else 1)
    plans = planner.plans(free)
    plan = choose(plans, free) if vram == "auto" else next(p for p in plans if p.mode == vram)
    out.say(
        f"{planner.files.name} on {planner.device} in {str(planner.dtype).removeprefix('torch.')}, "
        f"memory mode {plan.mode}: about {human_size(plan.peak)} of {human_size(free)} free"
    )
    return plan


def print_plans(planner: Planner) -> None:
    """Answer with the predicted memory by stage, in every mode; a star marks the one that would be taken."""
    from svdcli.engine.plan import choose, free_bytes

    free = free_bytes(planner.device)
    plans = planner.plans(free)
    try:
        chosen = choose(plans, free).mode
    except MachineError:
        chosen = None
    stages = list(plans[0].stages)
    rows = [
        [("* " if plan.mode == chosen else "  ") + plan.mode, *map(human_size, plan.stages.values()),
         human_size(plan.peak), str(plan.chunk)]
        for plan in plans
    ]  # fmt: skip
    data = {
        "bundle": planner.files.name,
        "device": str(planner.device),
        "free": free,
        "chosen": chosen,
        "sampling": vars(planner.sampling),
        "modes": {p.mode: {"stages": p.stages, "peak": p.peak, "decode_chunk": p.chunk} for p in plans},
    }
    lines = table(rows, header=("  mode", *stages, "peak", "frames decoded at a time"))
    out.result(data, [*lines, f"free on {planner.device}: {human_size(free)}"])
