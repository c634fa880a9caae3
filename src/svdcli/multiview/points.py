"""Views and cameras -> a coloured point cloud: hull, flat ends, plane sweep, surface, points, colours. No weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from svdcli.multiview.colour import colour_points
from svdcli.multiview.ends import with_flat_ends
from svdcli.multiview.fusion import carve, without_hollows
from svdcli.multiview.hull import Field, Surface, extract, visual_hull
from svdcli.multiview.surface import clean_surface, vertex_normals
from svdcli.multiview.views import Views

STAGES = ("hull", "flat ends", "plane sweep", "surface", "colours")


@dataclass(frozen=True)
class Reconstruction:
    """How a cloud is made.

    bad_masks: how many views may have a damaged mask without harm; each makes the hull a little looser.
    flat_ends: cut what an orbit cannot see below and above level; None does so where the world is known to be upright.
    sweep: let the photographs overrule the hull.
    """

    num_points: int = 100_000
    resolution: int = 128
    bad_masks: int = 0
    flat_ends: bool | None = None
    sweep: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Cloud:
    """points, normals: (N, 3). colours: sRGB (N, 3) in [0, 1]. confidence: (N,) in [0, 1], 0 where no view sees the point.

    surface: the mesh that the points lie on; surface_colours: (its vertices, 3).
    """

    points: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    confidence: np.ndarray
    surface: Surface
    surface_colours: np.ndarray

    @property
    def seen(self) -> float:
        """The part of the points that some view sees."""
        return float((self.confidence > 0).mean())

    @property
    def size(self) -> np.ndarray:
        """Sides (3,) of the box around the surface."""
        return self.surface.vertices.max(axis=0) - self.surface.vertices.min(axis=0)


def reconstruct(
    views: Views, how: Reconstruction | None = None, done: Callable[[str], None] = lambda stage: None
) -> Cloud:
    """The cloud; `done` is told each of `STAGES` when it ends. Raises InputError where the masks have nothing in common."""
    how = how or Reconstruction()
    field = visual_hull(views.alpha, views.cameras, how.resolution, how.bad_masks + 1)
    done("hull")
    values = field.values
    if views.upright if how.flat_ends is None else how.flat_ends:
        values = with_flat_ends(field, views.alpha, views.cameras)
    values = without_hollows(values, field.step)  # a slit that some views see through leaves holes in a row
    done("flat ends")
    if how.sweep:
        flat = Field(values, field.low, field.step)
        values = carve(flat, extract(values, field.low, field.step), views)
    done("plane sweep")
    surface = clean_surface(values, field)
    normals = vertex_normals(surface)
    done("surface")
    points, point_normals = sample_surface(surface, normals, how.num_points, how.seed)
    both = np.concatenate([points, surface.vertices]), np.concatenate([point_normals, normals])
    seen = colour_points(*both, surface, views)
    done("colours")
    count = len(points)
    return Cloud(
        points, point_normals, seen.colours[:count], seen.confidence[:count], surface, seen.colours[count:]
    )


def sample_surface(
    surface: Surface, normals: np.ndarray, num_points: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3), spread evenly by area, and unit normals (N, 3) between those of the vertices."""
    rng = np.random.default_rng(seed)
    corners = surface.vertices[surface.faces]
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    ends = np.cumsum(areas)
    places = (
        (np.arange(num_points) + rng.random(num_points)) / num_points * ends[-1]
    )  # one in each equal stretch
    face = np.minimum(np.searchsorted(ends, places), len(areas) - 1)
    root, other = np.sqrt(rng.random(num_points)), rng.random(num_points)
    weights = np.stack([1 - root, root * (1 - other), root * other], axis=1)[..., None]
    between = (normals[surface.faces[face]] * weights).sum(axis=1)
    between /= np.maximum(np.linalg.norm(between, axis=1, keepdims=True), 1e-12)
    return (corners[face] * weights).sum(axis=1), between
