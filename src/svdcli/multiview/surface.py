"""From a field to a clean surface: specks removed, smoothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from svdcli.multiview.hull import Field, Surface, extract
from svdcli.multiview.o3d import open3d

_SMALLEST = 0.001  # part of the largest piece's area below which a piece is a speck
_TAUBIN_ROUNDS = 5


def clean_surface(values: np.ndarray, field: Field) -> Surface:
    """The zero surface, a little smoothed (Taubin), without the pieces that are specks."""
    surface = without_specks(extract(values, field.low, field.step))
    mesh = _mesh(surface)
    mesh = mesh.filter_smooth_taubin(_TAUBIN_ROUNDS)
    return Surface(np.asarray(mesh.vertices), np.asarray(mesh.triangles).astype(np.int64))


def without_specks(surface: Surface) -> Surface:
    """Only pieces of at least a thousandth of the largest one's area."""
    mesh = _mesh(surface)
    piece, _, areas = mesh.cluster_connected_triangles()
    large = np.asarray(areas) >= _SMALLEST * np.max(areas)
    mesh.remove_triangles_by_mask(~large[np.asarray(piece)])
    mesh.remove_unreferenced_vertices()
    return Surface(np.asarray(mesh.vertices), np.asarray(mesh.triangles).astype(np.int64))


def vertex_normals(surface: Surface) -> np.ndarray:
    """Unit normals (N, 3), outwards, the mean of the faces around each vertex."""
    mesh = _mesh(surface)
    mesh.compute_vertex_normals()
    return np.asarray(mesh.vertex_normals)


def _mesh(surface: Surface) -> Any:
    """As Open3D has it."""
    o3d = open3d()
    return o3d.geometry.TriangleMesh(
        o3d.utility.Vector3dVector(surface.vertices), o3d.utility.Vector3iVector(surface.faces)
    )
