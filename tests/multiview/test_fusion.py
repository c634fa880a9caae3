"""What the sweep's votes may not do: leave hollows that nothing reaches, or holes that no photograph shows."""

from __future__ import annotations

import numpy as np
import pytest

from svdcli.multiview.cameras import Cameras, static_orbit
from svdcli.multiview.consistency import silhouettes
from svdcli.multiview.fusion import restored, without_hollows
from svdcli.multiview.hull import Field, extract
from svdcli.multiview.o3d import cast_depths, raycaster
from svdcli.multiview.sweep import DepthMap, smoothed


@pytest.fixture(scope="module")
def plate() -> Field:
    """A plate of 0.2 x 0.8 x 0.8 on a grid of 0.025."""
    index = np.indices((41, 41, 41)).transpose(1, 2, 3, 0)
    outside = np.abs(index * 0.025 - 0.5) - (0.1, 0.4, 0.4)
    return Field(-outside.max(axis=3).astype(np.float32), np.full(3, -0.5), 0.025)


def across(field: Field, y: float = 0.0) -> np.ndarray:
    """Which voxels (X, Y, Z) lie within 0.1 of a line along x."""
    _, at_y, z = field.low[:, None, None, None] + field.step * np.indices(field.values.shape)
    return np.hypot(at_y - y, z) < 0.1


def seen_from(field: Field, cameras: Cameras) -> list[DepthMap]:
    surface = extract(field.values, field.low, field.step)
    scene = raycaster(surface.vertices, surface.faces)
    maps = []
    for view in range(len(cameras)):
        rays = cameras.pixel_rays(view)
        hull = cast_depths(scene, np.broadcast_to(cameras.centres[view], rays.shape), rays).reshape(96, 96)
        maps.append(DepthMap(view, np.full((96, 96), np.nan), hull, np.zeros((96, 96), bool)))
    return maps


def test_a_hole_that_no_silhouette_shows_is_closed(plate: Field) -> None:
    cameras = static_orbit(0, 8).cameras(2.5, side=96)
    maps = seen_from(plate, cameras)
    holed = np.where(across(plate), np.minimum(plate.values, -0.1), plate.values)
    was = silhouettes(extract(plate.values, plate.low, plate.step), cameras)
    lost = was & ~silhouettes(extract(holed, plate.low, plate.step), cameras)
    assert lost.sum() > 100
    values = restored(plate, restored(plate, holed, maps, cameras), maps, cameras)
    still = was & ~silhouettes(extract(values, plate.low, plate.step), cameras)
    assert still.sum() < 0.05 * lost.sum()
    assert (values <= plate.values + 1e-6).all()  # never more than the hull


def test_a_dent_that_leaves_the_silhouettes_whole_stays(plate: Field) -> None:
    cameras = static_orbit(0, 8).cameras(2.5, side=96)
    x = plate.low[0] + plate.step * np.arange(41)[:, None, None]
    dented = np.where(across(plate) & (x > 0), np.minimum(plate.values, -0.1), plate.values)
    values = restored(plate, dented, seen_from(plate, cameras), cameras)
    assert np.abs(values - dented).max() == 0


def test_a_hollow_is_filled_and_a_well_is_not(plate: Field) -> None:
    x = plate.low[0] + plate.step * np.arange(41)[:, None, None]
    hollow = across(plate, -0.2) & (np.abs(x) < 0.06)
    well = across(plate, 0.2) & (x > -0.06)
    cut = np.where(hollow | well, np.minimum(plate.values, -0.05), plate.values)
    values = without_hollows(cut, plate.step)
    assert (values[hollow] > 0).all() and (values[well] < 0).all()
    assert np.array_equal(values[~hollow], cut[~hollow])


def test_scores_without_a_preference_follow_their_neighbours() -> None:
    """A row of 20 pixels, 9 depths: its ends prefer depths 2 and 4, the middle none, and pixel 10 by chance depth 8."""
    score = np.zeros((9, 1, 20), np.float32)
    score[2, 0, :5], score[4, 0, 15:], score[8, 0, 10] = 1, 1, 0.05
    best = smoothed(score, np.ones((1, 20), bool), np.zeros((1, 20), np.float32)).argmax(axis=0)[0]
    assert (best[:5] == 2).all() and (best[15:] == 4).all()
    assert best.min() >= 2 and best.max() <= 4


def test_scores_do_not_cross_what_is_not_the_object() -> None:
    score = np.zeros((9, 1, 20), np.float32)
    score[2, 0, :9], score[6, 0, 11:12] = 1, 0.1
    place = np.ones((1, 20), bool)
    place[0, 9:11] = False
    best = smoothed(score, place, np.zeros((1, 20), np.float32)).argmax(axis=0)[0]
    assert (best[:9] == 2).all() and (best[11:] == 6).all()
