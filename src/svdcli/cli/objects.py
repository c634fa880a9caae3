"""`svd curate objaverse` and `svd curate mvimgnet`: objects and captures -> views to train on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.console import out
from svdcli.cli.curate_watch import watch
from svdcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from svdcli.curate.run.views import Row
    from svdcli.recipe.executor import Executor

Path_ = StrEnum("Path_", {"static": "static", "dynamic": "dynamic"})
Up = StrEnum("Up", {"x": "x", "-x": "-x", "y": "y", "-y": "-y", "z": "z", "-z": "-z"})
Engine = StrEnum("Engine", {"pool": "pool", "ray": "ray"})
OUT = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder of views, journal and index; run again to go on.")
]
WORKERS = Annotated[int | None, typer.Option(min=1, help="Processes, one core each; absent: one a core.")]
ENGINE = Annotated[
    Engine, typer.Option(help="Processes of this machine, or Ray Data, here or on a cluster (RAY_ADDRESS).")
]
RETRY = Annotated[bool, typer.Option("--retry-failed", help="Try again what failed in an earlier run.")]


def register(group: typer.Typer) -> None:
    """Add both commands to the group `svd curate`."""
    group.command()(objaverse)
    group.command()(mvimgnet)


def objaverse(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A folder of GLB, GLTF, OBJ or PLY, a mesh, an Objaverse id, or a list."
        ),
    ],
    target: OUT,
    path: Annotated[Path_, typer.Option(help="One elevation, or one that swings.")] = Path_.static,
    views: Annotated[
        int, typer.Option(min=3, help="Views of an orbit; every fourth of 84 is an example.")
    ] = 84,
    size: Annotated[int, typer.Option(min=16, help="Side of the square views in pixels.")] = 576,
    light: Annotated[
        list[Path] | None, typer.Option(help="A Radiance .hdr map, or a folder of them; else neutral light.")
    ] = None,
    up: Annotated[
        Up | None, typer.Option(help="Axis of the files that points up; absent: y of glTF and OBJ, z of PLY.")
    ] = None,
    depth: Annotated[bool, typer.Option("--depth", help="Also write depth.")] = False,
    normals: Annotated[bool, typer.Option("--normals", help="Also write normals.")] = False,
    textured_only: Annotated[
        bool, typer.Option("--textured-only", help="Leave out objects of one plain colour.")
    ] = False,
    max_faces: Annotated[int, typer.Option(min=1, help="Leave out larger meshes.")] = 5_000_000,
    seed: Annotated[int, typer.Option(help="Of elevations, swings and lights.")] = 0,
    workers: WORKERS = None,
    engine: ENGINE = Engine.pool,
    retry_failed: RETRY = False,
) -> None:
    """Render objects from all around, as multi-view models train on them."""
    from svdcli.curate.run.views import curate_objaverse
    from svdcli.multiview.objaverse import Orbits

    settings = Orbits(
        path.value, views, size, lights=_maps(light or []), depth=depth, normals=normals,  # type: ignore[arg-type]
        textured_only=textured_only, max_faces=max_faces, seed=seed, up=up and up.value,  # type: ignore[arg-type]
    )  # fmt: skip
    executor = _executor(workers, engine, retry_failed)
    _answer("objects", target, curate_objaverse(source, target, settings, executor, watch()))


def mvimgnet(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The folder that holds the classes.")],
    target: OUT,
    views: Annotated[int, typer.Option(min=3, help="Frames of a sequence.")] = 21,
    size: Annotated[int, typer.Option(min=16, help="The shorter side in pixels.")] = 576,
    masks: Annotated[Path | None, typer.Option(help="Root of the masks of release 1.0.")] = None,
    need_masks: Annotated[
        bool, typer.Option("--need-masks", help="Leave out captures without masks.")
    ] = False,
    workers: WORKERS = None,
    engine: ENGINE = Engine.pool,
    retry_failed: RETRY = False,
) -> None:
    """Turn MVImgNet's captures into sequences with cameras and masks."""
    from svdcli.curate.run.views import curate_mvimgnet
    from svdcli.multiview.mvimgnet import Sequences

    settings = Sequences(views, size, masks, need_masks)
    executor = _executor(workers, engine, retry_failed)
    _answer("captures", target, curate_mvimgnet(source, target, settings, executor, watch()))


def _executor(workers: int | None, engine: Engine, retry_failed: bool) -> Executor:
    from svdcli.curate.run.views import EXECUTOR

    changes = {"workers": workers, "engine": engine.value, "retry_failed": retry_failed}
    address = os.environ.get("RAY_ADDRESS")
    return EXECUTOR.model_copy(update=changes | ({"address": address} if address else {}))


def _answer(what: str, target: Path, rows: Sequence[Row]) -> None:
    """The account. Raises InputError where nothing could be used."""
    counts = Counter(row.status for row in rows)
    reasons = Counter(row.kind for row in rows if row.status == "failed")
    if not counts["done"]:
        raise InputError(
            f"None of the {len(rows)} {what} could be used: {reasons.most_common(1)[0][0]}", "See index.json."
        )
    data: dict[str, Any] = {
        "items": len(rows),
        "counts": counts,
        "reasons": reasons,
        "index": target / "index.json",
    }
    lines = [f"{counts['done']} of {len(rows)} {what} in {target}"]
    if counts["duplicate"]:
        lines.append(f"{counts['duplicate']} duplicates")
    lines += [f"{count} failed: {reason}" for reason, count in reasons.most_common()]
    out.result(data, lines)
    first = next(row for row in rows if row.status == "done")
    out.next(f"svd points {target / first.folder}")


def _maps(given: Sequence[Path]) -> tuple[Path, ...]:
    maps: list[Path] = []
    for path in given:
        found = sorted(path.glob("*.hdr")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"{path} holds no .hdr maps", "Give Radiance .hdr files.")
        maps += found
    return tuple(maps)
