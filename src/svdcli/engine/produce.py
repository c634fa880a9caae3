"""Subjects and seeds in, files out: each clip is generated, kept as latents, decoded, written, and described.

The latents are on disk before decoding begins and go only when the clip is whole, so that a decode that fails
costs nothing: `finish` (the command `svd decode`) takes it up from there.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svdcli.diffusion.samplers import StepInfo
from svdcli.engine.detail import carry_detail
from svdcli.engine.generate import Preview, Sampling, decode
from svdcli.engine.long import generate_windows
from svdcli.engine.memory import Residence
from svdcli.engine.subjects import Still, Subject, Told
from svdcli.errors import InputError, SvdError
from svdcli.io.files import atomic_path
from svdcli.io.images import write_png
from svdcli.io.latents import load_given, load_latents, save_latents
from svdcli.io.manifest import manifest_text, sidecar_path, versions, write_manifest
from svdcli.io.sheet import contact_sheet
from svdcli.io.video import write_video


@dataclass(frozen=True)
class Job:
    """One clip to make."""

    subject: Subject
    seed: int
    output: Path


@dataclass(frozen=True)
class Writing:
    """How clips are decoded and written."""

    kind: str
    """mp4, gif, webp, png or latents"""
    chunk: int
    """frames decoded at a time"""
    overlap: int
    """frames that neighbouring chunks share"""
    preview: bool = False


@dataclass(frozen=True)
class Undecoded:
    """A clip that waits for its decode."""

    latents: Tensor
    """scaled, (T, c, h, w)"""
    manifest: dict[str, Any]
    given: Mapping[int, npt.NDArray[np.uint8]]
    """see `Told.given`"""

    def save(self, path: Path, residence: Residence) -> None:
        """Raises as `save_latents` does."""
        where = str(residence.files.path.resolve())
        texts = {"manifest": manifest_text(self.manifest), "bundle_path": where}
        save_latents(path, self.latents, texts, self.given if self.manifest["carry_detail"] else {})


@dataclass(frozen=True)
class Clip:
    """A clip that was made: its manifest, and what it looks like where it was decoded."""

    job: Job
    manifest: dict[str, Any]
    picture: npt.NDArray[np.float32] | None = None
    """what was animated, (H, W, 3) in [0, 1]"""
    frames: npt.NDArray[np.uint8] | None = None


class Listener(Protocol):
    """Who is told how it goes."""

    def begin(self, job: Job) -> None: ...
    def step(self, job: Job, info: StepInfo) -> None: ...
    def frames(self, job: Job, done: int, total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def kept(self, latents: Path) -> None:
        """The clip was interrupted after its latents were saved there."""


def produce(
    jobs: Iterable[Job], residence: Residence, sampling: Sampling, writing: Writing, listener: Listener
) -> Iterator[Clip]:
    """Make the clips, one after another; each is whole on disk when it is yielded. Raises SvdError."""
    for job in jobs:
        yield produce_one(job, residence, sampling, writing, listener)


def produce_one(
    job: Job, residence: Residence, sampling: Sampling, writing: Writing, listener: Listener
) -> Clip:
    """Generate one clip and write it."""
    listener.begin(job)
    told = job.subject.tell(residence, job.seed, sampling)
    for note in told.notes:
        listener.note(note)
    latents = animate(job, told, residence, writing, listener)
    manifest = describe(job, residence, writing, told)
    undecoded = Undecoded(latents, manifest, told.given)
    if writing.kind == "latents":
        with atomic_path(sidecar_path(job.output)) as sidecar:
            write_manifest(sidecar, manifest)
            undecoded.save(job.output, residence)
        return Clip(job, manifest, told.picture)
    kept = latents_path(job.output)
    undecoded.save(kept, residence)
    with kept_on_failure(kept, listener):
        clip = write_clip(job, undecoded, residence, writing, listener)
    return replace(clip, picture=told.picture)


def animate(job: Job, told: Told, residence: Residence, writing: Writing, listener: Listener) -> Tensor:
    """-> scaled latents (T, c, h, w). Raises InputError where they are not finite."""
    with previewed(job, writing.preview and told.picture is not None, listener) as sheet:
        if sheet is not None and told.picture is not None:
            scaling_factor = residence.files.configs["vae"]["scaling_factor"]
            pixels = torch.from_numpy(told.picture).movedim(-1, 0) * 2 - 1
            preview = Preview.fit(told.conditioning.concat[0, 0], pixels, scaling_factor)

        def on_step(info: StepInfo) -> None:
            listener.step(job, info)
            if sheet is not None:
                write_png(sheet, contact_sheet([preview.frames(info.x0[0])], [f"step {info.index + 1}"]))

        latents = generate_windows(residence, told, job.seed, on_step)
    if not torch.isfinite(latents).all():
        raise InputError(
            f"{residence.files.name} made numbers of {job.subject.name} that are not finite",
            "Use --dtype float32 or bfloat16, or check the bundle with `svd models verify`.",
        )
    return latents


def write_clip(
    job: Job, undecoded: Undecoded, residence: Residence, writing: Writing, listener: Listener
) -> Clip:
    """Decode a clip, write the video and, beside and inside of it, its manifest."""
    latents, manifest = undecoded.latents, undecoded.manifest
    total = len(latents)
    frames, chunk = decode(
        residence, latents, writing.chunk, writing.overlap,
        on_frames=lambda done: listener.frames(job, done, total),
        on_smaller=lambda chunk: listener.note(f"the memory ran out; decoding again, {chunk} frames at a time"),
    )  # fmt: skip
    if undecoded.given and manifest.get("carry_detail"):
        frames = carry_detail(frames, undecoded.given)
    frames = frames[manifest.get("leading_frames", 0) :]  # those are the clip's that it goes on from
    manifest = manifest | decoding(residence, replace(writing, chunk=chunk)) | {"output": str(job.output)}
    with atomic_path(sidecar_path(job.output)) as sidecar:  # both or neither
        write_manifest(sidecar, manifest)
        texts = {"comment": manifest_text(manifest)}
        for note in write_video(job.output, frames, manifest["fps"], texts, writing.kind):  # type: ignore[arg-type]
            listener.note(note)
    return Clip(job, manifest, frames=frames)


def finish(source: Path, output: Path, residence: Residence, writing: Writing, listener: Listener) -> Clip:
    """Decode saved latents to the video that their manifest describes.

    Raises InputError where they are not ours, or not of this bundle.
    """
    undecoded, _ = read_latents(source)
    channels, found = residence.files.configs["vae"]["latent_channels"], undecoded.latents.shape[1]
    if found != channels:
        raise InputError(
            f"{source.name} holds latents of {found} channels, and {residence.files.name} decodes {channels}",
            f"Decode it with the bundle that made it: --bundle {undecoded.manifest.get('bundle', 'REF')}",
        )
    job = Job(Still(source), int(undecoded.manifest.get("seed", 0)), output)
    listener.begin(job)
    return write_clip(job, undecoded, residence, writing, listener)


def read_latents(source: Path) -> tuple[Undecoded, str]:
    """What a latents file holds, and where its bundle was. Raises InputError where it is not ours."""
    latents, texts = load_latents(source)
    try:
        manifest = json.loads(texts["manifest"])
        if not (math.isfinite(manifest["fps"]) and manifest["fps"] > 0):
            raise ValueError(manifest["fps"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{source.name} carries no manifest, so its frame rate and bundle are unknown",
            "Give latents that `svd sample` wrote.",
        ) from error
    return Undecoded(latents, manifest, load_given(source)), texts.get("bundle_path", "")


def describe(job: Job, residence: Residence, writing: Writing, told: Told) -> dict[str, Any]:
    """Every value that makes the clip, with the ids that the network is actually fed."""
    sampling = told.sampling
    return {
        "source": str(job.subject.source),
        "output": str(job.output),
        "bundle": residence.files.name,
        "loras": [lora.describe() for lora in residence.files.loras],
        "seed": job.seed,
        **asdict(sampling),
        **told.facts,
        "vector_ids": _rounded(told.conditioning.vector_ids[0].tolist()),
        "sigmas": [float(f"{s:.7g}") for s in sampling.sigmas().tolist()],
        "guidance_scales": [float(f"{s:.7g}") for s in sampling.scales().tolist()],
        "device": str(residence.device),
        "dtype": _name(residence.dtype),
        "vram": residence.mode,
        "notes": list(told.notes),
        "versions": versions(),
        **decoding(residence, writing),
    }


def _rounded(values: Any) -> Any:
    """A number, or lists of them, to seven digits."""
    return [_rounded(value) for value in values] if isinstance(values, list) else float(f"{values:.7g}")


def decoding(residence: Residence, writing: Writing) -> dict[str, Any]:
    """How the latents are, or are to be, decoded and written."""
    return {
        "format": writing.kind,
        "decode_chunk": writing.chunk,
        "decode_overlap": min(writing.overlap, writing.chunk - 1),
        "decode_device": str(residence.device),
        "decode_dtype": _name(residence.dtype),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---- the files beside a clip


def latents_path(output: Path) -> Path:
    """Where a clip's latents wait for their decode."""
    return output.with_name(f"{output.stem}.latents.safetensors")


def preview_path(output: Path) -> Path:
    """Where the clip can be watched as it is made."""
    return output.with_name(f"{output.stem}.preview.png")


@contextmanager
def kept_on_failure(latents: Path, listener: Listener) -> Iterator[None]:
    """Latents on disk that go when the block ends well; else the error, or the listener, says how to go on."""
    try:
        yield
    except SvdError as error:
        error.hint = f"{error.hint} Then `{decode_command(latents)}` finishes the video.".strip()
        raise
    except BaseException:  # Ctrl-C, or a bug of ours
        listener.kept(latents)
        raise
    latents.unlink(missing_ok=True)


def decode_command(latents: Path) -> str:
    """What a user types to finish a clip."""
    return f"svd decode {shlex.quote(str(latents))}"


@contextmanager
def previewed(job: Job, wanted: bool, listener: Listener) -> Iterator[Path | None]:
    """A path for the preview, which is there only while the block runs."""
    if not wanted:
        yield None
        return
    path = preview_path(job.output)
    listener.note(f"watch {path} while it is made")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
