"""How well views agree with their cameras and with one another, from the silhouettes alone: no weights, no truth.

The hull that the masks leave possible is looked at again from their own cameras. Views of one rigid object, with the
right cameras, give their masks back; wobbling outlines, wrong poses and damaged masks do not. The same measure, at its
largest, finds what is unknown of an orbit: its elevation, its direction, its field of view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from svdcli.errors import InputError
from svdcli.multiview.cameras import Cameras, Orbit
from svdcli.multiview.hull import Surface, extract, visual_hull
from svdcli.multiview.o3d import cast_depths, raycaster
from svdcli.multiview.views import Views

SIDE, RESOLUTION = 144, 64
_SEARCH_SIDE, _SEARCH_RESOLUTION = 96, 48
ELEVATIONS_DEG = tuple(range(-20, 51, 10))
FIELDS_OF_VIEW_DEG = (20.0, 26.0, 33.8, 40.0, 49.1, 60.0)
ROUNDS = 3
"""How often elevation and field of view are moved by a step each, together, at the most."""
POOR = 0.9
"""A score beside a perfect set's under which a cloud is not to be trusted."""
_OUTLIER = 0.03  # how much more than the median a damaged view loses, at the least
_REVERSED = 0.02  # how much better the other direction has to fit before an orbit is refused
_BETTER = 0.004  # what a change of the cameras has to gain to be believed


@dataclass(frozen=True)
class Consistency:
    """overlaps: intersection over union of mask and re-projected hull, by view. ceilings: what a perfectly
    consistent set of the same shape reaches, as the grid and the tolerance of one bad mask cost something.
    radius: the cameras' mean distance in units of the object's largest side."""

    overlaps: np.ndarray
    ceilings: np.ndarray
    radius: float

    @property
    def score(self) -> float:
        """The mean overlap."""
        return float(self.overlaps.mean())

    @property
    def relative(self) -> float:
        """The score beside a perfect set's: 1 is as good as can be measured."""
        return self.score / float(self.ceilings.mean())

    @property
    def worst(self) -> int:
        """The view that fits least."""
        return int((self.ceilings - self.overlaps).argmax())

    @property
    def damaged(self) -> list[int]:
        """Views that fit clearly less than the others."""
        lost = self.ceilings - self.overlaps
        spread = np.median(np.abs(lost - np.median(lost)))
        return [int(view) for view in np.flatnonzero(lost > np.median(lost) + max(_OUTLIER, 6 * spread))]


@dataclass(frozen=True)
class Calibration:
    """What fits best, and how well (mean overlap): of the cameras as given, and of those found.

    elevation_deg: the conditioning view's. reversed: whether the views go round the other way than the cameras say.
    """

    cameras: Cameras
    elevation_deg: float
    fov_deg: float
    reversed: bool
    given_score: float
    score: float


def check_views(views: Views) -> Consistency:
    """Measure a set of views. Raises InputError where the masks have nothing in common."""
    small = views.scaled(SIDE)
    masks = small.alpha > 0.5
    surface = _hull(small.alpha, small.cameras, RESOLUTION)
    shown = silhouettes(surface, small.cameras)
    try:
        again = silhouettes(_hull(shown.astype(np.float32), small.cameras, RESOLUTION), small.cameras)
        ceilings = overlaps(again, shown)
    except InputError:  # nothing is left of a hull whose own outlines are empty in some view
        ceilings = np.ones(len(shown))
    size = float((surface.vertices.max(axis=0) - surface.vertices.min(axis=0)).max())
    centre = (surface.vertices.max(axis=0) + surface.vertices.min(axis=0)) / 2
    radius = float(np.linalg.norm(small.cameras.centres - centre, axis=1).mean()) / size
    return Consistency(overlaps(shown, masks), ceilings, radius)


def calibrate(views: Views, tried: Callable[[], None] = lambda: None) -> Calibration:
    """Search elevation (to 2.5°), direction and field of view of an orbit whose cameras look at its centre.

    The elevations are moved together, so a dynamic orbit keeps its swing. `tried` is called after each trial. A change is
    taken only where it clearly fits better than the cameras as given. Raises InputError for cameras that are no orbit.
    """
    small = views.scaled(_SEARCH_SIDE)
    orbit = _orbit(small.cameras)
    given = _Guess(float(orbit.elevations_deg[-1]), float(small.cameras.fov_deg), False)
    scores: dict[_Guess, float] = {}

    def best(guesses: Iterable[_Guess]) -> _Guess:
        for guess in dict.fromkeys(guesses):
            if guess not in scores:
                scores[guess] = _fit(small, orbit, guess)
                tried()
        return max(scores, key=lambda guess: scores[guess])

    found = best([given, replace(given, reversed=True)])
    found = best(
        replace(given, elevation=float(e), reversed=r) for e in ELEVATIONS_DEG for r in (False, True)
    )
    found = best(replace(found, elevation=found.elevation + d) for d in (-5.0, 5.0))
    found = best(replace(found, fov=fov) for fov in FIELDS_OF_VIEW_DEG)
    for _ in range(ROUNDS):  # a wrong lens shifts the best elevation, so both are moved together
        before, near = found, _neighbours(found.fov)
        found = best(
            replace(found, elevation=before.elevation + d, fov=fov) for d in (0.0, -2.5, 2.5) for fov in near
        )
        if found == before:
            break
    if scores[found] < scores[given] + _BETTER:
        found = given
    cameras = views.cameras if found == given else _cameras(orbit, found, views.cameras)
    return Calibration(cameras, found.elevation, found.fov, found.reversed, scores[given], scores[found])


def refuse_reversed(views: Views) -> None:
    """Raise InputError where the views clearly go round the other way than their cameras say.

    What is no orbit of square views passes: its direction cannot be tried.
    """
    small = views.scaled(_SEARCH_SIDE)
    try:
        orbit = _orbit(small.cameras)
    except InputError:
        return
    given = _Guess(float(orbit.elevations_deg[-1]), float(small.cameras.fov_deg), False)
    forwards, backwards = (_fit(small, orbit, replace(given, reversed=way)) for way in (False, True))
    if backwards > forwards + _REVERSED:
        raise InputError(
            f"The views go round the other way than their cameras say: overlap {forwards:.3f}, reversed {backwards:.3f}.",
            "Run svd points --check --mend to write mended cameras.",
        )


def silhouettes(surface: Surface, cameras: Cameras) -> np.ndarray:
    """Where a surface shows in each view: bool (V, H, W)."""
    scene = raycaster(surface.vertices, surface.faces)
    shown = []
    for view in range(len(cameras)):
        rays = cameras.pixel_rays(view)
        depth = cast_depths(scene, np.broadcast_to(cameras.centres[view], rays.shape), rays)
        shown.append(np.isfinite(depth).reshape(cameras.height, cameras.width))
    return np.stack(shown)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of masks (V, H, W): (V,)."""
    both = (first & second).sum(axis=(1, 2))
    return both / np.maximum((first | second).sum(axis=(1, 2)), 1)


@dataclass(frozen=True)
class _Guess:
    elevation: float
    fov: float
    reversed: bool


def _neighbours(fov: float) -> list[float]:
    """The field of view, and the next ones of those that are tried below and above it."""
    below = [other for other in FIELDS_OF_VIEW_DEG if other < fov - 0.1]
    above = [other for other in FIELDS_OF_VIEW_DEG if other > fov + 0.1]
    return [fov, *below[-1:], *above[:1]]


def _hull(alpha: np.ndarray, cameras: Cameras, resolution: int) -> Surface:
    """Tolerant of one bad mask: it then stands out in its own view, instead of spoiling all the others."""
    field = visual_hull(alpha, cameras, resolution, k=2 if len(cameras) >= 6 else 1)
    return extract(field.values, field.low, field.step)


def _fit(views: Views, orbit: Orbit, guess: _Guess) -> float:
    cameras = _cameras(orbit, guess, views.cameras)
    try:
        surface = _hull(views.alpha, cameras, _SEARCH_RESOLUTION)
    except InputError:  # with these cameras the silhouettes have nothing in common
        return 0.0
    return float(overlaps(silhouettes(surface, cameras), views.alpha > 0.5).mean())


def _orbit(cameras: Cameras) -> Orbit:
    towards = -cameras.centres / cameras.radii[:, None]
    if (towards * cameras.forward).sum(axis=1).min() < np.cos(
        np.radians(3)
    ) or cameras.width != cameras.height:
        raise InputError(
            "Only an orbit of square views that look at the origin can be calibrated.",
            "The score itself holds for any cameras.",
        )
    azimuths = cameras.azimuths_deg
    return Orbit((azimuths - azimuths[-1]) % 360, cameras.elevations_deg)


def _cameras(orbit: Orbit, guess: _Guess, like: Cameras) -> Cameras:
    """The distance is such that the frame spans as much of the world as it did, so the object keeps its size."""
    elevations = np.clip(orbit.elevations_deg + guess.elevation - orbit.elevations_deg[-1], -89, 89)
    azimuths = -orbit.azimuths_deg % 360 if guess.reversed else orbit.azimuths_deg
    slope = np.tan(np.radians(like.fov_deg) / 2) / np.tan(np.radians(guess.fov) / 2)
    return Orbit(azimuths, elevations).cameras(float(like.radii.mean() * slope), guess.fov, like.width)
