"""Hull, sweep, clouds and their files against known shapes; the consistency check against known faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from svdcli.errors import InputError, UsageError
from svdcli.multiview.cameras import Cameras, Orbit, static_orbit
from svdcli.multiview.consistency import calibrate, check_views, refuse_reversed
from svdcli.multiview.ends import with_flat_ends
from svdcli.multiview.export import FORMATS, export
from svdcli.multiview.hull import signed_distance, visual_hull
from svdcli.multiview.meshes import Mesh, load_mesh
from svdcli.multiview.points import Cloud, Reconstruction, reconstruct
from svdcli.multiview.render import render
from svdcli.multiview.splat import draw_points
from svdcli.multiview.views import Views, load_views, write_views

QUICK = Reconstruction(num_points=4000, resolution=48)


@pytest.fixture(scope="module")
def cloud(cube_views: Views) -> Cloud:
    return reconstruct(cube_views, QUICK)


def test_the_signed_distance_is_exact_to_a_part_of_a_pixel() -> None:
    x = np.arange(64) + 0.5
    distance = 20.3 - np.hypot(*np.meshgrid(x - 32, x - 31.6))
    found = signed_distance(np.clip(distance + 0.5, 0, 1))
    assert np.abs(found - distance)[np.abs(distance) < 10].max() < 0.35


def test_the_hull_of_a_sphere_is_the_sphere(sphere: Mesh) -> None:
    orbit = static_orbit(0, 12)
    cameras = orbit.cameras(2.0, side=96)
    alpha = np.stack([view.rgba[..., 3] / np.float32(255) for view in render(sphere, cameras)])
    field = visual_hull(alpha, cameras, 48)
    points = field.points(np.abs(field.values) < field.step)
    level = points[np.abs(points[:, 2]) < 0.1]  # around the equator all the views see the outline
    values = field.values[np.abs(field.values) < field.step][np.abs(points[:, 2]) < 0.1]
    error = values - (0.5 - np.linalg.norm(level, axis=1))
    assert np.abs(error).mean() < 0.01


def test_flat_ends_are_cut_where_the_object_ends(cube: Mesh) -> None:
    orbit = static_orbit(25, 12)
    cameras = orbit.cameras(orbit.enclosing_radius(cube.vertices), side=96)
    alpha = np.stack([view.rgba[..., 3] / np.float32(255) for view in render(cube, cameras)])
    field = visual_hull(alpha, cameras, 48)
    inside = field.points(field.values > 0)[:, 2]
    assert inside.min() < -0.55  # the cone that an orbit from above leaves below
    cut = field.points(with_flat_ends(field, alpha, cameras) > 0)[:, 2]
    assert cut.min() == pytest.approx(-0.5, abs=0.03) and cut.max() == pytest.approx(0.5, abs=0.03)


def test_the_underside_of_a_table_is_level_and_a_sphere_stays_round(
    plain: Callable[..., Mesh], sphere: Mesh
) -> None:
    """An orbit from above leaves a cone below the table's top, between its legs; a sphere has no such end."""
    import trimesh

    boxes = [trimesh.creation.box((1, 1, 0.1), trimesh.transformations.translation_matrix((0, 0, 0.2)))]
    for x in (-0.45, 0.45):
        for y in (-0.45, 0.45):
            leg = trimesh.transformations.translation_matrix((x, y, -0.1))
            boxes.append(trimesh.creation.box((0.1, 0.1, 0.5), leg))
    table = trimesh.util.concatenate(boxes)
    orbit = static_orbit(20, 16)
    cameras = orbit.cameras(orbit.enclosing_radius(table.vertices), side=192)
    lowest = []
    for mesh in (plain(table.vertices, table.faces), sphere):
        alpha = np.stack([view.rgba[..., 3] / np.float32(255) for view in render(mesh, cameras)])
        field = visual_hull(alpha, cameras, 64)
        for values in (field.values, with_flat_ends(field, alpha, cameras)):
            inside = field.points(values > 0)
            lowest.append(inside[np.abs(inside[:, :2]).max(axis=1) < 0.2][:, 2].min())
            volume = (values > 0).sum() * field.step**3
    assert lowest[0] < 0.05 and lowest[1] == pytest.approx(0.15, abs=0.03)
    assert volume > 0.93 * np.pi / 6  # of the sphere, after the cut


def cut_off(cube: Mesh, side: int) -> tuple[np.ndarray, Cameras]:
    """Masks of the cube that frames of 128 pixels would hold, in smaller ones."""
    orbit = static_orbit(25, 12)
    cameras = orbit.cameras(orbit.enclosing_radius(cube.vertices), side=128)
    middle = cameras.intrinsics.copy()
    middle[:, :2, 2] = side / 2
    cameras = replace(cameras, intrinsics=middle, width=side, height=side)
    alpha = np.stack([view.rgba[..., 3] / np.float32(255) for view in render(cube, cameras)])
    assert (alpha[:, [0, -1]] > 0.5).any()
    return alpha, cameras


@pytest.mark.parametrize("side", [100, 80])
def test_the_hull_of_what_most_frames_cut_off_stays_within_reach(cube: Mesh, side: int) -> None:
    field = visual_hull(*cut_off(cube, side), 48)
    assert np.abs(field.points(field.values > 0)).max() < 1  # the cube's sides are at 0.5


def test_an_object_that_the_frames_cut_off_still_gets_flat_ends(cube: Mesh) -> None:
    alpha, cameras = cut_off(cube, 110)
    field = visual_hull(alpha, cameras, 48)
    cut = field.points(with_flat_ends(field, alpha, cameras) > 0)[:, 2]
    assert cut.min() == pytest.approx(-0.5, abs=0.05) and cut.max() == pytest.approx(0.5, abs=0.05)


def test_a_cloud_of_the_cube_lies_on_the_cube(cloud: Cloud) -> None:
    reach = np.abs(cloud.points).max(axis=1)
    assert np.abs(reach - 0.5).mean() < 0.01
    assert (cloud.points * cloud.normals).sum(axis=1).min() > -0.1  # outwards
    assert np.allclose(np.linalg.norm(cloud.normals, axis=1), 1)
    below = (cloud.points[:, 2] < -0.48) & (np.abs(cloud.points[:, :2]).max(axis=1) < 0.4)
    above = (cloud.points[:, 2] > 0.48) & (np.abs(cloud.points[:, :2]).max(axis=1) < 0.4)
    assert cloud.confidence[below].max() == 0 and cloud.confidence[above].min() > 0
    assert 0.7 < cloud.seen < 0.9  # five of six sides


def test_colours_are_those_of_the_photographs(cloud: Cloud, cube: Mesh, cube_views: Views) -> None:
    drawn = draw_points(cloud.points, cloud.colours, cube_views.cameras, 11)
    both = (drawn[..., 3] > 0) & (cube_views.alpha[11] > 0.99)
    assert both.sum() > 0.9 * (cube_views.alpha[11] > 0.99).sum()
    difference = np.abs(drawn[both][:, :3] - cube_views.pixels[11][both])
    assert difference.mean() < 0.08


def test_photographs_overrule_the_hull_where_they_agree() -> None:
    """A bowl's inside is in no silhouette: textured, the sweep digs it out; white, it leaves the hull as it is."""
    import trimesh

    from svdcli.multiview.meshes import Part

    x = np.linspace(-0.5, 0.5, 41)
    gx, gy = np.meshgrid(x, x, indexing="ij")
    height = -0.25 * np.clip(1 - (gx**2 + gy**2) / 0.16, 0, 1)
    top = np.stack([gx, gy, height + 0.2], axis=2).reshape(-1, 3)
    index = np.arange(41 * 41).reshape(41, 41)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    box = trimesh.creation.box((1, 1, 0.3), trimesh.transformations.translation_matrix((0, 0, 0.04)))
    box.update_faces(box.face_normals[:, 2] < 0.5)
    cells = np.kron(np.random.default_rng(1).random((14, 14)), np.ones((3, 3)))[:41, :41]
    shade = np.repeat((0.2 + 0.7 * cells).reshape(-1, 1), 4, axis=1)
    shade[:, 3] = 1
    up = np.tile([0.0, 0, 1], (len(top), 1))
    sides = Part(
        np.asarray(box.vertices),
        np.asarray(box.faces),
        np.array(box.vertex_normals),
        None,
        None,
        np.ones(4),
        None,
    )
    depths = []
    for colours in (shade, np.ones_like(shade)):
        mesh = Mesh((Part(top, faces, up, None, colours, np.ones(4), None), sides), np.zeros(3), 1.0)
        orbit = static_orbit(45, 16)
        cameras = orbit.cameras(orbit.enclosing_radius(mesh.vertices), side=160)
        rgba = np.stack([view.rgba for view in render(mesh, cameras)]).astype(np.float32) / 255
        views = Views(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:], rgba[..., 3], cameras, ("",) * 16)
        points = reconstruct(views, replace(QUICK, resolution=64, flat_ends=False)).points
        middle = np.hypot(points[:, 0], points[:, 1]) < 0.15
        depths.append(np.median(points[middle & (points[:, 2] > -0.1)][:, 2]) if middle.any() else np.nan)
    assert depths[0] < depths[1] - 0.05


# ---- files


def test_every_format_is_written_and_opens_elsewhere(cloud: Cloud, tmp_path: Path) -> None:
    import trimesh

    from svdcli.multiview.o3d import open3d

    o3d = open3d()
    paths = export(cloud, tmp_path, list(FORMATS))
    assert all(path.stat().st_size > 1000 for path in paths)
    for name in ("points.ply", "points.pcd"):
        read = o3d.io.read_point_cloud(str(tmp_path / name))
        assert np.allclose(np.asarray(read.points), cloud.points, atol=1e-6), name
        assert np.allclose(np.asarray(read.colors), cloud.colours, atol=0.003), name
        assert np.allclose(np.asarray(read.normals), cloud.normals, atol=1e-6), name
    theirs = trimesh.load(tmp_path / "points.ply")
    assert np.allclose(theirs.vertices, cloud.points, atol=1e-6)
    assert np.allclose(theirs.metadata["_ply_raw"]["vertex"]["data"]["confidence"].ravel(), cloud.confidence)
    assert np.allclose(np.loadtxt(tmp_path / "points.xyz")[:, :3], cloud.points, atol=1e-6)
    points = next(iter(trimesh.load_scene(tmp_path / "points.glb").geometry.values()))
    assert np.allclose(points.vertices[:, 1], cloud.points[:, 2], atol=1e-6)  # y is up in glTF
    mesh = load_mesh(tmp_path / "mesh.glb")
    assert np.allclose(mesh.vertices / mesh.scale + mesh.centre, cloud.surface.vertices, atol=1e-5)
    assert len(o3d.io.read_triangle_mesh(str(tmp_path / "mesh.ply")).triangles) == len(cloud.surface.faces)
    splat = trimesh.load(tmp_path / "gaussians.ply").metadata["_ply_raw"]["vertex"]["data"]
    assert np.allclose(splat["f_dc_0"].ravel() * 0.28209479 + 0.5, cloud.colours[:, 0], atol=1e-6)
    w, x, y, z = (splat[f"rot_{i}"].ravel() for i in range(4))
    assert np.allclose(
        np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), w * w - x * x - y * y + z * z], 1),
        cloud.normals,
        atol=2e-3,
    )
    with pytest.raises(UsageError, match="no format stl"):
        export(cloud, tmp_path, ["stl"])


def test_views_round_trip_and_masks_and_backgrounds_are_understood(cube_views: Views, tmp_path: Path) -> None:
    rgba = np.concatenate([cube_views.pixels, cube_views.alpha[..., None]], axis=3)
    (tmp_path / "a").mkdir()
    write_views(tmp_path / "a", list(rgba), cube_views.cameras)
    read = load_views(tmp_path / "a")
    assert np.abs(read.alpha - cube_views.alpha).max() < 0.003 and read.upright and not read.assumed
    (tmp_path / "b").mkdir()
    write_views(tmp_path / "b", list(cube_views.pixels), cube_views.cameras)
    keyed = load_views(tmp_path / "b")
    assert "background colour" in keyed.notes[0]
    assert (
        np.abs((keyed.alpha > 0.5) ^ (cube_views.alpha > 0.5)).mean() < 0.015
    )  # of the outline's pixels some
    (tmp_path / "b" / "transforms.json").unlink()
    alone = load_views(tmp_path / "b")
    assert alone.assumed and len(alone) == 12
    noise = np.random.default_rng(0).random((3, 32, 32, 3)).astype(np.float32)
    (tmp_path / "c").mkdir()
    write_views(tmp_path / "c", list(noise), static_orbit(0, 3).cameras(2, side=32))
    with pytest.raises(InputError, match="background is not of one colour"):
        load_views(tmp_path / "c")


def test_specks_on_the_background_are_no_part_of_the_object(cube_views: Views, tmp_path: Path) -> None:
    """As views that a model made have them; at the border they would say that the frame cuts the object off."""
    for name, specks in (("clean", 0), ("noisy", 2)):
        pixels = cube_views.pixels.copy()
        pixels[:, :specks, :specks] = pixels[:, -specks or 96 :, 40:42] = 0.7
        (tmp_path / name).mkdir()
        write_views(tmp_path / name, list(pixels), cube_views.cameras)
    clean, noisy = load_views(tmp_path / "clean"), load_views(tmp_path / "noisy")
    np.testing.assert_array_equal(noisy.alpha, clean.alpha)
    assert (clean.alpha > 0.5).any() and not noisy.alpha[:, 0].any()


# ---- consistency


def test_a_clean_orbit_is_as_consistent_as_can_be(wedge_views: Views) -> None:
    found = check_views(wedge_views)
    assert found.score > 0.95 and found.relative > 0.97 and found.damaged == []


def test_the_damaged_mask_is_named(wedge_views: Views) -> None:
    torn = wedge_views.alpha.copy()
    columns = np.nonzero(torn[5] > 0.5)[1]
    torn[5][:, : int(np.quantile(columns, 0.25))] = 0
    found = check_views(replace(wedge_views, alpha=torn))
    assert found.worst == 5 and found.damaged == [5]


def test_elevation_and_direction_are_found_and_a_reversed_orbit_refused(wedge_views: Views) -> None:
    right = wedge_views.cameras
    wrong = Orbit(-right.azimuths_deg % 360, right.elevations_deg - 15).cameras(2.0, side=right.width)
    views = replace(wedge_views, cameras=wrong)
    found = calibrate(views)
    assert found.reversed and found.elevation_deg == pytest.approx(20, abs=5)
    assert found.score > found.given_score + 0.02
    with pytest.raises(InputError, match="the other way"):
        refuse_reversed(
            replace(
                wedge_views,
                cameras=Orbit(-right.azimuths_deg % 360, right.elevations_deg).cameras(2.0, side=96),
            )
        )
    refuse_reversed(wedge_views)


def test_masks_with_nothing_in_common_are_refused(plain: Callable[..., Mesh]) -> None:
    cameras = static_orbit(0, 6).cameras(2, side=32)
    alpha = np.zeros((6, 32, 32), np.float32)
    alpha[::2, 2:8, 2:8] = alpha[1::2, 24:30, 2:8] = 1
    with pytest.raises(InputError, match="nothing in common"):
        visual_hull(alpha, cameras, 32)
