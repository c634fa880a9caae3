"""From a field to a clean surface: flat ends, smoothing, specks removed."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from svdcli.multiview.cameras import Cameras
from svdcli.multiview.hull import Field, Surface, extract
from svdcli.multiview.o3d import cast_depths, open3d, raycaster

_ENDS_SIDE = 192  # pixels of the silhouettes that a cut may not change
_LOSS = 1e-4  # part of the silhouettes' area that a cut may lose
_SMALLEST = 0.01  # part of the largest piece's area below which a piece is a speck
_TAUBIN_ROUNDS = 5


def clean_surface(values: np.ndarray, field: Field) -> Surface:
    """The zero surface, a little smoothed (Taubin), without the pieces that are specks."""
    smooth = _blurred(values)
    surface = without_specks(extract(smooth, field.low, field.step))
    mesh = _mesh(surface)
    mesh = mesh.filter_smooth_taubin(_TAUBIN_ROUNDS)
    return Surface(np.asarray(mesh.vertices), np.asarray(mesh.triangles).astype(np.int64))


def without_specks(surface: Surface) -> Surface:
    """Only pieces of at least one hundredth of the largest one's area."""
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


def with_flat_ends(field: Field, alpha: np.ndarray, cameras: Cameras) -> np.ndarray:
    """The field cut level below and above, each as far inwards as no silhouette changes; masks (V, H, W).

    An orbit at one elevation sees no flat bottom, and leaves a cone there; nor does it tell a flat top from a low cone.
    Of all that the silhouettes allow, the level cut is the least, and for things that stand it is the likeliest. A cut
    changes a silhouette where it takes all of what a pixel's ray meets, and that is known by the ray's two ends.
    """
    surface = extract(field.values, field.low, field.step)
    scene = raycaster(surface.vertices, surface.faces)
    size = (_ENDS_SIDE, max(1, round(_ENDS_SIDE * cameras.height / cameras.width)))
    cameras = cameras.resized(*size)
    ends = [
        _ends(scene, cameras, view, cv2.resize(mask, size, interpolation=cv2.INTER_AREA) > 0.5)
        for view, mask in enumerate(alpha)
    ]
    z = np.concatenate(ends)
    heights = field.low[2] + field.step * np.arange(field.values.shape[2])
    bottom, top = np.quantile(z.max(axis=1), _LOSS), np.quantile(z.min(axis=1), 1 - _LOSS)
    level = np.minimum(heights - bottom, top - heights).astype(np.float32)
    return np.minimum(field.values, level)


def _ends(scene: Any, cameras: Cameras, view: int, mask: np.ndarray) -> np.ndarray:
    """Heights (N, 2) at which the rays of the mask's pixels enter the hull and leave it for good."""
    centre, rays = cameras.centres[view], cameras.pixel_rays(view)[mask.ravel()]
    far = 2 * np.linalg.norm(centre) + 10
    entry = cast_depths(scene, np.broadcast_to(centre, rays.shape), rays)
    leave = far - cast_depths(scene, centre + far * rays, -rays)
    met = np.isfinite(entry) & np.isfinite(leave)
    return centre[2] + np.stack([entry[met], leave[met]], axis=1) * rays[met, 2:]


def _blurred(values: np.ndarray) -> np.ndarray:
    """A small binomial blur along each axis, for the steps that votes leave."""
    for axis in range(3):
        padded = np.concatenate([values.take([0], axis), values, values.take([-1], axis)], axis)
        n = values.shape[axis]
        before, here, after = (padded.take(np.arange(k, k + n), axis) for k in range(3))
        values = (before + 2 * here + after) / 4
    return values
