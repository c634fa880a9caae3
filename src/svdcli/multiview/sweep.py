"""The gated plane sweep: where the photographs clearly agree on a depth behind the hull, the hull yields.

For every second view, surfaces parallel to the hull's are pushed inwards; at each depth the neighbouring views are
compared by normalised cross-correlation of small patches. A depth overrules the hull only where it correlates well and
clearly better than the hull's own; where the object has no texture nothing is overruled. The accepted depths vote in
the field (a truncated signed distance), beside the views that confirm the hull.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from svdcli.multiview.cameras import Cameras, pixel_centres
from svdcli.multiview.hull import Field, Surface
from svdcli.multiview.o3d import cast_depths, raycaster
from svdcli.multiview.sampling import bilinear
from svdcli.multiview.views import Views

SIDE = 192
"""Pixels along the longer side of the views that are compared."""
NUM_DEPTHS = 28
REACH = 0.32
"""How far behind the hull is looked, in parts of the object's largest side."""
EVERY = 2
PATCH = 5
AGREEMENT, MARGIN = 0.55, 0.12
"""The gate: a correlation of at least the one, and better than the hull's by the other."""
_NOISE = 2e-4  # variance of a patch under which it has no texture
_COLOUR_WEIGHT = 1.5  # how much a difference of the patches' mean counts against their correlation


@dataclass(frozen=True)
class Vote:
    """What one view says: depth (H, W) of the surface along its axis, nan where it has no say."""

    view: int
    depth: np.ndarray


def carve(field: Field, surface: Surface, views: Views) -> np.ndarray:
    """The field (X, Y, Z) with what the photographs cut away; `surface` is the field's own zero."""
    small = views.scaled(SIDE)
    size = float((surface.vertices.max(axis=0) - surface.vertices.min(axis=0)).max())
    depths = hull_depths(surface, small.cameras)
    neighbours = nearest_views(small.cameras, surface.vertices.mean(axis=0))
    votes = [_vote(small, view, neighbours[view], depths[view], size) for view in range(0, len(small), EVERY)]
    return _fused(field, small.cameras, votes)


def hull_depths(surface: Surface, cameras: Cameras) -> np.ndarray:
    """Depth of a surface in each view, at pixel centres: (V, H, W), inf where it is not."""
    scene = raycaster(surface.vertices, surface.faces)
    maps = []
    for view in range(len(cameras)):
        rays = cameras.pixel_rays(view)
        hit = cast_depths(scene, np.broadcast_to(cameras.centres[view], rays.shape), rays)
        maps.append(hit.reshape(cameras.height, cameras.width))
    return np.stack(maps)


def nearest_views(cameras: Cameras, centre: np.ndarray, count: int = 4) -> np.ndarray:
    """For each view the others that see the object from the most similar direction: (V, count)."""
    towards = cameras.centres - centre
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    cosine = towards @ towards.T
    np.fill_diagonal(cosine, -2)
    return np.argsort(-cosine, axis=1, kind="stable")[:, : min(count, len(cameras) - 1)]


def _vote(views: Views, view: int, neighbours: np.ndarray, hull: np.ndarray, size: float) -> Vote:
    steps = np.linspace(0, REACH * size, NUM_DEPTHS)
    score = np.stack([_agreement(views, view, neighbours, hull + step) for step in steps])
    best = score[1:].argmax(axis=0) + 1
    top = np.take_along_axis(score, best[None], axis=0)[0]
    seen = np.isfinite(hull)
    overrules = seen & (top > AGREEMENT) & (top - score[0] > MARGIN) & (best < NUM_DEPTHS - 1)
    share = cv2.boxFilter(overrules.astype(np.float32), -1, (5, 5))
    overrules &= share > 0.4  # a lone pixel is chance
    confirms = seen & ~overrules & (score[0] > AGREEMENT)
    depth = np.full(hull.shape, np.nan, np.float32)
    depth[confirms] = hull[confirms]
    depth[overrules] = (hull + _between(score, best) * steps[1])[overrules]
    return Vote(view, depth)


def _between(score: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The place of the maximum between the steps, from a parabola through three scores."""
    inner = np.clip(best, 1, len(score) - 2)
    before, here, after = (np.take_along_axis(score, (inner + k)[None], axis=0)[0] for k in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend < -1e-6)
    return inner + np.clip(shift, -0.5, 0.5)


def _agreement(views: Views, view: int, neighbours: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """How well the neighbours' pictures fit this one if its pixels lie at `depth` (H, W): about −1 to 1.

    The better half of the neighbours counts, because the others may be hidden.
    """
    cameras, shape = views.cameras, depth.shape
    place = np.isfinite(depth)
    centres = pixel_centres(cameras.width, cameras.height)[place.ravel()]
    points = cameras.centres[view] + cameras.rays(view, centres) * depth[place][:, None]
    own = views.pixels[view]
    grey, own_mean = own.mean(axis=2), _mean(own)
    own_grey = _mean(grey)
    own_variance = _mean(grey * grey) - own_grey**2
    scores = []
    for other in neighbours:
        warped = np.ones((*shape, 3), np.float32)
        warped[place] = bilinear(views.pixels[other], cameras.project(points, int(other))[0], None)
        its_grey = warped.mean(axis=2)
        mean = _mean(its_grey)
        variance = _mean(its_grey * its_grey) - mean**2
        covariance = _mean(grey * its_grey) - own_grey * mean
        correlation = covariance / np.sqrt((own_variance + _NOISE) * (variance + _NOISE))
        scores.append(correlation - _COLOUR_WEIGHT * np.abs(_mean(warped) - own_mean).mean(axis=2))
    ranked = np.sort(np.stack(scores), axis=0)[::-1]
    return ranked[: max(1, (len(ranked) + 1) // 2)].mean(axis=0)


def _mean(image: np.ndarray) -> np.ndarray:
    return cv2.boxFilter(image, -1, (PATCH, PATCH))


def _fused(field: Field, cameras: Cameras, votes: list[Vote]) -> np.ndarray:
    """The smaller of the hull and the mean of the votes, inside the hull."""
    reach = 4 * field.step
    inside = field.values > -field.step
    points = field.points(inside)
    total, weight = np.zeros(len(points), np.float32), np.zeros(len(points), np.float32)
    for vote in votes:
        pixels, depth = cameras.project(points, vote.view)
        column, row = np.floor(pixels).astype(int).T
        framed = (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
        said = np.full(len(points), np.nan, np.float32)
        said[framed] = vote.depth[row[framed], column[framed]]
        behind = depth - said
        counts = np.isfinite(behind) & (behind < reach)
        total[counts] += np.clip(behind[counts], -reach, reach)
        weight[counts] += 1
    values = field.values.copy()
    voted = weight > 0
    mean = np.divide(total, weight, out=np.full_like(total, 1e3), where=voted)
    values[inside] = np.minimum(values[inside], mean)
    return values
