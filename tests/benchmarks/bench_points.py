"""Point clouds from views of the objects in ../shared/data: how near to the truth, in what CPU time.

    python tests/benchmarks/bench_points.py [--objects held-out] [--cases static dynamic faults checks] [--keep FOLDER] [NAME ...]

Chamfer is the mean of the two mean unsquared distances (largest side 1), F the harmonic mean of precision and recall at a
distance; both against 60 000 points on the mesh (whose own spacing adds about 0.003 to the Chamfer distance), and beside
it on the part that some of 60 directions outside can see, as no photograph shows the inside. CPU-seconds hold everything
from loaded views to written PLY, with colours. PSNR is of the cloud drawn from four cameras that no view had.

What was fitted on what: the constants of hull and ends on TUNED, those of sweep and fusion on antiqueChair, kitchenChair,
library-large (of neither set) and the milk truck; HELD_OUT was drawn at random (seed 0) from the other objects
with a texture on every part, at least 100 faces and no side under 0.15. Its crate, chair and islandExtension were looked at
to find out why they lost, and the crate is why hollows of the hull are filled; no constant was fitted on it.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from svdcli.errors import InputError
from svdcli.multiview.cameras import Cameras, Orbit, dynamic_orbit, static_orbit
from svdcli.multiview.consistency import calibrate, check_views, refuse_reversed
from svdcli.multiview.cutout import over_white
from svdcli.multiview.export import export
from svdcli.multiview.hull import Surface
from svdcli.multiview.meshes import Mesh, load_mesh
from svdcli.multiview.o3d import open3d, raycaster
from svdcli.multiview.points import Cloud, Reconstruction, reconstruct, sample_surface
from svdcli.multiview.render import render
from svdcli.multiview.splat import draw_points
from svdcli.multiview.views import Views

OBJECTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "objects"
TUNED = (
    "trimesh__Duck", "sweethome3d__BlendSwap-CC-0__teddyBear", "trimesh__tests__data__cow",
    "sweethome3d__BlendSwap-CC-0__stool2", "sweethome3d__BlendSwap-CC-BY__bulldog",
    "sweethome3d__BlendSwap-CC-0__stoneLantern", "sweethome3d__BlendSwap-CC-0__fireExtinguisher",
    "trimesh__CesiumMilkTruck",
)  # fmt: skip
HELD_OUT = (
    "market__cyborg-female", "sweethome3d__BlendSwap-CC-0__bread", "sweethome3d__BlendSwap-CC-0__chair",
    "sweethome3d__BlendSwap-CC-0__crate", "sweethome3d__BlendSwap-CC-0__horse2",
    "sweethome3d__BlendSwap-CC-0__islandExtension", "sweethome3d__BlendSwap-CC-0__oakChair",
    "sweethome3d__BlendSwap-CC-0__oakTable", "sweethome3d__BlendSwap-CC-0__woodToy",
    "sweethome3d__BlendSwap-CC-BY__hamburger", "sweethome3d__BlendSwap-CC-BY__table_tennis",
    "sweethome3d__BlendSwap-CC-BY__wirelessOfficePhone3",
)  # fmt: skip
SETS = {"tuned": TUNED, "held-out": HELD_OUT, "all": TUNED + HELD_OUT}
CASES = ("static", "dynamic", "faults", "checks")
UNSEEN = Orbit(np.array([8.5, 100.0, 200.0, 300.0]), np.array([10.0, 30.0, -10.0, 60.0]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="objects of ../shared/data/objects, without .glb")
    parser.add_argument("--objects", choices=SETS, default="all")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["static"])
    parser.add_argument("--side", type=int, default=576)
    parser.add_argument(
        "--keep", type=Path, help="a folder of this benchmark's own: renders are taken from there"
    )
    given = parser.parse_args()
    cv2.setNumThreads(1)
    rows: dict[str, list[np.ndarray]] = {}
    found: list[tuple[bool, ...]] = []
    print(
        f"{'object':34} {'case':16} chamfer  F.01  F.02 | outside: chamfer  F.01  F.02 | seen  PSNR of unseen views  CPU s"
    )
    for name in given.names or SETS[given.objects]:
        mesh = load_mesh(OBJECTS / f"{name}.glb")
        static, truth, outside = kept(given.keep, name, lambda mesh=mesh: still(mesh, given.side))
        if "checks" in given.cases:
            found.append(checks(name, static))
        unseen = kept(given.keep, f"{name}.unseen", lambda mesh=mesh, views=static: unseen_of(mesh, views))
        for case, (views, bad_masks) in cases_of(given, name, mesh, static).items():
            cloud, seconds = timed(views, bad_masks)
            noise = psnr(unseen, cloud)
            of_cloud = scores(cloud.points, truth), scores(cloud.points, outside)
            row = np.array([*of_cloud[0], *of_cloud[1], cloud.seen, np.mean(noise), seconds])
            rows.setdefault(case, []).append(row)
            shown = " ".join(f"{value:4.1f}" for value in noise)
            print(f"{name[-34:]:34} {case:16} {line(row)} {shown:20} {seconds:5.1f}", flush=True)
    for case, those in rows.items():
        mean = np.mean(those, axis=0)
        print(f"{f'mean of {len(those)}':34} {case:16} {line(mean)} {mean[-2]:4.1f} {'':15} {mean[-1]:5.1f}")
    if found:
        print(f"checks, of {len(found)}: {dict(zip(CHECKS, np.sum(found, axis=0).tolist(), strict=True))}")


def kept(folder: Path | None, name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, from the folder where it is there."""
    path = folder / f"{name}.pkl" if folder else None
    if path and path.exists():
        return pickle.loads(path.read_bytes())
    made = make()
    if path:
        path.write_bytes(pickle.dumps(made))
    return made


def still(mesh: Mesh, side: int) -> tuple[Views, np.ndarray, np.ndarray]:
    return render_views(mesh, static_orbit(10), side), *truth_of(mesh)


def cases_of(given: argparse.Namespace, name: str, mesh: Mesh, static: Views) -> dict[str, tuple[Views, int]]:
    """Views and bad masks to tolerate, by case."""
    cases = {"static": (static, 0)} if "static" in given.cases else {}
    if "dynamic" in given.cases:
        orbit = dynamic_orbit(10, np.random.default_rng(0), 21)
        views = kept(given.keep, f"{name}.dyn", lambda: render_views(mesh, orbit, given.side))
        cases["dynamic"] = (views, 0)
    return cases | (faulty(static) if "faults" in given.cases else {})


def line(row: np.ndarray) -> str:
    a, b, c, d, e, f, seen, *_ = row
    return f"{a:.4f}  {b:.3f} {c:.3f} |          {d:.4f}  {e:.3f} {f:.3f} | {seen:.2f} "


def timed(views: Views, bad_masks: int) -> tuple[Cloud, float]:
    start = time.process_time()
    cloud = reconstruct(views, Reconstruction(bad_masks=bad_masks))
    with tempfile.TemporaryDirectory() as folder:
        export(cloud, Path(folder), ["ply"])
    return cloud, time.process_time() - start


def render_views(mesh: Mesh, orbit: Orbit, side: int) -> Views:
    cameras = orbit.cameras(orbit.enclosing_radius(mesh.vertices), side=side)
    rgba = np.stack([view.rgba for view in render(mesh, cameras)]).astype(np.float32) / 255
    alpha = rgba[..., 3]
    return Views(
        over_white(rgba[..., :3], alpha), alpha, cameras, tuple(f"{view}" for view in range(len(cameras)))
    )


def faulty(views: Views) -> dict[str, tuple[Views, int]]:
    rng = np.random.default_rng(0)
    wobbly = np.stack([wobbled(mask, 4 * views.cameras.width / 576, rng) for mask in views.alpha])
    torn = views.alpha.copy()
    torn[7][:, : int(np.quantile(np.nonzero(torn[7] > 0.5)[1], 0.25))] = 0
    cameras = views.cameras
    orbit = Orbit(
        cameras.azimuths_deg + rng.uniform(-1.5, 1.5, len(cameras)),
        cameras.elevations_deg + rng.uniform(-1.5, 1.5, len(cameras)),
    )
    posed = orbit.cameras(float(cameras.radii[0]), cameras.fov_deg, cameras.width)
    return {
        "wobble 4 px, k=1": (replace(views, alpha=wobbly), 0),
        "wobble 4 px, k=2": (replace(views, alpha=wobbly), 1),
        "torn mask, k=1": (replace(views, alpha=torn), 0),
        "torn mask, k=2": (replace(views, alpha=torn), 1),
        "poses ±1.5°": (replace(views, cameras=posed), 0),
    }


def wobbled(mask: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """The mask with its outline moved in and out by a smooth field whose standard deviation is half of `pixels`."""
    height, width = mask.shape
    shift = [gaussian_filter(rng.standard_normal(mask.shape), height / 24) for _ in range(2)]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    moves = [(s / s.std() * pixels / 2).astype(np.float32) for s in shift]
    return cv2.remap(mask, x + moves[0], y + moves[1], cv2.INTER_LINEAR)


CHECKS = (
    "clean passes",
    "torn view named",
    "flipped refused",
    "elevation ±5°",
    "direction",
    "field of view ±5°",
    "radius ±10 %",
)


def checks(name: str, views: Views) -> tuple[bool, ...]:
    """What the consistency check says of right and wrong cameras, and of a torn mask: whether each of CHECKS is right."""
    cameras = views.cameras
    right = check_views(views)
    torn = check_views(faulty(views)["torn mask, k=1"][0])
    flipped = Orbit(-cameras.azimuths_deg % 360, cameras.elevations_deg)
    given = replace(views, cameras=flipped.cameras(float(cameras.radii[0]), cameras.fov_deg, cameras.width))
    try:
        refuse_reversed(given)
        refused = False
    except InputError:
        refused = True
    wrong = Orbit(
        flipped.azimuths_deg, cameras.elevations_deg + 20
    )  # and a lens of 49.1°, at a distance that fits
    slope = np.tan(np.radians(cameras.fov_deg) / 2) / np.tan(np.radians(49.1) / 2)
    given = replace(views, cameras=wrong.cameras(float(cameras.radii[0]) * slope, 49.1, cameras.width))
    found = calibrate(given)
    radius = check_views(replace(views, cameras=found.cameras)).radius
    said = (
        not right.damaged, torn.damaged == [7], refused, abs(found.elevation_deg - cameras.elevations_deg[-1]) <= 5,
        found.reversed, abs(found.fov_deg - cameras.fov_deg) <= 5, abs(radius / right.radius - 1) <= 0.1,
    )  # fmt: skip
    print(f"{name[-34:]:34} check: clean {right.score:.3f} ({right.relative:.2f} of a perfect set, damaged {right.damaged}); "
          f"torn view 7: named {torn.damaged}; flipped {'refused' if refused else 'passed'}; elevation 30°, reversed, 49.1° "
          f"given: found {found.elevation_deg:g}°, reversed {found.reversed}, {found.fov_deg:g}°, radius {radius:.2f} "
          f"for {right.radius:.2f} ({found.given_score:.3f} -> {found.score:.3f})", flush=True)  # fmt: skip
    return said


def unseen_of(mesh: Mesh, views: Views) -> tuple[Cameras, np.ndarray]:
    """Cameras that no view had, and RGBA pictures (V, H, W, 4) from there."""
    cameras = UNSEEN.cameras(float(views.cameras.radii[0]) * 1.1, side=288)
    return cameras, np.stack([view.rgba for view in render(mesh, cameras)])


def psnr(unseen: tuple[Cameras, np.ndarray], cloud: Cloud) -> list[float]:
    """Of the cloud drawn from cameras that no view had, on the object's box, over white."""
    found = []
    for view, rgba in enumerate(unseen[1]):
        drawn = draw_points(cloud.points, cloud.colours, unseen[0], view)
        pictures = [shown[..., :3] * shown[..., 3:] + 1 - shown[..., 3:] for shown in (rgba / 255, drawn)]
        rows, columns = np.nonzero(rgba[..., 3])
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        found.append(float(-10 * np.log10(np.mean((pictures[0][box] - pictures[1][box]) ** 2))))
    return found


def truth_of(mesh: Mesh, count: int = 60_000, num_directions: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Points on the mesh; and those of them that a ray from outside reaches."""
    points, _ = sample_surface(Surface(mesh.vertices, mesh.faces), np.zeros_like(mesh.vertices), count)
    scene, o3d = raycaster(mesh.vertices, mesh.faces), open3d()
    k = np.arange(num_directions) + 0.5
    z, turn = 1 - 2 * k / num_directions, np.pi * (1 + np.sqrt(5)) * k
    open_ = np.zeros(count, bool)
    for direction in np.stack(
        [np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], axis=1
    ):
        rays = np.concatenate([points + 2e-3 * direction, np.broadcast_to(direction, points.shape)], axis=1)
        open_ |= ~scene.test_occlusions(o3d.core.Tensor(rays.astype(np.float32))).numpy()
    return points, points[open_]


def scores(points: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Chamfer distance, F-score at 0.01 and at 0.02."""
    there = cKDTree(truth).query(points)[0]
    back = cKDTree(points).query(truth)[0]
    f = []
    for limit in (0.01, 0.02):
        precision, recall = (there < limit).mean(), (back < limit).mean()
        f.append(float(2 * precision * recall / max(precision + recall, 1e-9)))
    return float((there.mean() + back.mean()) / 2), f[0], f[1]


if __name__ == "__main__":
    main()
