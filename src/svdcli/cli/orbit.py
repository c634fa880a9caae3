"""`svd sample --orbit`: pictures of objects in, orbits around them out, with cameras and point clouds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.between import Wanted
from svdcli.cli.choices import (
    check_number,
    choose_device,
    choose_dtype,
    choose_kind,
    choose_sampling,
    print_plans,
    settle,
    warn_unusual,
)
from svdcli.cli.console import out
from svdcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from svdcli.engine.generate import Sampling
    from svdcli.engine.plan import Plan, Planner
    from svdcli.engine.produce import Clip, Job
    from svdcli.engine.turn import Cut, Object
    from svdcli.model.bundle_files import BundleFiles
    from svdcli.multiview.cameras import Orbit

ELEVATION_DEG = 10.0
TRAINED_DEG = (-5.0, 30.0)
"""Elevations that published models were trained on (SVD app. D.6)."""

OrbitOption = Annotated[
    bool,
    typer.Option("--orbit", help="See an object from all around; needs a multi-view bundle."),
]
ElevationOption = Annotated[
    float | None,
    typer.Option(
        help="Of the camera above the object's middle, in degrees.",
        show_default=f"{ELEVATION_DEG:g}",
    ),
]
ViewsOption = Annotated[
    int | None,
    typer.Option(min=3, help="Views around the object; else the bundle's own, 21."),
]
PathOption = Annotated[
    str | None,
    typer.Option(
        "--path",
        metavar="static|dynamic|FILE.json",
        help="One elevation, one that swings, or given angles.",
    ),
]
CutoutOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|none|MODEL.onnx",
        help="The object by its transparency or the colour behind it, the picture whole, or by a matting model.",
    ),
]
PointsOption = Annotated[
    bool,
    typer.Option("--points/--no-points", help="Make the point cloud, as `svd points` does."),
]


@dataclass(frozen=True)
class Around:
    """The options that only an orbit has, as they were given."""

    elevation: float | None
    views: int | None
    path: str | None
    cutout: str | None
    points: bool

    def refuse(self) -> None:
        """Raise UsageError where one of them was given and there is no orbit."""
        given = {"elevation": self.elevation, "views": self.views, "path": self.path, "cutout": self.cutout}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"--{name} belongs to --orbit", "Add --orbit, or leave it out.")


def sample_orbit(wanted: Wanted, around: Around) -> None:
    """Make the orbits."""
    from svdcli.io.images import find_pictures
    from svdcli.io.template import output_paths
    from svdcli.model import hub
    from svdcli.model.bundle import open_bundle

    check_number("--elevation", around.elevation, -89, 89)
    if choose_kind(wanted.kind, wanted.output) not in (None, "mp4"):
        raise UsageError(
            "an orbit is a folder of views and an mp4", "Give --output a folder, and no --format."
        )
    files = open_bundle(hub.best_orbits().name if wanted.bundle is None else wanted.bundle)
    files.require_task("multiview")
    orbit = find_path(around, files, wanted.seed)
    asked = {**wanted.sampling, "num_frames": len(orbit.azimuths_deg)}
    sampling = replace(choose_sampling(files, None, asked), window=None)
    check_path(files, orbit, around)
    pictures = find_pictures(wanted.inputs)
    objects = find_objects(pictures, orbit, around.cutout, files)
    folders = output_paths(
        wanted.output, pictures, [wanted.seed], "png", ".", bundle=files.name, overwrite=wanted.overwrite
    )
    planner = plan_of(wanted, files, sampling)
    if wanted.plan:
        return print_plans(planner)
    settled = settle(planner, wanted.vram, 1)
    warn_unusual(files, sampling)
    answer(make(wanted, around, objects, folders, planner, settled))


def find_path(around: Around, files: BundleFiles, seed: int) -> Orbit:
    """Where the views stand."""
    import numpy as np

    from svdcli.multiview.cameras import dynamic_orbit, static_orbit
    from svdcli.multiview.transforms import read_path

    elevation = ELEVATION_DEG if around.elevation is None else around.elevation
    count = around.views or files.settings.num_frames
    if around.path in (None, "static"):
        return static_orbit(elevation, count)
    if around.path == "dynamic":
        return dynamic_orbit(elevation, np.random.default_rng(seed), count)
    assert around.path is not None
    found = read_path(Path(around.path))
    if around.elevation is not None or around.views not in (None, len(found.azimuths_deg)):
        raise UsageError(
            f"{around.path} says how many views there are, and where", "Leave --views and --elevation out."
        )
    return found


def check_path(files: BundleFiles, orbit: Orbit, around: Around) -> None:
    """Refuse what the bundle cannot follow, and say what it is not told."""
    from svdcli.engine.orbit import require_path

    pose = files.settings.pose
    require_path(pose, orbit, files.name)
    if pose == "none":
        out.say(f"{files.name} is told no elevation: it guesses it, and the cameras are taken as asked for")
    low, high = TRAINED_DEG
    elevation = orbit.elevations_deg[-1]
    if around.elevation is not None and not low <= elevation <= high:
        out.warn(f"models were trained on elevations of {low:g} to {high:g} degrees, not {elevation:g}")


def find_objects(
    pictures: Sequence[Path], orbit: Orbit, cutout: str | None, files: BundleFiles
) -> list[Object]:
    """The objects, each cut out once now, so that a bad one shows before any work."""
    from svdcli.engine.turn import Angles, Object

    named: dict[str | None, Cut] = {None: "auto", "auto": "auto", "none": "none"}
    cut = named[cutout] if cutout in named else Path(str(cutout))
    objects = [Object(picture, Angles.of(orbit), cut) for picture in pictures]
    for each in objects:
        _, how = each.placed(files.settings)
        out.say(f"{each.name}: cut out by {how}" if cut != "none" else f"{each.name}: taken whole")
    return objects


def plan_of(wanted: Wanted, files: BundleFiles, sampling: Sampling) -> Planner:
    from svdcli.cli.choices import DEFAULT_OVERLAP
    from svdcli.engine.plan import Planner

    where = choose_device(wanted.device)
    return Planner(files, sampling, where, choose_dtype(where, wanted.dtype), None, DEFAULT_OVERLAP)


def make(
    wanted: Wanted,
    around: Around,
    objects: Sequence[Object],
    folders: Sequence[Path],
    planner: Planner,
    plan: Plan,
) -> list[dict[str, Any]]:
    """Write the orbits, one after another -> what was made of each."""
    from svdcli.cli.making import Watcher
    from svdcli.engine.memory import Residence
    from svdcli.engine.produce import Job, Writing, produce
    from svdcli.engine.turn import VIDEO
    from svdcli.io.files import check_writable

    jobs = [Job(each, wanted.seed, folder / VIDEO) for each, folder in zip(objects, folders, strict=True)]
    for job in jobs:
        check_writable(job.output, parents=True)
    residence = Residence(planner.files, plan.mode, planner.device, planner.dtype)
    writing = Writing("mp4", plan.chunk, planner.overlap)
    with Watcher.over(len(jobs), len(planner.sampling.sigmas()) - 1, len(jobs)) as watcher:
        clips = list(produce(jobs, residence, planner.sampling, writing, watcher))
    return [finish(clip, around, planner.files) for clip in clips]


def finish(clip: Clip, around: Around, files: BundleFiles) -> dict[str, Any]:
    """The views, cameras, sheet and cloud of an orbit."""
    from svdcli.engine.turn import facts_of, write_turn

    written = write_turn(clip, files.settings)
    facts = facts_of(clip, written) | {"manifest": clip.manifest, "points": None}
    if not around.points:
        return facts
    if around.cutout == "none":
        out.warn("no point cloud: the background was kept, so that nothing says what is the object")
        return facts
    return facts | {"points": cloud_of(clip.job)}


def cloud_of(job: Job) -> dict[str, Any] | None:
    """The point cloud of an orbit that was written, in its folder; None, with the reason said, where there is none."""
    from svdcli.cli.points import DEFAULT_FORMATS, FOLDER, cloud_into, formats_of, tolerant
    from svdcli.multiview.points import Reconstruction
    from svdcli.multiview.views import load_views

    folder = job.output.parent
    try:
        views = load_views(folder)
        files, facts = cloud_into(
            folder / FOLDER, views, formats_of(DEFAULT_FORMATS), tolerant(views, Reconstruction())
        )
    except InputError as error:  # the orbit is there all the same
        out.warn(f"no point cloud: {error.message}")
        return None
    return {"files": [str(file) for file in files], **facts}


def answer(orbits: Sequence[dict[str, Any]]) -> None:
    """Say what was made."""
    lines = []
    for orbit in orbits:
        lines += [orbit["video"], *orbit["files"]]
        if orbit["points"] is not None:
            lines += orbit["points"]["files"]
    out.result({"orbits": list(orbits)}, lines)
    out.next(f"svd points {orbits[0]['folder']} --check")
