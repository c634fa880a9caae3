"""Shapes: closed forms of cubes and shifted clouds, agreement with scipy, and files good and bad."""

from __future__ import annotations

import numpy as np
import pytest

from svdcli.evaluate.geometry import (
    Shape,
    compare_shapes,
    f_score,
    inside,
    nearest_distances,
    volume_iou,
)

CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
CUBE = Shape(CORNERS, np.array([t for q in QUADS for t in ([q[0], q[1], q[2]], [q[0], q[2], q[3]])]))
CLOUD = Shape(np.random.default_rng(0).random((500, 3)), np.empty((0, 3), np.int64))


def moved(shape: Shape, by: float, scale: float = 1.0) -> Shape:
    return Shape(shape.vertices * scale + [by, 0, 0], shape.faces)


def test_nearest_distances_agree_with_scipys_tree() -> None:
    spatial = pytest.importorskip("scipy.spatial")
    a, b = np.random.default_rng(1).random((2, 3000, 3))
    assert nearest_distances(a, b) == pytest.approx(spatial.cKDTree(b).query(a)[0], abs=1e-6)


def test_chamfer_is_the_mean_of_two_means_in_units_of_the_truth() -> None:
    """One point beside two: distances 1 and (1, 2): (1 + 1.5) / 2, over a side of 1."""
    truth = Shape(np.array([[0.0, 0, 0], [1.0, 0, 0]]), CLOUD.faces)
    made = Shape(np.array([[2.0, 0, 0]]), CLOUD.faces)
    result = compare_shapes(truth, made)
    assert (result["accuracy"], result["completeness"], result["chamfer"]) == (1.0, 1.5, 1.25)
    double = compare_shapes(moved(truth, 0, 2), moved(made, 0, 2))
    assert double["chamfer"] == result["chamfer"]
    assert result["volume_iou"] is None and "truth, made" in result["not_computed"]["volume_iou"]
    assert "mean of the two mean" in result["conventions"]


def test_f_score_by_hand() -> None:
    assert f_score(np.array([0.0, 1, 1, 1]), np.array([0.0, 1]), 0.5) == pytest.approx(2 * 0.25 * 0.5 / 0.75)
    assert f_score(np.ones(3), np.ones(3), 0.5) == 0
    same = compare_shapes(CLOUD, CLOUD)
    assert same["chamfer"] == 0 and set(same["f_score"].values()) == {1.0}


@pytest.mark.parametrize("by", [0.0, 0.25, 0.5, 2.0])
def test_iou_of_shifted_cubes_has_a_closed_form(by: float) -> None:
    assert volume_iou(CUBE, moved(CUBE, by)) == pytest.approx(max(0, 1 - by) / min(2, 1 + by), abs=0.02)


def test_a_grid_point_is_inside_by_parity() -> None:
    axes = [np.array([-0.5, 0.5, 1.5])] * 3
    held = inside(CUBE, axes)
    assert held.sum() == 1 and held[1, 1, 1]
    hollow = Shape(
        np.concatenate([CORNERS, CORNERS * 0.5 + 0.25]), np.concatenate([CUBE.faces, CUBE.faces + 8])
    )
    assert not inside(hollow, axes)[1, 1, 1] and hollow.closed


def test_only_closed_meshes_have_a_volume() -> None:
    assert CUBE.closed and not CLOUD.closed and not Shape(CORNERS, CUBE.faces[:-1]).closed
    split = Shape(
        CUBE.vertices[CUBE.faces.reshape(-1)], np.arange(36).reshape(-1, 3)
    )  # no vertex shared, as exporters do
    assert split.closed
    assert compare_shapes(CUBE, split, num_points=100)["volume_iou"] == 1.0


def test_fitting_takes_place_and_size_away_and_nothing_else() -> None:
    result = compare_shapes(CUBE, moved(CUBE, 7, 3), fit=True, num_points=3000)
    assert result["volume_iou"] == 1.0 and result["chamfer"] < 0.02
    assert compare_shapes(CUBE, moved(CUBE, 7, 3), num_points=300)["chamfer"] > 1


def test_points_lie_evenly_on_the_faces() -> None:
    points = CUBE.sample(6000)
    on_face = [np.isclose(points[:, axis], value).mean() for axis in range(3) for value in (0, 1)]
    assert on_face == pytest.approx([1 / 6] * 6, abs=0.02)
