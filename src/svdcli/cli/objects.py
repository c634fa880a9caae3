"""`svd curate objaverse` and `svd curate mvimgnet`: objects and captures -> views to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svdcli.cli.console import out
from svdcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from svdcli.multiview.batch import Item, Row

Path_ = StrEnum("Path_", {"static": "static", "dynamic": "dynamic"})
OUT = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder of views, journal and index; run again to go on.")
]
JOBS = Annotated[int, typer.Option(min=1, help="Worker processes.")]


def register(group: typer.Typer) -> None:
    """Add both commands to the group `svd curate`."""
    group.command()(objaverse)
    group.command()(mvimgnet)


def objaverse(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A folder of GLB, GLTF, OBJ or PLY, a mesh, or a list.")
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
    depth: Annotated[bool, typer.Option("--depth", help="Also write depth.")] = False,
    normals: Annotated[bool, typer.Option("--normals", help="Also write normals.")] = False,
    textured_only: Annotated[
        bool, typer.Option("--textured-only", help="Leave out objects of one plain colour.")
    ] = False,
    max_faces: Annotated[int, typer.Option(min=1, help="Leave out larger meshes.")] = 5_000_000,
    seed: Annotated[int, typer.Option(help="Of elevations, swings and lights.")] = 0,
    jobs: JOBS = 1,
) -> None:
    """Render objects from all around, as multi-view models train on them."""
    from svdcli.multiview.objaverse import Orbits, curate_objaverse, find_objects

    settings = Orbits(
        path.value, views, size, lights=_maps(light or []), depth=depth, normals=normals,  # type: ignore[arg-type]
        textured_only=textured_only, max_faces=max_faces, seed=seed,
    )  # fmt: skip
    _run(
        "objects",
        find_objects(source),
        target,
        lambda done: curate_objaverse(source, target, settings, jobs, done),
    )


def mvimgnet(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="The folder that holds the classes.")],
    target: OUT,
    views: Annotated[int, typer.Option(min=3, help="Frames of a sequence.")] = 21,
    size: Annotated[int, typer.Option(min=16, help="The shorter side in pixels.")] = 576,
    masks: Annotated[Path | None, typer.Option(help="Root of the masks of release 1.0.")] = None,
    need_masks: Annotated[
        bool, typer.Option("--need-masks", help="Leave out captures without masks.")
    ] = False,
    jobs: JOBS = 1,
) -> None:
    """Turn MVImgNet's captures into sequences with cameras and masks."""
    from svdcli.multiview.mvimgnet import Sequences, curate_mvimgnet, find_instances

    settings = Sequences(views, size, masks, need_masks)
    _run(
        "captures",
        find_instances(source),
        target,
        lambda done: curate_mvimgnet(source, target, settings, jobs, done),
    )


def _run(
    what: str, items: Sequence[Item], target: Path, work: Callable[[Callable[[Row], None]], list[Row]]
) -> None:
    """Work with a progress bar, then answer with the account. Raises InputError where nothing could be used."""
    from svdcli.io.files import check_writable

    check_writable(target / "index.json", parents=True)
    with out.progress(what, len(items)) as progress:
        rows = work(lambda row: progress.advance(1, Path(row.path).name))
    counts = Counter(row.status for row in rows)
    reasons = Counter(str(row.facts.get("kind", row.reason)) for row in rows if row.status == "failed")
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
