"""`svd points`: views of an object and their cameras -> a coloured point cloud, or how consistent they are. No weights."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.console import out, table
from svdcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from svdcli.multiview.consistency import Calibration, Consistency
    from svdcli.multiview.points import Cloud, Reconstruction
    from svdcli.multiview.views import Views

FOLDER = "points"  # where results go below the folder of views
DEFAULT_FORMATS = "ply,turntable"


def register(app: typer.Typer) -> None:
    app.command()(points)


def points(
    views: Annotated[
        Path, typer.Argument(metavar="VIEWS_DIR", help="An orbit, nerfstudio or COLMAP folder, or pictures.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; else points/ inside VIEWS_DIR.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only measure how well the views agree; name what is wrong.")
    ] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="With --check: write the cameras that fit best.")
    ] = False,
    formats: Annotated[
        str,
        typer.Option(
            "--format", help="ply, pcd, xyz, glb, mesh, mesh-glb, gaussians, turntable, colmap; by commas."
        ),
    ] = DEFAULT_FORMATS,
    elevation: Annotated[
        float | None, typer.Option(help="Of pictures without cameras, in degrees; else it is estimated.")
    ] = None,
    fov: Annotated[
        float | None, typer.Option(help="Of pictures without cameras, in degrees; else 33.8.")
    ] = None,
    path: Annotated[Path | None, typer.Option(help="The orbit of pictures without cameras, as JSON.")] = None,
    count: Annotated[int, typer.Option("--points", min=100, help="How many points.")] = 100_000,
    bad_masks: Annotated[
        int | None, typer.Option(min=0, help="Damaged masks to tolerate; else 1 where the check finds one.")
    ] = None,
    flat_bottom: Annotated[
        bool | None,
        typer.Option("--flat-bottom/--no-flat-bottom", help="Cut unseen ends level; else where up is known."),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="The visual hull alone.")] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on although cameras and views contradict.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Turn the views of an object into a coloured point cloud, or check them with --check. Needs no model."""
    from svdcli.multiview.points import Reconstruction

    if mend and not check:
        raise UsageError("--mend belongs to --check", "Add --check.")
    loaded = _load(views, elevation, fov, path)
    target = output or views / FOLDER
    if check:
        _check(views, loaded, target, mend, overwrite)
        return
    wanted = formats_of(formats)
    _check_target(target, overwrite)
    if loaded.assumed and elevation is None and path is None:
        loaded = _calibrated(loaded)
    elif not anyway:
        from svdcli.multiview.consistency import refuse_reversed

        refuse_reversed(loaded)
    how = Reconstruction(count, flat_ends=flat_bottom, sweep=not fast, bad_masks=bad_masks or 0)
    if bad_masks is None:
        how = tolerant(loaded, how)
    files, facts = cloud_into(target, loaded, wanted, how)
    lines = [
        *(f"{file}" for file in files),
        f"{count:,} points, {facts['seen']:.0%} of them seen by some view",
    ]
    out.result({"files": files, **facts}, lines)


# ---- views


def _load(folder: Path, elevation: float | None, fov: float | None, path: Path | None) -> Views:
    from svdcli.cli.choices import check_number
    from svdcli.multiview.transforms import read_path
    from svdcli.multiview.views import load_views, on_orbit

    check_number("--elevation", elevation, -89, 89)
    check_number("--fov", fov, 1, 150)
    if path is not None and elevation is not None:
        raise UsageError("--path and --elevation contradict each other", "Leave one of them out.")
    loaded = load_views(folder)
    given = [f"--{n}" for n, v in (("elevation", elevation), ("fov", fov), ("path", path)) if v is not None]
    if given and not loaded.assumed:
        raise UsageError(
            f"{given[0]} is for pictures without cameras, and {folder} has a camera file", "Leave it out."
        )
    if given:
        loaded = on_orbit(loaded, elevation, fov, read_path(path) if path else None)
    for note in loaded.notes:
        out.warn(note)
    return loaded


def _calibrated(views: Views) -> Views:
    """Pictures without cameras, on the orbit that fits them best."""
    found = _calibrate(views)
    out.say(
        f"elevation {found.elevation_deg:g}°, field of view {found.fov_deg:g}°: overlap {found.score:.3f}"
    )
    if found.reversed:
        out.warn("the pictures go round clockwise; they are taken so")
    return replace(views, cameras=found.cameras)


def tolerant(views: Views, how: Reconstruction) -> Reconstruction:
    """Tolerate one bad mask where the check finds one."""
    from svdcli.multiview.consistency import POOR, check_views

    found = check_views(views)
    if found.damaged:
        names = ", ".join(views.names[view] for view in found.damaged)
        out.warn(f"the masks of {names} do not fit the others; one bad mask is tolerated")
        return replace(how, bad_masks=1)
    if found.relative < POOR:
        out.warn(
            f"views and cameras agree badly: {found.relative:.2f} of a perfect set; try svd points --check"
        )
        return replace(how, bad_masks=1)
    return how


# ---- the cloud


def cloud_into(
    target: Path, views: Views, formats: list[str], how: Reconstruction
) -> tuple[list[Path], dict[str, Any]]:
    """Make the cloud and write it -> its files and what is to be known of it. Raises InputError where masks disagree wholly."""
    cloud = _reconstruct(views, how)
    target.mkdir(parents=True, exist_ok=True)
    return _write(cloud, views, target, formats, how), _facts(cloud, views, how)


def _reconstruct(views: Views, how: Reconstruction) -> Cloud:
    from svdcli.multiview.points import STAGES, reconstruct

    with out.progress("points", len(STAGES)) as progress:
        return reconstruct(views, how, lambda stage: progress.advance(1, stage))


def formats_of(text: str) -> list[str]:
    from svdcli.multiview.export import FORMATS

    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS and name != "colmap"]
    if unknown or not names:
        raise UsageError(
            f"there is no format {unknown[0] if unknown else text!r}",
            f"Choose from {', '.join(FORMATS)}, colmap.",
        )
    return names


def _check_target(target: Path, overwrite: bool) -> None:
    from svdcli.io.files import check_writable

    if target.exists() and any(target.iterdir()) and not overwrite:
        raise UsageError(f"{target} already exists", "Pass --overwrite, or choose another --output.")
    check_writable(target / "x", parents=True)


def _write(cloud: Cloud, views: Views, target: Path, formats: list[str], how: Reconstruction) -> list[Path]:
    from svdcli.io.manifest import versions, write_manifest
    from svdcli.multiview.colmap import write_model
    from svdcli.multiview.export import export

    files = export(cloud, target, [name for name in formats if name != "colmap"])
    if "colmap" in formats:
        shades = (cloud.colours * 255).round().astype("uint8")
        (target / "sparse").mkdir(exist_ok=True)
        write_model(target / "sparse" / "0", views.cameras, views.names, cloud.points, shades)
        files.append(target / "sparse" / "0")
    manifest = target / "points.json"
    write_manifest(manifest, {**_facts(cloud, views, how), "versions": versions()})
    return [*files, manifest]


def _facts(cloud: Cloud, views: Views, how: Reconstruction) -> dict[str, Any]:
    return {
        "points": len(cloud.points), "seen": round(cloud.seen, 4), "views": len(views), "size": cloud.size,
        "bad_masks": how.bad_masks, "plane_sweep": how.sweep, "cameras_assumed": views.assumed,
    }  # fmt: skip


# ---- the check


def _check(folder: Path, views: Views, target: Path, mend: bool, overwrite: bool) -> None:
    from svdcli.multiview.consistency import check_views

    try:
        found: Calibration | None = _calibrate(views)
    except InputError as error:
        out.warn(error.message)
        found = None
    as_given = check_views(views)
    result = (
        as_given
        if found is None or found.cameras is views.cameras
        else check_views(replace(views, cameras=found.cameras))
    )
    problems = _problems(views, as_given, result, found)
    facts = {
        "ok": not problems, "problems": problems, "score": as_given.score, "relative": as_given.relative,
        "worst_view": views.names[as_given.worst], "views": dict(zip(views.names, as_given.overlaps.round(4), strict=True)),
        "radius_in_sizes": as_given.radius,
    }  # fmt: skip
    if found is not None:
        facts["best"] = {
            "elevation_deg": found.elevation_deg, "fov_deg": found.fov_deg, "reversed": found.reversed,
            "radius_in_sizes": result.radius, "score": result.score, "relative": result.relative,
        }  # fmt: skip
    if mend:
        if found is None:
            raise UsageError("these cameras cannot be mended: they are no orbit", "Leave out --mend.")
        facts["mended"] = _write_mended(folder, views, found, target, overwrite)
    out.result(facts, _check_lines(views, as_given, result, found, problems))


def _calibrate(views: Views) -> Calibration:
    from svdcli.multiview.consistency import ELEVATIONS_DEG, FIELDS_OF_VIEW_DEG, ROUNDS, calibrate

    trials = 2 + 2 * len(ELEVATIONS_DEG) + len(FIELDS_OF_VIEW_DEG) + 6 * ROUNDS  # at the most
    with out.progress("cameras", trials) as progress:
        return calibrate(views, lambda: progress.advance(1))


def _problems(views: Views, given: Consistency, best: Consistency, found: Calibration | None) -> list[str]:
    from svdcli.multiview.consistency import POOR

    problems = []
    if found is not None and found.cameras is not views.cameras:
        if found.reversed:
            problems.append("the views go round the other way than their cameras say")
        said, fov = views.cameras.elevations_deg[-1], views.cameras.fov_deg
        if abs(found.elevation_deg - said) >= 2:
            problems.append(f"the elevation is about {found.elevation_deg:.1f}°, not {said:.1f}°")
        if abs(found.fov_deg - fov) >= 1:
            problems.append(f"the field of view is about {found.fov_deg:.1f}°, not {fov:.1f}°")
    for view in best.damaged:
        problems.append(
            f"{views.names[view]} does not fit the other views (overlap {best.overlaps[view]:.3f})"
        )
    if best.relative < POOR:
        problems.append(
            f"even with the best cameras the views agree badly: {best.relative:.2f} of a perfect set"
        )
    return problems


def _check_lines(
    views: Views, given: Consistency, best: Consistency, found: Calibration | None, problems: list[str]
) -> list[str]:
    rows = [["consistency", f"{given.score:.3f}, {given.relative:.2f} of a perfect set of this shape"]]
    rows += [["worst view", f"{views.names[given.worst]} (overlap {given.overlaps[given.worst]:.3f})"]]
    rows += [["radius", f"{given.radius:.2f} times the object's largest side"]]
    if found is not None:
        way = "reversed" if found.reversed else "as the cameras say"
        rows += [
            ["best elevation", f"{found.elevation_deg:.1f}°"],
            ["best field of view", f"{found.fov_deg:.1f}°"],
        ]
        rows += [
            ["direction", way],
            ["consistency then", f"{best.score:.3f}, {best.relative:.2f} of a perfect set"],
        ]
    return [*table(rows), *(f"problem: {problem}" for problem in problems or ["none"])]


def _write_mended(folder: Path, views: Views, found: Calibration, target: Path, overwrite: bool) -> Path:
    from svdcli.multiview.transforms import NAME, Transforms, write_transforms

    _check_target(target, overwrite)
    names = tuple(os.path.relpath(folder / name, target) for name in views.names)
    write_transforms(
        target / NAME, Transforms(found.cameras, names, facts={"mended_from_overlap": found.given_score})
    )
    return target / NAME
