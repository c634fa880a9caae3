"""`svd sample --interpolate`: pictures or clips in, clips with the frames between theirs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from svdcli.cli.choices import (
    Fit,
    Kind,
    check_folders,
    check_new,
    choose_device,
    choose_dtype,
    choose_kind,
    choose_sampling,
    print_plans,
    read_size,
    settle,
)
from svdcli.cli.console import out
from svdcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from svdcli.engine.generate import Sampling
    from svdcli.engine.lift import Source
    from svdcli.engine.plan import Plan, Planner
    from svdcli.model.bundle_files import BundleFiles

MOST_PAIRS = 8
"""Pairs that a GPU fills at once, where they fit."""


@dataclass(frozen=True)
class Wanted:
    """What `svd sample` was asked for, as far as it means something here."""

    inputs: Sequence[str]
    bundle: str | None
    output: str | None
    kind: Kind | None
    size: str | None
    fit: Fit
    seed: int
    motion: float | None
    sampling: Mapping[str, Any]
    """values of `Sampling` by name; None: the bundle's own"""
    dtype: Any
    device: str
    vram: str
    overwrite: bool
    plan: bool

    @property
    def how(self) -> Literal["crop", "pad", "stretch"]:
        return cast("Literal['crop', 'pad', 'stretch']", self.fit.value)


def refuse(options: Mapping[str, Any], beside: str = "--interpolate") -> None:
    """Raise UsageError for an option that was given and means nothing `beside` another."""
    for name, given in options.items():
        if given:
            raise UsageError(f"{beside} and {name} do not go together", f"Leave {name} out.")


def sample_between(wanted: Wanted) -> None:
    """Make the clips."""
    from svdcli.io.template import output_paths
    from svdcli.model.bundle import open_bundle

    kind = choose_kind(wanted.kind, wanted.output) or "mp4"
    if kind == "latents":
        raise UsageError("a clip with given frames is no latents", "Choose mp4, gif, webp or png.")
    files = open_bundle(wanted.bundle)
    require_interpolation(files)
    sampling = replace(choose_sampling(files, None, dict(wanted.sampling)), window=None)
    if sampling.num_frames < 3:
        raise UsageError("--frames counts the two given frames too", "Give 3 or more; 5 is usual.")
    sources = find_sources(wanted, sampling)
    paths = [source.path for source in sources]
    outputs = output_paths(
        wanted.output, paths, [wanted.seed], kind, ".", bundle=files.name, overwrite=wanted.overwrite
    )
    planner = plan_of(wanted, files, sampling, sources)
    if wanted.plan:
        return print_plans(planner)
    check_outputs(outputs, wanted.overwrite)
    settled = settle(planner, wanted.vram, 1)
    made = make(wanted, sources, outputs, kind, planner, settled)
    out.result({"clips": made}, [clip["output"] for clip in made])


def require_interpolation(files: BundleFiles) -> None:
    """Raise InputError unless the bundle finds frames between two."""
    from svdcli.model.bundle_files import TASKS

    if files.task != "interp":
        what = TASKS.get(files.task, f"a model of the task {files.task}")
        raise InputError(
            f"{files.name} is {what}, and --interpolate needs an interpolation model",
            "Train one with `svd train nano/interp` or recipes/interp.toml, and give it as --bundle.",
        )


def find_sources(wanted: Wanted, sampling: Sampling) -> list[Source]:
    """A clip for each video, or one of all pictures; everything is opened, so that a bad one shows now."""
    from svdcli.engine.lift import Clip, Pictures
    from svdcli.engine.subjects import turned
    from svdcli.io.images import find_pictures, read_picture
    from svdcli.io.timed import open_timed
    from svdcli.io.video import exact_rate

    size = read_size(wanted.size) if wanted.size is not None else None
    videos = [path for path in wanted.inputs if is_video(Path(path), alone=len(wanted.inputs) == 1)]
    if videos and len(videos) < len(wanted.inputs):
        raise UsageError("--interpolate takes pictures or clips, not both", "Give either of them.")
    if videos:
        return [Clip(open_timed(path), size, wanted.how) for path in videos]
    pictures = [read_picture(path) for path in find_pictures(wanted.inputs)]
    if len(pictures) < 2:
        raise InputError("There is nothing between a single picture.", "Give two or more, or a clip.")
    if size is None:
        fitting = turned(sampling, pictures[0])
        size = fitting.width, fitting.height
    rate = exact_rate(sampling.fps) / Fraction(sampling.num_frames - 1)
    return [Pictures(tuple(picture.source for picture in pictures), size, rate, wanted.how)]


def is_video(path: Path, alone: bool) -> bool:
    """Whether an input is a clip: a video file, or the only input and an animation."""
    from svdcli.io.images import SUFFIXES, is_animated

    if not path.is_file():
        return False
    return path.suffix.lower() not in SUFFIXES or (alone and is_animated(path))


def plan_of(wanted: Wanted, files: BundleFiles, sampling: Sampling, sources: Sequence[Source]) -> Planner:
    """For a pair of the largest source, its sides grown to whole latents."""
    from svdcli.engine.plan import Planner

    sizes = [source.size for source in sources]
    width, height = (-(-side // files.downscale) * files.downscale for side in max(sizes, key=area))
    where = choose_device(wanted.device)
    sampling = replace(sampling, width=width, height=height)
    return Planner(files, sampling, where, choose_dtype(where, wanted.dtype), sampling.num_frames)


def area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def check_outputs(outputs: Sequence[Path], overwrite: bool) -> None:
    """Every file that the run will write can be written, and replaces none that it should not."""
    from svdcli.io.manifest import sidecar_path

    if not overwrite:
        check_new([sidecar_path(path) for path in outputs])
    check_folders(outputs)


def make(
    wanted: Wanted,
    sources: Sequence[Source],
    outputs: Sequence[Path],
    kind: str,
    planner: Planner,
    plan: Plan,
) -> list[dict[str, Any]]:
    """Write the clips, one after another -> their manifests."""
    from svdcli.engine.lift import Filler, lift_file
    from svdcli.engine.memory import Residence
    from svdcli.engine.plan import HEADROOM, free_bytes

    residence = Residence(planner.files, plan.mode, planner.device, planner.dtype)
    fill = Filler(residence, planner.sampling, wanted.seed, wanted.motion)
    room = int(HEADROOM * free_bytes(planner.device)) // plan.peak
    batch = 1 if planner.device.type == "cpu" else min(MOST_PAIRS, max(1, room))
    parts = planner.sampling.num_frames - 1
    total = sum((source.num_frames - 1) * parts + 1 for source in sources)
    made = []
    with out.progress("interpolate", total) as bar:
        for source, path in zip(sources, outputs, strict=True):
            manifest = lift_file(
                source, path, kind, fill, batch,  # type: ignore[arg-type]
                on_frame=lambda name=source.path.name: bar.advance(1, note=name),  # type: ignore[misc]
                on_note=lambda text: out.say(f"note: {text}"),
            )  # fmt: skip
            made.append(manifest)
    return made
