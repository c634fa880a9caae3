"""Renders per CPU-second at 576 pixels, by number of faces, beside other renderers that need no GPU.

    python tests/benchmarks/bench_render.py [--side 576] [--views 3] [--faces 1000 10000 100000 1000000]

A sphere with bumps and vertex colours, no texture. Ours takes one ray a pixel and sixteen at edges, with light; the column
"1 ray" is ours without the finer edges. pyrender rasterises with Mesa's software OpenGL, one sample a pixel and sixteen (four
times the side, averaged); it is left out where it cannot run (pip install pyrender PyOpenGL==3.1.10 imageio six networkx; apt
install libosmesa6). trimesh (its engine in Python, unless embreex is installed) only finds the first triangle of each ray, at a
sixteenth of the rays, its time multiplied; above 20 000 faces, or without the package rtree, it is left out.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
import trimesh

from svdcli.multiview.cameras import Cameras, static_orbit
from svdcli.multiview.meshes import Mesh, Part
from svdcli.multiview.render import Renderer

_SPARSE = 4  # trimesh gets every fourth pixel of every fourth row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=576)
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--faces", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    cv2.setNumThreads(1)
    print(
        "CPU-seconds a view  |       ours:               |    pyrender:            | trimesh:\n"
        "       faces  ready | edges in 16   1 ray  ratio |  16 samples   1 sample  | first hits alone"
    )
    for faces in given.faces:
        mesh = bumpy_sphere(faces)
        orbit = static_orbit(10, given.views)
        cameras = orbit.cameras(orbit.enclosing_radius(mesh.vertices), side=given.side)
        start = time.process_time()
        renderer = Renderer(mesh, float(cameras.radii[0] / cameras.intrinsics[0, 0, 0]))
        ready = time.process_time() - start
        fine, coarse = seconds(renderer, cameras, 4), seconds(renderer, cameras, 1)
        finer, plain = pyrender_seconds(mesh, cameras)
        beside = mesh.num_faces <= 20_000 and find_spec("rtree")
        other = trimesh_seconds(mesh, cameras) if beside else np.nan
        print(
            f"{mesh.num_faces:12,} {ready:6.2f} | {fine:11.3f} {coarse:7.3f} {finer / fine:6.2f} | {finer:11.3f} {plain:10.3f}  "
            f"| {other:.2f}",
            flush=True,
        )


def bumpy_sphere(faces: int) -> Mesh:
    """About that many faces, on a grid of latitude and longitude."""
    rows = max(8, round(np.sqrt(faces / 4)))
    polar, azimuth = np.meshgrid(
        np.linspace(0, np.pi, rows + 1), np.linspace(0, 2 * np.pi, 2 * rows + 1), indexing="ij"
    )
    radius = 0.45 + 0.05 * np.sin(9 * polar) * np.cos(7 * azimuth)
    flat = radius * np.sin(polar)
    points = np.stack(
        [flat * np.cos(azimuth), flat * np.sin(azimuth), radius * np.cos(polar)], axis=2
    ).reshape(-1, 3)
    index = np.arange(len(points)).reshape(polar.shape)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    colours = np.concatenate([0.5 + points, np.ones((len(points), 1))], axis=1)
    normals = points / np.linalg.norm(points, axis=1, keepdims=True)
    return Mesh((Part(points, triangles, normals, None, colours, np.ones(4), None),), np.zeros(3), 1.0)


def seconds(renderer: Renderer, cameras: Cameras, samples: int) -> float:
    start = time.process_time()
    for view in range(len(cameras)):
        renderer.view(cameras, view, samples)
    return (time.process_time() - start) / len(cameras)


def trimesh_seconds(mesh: Mesh, cameras: Cameras) -> float:
    """What one view would cost, from a sixteenth of its rays."""
    made = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    side = cameras.width
    rays = cameras.pixel_rays(0).reshape(side, side, 3)[::_SPARSE, ::_SPARSE].reshape(-1, 3)
    start = time.process_time()
    made.ray.intersects_first(np.broadcast_to(cameras.centres[0], rays.shape), rays)
    return (time.process_time() - start) * _SPARSE**2


def pyrender_seconds(mesh: Mesh, cameras: Cameras) -> tuple[float, float]:
    """What a view costs there at sixteen samples a pixel and at one; NaN where it cannot run."""
    os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")
    try:
        import pyrender
    except (ImportError, AttributeError, OSError):  # PyOpenGL's, where the library is not there
        return np.nan, np.nan
    made = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False, vertex_colors=mesh.parts[0].colours)
    found = []
    for finer in (4, 1):
        side = cameras.width * finer
        scene = pyrender.Scene(bg_color=(0, 0, 0, 0))
        scene.add(pyrender.Mesh.from_trimesh(made))
        lens = pyrender.PerspectiveCamera(np.radians(cameras.fov_deg), aspectRatio=1)
        nodes = [scene.add(part) for part in (lens, pyrender.DirectionalLight(intensity=3))]
        renderer = pyrender.OffscreenRenderer(side, side)
        times = list(_drawn(renderer, scene, nodes, cameras, finer))
        renderer.delete()
        found.append(float(np.mean(times[1:])))  # the first one loads the mesh
    return found[0], found[1]


def _drawn(renderer: Any, scene: Any, nodes: list[Any], cameras: Cameras, finer: int) -> Iterator[float]:
    for view in (0, *range(len(cameras))):
        pose = np.linalg.inv(np.vstack([cameras.world_to_camera[view][:3], [0, 0, 0, 1]]))
        pose[:, 1:3] *= -1  # OpenGL looks along −z
        for node in nodes:
            scene.set_pose(node, pose)
        start = time.process_time()
        colour, depth = renderer.render(scene)
        if finer > 1:
            cv2.resize(colour, (cameras.width, cameras.height), interpolation=cv2.INTER_AREA)
        yield time.process_time() - start
        assert (depth > 0).any(), "it sees the object"


if __name__ == "__main__":
    main()
