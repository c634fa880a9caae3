"""Shapes against shapes: Chamfer distance, F-score, volume IoU; of point clouds and meshes. Their files are `shapes`'.

Conventions, which papers differ in by factors: Chamfer is the *mean* of the two mean distances (not squared, not summed), in
units of the truth's largest side; F is a fraction, not percent; nothing is aligned, but centre and scale where asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from svdcli.errors import InputError

Array = npt.NDArray[np.float64]
NUM_POINTS = 10_000
THRESHOLDS = (0.005, 0.01, 0.02, 0.05)
IOU_SIDE = 48
CONVENTIONS = (
    "Chamfer: mean of the two mean nearest distances; distances in units of the truth's largest side; "
    f"F-score: harmonic mean of the shares within a distance; IoU: of solids on a {IOU_SIDE}^3 grid, for closed meshes"
)
_ROWS = 256


@dataclass(frozen=True)
class Shape:
    """vertices (N, 3); faces (F, 3), none of a point cloud."""

    vertices: Array
    faces: npt.NDArray[np.int64]

    @property
    def side(self) -> float:
        """The largest side of its box."""
        return float(np.ptp(self.vertices, axis=0).max())

    def sample(self, num: int, seed: int = 0) -> Array:
        """Points (num, 3): evenly by area on the faces; of a cloud, its own, at most `num` of them."""
        rng = np.random.default_rng(seed)
        if not len(self.faces):
            chosen = rng.permutation(len(self.vertices))[:num]
            return self.vertices[chosen]
        a, b, c = (self.vertices[self.faces[:, i]] for i in range(3))
        areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        face = rng.choice(len(areas), num, p=areas / areas.sum())
        u, v = rng.random((2, num, 1))
        u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
        return np.asarray(a[face] + u * (b - a)[face] + v * (c - a)[face])

    @property
    def closed(self) -> bool:
        """Whether every edge belongs to two faces, so that inside and outside are told apart."""
        if not len(self.faces):
            return False
        _, welded = np.unique(np.round(self.vertices / max(self.side, 1e-12), 7), axis=0, return_inverse=True)
        faces = welded.reshape(-1)[self.faces]
        edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        return bool((np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all())


def compare_shapes(
    truth: Shape, made: Shape, fit: bool = False, num_points: int = NUM_POINTS
) -> dict[str, Any]:
    """Two shapes -> all measures. With `fit` both are first centred on their boxes and scaled to a largest side of 1.

    IoU is None, with the reason, where one of them is no closed mesh. Raises InputError for a shape without extent.
    """
    if fit:
        truth, made = _unit(truth), _unit(made)
    scale = truth.side
    if not scale > 0:
        raise InputError("The true shape has no extent.", "Give a cloud of more than one point.")
    a, b = truth.sample(num_points) / scale, made.sample(num_points) / scale
    to_made, to_truth = nearest_distances(a, b), nearest_distances(b, a)
    result: dict[str, Any] = {
        "kind": "svd-eval-shape",
        "chamfer": float(to_made.mean() + to_truth.mean()) / 2,
        "completeness": float(to_made.mean()),
        "accuracy": float(to_truth.mean()),
        "f_score": {f"{t:g}": f_score(to_truth, to_made, t) for t in THRESHOLDS},
        "num_points": [len(a), len(b)],
        "fitted": fit,
        "conventions": CONVENTIONS,
    }
    open_ = [name for name, shape in (("truth", truth), ("made", made)) if not shape.closed]
    result["volume_iou"] = None if open_ else volume_iou(truth, made)
    if open_:
        result["not_computed"] = {"volume_iou": f"not a closed mesh: {', '.join(open_)}"}
    return result


def nearest_distances(a: Array, b: Array) -> Array:
    """From each of `a` (N, 3) to the nearest of `b` (M, 3): (N,), all pairs, in blocks that stay in the cache."""
    far, near = (torch.from_numpy(np.ascontiguousarray(points, np.float32)) for points in (a, b))
    mode = "donot_use_mm_for_euclid_dist"  # the quick way loses half of the digits
    found = [torch.cdist(rows, near, compute_mode=mode).min(1).values for rows in far.split(_ROWS)]
    return torch.cat(found).double().numpy()


def f_score(accuracy: Array, completeness: Array, threshold: float) -> float:
    """Harmonic mean of precision and recall: the shares of made and of true points within the threshold."""
    precision, recall = float((accuracy < threshold).mean()), float((completeness < threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def volume_iou(a: Shape, b: Shape, side: int = IOU_SIDE) -> float:
    """Shared volume over joint volume of two closed meshes, on a grid over both boxes."""
    corners = np.concatenate([a.vertices, b.vertices])
    low, high = corners.min(0), corners.max(0)
    step = float((high - low).max()) / side
    axes = [np.arange(lo + step / 2, hi + step / 2, step) for lo, hi in zip(low, high, strict=True)]
    first, second = inside(a, axes), inside(b, axes)
    joint = int((first | second).sum())
    return float((first & second).sum() / joint) if joint else 0.0


def inside(shape: Shape, axes: list[Array]) -> npt.NDArray[np.bool_]:
    """Which points of a grid (X, Y, Z) lie in a closed mesh: an odd number of faces stand above them."""
    x, y, z = axes
    crossings = np.zeros((len(x), len(y), len(z) + 1), np.int64)
    # A hair's breadth aside: a ray through an edge would count both of its faces, or neither.
    x, y = x + 1.234567e-7 * shape.side, y + 2.345678e-7 * shape.side
    for a, b, c in shape.vertices[shape.faces]:
        ix = np.flatnonzero((x >= min(a[0], b[0], c[0])) & (x <= max(a[0], b[0], c[0])))
        iy = np.flatnonzero((y >= min(a[1], b[1], c[1])) & (y <= max(a[1], b[1], c[1])))
        twice = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if not len(ix) or not len(iy) or twice == 0:
            continue
        px, py = x[ix][:, None], y[iy][None]
        u = ((px - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (py - a[1])) / twice
        v = ((b[0] - a[0]) * (py - a[1]) - (px - a[0]) * (b[1] - a[1])) / twice
        hit = (u >= 0) & (v >= 0) & (u + v <= 1)
        height = a[2] + u * (b[2] - a[2]) + v * (c[2] - a[2])
        rows, columns = np.nonzero(hit)
        np.add.at(crossings, (ix[rows], iy[columns], np.searchsorted(z, height[hit])), 1)
    above = crossings[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]
    return np.asarray(above % 2 == 1)


def _unit(shape: Shape) -> Shape:
    middle = (shape.vertices.min(0) + shape.vertices.max(0)) / 2
    return Shape((shape.vertices - middle) / max(shape.side, 1e-12), shape.faces)
