"""The soft visual hull: all that the silhouettes leave possible, as a field of signed distances.

Each view says how far a point of space lies inside its silhouette, to a fraction of a pixel; the hull takes the k-th
smallest of these, so that k − 1 views with a damaged mask do no harm. Only voxels near the surface are computed anew
when the grid becomes finer.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from svdcli.errors import InputError
from svdcli.multiview.cameras import Cameras
from svdcli.multiview.o3d import open3d
from svdcli.multiview.sampling import bilinear

_UNKNOWN = np.float32(1e3)
_CHUNK = 1 << 18
_MARGIN = 1.5  # of the first cube around what the masks reach
_FINER = 2  # masks are looked at twice as finely as their pixels, so that half-covered ones count as such


@dataclass(frozen=True)
class Field:
    """Values (X, Y, Z) at low + step · index: positive inside the object, in world units."""

    values: np.ndarray
    low: np.ndarray
    step: float

    @property
    def high(self) -> np.ndarray:
        return self.low + self.step * (np.array(self.values.shape) - 1)

    def points(self, where: np.ndarray) -> np.ndarray:
        """World positions (N, 3) of the voxels where the mask (X, Y, Z) is true."""
        return self.low + self.step * np.argwhere(where)


@dataclass(frozen=True)
class Surface:
    """A triangle mesh without materials: vertices (N, 3), faces (F, 3)."""

    vertices: np.ndarray
    faces: np.ndarray


def visual_hull(alpha: np.ndarray, cameras: Cameras, resolution: int = 128, k: int = 1) -> Field:
    """Masks (V, H, W) in [0, 1] -> the field, `resolution` voxels along the largest side.

    Raises InputError where the silhouettes have nothing in common.
    """
    if not 1 <= k <= max(1, len(cameras) // 2):
        raise ValueError(f"k = {k} of {len(cameras)} views leaves too few to carve with")
    silhouettes = Silhouettes(alpha, cameras, k)
    box = _tight_box(silhouettes, *_first_box(alpha, cameras))
    low, high = box
    step = float((high - low).max()) / (resolution // 4)
    field = _evaluate(silhouettes, low, np.ceil((high - low) / step).astype(int) + 1, step)
    for _ in range(2):
        field = _refined(silhouettes, field)
    return field


class Silhouettes:
    """The masks as signed distances, ready to be asked about points in the world."""

    def __init__(self, alpha: np.ndarray, cameras: Cameras, k: int = 1) -> None:
        self.cameras, self.k = cameras, k
        self._distances = [signed_distance(mask) for mask in alpha]
        self._cut_off = [bool((_border(mask) > 0.5).any()) for mask in alpha]
        self._fewest = max(k + 1, len(cameras) // 3)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) -> the k-th smallest distance (N,) into a silhouette, in world units, negative outside.

        A view that cannot see a point has no say: behind it, or beyond the frame where the frame cuts the object.
        What fewer than a third of the views can see is taken as empty.
        """
        found = np.empty(len(points), np.float32)
        for start in range(0, len(points), _CHUNK):
            part = points[start : start + _CHUNK]
            said = np.stack([self._of_view(part, view) for view in range(len(self.cameras))])
            value = np.partition(said, self.k - 1, axis=0)[self.k - 1]
            unseen = (said >= _UNKNOWN).sum(axis=0) > len(said) - self._fewest
            found[start : start + _CHUNK] = np.where(unseen, -np.float32(1), value)
        return found

    def _of_view(self, points: np.ndarray, view: int) -> np.ndarray:
        pixels, depth = self.cameras.project(points, view)
        distances = self._distances[view]
        value = bilinear(distances, pixels, None)
        size = np.array([self.cameras.width, self.cameras.height])
        beyond = np.linalg.norm(pixels - np.clip(pixels, 0.5, size - 0.5), axis=1)
        value = value - beyond
        if self._cut_off[view]:
            value = np.where(beyond > 0, _UNKNOWN, value)
        value = value * (depth / self.cameras.intrinsics[view, 0, 0])
        return np.where(depth > 1e-6, value, _UNKNOWN).astype(np.float32)


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Coverage (H, W) in [0, 1] -> distance to the outline in pixels, positive inside, exact to about ¼ pixel."""
    height, width = mask.shape
    fine = cv2.resize(
        mask.astype(np.float32), (width * _FINER, height * _FINER), interpolation=cv2.INTER_LINEAR
    )
    inside = np.pad(
        (fine > 0.5).astype(np.uint8), 1
    )  # a distance transform needs one pixel of the other kind
    within = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    without = cv2.distanceTransform(1 - inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    signed = (np.maximum(within - 0.5, 0) - np.maximum(without - 0.5, 0))[1:-1, 1:-1] / _FINER
    return cv2.resize(signed, (width, height), interpolation=cv2.INTER_AREA)


def extract(values: np.ndarray, low: np.ndarray, step: float) -> Surface:
    """The surface where a field is zero. Raises InputError where there is none."""
    padded = np.pad(-values.astype(np.float32), 1, constant_values=step)  # closed at the border of the grid
    mesh = open3d().t.geometry.TriangleMesh.create_isosurfaces(padded, [0.0])
    if mesh.is_empty() or len(mesh.triangle.indices) == 0:
        raise InputError(
            "The silhouettes have nothing in common.", "Run svd points --check: cameras or masks are wrong."
        )
    index = mesh.vertex.positions.numpy()[:, ::-1].astype(float)  # VTK's axes run backwards
    return Surface(index * step + low - step, mesh.triangle.indices.numpy().astype(np.int64))


# ---- where the object is


def _first_box(alpha: np.ndarray, cameras: Cameras) -> tuple[np.ndarray, float]:
    """(centre, half side) of a cube that holds the object: what the masks' middles and reaches say."""
    directions, reaches, weights = [], [], []
    for view, mask in enumerate(alpha):
        rows, columns = np.nonzero(mask > 0.5)
        if len(rows) == 0:
            raise InputError(f"The mask of view {view} is empty.", "Leave this view out, or mend its mask.")
        pixels = np.stack([columns, rows], axis=1) + 0.5
        middle = (pixels.min(axis=0) + pixels.max(axis=0)) / 2
        reaches.append(np.linalg.norm(pixels - middle, axis=1).max() / cameras.intrinsics[view, 0, 0])
        ray = cameras.rays(view, middle[None])[0]
        directions.append(ray / np.linalg.norm(ray))
        weights.append(len(rows))
    across = np.eye(3) - np.einsum("vi,vj->vij", directions, directions)
    centre = np.linalg.lstsq(across.sum(axis=0), np.einsum("vij,vj->i", across, cameras.centres), rcond=None)[
        0
    ]
    distances = np.linalg.norm(cameras.centres - centre, axis=1)
    return centre, float(np.median(np.array(reaches) * distances)) * _MARGIN


def _tight_box(silhouettes: Silhouettes, centre: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """The box of what a coarse hull fills, with a margin; a first cube that is too small grows.

    Where it never closes, as nothing carves what lies beyond the frames of most views, it is what the masks reach.
    """
    first = centre - half / _MARGIN, centre + half / _MARGIN
    for _ in range(4):
        step = 2 * half / 40
        field = _evaluate(silhouettes, centre - half, np.array([41, 41, 41]), step)
        inside = np.argwhere(field.values > -step / 2)
        if len(inside) == 0:
            break
        if inside.min() > 0 and inside.max() < 40:
            return field.low + (inside.min(axis=0) - 1) * step, field.low + (inside.max(axis=0) + 1) * step
        half *= 1.5
    else:
        return first
    raise InputError(
        "The silhouettes have nothing in common.", "Run svd points --check: cameras or masks are wrong."
    )


def _evaluate(silhouettes: Silhouettes, low: np.ndarray, shape: np.ndarray, step: float) -> Field:
    everywhere = np.ones(tuple(int(n) for n in shape), bool)
    field = Field(np.empty(everywhere.shape, np.float32), low, step)
    field.values[everywhere] = silhouettes.inside(field.points(everywhere))
    return field


def _refined(silhouettes: Silhouettes, coarse: Field) -> Field:
    """Half the step: interpolated, and computed anew near the surface."""
    values = coarse.values
    for axis in range(3):
        values = _doubled(values, axis)
    field = Field(values, coarse.low, coarse.step / 2)
    near = np.abs(values) < 2 * coarse.step
    values[near] = silhouettes.inside(field.points(near))
    return field


def _doubled(values: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation: n values -> 2n − 1."""
    first = np.moveaxis(values, axis, 0)
    finer = np.empty((2 * len(first) - 1, *first.shape[1:]), np.float32)
    finer[::2] = first
    finer[1::2] = (first[1:] + first[:-1]) / 2
    return np.moveaxis(finer, 0, axis)


def _border(mask: np.ndarray) -> np.ndarray:
    return np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
