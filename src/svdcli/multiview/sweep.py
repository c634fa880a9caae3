"""The gated plane sweep: depths behind the hull on which the photographs clearly agree.

For each view, surfaces parallel to the hull's are pushed inwards; at each depth the neighbouring views are compared by
normalised cross-correlation of small patches, of their pixels on the object alone, so that a thin part is not judged by
what is behind it. The scores of a view are made smooth along its rows and columns (semi-global matching, Hirschmüller
2008). A depth overrules the hull only where it correlates well and clearly better than the hull's own, and where another
view finds the same place; where the object has no texture nothing is overruled. `fusion` puts the views together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from svdcli.multiview.cameras import Cameras, pixel_centres
from svdcli.multiview.hull import Surface
from svdcli.multiview.o3d import cast_depths, raycaster
from svdcli.multiview.views import Views

SIDE = 256
"""Pixels along the longer side of the views that are compared."""
NUM_DEPTHS = 40
REACH = 0.36
"""How far behind the hull is looked, in parts of the object's largest side."""
MAX_REFERENCES = 24
"""Of more views than this, not all are swept."""
PATCH = 7
AGREEMENT, MARGIN = 0.3, 0.05
"""The gate: a correlation of at least the one, and smoothed better than the hull's by the other."""
SAME_PLACE = 0.02
"""How near two views' depths are that support each other, in parts of the object's largest side."""
_NOISE = 5e-5  # variance of a patch under which it has no texture
_COLOUR_WEIGHT = 1.5  # how much a difference of the patches' mean counts against their correlation
_STEP_COST, _JUMP_COST = 0.05, 0.4  # of moving by one depth to the next pixel, and of a jump
_STEPS = 3  # depths between neighbouring pixels that are no jump
_EDGE = 20.0  # how much cheaper a jump is where the picture has an edge


@dataclass(frozen=True)
class DepthMap:
    """What one view says: depth (H, W) of the surface along its axis, nan where it has no say; `hull`, the hull's own,
    inf where it is not; `overrules` (H, W), where the one is behind the other."""

    view: int
    depth: np.ndarray
    hull: np.ndarray
    overrules: np.ndarray


def swept(surface: Surface, views: Views) -> list[DepthMap]:
    """What the views, at the size at which they are compared, say of the hull's `surface`."""
    size = float((surface.vertices.max(axis=0) - surface.vertices.min(axis=0)).max())
    scene = raycaster(surface.vertices, surface.faces)
    centre = surface.vertices.mean(axis=0)
    neighbours = nearest_views(views.cameras, centre)
    references = np.arange(0, len(views), -(-len(views) // MAX_REFERENCES))
    maps = []
    for view in map(int, references):
        rays = views.cameras.pixel_rays(view)
        hull = cast_depths(scene, np.broadcast_to(views.cameras.centres[view], rays.shape), rays)
        maps.append(_swept(views, view, neighbours[view], hull.reshape(views.alpha.shape[1:]), size))
    near = nearest_views(views.cameras.take(references), centre)
    return [
        _supported(one, [maps[k] for k in others], views.cameras, SAME_PLACE * size)
        for one, others in zip(maps, near, strict=True)
    ]


def nearest_views(cameras: Cameras, centre: np.ndarray, count: int = 4) -> np.ndarray:
    """For each view the others that see the object from the most similar direction: (V, count)."""
    towards = cameras.centres - centre
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    cosine = towards @ towards.T
    np.fill_diagonal(cosine, -2)
    return np.argsort(-cosine, axis=1, kind="stable")[:, : min(count, len(cameras) - 1)]


def _swept(views: Views, view: int, neighbours: np.ndarray, hull: np.ndarray, size: float) -> DepthMap:
    depth, overrules = np.full(hull.shape, np.nan, np.float32), np.zeros(hull.shape, bool)
    seen = np.isfinite(hull)
    if not seen.any():
        return DepthMap(view, depth, hull, overrules)
    box = _box(seen, PATCH)
    steps = np.linspace(0, REACH * size, NUM_DEPTHS)
    score = _agreement(views, view, neighbours, hull, box, steps)
    smooth = smoothed(score, seen[box], views.pixels[view][box].mean(axis=2))
    best = smooth.argmax(axis=0)
    top, gain = (np.take_along_axis(s, best[None], axis=0)[0] for s in (score, smooth - smooth[0]))
    over = seen[box] & (top > AGREEMENT) & (gain > MARGIN) & (best > 0) & (best < NUM_DEPTHS - 1)
    over &= cv2.boxFilter(over.astype(np.float32), -1, (5, 5)) > 0.4  # a lone pixel is chance
    confirms = seen[box] & (best == 0) & (score[0] > AGREEMENT)
    depth[box][confirms] = hull[box][confirms]
    depth[box][over] = (hull[box] + _between(smooth, best) * steps[1])[over]
    overrules[box] = over
    return DepthMap(view, depth, hull, overrules)


def _box(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns around what is true."""
    rows, columns = np.nonzero(mask)
    return (
        slice(max(0, rows.min() - margin), rows.max() + margin + 1),
        slice(max(0, columns.min() - margin), columns.max() + margin + 1),
    )


def _between(score: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The place of the maximum between the steps, from a parabola through three scores."""
    inner = np.clip(best, 1, len(score) - 2)
    before, here, after = (np.take_along_axis(score, (inner + k)[None], axis=0)[0] for k in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend < -1e-6)
    return inner + np.clip(shift, -0.5, 0.5)


def _agreement(
    views: Views,
    view: int,
    neighbours: np.ndarray,
    hull: np.ndarray,
    box: tuple[slice, slice],
    steps: np.ndarray,
) -> np.ndarray:
    """How well the neighbours' pictures fit this one if its pixels lie each of `steps` behind the hull: (steps, h, w) of
    the box, about −1 to 1. The better half of the neighbours counts, because the others may be hidden."""
    cameras, place = views.cameras, np.isfinite(hull[box])
    patches = _Patches(place)
    own = patches.of(views.pixels[view][box])
    pixels = pixel_centres(cameras.width, cameras.height).reshape(*hull.shape, 2)[box][place]
    rays = cameras.rays(view, pixels)
    lines = [_Lines.through(cameras, view, rays, int(other)) for other in neighbours]
    found = np.empty((len(steps), *place.shape), np.float32)
    at = np.full((2, *place.shape), -1.0, np.float32)
    for index, step in enumerate(steps):
        depth = (hull[box][place] + step).astype(np.float32)
        scores = []
        for other, line in zip(neighbours, lines, strict=True):
            at[:, place] = line.at(depth) - 0.5
            warped = cv2.remap(
                views.pixels[other], at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            scores.append(patches.likeness(own, patches.of(warped)))
        ranked = np.sort(np.stack(scores), axis=0)[::-1]
        found[index] = ranked[: max(1, (len(ranked) + 1) // 2)].mean(axis=0)
    return found


@dataclass(frozen=True)
class _Lines:
    """Where rays of one view lie in another: at depth d, pixel (start + d · slope), homogeneous. start: (3, 1). slope: (3, N)."""

    start: np.ndarray
    slope: np.ndarray

    @classmethod
    def through(cls, cameras: Cameras, view: int, rays: np.ndarray, other: int) -> _Lines:
        pose, K = cameras.world_to_camera[other], cameras.intrinsics[other]
        start = K @ (pose[:3, :3] @ cameras.centres[view] + pose[:3, 3])
        slope = (K @ pose[:3, :3]) @ rays.T
        return cls(start[:, None].astype(np.float32), slope.astype(np.float32))

    def at(self, depth: np.ndarray) -> np.ndarray:
        """Depths (N,) -> pixels (2, N)."""
        place = self.start + self.slope * depth
        return place[:2] / np.maximum(place[2], 1e-6)


@dataclass(frozen=True)
class _Means:
    """Of the patch around each pixel: grey (h, w) of the picture itself, mean colours (h, w, 3), mean and variance of grey."""

    grey: np.ndarray
    colours: np.ndarray
    mean: np.ndarray
    variance: np.ndarray


class _Patches:
    """What is compared: patches, of the pixels on the object alone."""

    def __init__(self, place: np.ndarray) -> None:
        self._place = place.astype(np.float32)
        self._share = 1 / np.maximum(self._sum(self._place), 1e-3)

    def of(self, picture: np.ndarray) -> _Means:
        """Pixels (h, w, 3)."""
        inside = picture * self._place[..., None]
        grey, colours = _grey(inside), self._sum(inside) * self._share[..., None]
        mean = _grey(colours)
        variance = np.maximum(self._sum(grey * grey) * self._share - mean**2, 0)
        return _Means(grey, colours, mean, variance)

    def likeness(self, one: _Means, other: _Means) -> np.ndarray:
        """Correlation, less the difference of the mean colours."""
        covariance = self._sum(one.grey * other.grey) * self._share - one.mean * other.mean
        correlation = covariance / np.sqrt((one.variance + _NOISE) * (other.variance + _NOISE))
        return correlation - _COLOUR_WEIGHT * _grey(np.abs(one.colours - other.colours))

    @staticmethod
    def _sum(image: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(image, -1, (PATCH, PATCH))


def _grey(colours: np.ndarray) -> np.ndarray:
    return cv2.transform(colours, np.full((1, 3), 1 / 3, np.float32))


def smoothed(score: np.ndarray, place: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Semi-global matching of scores (D, h, w), higher is better: the mean of four sweeps, along and across, there and
    back, each adding to a pixel's score the best that leads to it. Sweeps begin anew where `place` is left."""
    score = np.where(place, score, 0)
    total = np.zeros_like(score)
    for axis in (0, 1):
        scores, inside, picture = (
            np.moveaxis(score, axis + 1, 0),
            np.moveaxis(place, axis, 0),
            np.moveaxis(grey, axis, 0),
        )
        jump = _JUMP_COST / (1 + _EDGE * np.abs(np.diff(picture, axis=0)))
        joined = inside[1:] & inside[:-1]
        for back in (False, True):
            turn = slice(None, None, -1 if back else 1)
            path = _path(scores[turn], joined[turn], jump[turn])
            total += np.moveaxis(path[turn], 0, axis + 1)
    return total / 4


def _path(scores: np.ndarray, joined: np.ndarray, jump: np.ndarray) -> np.ndarray:
    """One sweep along the first axis: scores (n, D, m), whether a line goes on from the one before and what a jump costs
    there (n − 1, m)."""
    found = scores.copy()
    for line in range(1, len(scores)):
        before = found[line - 1]
        top = before.max(axis=0)
        best = np.maximum(before, top - jump[line - 1])
        for k in range(1, _STEPS + 1):
            np.maximum(best[k:], before[:-k] - k * _STEP_COST, out=best[k:])
            np.maximum(best[:-k], before[k:] - k * _STEP_COST, out=best[:-k])
        found[line] += np.where(joined[line - 1], best - top, 0)
    return found


def _supported(one: DepthMap, others: list[DepthMap], cameras: Cameras, tolerance: float) -> DepthMap:
    """Without the depths that overrule the hull where no other view has a surface at that place."""
    pixels = pixel_centres(cameras.width, cameras.height)[one.overrules.ravel()]
    points = cameras.centres[one.view] + cameras.rays(one.view, pixels) * one.depth[one.overrules][:, None]
    supported = np.zeros(len(points), bool)
    for other in others:
        said, depth = said_of(other, points, cameras)
        supported |= np.abs(said - depth) < tolerance
    kept = one.depth.copy()
    kept[one.overrules] = np.where(supported, kept[one.overrules], np.nan)
    return replace(one, depth=kept)


def said_of(one: DepthMap, points: np.ndarray, cameras: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) -> the map's depth at their pixels (N,), nan where it has none, and their own depth (N,)."""
    pixels, depth = cameras.project(points, one.view)
    column, row = np.floor(pixels).astype(int).T
    framed = (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
    said = np.full(len(points), np.nan, np.float32)
    said[framed] = one.depth[row[framed], column[framed]]
    return said, depth
