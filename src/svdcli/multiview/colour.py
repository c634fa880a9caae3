"""Colours and confidence of surface points: what the views that see them say.

A view counts where nothing hides the point, by the fourth power of how squarely it looks at it, and not close to the
object's outline, where pixels mix with the background.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from svdcli.multiview.hull import Surface
from svdcli.multiview.o3d import cast_depths, raycaster
from svdcli.multiview.sampling import bilinear
from svdcli.multiview.views import Views

_POWER = 4
_OUTLINE_PIXELS = 3
_NEIGHBOURS = 8


@dataclass(frozen=True)
class Seen:
    """colours: sRGB (N, 3) in [0, 1]. confidence: (N,) in [0, 1], the cosine at which the best view looks at a point, 0
    where no view sees it; such points have their neighbours' colours. num_views: how many views see each (N,)."""

    colours: np.ndarray
    confidence: np.ndarray
    num_views: np.ndarray


def colour_points(points: np.ndarray, normals: np.ndarray, surface: Surface, views: Views) -> Seen:
    """Points (N, 3) on `surface` with unit normals (N, 3) -> their colours."""
    scene = raycaster(surface.vertices, surface.faces)
    size = float((surface.vertices.max(axis=0) - surface.vertices.min(axis=0)).max())
    total, weight = np.zeros((len(points), 3)), np.zeros(len(points))
    best, count = np.zeros(len(points)), np.zeros(len(points), int)
    for view in range(len(views)):
        towards = views.cameras.centres[view] - points
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        cosine = (towards * normals).sum(axis=1)
        faces = np.flatnonzero(cosine > 0.05)
        start = points[faces] + (normals[faces] + towards[faces]) * (0.004 * size)
        open_ = faces[np.isinf(cast_depths(scene, start, towards[faces]))]
        pixels, _ = views.cameras.project(points[open_], view)
        clear = bilinear(_clearance(views.alpha[view]), pixels)
        best[open_] = np.maximum(best[open_], cosine[open_] * (clear > 0))
        count[open_] += clear > 0
        share = cosine[open_] ** _POWER * (0.01 + clear) * (clear > 0)
        total[open_] += share[:, None] * bilinear(views.pixels[view], pixels, None)
        weight[open_] += share
    seen = weight > 1e-6
    colours = np.full((len(points), 3), 0.5)
    colours[seen] = total[seen] / weight[seen, None]
    if seen.any() and not seen.all():
        colours[~seen] = _from_neighbours(points[~seen], points[seen], colours[seen])
    return Seen(colours, np.where(seen, best, 0), count)


def _clearance(mask: np.ndarray) -> np.ndarray:
    """0 outside the object, rising to 1 some pixels inside its outline."""
    inside = np.pad((mask > 0.9).astype(np.uint8), 1)
    return np.clip(cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1] / _OUTLINE_PIXELS, 0, 1)


def _from_neighbours(points: np.ndarray, known: np.ndarray, colours: np.ndarray) -> np.ndarray:
    from scipy.spatial import cKDTree

    distance, index = cKDTree(known).query(points, k=min(_NEIGHBOURS, len(known)))
    distance, index = distance.reshape(len(points), -1), index.reshape(len(points), -1)
    share = 1 / (distance + 1e-6)
    return (colours[index] * share[..., None]).sum(axis=1) / share.sum(axis=1, keepdims=True)
