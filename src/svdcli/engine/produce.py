"""Many pictures and seeds in, files out: each clip is generated, kept as latents, decoded, written, and described.

The latents are on disk before decoding begins and go only when the clip is whole, so that a decode that fails costs nothing:
`finish` (the command `svd decode`) takes it up from there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svdcli.diffusion.samplers import StepInfo
from svdcli.engine.generate import Preview, Sampling, decode, generate
from svdcli.engine.memory import Residence
from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.io.images import Fit, Picture, encode_png, fit_picture, read_picture
from svdcli.io.latents import load_latents, save_latents
from svdcli.io.manifest import manifest_text, sidecar_path, versions, write_manifest
from svdcli.io.sheet import contact_sheet
from svdcli.io.video import write_video
from svdcli.model.conditioning import fps_id


@dataclass(frozen=True)
class Job:
    """One clip to make."""

    source: Path
    seed: int
    output: Path


@dataclass(frozen=True)
class Writing:
    """How clips are decoded and written."""

    kind: str
    """mp4, gif, webp, png or latents"""
    fit: Fit = "crop"
    turn: bool = False
    """a portrait picture turns the size on its side"""
    chunk: int | None = None
    """frames decoded at a time; None: as many as the plan allows"""
    overlap: int = 2
    """frames that neighbouring chunks share and blend"""
    preview: bool = False


@dataclass(frozen=True)
class Clip:
    """A clip that was made: its manifest, and its frames where it was decoded."""

    job: Job
    manifest: dict[str, Any]
    picture: npt.NDArray[np.float32]
    """what was animated, (H, W, 3) in [0, 1]"""
    frames: npt.NDArray[np.uint8] | None


class Listener(Protocol):
    """Who is told how it goes."""

    def begin(self, job: Job, num_steps: int) -> None: ...
    def step(self, job: Job, info: StepInfo) -> None: ...
    def frames(self, job: Job, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...


def produce(
    jobs: list[Job], residence: Residence, sampling: Sampling, writing: Writing, listener: Listener
) -> list[Clip]:
    """Make every clip, one after another. Raises SvdError; what is finished by then is whole."""
    return [produce_one(job, residence, sampling, writing, listener) for job in jobs]


def produce_one(
    job: Job, residence: Residence, sampling: Sampling, writing: Writing, listener: Listener
) -> Clip:
    """Generate one clip and write it."""
    picture = read_picture(job.source)
    for note in picture.notes:
        listener.note(f"{job.source.name}: {note}")
    sampling = turned(sampling, picture) if writing.turn else sampling
    fitted = fit_picture(picture, sampling.width, sampling.height, writing.fit)
    pixels = torch.from_numpy(fitted).movedim(-1, 0)[None] * 2 - 1
    listener.begin(job, len(sampling.sigmas()) - 1)

    def on_step(info: StepInfo, preview: Preview) -> None:
        listener.step(job, info)
        if writing.preview:
            write_preview(preview_path(job.output), preview.frames(info.x0[0]))

    latents = generate(residence, pixels, [job.seed], sampling, on_step)[0]
    manifest = describe(job, residence, sampling, writing, picture)
    if not torch.isfinite(latents).all():
        raise InputError(
            f"{residence.files.name} produced numbers that are not finite for {job.source.name}",
            "Use --dtype float32 or bfloat16, or check the bundle with `svd models verify`.",
        )
    if writing.kind == "latents":
        save_latents(job.output, latents, {"manifest": manifest_text(manifest)})
        write_manifest(sidecar_path(job.output), manifest)
        return Clip(job, manifest, fitted, None)
    kept = latents_path(job.output)
    save_latents(kept, latents, {"manifest": manifest_text(manifest)})
    clip = write_clip(job, latents, manifest, fitted, residence, writing, listener)
    kept.unlink(missing_ok=True)
    preview_path(job.output).unlink(missing_ok=True)
    return clip


def write_clip(
    job: Job, latents: Tensor, manifest: dict[str, Any], picture: npt.NDArray[np.float32], residence: Residence,
    writing: Writing, listener: Listener,
) -> Clip:  # fmt: skip
    """Decode latents (T, c, h, w), write the video and its manifest."""
    on_frames = lambda done, total: listener.frames(job, done, total)  # noqa: E731
    frames, chunk = decode(residence, latents, writing.chunk, writing.overlap, on_frames)
    manifest = manifest | {
        "decode_chunk": chunk,
        "decode_overlap": writing.overlap,
        "output": str(job.output),
    }
    notes = write_video(
        job.output, frames, manifest["fps"], {"comment": manifest_text(manifest)}, writing.kind
    )
    for note in notes:
        listener.note(f"{job.output.name}: {note}")
    write_manifest(sidecar_path(job.output), manifest)
    return Clip(job, manifest, picture, frames)


def finish(source: Path, output: Path, residence: Residence, writing: Writing, listener: Listener) -> Clip:
    """Decode saved latents, with what their manifest says, to a video. Raises InputError where they are of another bundle."""
    latents, manifest = read_latents(source)
    channels = residence.files.configs["vae"]["latent_channels"]
    if latents.ndim != 4 or latents.shape[1] != channels:
        shape = "×".join(map(str, latents.shape))
        raise InputError(
            f"{source.name} holds latents of shape {shape}, but {residence.files.name} decodes {channels} channels",
            f"Decode it with the bundle that made it: --bundle {manifest.get('bundle', '...')}",
        )
    job = Job(source, int(manifest.get("seed", 0)), output)
    listener.begin(job, 0)
    return write_clip(job, latents, manifest, np.zeros((1, 1, 3), np.float32), residence, writing, listener)


def read_latents(source: Path) -> tuple[Tensor, dict[str, Any]]:
    """Latents (T, c, h, w) and their manifest. Raises InputError where the file is not ours."""
    latents, metadata = load_latents(source)
    try:
        return latents, json.loads(metadata["manifest"])
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{source.name} carries no manifest, so its frame rate and bundle are unknown",
            "Give latents that `svd sample` wrote.",
        ) from error


def turned(sampling: Sampling, picture: Picture) -> Sampling:
    """The size on its side where picture and size are not both landscape or both portrait."""
    height, width = picture.pixels.shape[:2]
    if (height > width) == (sampling.height > sampling.width) or sampling.width == sampling.height:
        return sampling
    return replace(sampling, width=sampling.height, height=sampling.width) if height != width else sampling


def describe(
    job: Job, residence: Residence, sampling: Sampling, writing: Writing, picture: Picture
) -> dict[str, Any]:
    """Every value that made the clip, with the ids that the network was actually fed."""
    return {
        "source": str(job.source),
        "output": str(job.output),
        "bundle": residence.files.name,
        "seed": job.seed,
        **asdict(sampling),
        "fit": writing.fit,
        "vector_ids": [fps_id(sampling.fps), sampling.motion_bucket, sampling.augment],
        "sigmas": [float(f"{s:.7g}") for s in sampling.sigmas().tolist()],
        "guidance_scales": [float(f"{s:.7g}") for s in sampling.scales().tolist()],
        "device": str(residence.device),
        "dtype": str(residence.dtype).removeprefix("torch."),
        "vram": residence.mode,
        "notes": list(picture.notes),
        "versions": versions(),
    }


def latents_path(output: Path) -> Path:
    """Where a clip's latents wait for their decode."""
    return output.with_name(f"{output.stem}.latents.safetensors")


def preview_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}.preview.png")


def write_preview(path: Path, frames: npt.NDArray[np.uint8]) -> None:
    """A sheet of the clip as it stands."""
    sheet = contact_sheet([frames], [""], columns=5)
    with atomic_path(path) as temporary:
        encode_png(temporary, sheet)
