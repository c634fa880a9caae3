"""Objects -> orbits to train on, as SVD-MV and SV3D render theirs (SVD app. D.6, SV3D app. B).

Each object gets 84 RGBA views, of which any 21 at stride 4 are an example; its distance fills the frame and clips
nothing; its elevation, light and swing come from its own hash, so an object's pictures never depend on the others.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svdcli.errors import InputError
from svdcli.io.files import atomic_folder
from svdcli.io.images import write_png
from svdcli.multiview.cameras import (
    ELEVATIONS_DEG,
    FOV_DEG,
    NUM_RENDERED,
    SIDE,
    Orbit,
    dynamic_orbit,
    static_orbit,
)
from svdcli.multiview.items import Item
from svdcli.multiview.light import Light
from svdcli.multiview.meshes import MAX_FACES, SUFFIXES, Up, load_mesh
from svdcli.multiview.objaverse_hub import fetch, is_id, look_up
from svdcli.multiview.render import render
from svdcli.multiview.views import write_views

KINDS = (*SUFFIXES, ".zip")


@dataclass(frozen=True)
class Orbits:
    """How objects are rendered. lights: Radiance .hdr maps, one drawn for each object; none for neutral light.

    up: the axis of the files that points up, if not y of glTF and OBJ and z of PLY.
    textured_only: an object without texture, colours or materials fails, as plain shapes teach little.
    """

    path: Literal["static", "dynamic"] = "static"
    num_views: int = NUM_RENDERED
    side: int = SIDE
    fov_deg: float = FOV_DEG
    elevations_deg: tuple[float, float] = ELEVATIONS_DEG
    lights: tuple[Path, ...] = ()
    depth: bool = False
    normals: bool = False
    textured_only: bool = False
    max_faces: int = MAX_FACES
    seed: int = 0
    up: Up | None = None


def find_objects(source: Path) -> list[Item]:
    """The meshes of a folder (searched deeply), one file, one Objaverse id, or those that a list names.

    A list is text with a path or an id a line, or CSV with columns `file` (or `path`, `uid`), `licence` (or `license`),
    `source`; paths are relative to it. Licences of a folder come from an `index.csv` in it, or from NAME.json beside a
    mesh; those of ids from Objaverse. Raises InputError, and MachineError where ids cannot be looked up.
    """
    if source.is_dir():
        known = (
            {item.path: item for item in _from_csv(source / "index.csv")}
            if (source / "index.csv").is_file()
            else {}
        )
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in KINDS and p.is_file())
        items = [known.get(path) or Item(path, *_beside(path)) for path in paths]
    elif source.suffix.lower() == ".csv" and source.is_file():
        items = _from_csv(source)
    elif source.suffix.lower() in KINDS:
        items = [Item(source, *_beside(source))]
    elif is_id(source.name) and not source.exists():
        items = [Item(Path(source.name))]
    elif source.is_file():
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines()]
        items = [_listed(source.parent, line) for line in lines if line and not line.startswith("#")]
    else:
        raise InputError(
            f"There is no folder or list {source}.",
            "Give a folder of meshes, or a list of paths or Objaverse ids.",
        )
    if not items:
        raise InputError(f"{source} holds no meshes.", f"Meshes end in {', '.join(SUFFIXES)}.")
    return look_up(items)


def render_object(item: Item, key: str, folder: Path, settings: Orbits) -> dict[str, Any]:
    """One object -> a folder of views, depth and normals by option, and transforms.json; the facts of the index."""
    mesh = load_mesh(fetch(item), settings.max_faces, settings.up)
    if settings.textured_only and mesh.is_plain:
        raise InputError(f"{item.path} has no texture.", "Leave out textured_only to keep plain objects.")
    rng = np.random.default_rng([settings.seed, int(key, 16)])
    orbit = _orbit(settings, rng)
    light, turn = _light(settings, rng)
    cameras = orbit.cameras(
        orbit.enclosing_radius(mesh.vertices, settings.fov_deg), settings.fov_deg, settings.side
    )
    views = list(render(mesh, cameras, light))
    if max(int(view.rgba[..., 3].max()) for view in views) == 0:
        raise InputError(
            f"{item.path} is invisible: nothing of it shows.", "Its materials are fully transparent."
        )
    facts = {
        "path": settings.path, "elevation_deg": float(orbit.elevations_deg[-1]), "fov_deg": settings.fov_deg,
        "radius": float(cameras.radii[0]), "light": light.name, "light_turn_deg": turn, "faces": mesh.num_faces,
        "plain": mesh.is_plain, "centre": mesh.centre.tolist(), "scale": mesh.scale, "notes": list(mesh.notes),
        "licence": item.licence, "source": item.source or item.path.name,
    }  # fmt: skip
    with atomic_folder(folder) as temporary:
        depths = [view.depth for view in views] if settings.depth else []
        write_views(temporary, [view.rgba for view in views], cameras, facts, depths)
        for index, view in enumerate(views if settings.normals else []):
            shown = np.rint((view.normals + 1) / 2 * 255).astype(np.uint8)
            write_png(temporary / f"normal_{index:03d}.png", shown)
    return facts


def _orbit(settings: Orbits, rng: np.random.Generator) -> Orbit:
    elevation = float(rng.uniform(*settings.elevations_deg))
    if settings.path == "dynamic":
        return dynamic_orbit(elevation, rng, settings.num_views)
    return static_orbit(elevation, settings.num_views)


def _light(settings: Orbits, rng: np.random.Generator) -> tuple[Light, float]:
    if not settings.lights:
        return Light.neutral(), 0.0
    turn = float(rng.uniform(0, 360))
    return Light.from_file(settings.lights[int(rng.integers(len(settings.lights)))], turn), turn


def _from_csv(file: Path) -> list[Item]:
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    items = []
    for row in rows:
        name = row.get("file") or row.get("path") or row.get("uid")
        if not name:
            raise InputError(f"{file} has no column `file` or `uid`.", "Columns: file, licence, source.")
        path = Path(name) if is_id(name) else file.parent / name
        items.append(Item(path, row.get("licence") or row.get("license") or "", row.get("source") or ""))
    return items


def _listed(folder: Path, line: str) -> Item:
    return Item(Path(line)) if is_id(line) else Item(folder / line, *_beside(folder / line))


def _beside(path: Path) -> tuple[str, str]:
    """(licence, source) from NAME.json, as Objaverse's annotations have them."""
    file = path.with_suffix(".json")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        return str(tree.get("license") or tree.get("licence") or ""), str(
            tree.get("uri") or tree.get("source") or ""
        )
    except (OSError, ValueError, AttributeError):
        return "", ""
