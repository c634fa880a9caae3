"""Point clouds from views of the objects in ../shared/data: how near to the truth, in what CPU time.

    python tests/benchmarks/bench_points.py [--objects 8] [--faults 2] [--side 576] [NAME ...]

Chamfer is the mean of the two mean unsquared distances (largest side 1), F the harmonic mean of precision and recall at a
distance; both against 60 000 points on the mesh, and beside it on the part that some of 60 directions outside can see,
as no photograph shows the inside. CPU-seconds hold everything from loaded views to written PLY, with colours.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from svdcli.multiview.cameras import Cameras, Orbit, dynamic_orbit, static_orbit
from svdcli.multiview.consistency import calibrate, check_views
from svdcli.multiview.export import export
from svdcli.multiview.hull import Surface
from svdcli.multiview.meshes import Mesh, load_mesh
from svdcli.multiview.o3d import open3d, raycaster
from svdcli.multiview.points import Cloud, Reconstruction, reconstruct, sample_surface
from svdcli.multiview.render import render
from svdcli.multiview.splat import draw_points
from svdcli.multiview.views import Views

OBJECTS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "objects"
NAMES = (
    "trimesh__Duck", "sweethome3d__BlendSwap-CC-0__teddyBear", "trimesh__tests__data__cow",
    "sweethome3d__BlendSwap-CC-0__stool2", "sweethome3d__BlendSwap-CC-BY__bulldog",
    "sweethome3d__BlendSwap-CC-0__stoneLantern", "sweethome3d__BlendSwap-CC-0__fireExtinguisher",
    "trimesh__CesiumMilkTruck",
)  # fmt: skip
UNSEEN = Orbit(np.array([8.5, 100.0, 200.0, 300.0]), np.array([10.0, 30.0, -10.0, 60.0]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="objects of ../shared/data/objects, without .glb")
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--faults", type=int, default=2, help="objects on which faults are tried")
    parser.add_argument("--side", type=int, default=576)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    rows: dict[str, list[np.ndarray]] = {}
    print(
        f"{'object':34} {'case':16} chamfer  F.01  F.02 | outside: chamfer  F.01  F.02 | seen  PSNR of unseen views  CPU s"
    )
    for index, name in enumerate(given.names or NAMES[: given.objects]):
        mesh = load_mesh(OBJECTS / f"{name}.glb")
        truth, outside = truth_of(mesh)
        static = render_views(mesh, static_orbit(10), given.side)
        dynamic = render_views(mesh, dynamic_orbit(10, np.random.default_rng(0), 21), given.side)
        cases = {"static": (static, 0), "dynamic": (dynamic, 0)}
        if index < given.faults:
            cases |= faulty(static)
        for case, (views, bad_masks) in cases.items():
            cloud, seconds = timed(views, bad_masks)
            row = np.array(
                [*scores(cloud.points, truth), *scores(cloud.points, outside), cloud.seen, seconds]
            )
            noise = psnr(mesh, static.cameras, cloud) if case in ("static", "dynamic") else []
            rows.setdefault(case, []).append(row)
            shown = " ".join(f"{value:4.1f}" for value in noise)
            print(f"{name[-34:]:34} {case:16} {line(row)} {shown:20} {seconds:5.1f}", flush=True)
        if index < given.faults:
            checks(static)
    for case, found in rows.items():
        mean = np.mean(found, axis=0)
        print(f"{f'mean of {len(found)}':34} {case:16} {line(mean)} {'':20} {mean[-1]:5.1f}")


def line(row: np.ndarray) -> str:
    a, b, c, d, e, f, seen, _ = row
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
    over_white = rgba[..., :3] * alpha[..., None] + 1 - alpha[..., None]
    return Views(over_white, alpha, cameras, tuple(f"{view}" for view in range(len(cameras))))


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


def checks(views: Views) -> None:
    """What the consistency check says of right and wrong cameras, and of a torn mask."""
    cameras = views.cameras
    right = check_views(views)
    torn = check_views(faulty(views)["torn mask, k=1"][0])
    wrong = Orbit(-cameras.azimuths_deg % 360, cameras.elevations_deg + 20)
    found = calibrate(
        replace(views, cameras=wrong.cameras(float(cameras.radii[0]), cameras.fov_deg, cameras.width))
    )
    print(f"    check: clean {right.score:.3f} ({right.relative:.2f} of a perfect set, damaged {right.damaged}); torn view 7: "
          f"named {torn.damaged}; elevation 30° and direction reversed given: found {found.elevation_deg:g}°, reversed "
          f"{found.reversed}, field of view {found.fov_deg:g}° ({found.given_score:.3f} -> {found.score:.3f})")  # fmt: skip


def psnr(mesh: Mesh, cameras: Cameras, cloud: Cloud) -> list[float]:
    """Of the cloud drawn from cameras that no view had, on the object's box, over white."""
    unseen = UNSEEN.cameras(float(cameras.radii[0]) * 1.1, side=288)
    found = []
    for view, true in enumerate(render(mesh, unseen)):
        drawn = draw_points(cloud.points, cloud.colours, unseen, view)
        pictures = []
        for rgba in (true.rgba / 255, drawn):
            pictures.append(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
        rows, columns = np.nonzero(true.rgba[..., 3])
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
