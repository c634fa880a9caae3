"""Objects with a closed form: a textured cube, a sphere; and views of them, small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("open3d", reason="multi-view needs svdcli[multiview]")
trimesh = pytest.importorskip("trimesh", reason="multi-view needs svdcli[multiview]")

from PIL import Image  # noqa: E402

from svdcli.multiview.cameras import static_orbit  # noqa: E402
from svdcli.multiview.meshes import Mesh, Part, load_mesh  # noqa: E402
from svdcli.multiview.render import render  # noqa: E402
from svdcli.multiview.views import Views  # noqa: E402


def plain_mesh(vertices: np.ndarray, faces: np.ndarray, base: tuple[float, ...] = (1, 1, 1, 1)) -> Mesh:
    """One part of one colour, normals from trimesh."""
    made = trimesh.Trimesh(vertices, faces, process=False)
    part = Part(
        np.asarray(made.vertices), np.asarray(made.faces), np.array(made.vertex_normals), None, None,
        np.array(base, float), None, "opaque" if base[3] == 1 else "blend",
    )  # fmt: skip
    return Mesh((part,), np.zeros(3), 1.0)


@pytest.fixture(scope="session")
def plain() -> Callable[..., Mesh]:
    """`plain_mesh`, for tests."""
    return plain_mesh


@pytest.fixture(scope="session")
def sphere() -> Mesh:
    """White, of radius ½, 20 480 faces: within 0.0004 of the true one."""
    made = trimesh.creation.icosphere(5, 0.5)
    return plain_mesh(made.vertices, made.faces)


@pytest.fixture(scope="session")
def cube_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube of side 2, each face with the same noisy texture of 64 texels, as GLB."""
    rng = np.random.default_rng(0)
    noise = np.kron(rng.integers(40, 250, (16, 16, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    made = trimesh.creation.box((2, 2, 2))
    made.unmerge_vertices()
    uv = np.zeros((len(made.vertices), 2))
    for face, normal in zip(made.faces, made.face_normals, strict=True):
        across = [axis for axis in range(3) if abs(normal[axis]) < 0.5]
        uv[face] = (made.vertices[face][:, across] + 1) / 2
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(noise))
    made.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    path = tmp_path_factory.mktemp("meshes") / "cube.glb"
    made.export(path)
    return path


@pytest.fixture(scope="session")
def cube(cube_file: Path) -> Mesh:
    return load_mesh(cube_file)


def views_of(mesh: Mesh, elevation: float = 15, num_views: int = 12, side: int = 96) -> Views:
    orbit = static_orbit(elevation, num_views)
    cameras = orbit.cameras(orbit.enclosing_radius(mesh.vertices), side=side)
    rgba = np.stack([view.rgba for view in render(mesh, cameras)]).astype(np.float32) / 255
    alpha = rgba[..., 3]
    pixels = rgba[..., :3] * alpha[..., None] + 1 - alpha[..., None]
    return Views(pixels, alpha, cameras, tuple(f"view_{i:03d}.png" for i in range(num_views)))


@pytest.fixture(scope="session")
def cube_views(cube: Mesh) -> Views:
    return views_of(cube)


@pytest.fixture(scope="session")
def wedge_views() -> Views:
    """An object that looks different from every side: three boxes, of different sizes, in a corner's arrangement."""
    boxes = [
        ((0.9, 0.35, 0.3), (0, 0, -0.2)),
        ((0.2, 0.8, 0.25), (0.35, 0.2, -0.2)),
        ((0.2, 0.2, 0.6), (-0.3, 0.05, 0.2)),
    ]
    parts = [
        trimesh.creation.box(size, trimesh.transformations.translation_matrix(place)) for size, place in boxes
    ]
    made = trimesh.util.concatenate(parts)
    return views_of(plain_mesh(made.vertices - made.bounds.mean(axis=0), made.faces), elevation=20)
