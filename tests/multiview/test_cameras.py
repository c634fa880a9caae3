"""The camera convention against closed forms, nerfstudio's file and COLMAP's model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from svdcli.errors import InputError
from svdcli.multiview.cameras import FOV_DEG, OPENGL, Cameras, dynamic_orbit, static_orbit
from svdcli.multiview.colmap import quaternion_of, read_model, write_model
from svdcli.multiview.transforms import Transforms, as_json, read_path, read_transforms, write_transforms


def test_the_last_of_21_views_is_the_condition_and_stands_on_the_x_axis() -> None:
    cameras = static_orbit(0).cameras(2.0)
    assert len(cameras) == 21
    assert np.allclose(cameras.centres[-1], (2, 0, 0))
    assert np.allclose(cameras.azimuths_deg, np.arange(1, 22) * 360 / 21 % 360)
    assert cameras.fov_deg == pytest.approx(FOV_DEG)


def test_azimuth_runs_counter_clockwise_seen_from_above_and_elevation_is_positive_above() -> None:
    cameras = static_orbit(30, 4).cameras(2.0)
    quarter = cameras.centres[0]  # azimuth 90
    assert quarter == pytest.approx((0, 2 * np.cos(np.pi / 6), 1))
    assert np.allclose(cameras.elevations_deg, 30)


def test_up_is_up_and_left_is_left_in_the_conditioning_view() -> None:
    cameras = static_orbit(0).cameras(2.0, side=100)
    pixels, depth = cameras.project(np.array([[0, 0, 0], [0, 0, 0.1], [0, 0.1, 0], [0.5, 0, 0]], float), 20)
    assert np.allclose(pixels[0], (50, 50))
    assert pixels[1, 1] < 50 and pixels[1, 0] == pytest.approx(50)
    assert pixels[2, 0] > 50 and pixels[2, 1] == pytest.approx(50)  # +y lies right of one who looks along −x
    assert np.allclose(depth, (2, 2, 2, 1.5))


def test_rays_lead_back_to_the_pixels() -> None:
    cameras = dynamic_orbit(10, np.random.default_rng(0), 8).cameras(1.9, side=64)
    pixels = np.random.default_rng(1).uniform(0, 64, (50, 2))
    depth = np.linspace(1, 3, 50)
    points = cameras.centres[3] + cameras.rays(3, pixels) * depth[:, None]
    again, deep = cameras.project(points, 3)
    assert np.allclose(again, pixels) and np.allclose(deep, depth)


def test_the_enclosing_radius_is_the_least_that_clips_nothing() -> None:
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (200, 3))
    orbit = static_orbit(12)
    cameras = orbit.cameras(orbit.enclosing_radius(points, margin=0.0), side=100)
    reach = max(np.abs(cameras.project(points, view)[0] - 50).max() for view in range(21))
    assert reach == pytest.approx(50, abs=1e-6)


def test_a_dynamic_orbit_swings_and_ends_at_the_given_elevation() -> None:
    orbit = dynamic_orbit(10, np.random.default_rng(3))
    assert orbit.elevations_deg[-1] == 10 and orbit.azimuths_deg[-1] == 360
    assert (np.diff(orbit.azimuths_deg) > 0).all()
    assert np.ptp(orbit.elevations_deg) > 3 and np.abs(orbit.elevations_deg).max() <= 89


def test_facing_turns_the_world_and_not_the_pictures() -> None:
    cameras = static_orbit(10).cameras(2.0, side=64)
    turned = cameras.facing(4)
    assert turned.azimuths_deg[4] == pytest.approx(0)
    angle = np.radians(cameras.azimuths_deg[4])
    point = np.array([[0.3, 0.1, 0.2]])
    moved = np.array(
        [[np.cos(angle) * 0.3 + np.sin(angle) * 0.1, -np.sin(angle) * 0.3 + np.cos(angle) * 0.1, 0.2]]
    )
    assert np.allclose(cameras.project(point, 7)[0], turned.project(moved, 7)[0])


def test_a_quarter_turn_of_the_picture_moves_each_pixel_as_rot90_does() -> None:
    cameras = static_orbit(10, 5).cameras(2.0, side=64).resized(40, 64)
    point = np.array([[0.2, -0.1, 0.05]])
    (x, y), (u, v) = cameras.project(point, 2)[0][0], cameras.turned_left().project(point, 2)[0][0]
    picture = np.zeros((64, 40))
    picture[int(y), int(x)] = 1
    assert np.rot90(picture)[int(v), int(u)] == 1


def test_mirrored_poses_are_refused() -> None:
    pose = np.diag([1.0, 1, -1, 1])[None]
    with pytest.raises(ValueError, match="mirrored"):
        Cameras(pose, np.eye(3)[None], 8, 8)


def test_transforms_round_trip_and_hold_what_nerfstudio_expects(tmp_path: Path) -> None:
    cameras = static_orbit(-5).cameras(1.8, side=64)
    names = tuple(f"{i}.png" for i in range(21))
    write_transforms(tmp_path / "transforms.json", Transforms(cameras, names, facts={"a": 1}))
    tree = json.loads((tmp_path / "transforms.json").read_text())
    assert (tree["w"], tree["h"], tree["cx"], tree["cy"]) == (64, 64, 32, 32)
    matrix = np.array(tree["frames"][-1]["transform_matrix"])
    assert np.allclose(matrix[:3, 3], cameras.centres[-1])
    assert np.allclose(matrix[:3, 2], -cameras.forward[-1])  # OpenGL's cameras look along −z
    assert matrix[2, 1] > 0.9  # their y is up, and so is the world's z
    again = read_transforms(tmp_path / "transforms.json")
    assert np.allclose(again.cameras.world_to_camera, cameras.world_to_camera)
    assert np.allclose(again.cameras.intrinsics, cameras.intrinsics)
    assert again.images == names and again.facts == {"a": 1}


def test_lenses_of_their_own_stand_in_the_frames_and_camera_angle_x_is_read(tmp_path: Path) -> None:
    cameras = static_orbit(0, 3).cameras(2, side=64)
    cameras.intrinsics[1, 0, 0] += 5
    tree = as_json(Transforms(cameras, ("a.png", "b.png", "c.png")))
    assert "fl_x" not in tree and tree["frames"][1]["fl_x"] == cameras.intrinsics[1, 0, 0]
    nerf = {"camera_angle_x": np.radians(33.8), "w": 64, "h": 64}
    nerf["frames"] = [{"file_path": "a", "transform_matrix": (np.eye(4) @ OPENGL).tolist()}]
    (tmp_path / "transforms.json").write_text(json.dumps(nerf))
    read = read_transforms(tmp_path / "transforms.json").cameras
    assert read.fov_deg == pytest.approx(33.8) and np.allclose(read.world_to_camera[0], np.eye(4))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"frames": [{}]}',
        '{"frames": [{"file_path": "a", "transform_matrix": [1]}], "w": 9, "h": 9}',
    ],
)
def test_what_is_no_camera_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(InputError, match=r"t\.json"):
        read_transforms(tmp_path / "t.json")


def test_a_path_is_relative_to_its_last_view(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"azimuths_deg": [100, 190, 10], "elevations_deg": [0, 5, 10]}')
    orbit = read_path(tmp_path / "p.json")
    assert orbit.azimuths_deg.tolist() == [90, 180, 0] and orbit.elevations_deg.tolist() == [0, 5, 10]


# ---- COLMAP


def test_colmap_text_agrees_with_pycolmap_and_comes_back(tmp_path: Path) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    cameras = dynamic_orbit(20, np.random.default_rng(0), 9).cameras(2.2, side=64)
    names = tuple(f"{i:02d}.png" for i in range(9))
    points = np.random.default_rng(1).random((5, 3))
    write_model(tmp_path / "m", cameras, names, points, np.full((5, 3), 7, np.uint8))
    theirs = pycolmap.Reconstruction(str(tmp_path / "m"))
    assert theirs.num_images() == 9 and theirs.num_points3D() == 5
    for image in theirs.images.values():
        view = names.index(image.name)
        assert np.allclose(image.cam_from_world().matrix(), cameras.world_to_camera[view, :3], atol=1e-6)
        pixel = image.project_point(np.array([0.1, 0.2, 0.3]))
        assert np.allclose(pixel, cameras.project(np.array([[0.1, 0.2, 0.3]]), view)[0][0], atol=1e-4)
    (tmp_path / "binary").mkdir()
    theirs.write_binary(str(tmp_path / "binary"))
    for folder in ("m", "binary"):
        ours = read_model(tmp_path / folder)
        assert ours.names == names
        assert np.allclose(ours.world_to_camera, cameras.world_to_camera, atol=1e-6)
        assert np.allclose(ours.lenses[0].intrinsics, cameras.intrinsics[0])


def test_quaternions_come_from_rotations_of_every_kind() -> None:
    assert np.allclose(quaternion_of(np.eye(3)), (1, 0, 0, 0))
    assert np.allclose(np.abs(quaternion_of(np.diag([1.0, -1, -1]))), (0, 1, 0, 0))
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    assert np.allclose(quaternion_of(turn), (np.sqrt(0.5), 0, 0, np.sqrt(0.5)))


def test_an_empty_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cameras.txt").write_text("")
    (tmp_path / "images.txt").write_text("")
    with pytest.raises(InputError, match="no.* COLMAP|not a COLMAP"):
        read_model(tmp_path)
