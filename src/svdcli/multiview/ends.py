"""Flat ends: what an orbit cannot see from above or below is cut level, as far as no silhouette changes.

An orbit at one elevation leaves a cone below every flat bottom and above every flat top: under the feet, but also under
a truck's floor, under a roof, on a seat. Of all that the silhouettes allow, the level cut is the least, and for things
that stand it is the likeliest. First the whole object is cut below and above, exactly, by the rays of its silhouettes.
Then the field is peeled in layers from above and from below: where it slopes no more than a ray that grazes a level rim
does, what is open to that side is taken away until a layer comes whose rim the silhouettes need. Where no such layer
comes, or the hollow would be deeper than a cone over that layer, all is put back.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, label

from svdcli.multiview.cameras import Cameras
from svdcli.multiview.hull import Field, extract
from svdcli.multiview.o3d import cast_depths, raycaster

_SIDE = 192  # pixels of the silhouettes that the cut of the whole may not change
_LOSS = 1e-4  # part of the silhouettes' area that it may lose
_SLACK_DEG = 5.0  # how much steeper than a grazing ray the surface of a cone may be, on a grid
_NEXT = 2  # voxels around a cone that are taken as part of its layer, so that a rim is
_CUT, _FOUND = (
    0.1,
    0.3,
)  # parts of a layer's free edge that silhouettes need: to go on at most, and to be a rim
_LEAST = 0.01  # area of a flat beside the square of the largest side: cones on smaller ones are lower than a hundredth
_STEEPEST = 1.5  # how much deeper than a round cone a hollow may be
_INSET = 0.1  # steps that the surface lies outside the last layer's middle
_EIGHT = np.ones((3, 3), bool)


def with_flat_ends(field: Field, alpha: np.ndarray, cameras: Cameras) -> np.ndarray:
    """Masks (V, H, W) -> the field's values (X, Y, Z) with unseen ends cut level, those of the whole and of its parts."""
    cut = Field(_cut_whole(field, alpha, cameras), field.low, field.step)
    return _cut_parts(cut, alpha, cameras)


# ---- the whole


def _cut_whole(field: Field, alpha: np.ndarray, cameras: Cameras) -> np.ndarray:
    """The field cut below and above as far inwards as no silhouette changes: it changes where all of what a pixel's ray
    meets is taken, and that is known by the ray's two ends."""
    surface = extract(field.values, field.low, field.step)
    scene = raycaster(surface.vertices, surface.faces)
    size = (_SIDE, max(1, round(_SIDE * cameras.height / cameras.width)))
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


# ---- its parts


def _cut_parts(field: Field, alpha: np.ndarray, cameras: Cameras) -> np.ndarray:
    solid = field.values > 0
    counts = _Support(field, solid, alpha, cameras)
    kept = solid.copy()
    loose, slope = _grazing(field, cameras)
    for upwards in (False, True):
        _peel(kept, counts, loose, slope, upwards)
    removed = solid & ~kept
    if not removed.any():
        return field.values
    cut = (distance_transform_edt(~removed) - distance_transform_edt(removed)).astype(np.float32)
    return np.minimum(field.values, np.where(removed, cut + _INSET, cut - 1 + _INSET) * field.step)


class _Support:
    """How many voxels stand behind each pixel of the silhouettes."""

    def __init__(self, field: Field, solid: np.ndarray, alpha: np.ndarray, cameras: Cameras) -> None:
        self._field = field
        side = max(field.values.shape)  # about a pixel a voxel
        height, width = alpha.shape[1:]
        factor = min(1.0, side / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        self._cameras = cameras.resized(*size)
        masks = [cv2.resize(mask, size, interpolation=cv2.INTER_AREA) > 0.5 for mask in alpha]
        self._mask = np.append(np.stack(masks).ravel(), False)  # the last is all that is outside the frames
        self._count = np.bincount(self.pixels(np.argwhere(solid)).ravel(), minlength=len(self._mask))
        self._mask &= self._count > 0

    def pixels(self, voxels: np.ndarray) -> np.ndarray:
        """Voxels (N, 3) -> the pixels (V, N) that they project to, numbered through all views, or the one for outside."""
        points = self._field.low + self._field.step * voxels
        width, height = self._cameras.width, self._cameras.height
        found = np.empty((len(self._cameras), len(points)), np.int64)
        for view in range(len(self._cameras)):
            place, _ = self._cameras.project(points, view)
            column, row = np.floor(place).astype(int).T
            framed = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            found[view] = np.where(framed, (view * height + row) * width + column, len(self._mask) - 1)
        return found

    def needed(self, pixels: np.ndarray) -> np.ndarray:
        """Of voxels at `pixels` (V, N): whether some silhouette's pixel has nothing but these (N,)."""
        those, place, counts = np.unique(pixels, return_inverse=True, return_counts=True)
        lost = self._mask[those] & (self._count[those] <= counts)
        return np.asarray(lost[place.reshape(pixels.shape)].any(axis=0))

    def add(self, pixels: np.ndarray, sign: int) -> None:
        """Count voxels at `pixels` (V, N) in or out."""
        self._count += sign * np.bincount(pixels.ravel(), minlength=len(self._count))


def _grazing(field: Field, cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (X, Y, Z) around which the hull is no steeper than rays that graze a level rim leave it."""
    gradient = np.stack(np.gradient(gaussian_filter(field.values, 1.0)))
    steep = np.arctan2(np.hypot(gradient[0], gradient[1]), np.abs(gradient[2]))
    inside = field.points(field.values > 0)
    reach = np.linalg.norm(inside[:, :2] - inside[:, :2].mean(axis=0), axis=1).max()
    far = np.maximum(
        np.linalg.norm(cameras.centres[:, :2] - inside[:, :2].mean(axis=0), axis=1) - reach, 1e-6
    )
    z = field.low[2] + field.step * np.arange(field.values.shape[2])
    graze = np.arctan(np.abs(cameras.centres[:, 2] - z[:, None]) / far).min(axis=1)
    return np.asarray(steep < graze + np.radians(_SLACK_DEG)), np.tan(graze)


def _is_cone(area: int, depth: int, slope: float, side: int) -> bool:
    """Whether what was cut away, so many layers above a flat of so many voxels, is no more than what rays leave there."""
    return area >= _LEAST * side**2 and bool(depth <= _STEEPEST * np.sqrt(area / np.pi) * slope + 2)


def _peel(kept: np.ndarray, counts: _Support, loose: np.ndarray, slope: np.ndarray, upwards: bool) -> None:
    """Take away, in place, layer by layer, from above or `upwards` from below."""
    layers = range(kept.shape[2]) if upwards else range(kept.shape[2] - 1, -1, -1)
    before = np.zeros(kept.shape[:2], bool)
    depth = np.zeros(kept.shape[:2], int)  # how many layers of a column are cut, in the hope of a rim
    for layer in layers:
        here = kept[:, :, layer]
        open_ = here & ~before & (loose[:, :, layer] | (depth > 0))
        pieces, number = label(here & ~before & binary_dilation(open_, _EIGHT, iterations=_NEXT), _EIGHT)
        free = here & binary_dilation(~here & ~before, _EIGHT)
        hopeless = depth > 0
        for piece in range(1, number + 1):
            place = pieces == piece
            edge = int(free[place].sum())
            pixels = counts.pixels(_voxels(place, layer))
            share = counts.needed(pixels).sum() / max(1, edge)
            if edge and share <= _CUT:
                counts.add(pixels, -1)
                here[place] = False
                depth[place] += 1
                hopeless[place] = False
            elif share > _FOUND and _is_cone(place.sum(), depth[place].max(), slope[layer], max(kept.shape)):
                hopeless[place] = False
                depth[place] = 0
        for back in range(1, int(depth[hopeless].max(initial=0)) + 1):
            column = hopeless & (depth >= back)
            above = layer - back if upwards else layer + back
            counts.add(counts.pixels(_voxels(column, above)), 1)
            kept[:, :, above][column] = True
        depth[hopeless] = 0
        before = here.copy()


def _voxels(columns: np.ndarray, layer: int) -> np.ndarray:
    """Columns (X, Y) -> their voxels (N, 3) of a layer."""
    found = np.argwhere(columns)
    return np.column_stack([found, np.full(len(found), layer)])
