"""What the photographs cut away from the hull: the depths of all views as votes in the field.

The mean of the votes (a truncated signed distance) cuts where it lies behind the hull. Two things no photograph can
show are mended after that: hollows without a way out, and silhouettes that lost a pixel, which is how votes that are a
little too deep on both sides make a hole in a thin part.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from scipy.ndimage import label

from svdcli.multiview.cameras import Cameras
from svdcli.multiview.hull import Field, Surface, extract
from svdcli.multiview.o3d import cast_depths, raycaster
from svdcli.multiview.sweep import SIDE, DepthMap, said_of, swept
from svdcli.multiview.views import Views

_REACH = 4  # steps of the grid over which a vote counts
_ROUNDS = 2  # of restoring what the silhouettes need
_CORE, _SKIN = 0.6, 0.25  # steps inside that a voxel put back is, and its six neighbours
_PER_STEP = 1.5  # samples of a ray for each step of the grid
_CROSS = ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


def carve(field: Field, surface: Surface, views: Views) -> np.ndarray:
    """The field (X, Y, Z) with what the photographs cut away; `surface` is the field's own zero."""
    small = views.scaled(SIDE)
    maps = swept(surface, small)
    cut = np.maximum(field.values - _voted(field, maps, small.cameras), 0)
    values = without_hollows(field.values - _blurred(cut), field.step)
    for _ in range(_ROUNDS):
        values = restored(field, values, maps, small.cameras)
    return values


def _voted(field: Field, maps: list[DepthMap], cameras: Cameras) -> np.ndarray:
    """The mean of the votes (X, Y, Z), the field's own value where there are none."""
    reach = _REACH * field.step
    inside = field.values > -field.step
    points = field.points(inside)
    total, weight = np.zeros(len(points), np.float32), np.zeros(len(points), np.float32)
    for one in maps:
        said, depth = said_of(one, points, cameras)
        behind = depth - said
        counts = np.isfinite(behind) & (behind < reach)
        total[counts] += np.clip(behind[counts], -reach, reach)
        weight[counts] += 1
    values = field.values.copy()
    values[inside] = np.divide(total, weight, out=values[inside], where=weight > 0)
    return values


def without_hollows(values: np.ndarray, step: float) -> np.ndarray:
    """A field (X, Y, Z), filled where it is empty and no way leads outside: what no camera can have seen into."""
    pieces, _ = label(np.pad(values <= 0, 1, constant_values=True))
    hollow = (pieces[1:-1, 1:-1, 1:-1] != pieces[0, 0, 0]) & (values <= 0)
    return np.where(hollow, np.float32(step / 2), values)


def restored(field: Field, values: np.ndarray, maps: list[DepthMap], cameras: Cameras) -> np.ndarray:
    """Where a ray met the hull and meets nothing now, the voxel on it that was cut least is put back."""
    surface = extract(values, field.low, field.step)
    scene = raycaster(surface.vertices, surface.faces)
    whole = values.copy()
    for one in maps:
        lost = _lost(one, scene, cameras)
        rays = cameras.pixel_rays(one.view)[lost]
        start = cameras.centres[one.view] + rays * one.hull.ravel()[lost, None]
        voxels = _least_cut(field, values, start, rays)
        for shift in _CROSS:
            index = tuple(np.clip(voxels + shift, 0, np.array(values.shape) - 1).T)
            depth = field.step * (_SKIN if any(shift) else _CORE)
            np.maximum.at(whole, index, np.minimum(field.values[index], np.float32(depth)))
    return whole


def _lost(one: DepthMap, scene: Any, cameras: Cameras) -> np.ndarray:
    """Pixels (H·W,) that showed the hull and now show nothing, but for the last one along an outline."""
    rays, centre = cameras.pixel_rays(one.view), cameras.centres[one.view]
    now = cast_depths(scene, np.broadcast_to(centre, rays.shape), rays).reshape(one.hull.shape)
    lost = np.isfinite(one.hull) & ~np.isfinite(now)
    return cv2.morphologyEx(lost.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)).ravel() > 0


def _least_cut(field: Field, values: np.ndarray, start: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Along rays (N, 3) from points (N, 3) on the hull, the voxels (M, 3) inside it with the greatest value, where any is."""
    best = np.full(len(rays), -np.inf, np.float32)
    voxels = np.zeros((len(rays), 3), int)
    last = np.array(values.shape) - 1
    for k in range(int(_PER_STEP * np.linalg.norm(last))):
        index = np.rint(
            (start + rays * (field.step * (k + 0.5) / _PER_STEP) - field.low) / field.step
        ).astype(int)
        within = ((index >= 0) & (index <= last)).all(axis=1)
        place = tuple(np.clip(index, 0, last).T)
        value = np.where(within & (field.values[place] > 0), values[place], -np.inf)
        better = value > best
        best[better], voxels[better] = value[better], index[better]
    return voxels[np.isfinite(best)]


def _blurred(values: np.ndarray) -> np.ndarray:
    """A small binomial blur along each axis, for the steps that votes leave."""
    for axis in range(3):
        padded = np.concatenate([values.take([0], axis), values, values.take([-1], axis)], axis)
        n = values.shape[axis]
        before, here, after = (padded.take(np.arange(k, k + n), axis) for k in range(3))
        values = (before + 2 * here + after) / 4
    return values
