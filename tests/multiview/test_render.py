"""Renders against closed forms: outline, depth, normals, shading, texture, transparency, and one view from another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from svdcli.errors import InputError
from svdcli.multiview.cameras import static_orbit
from svdcli.multiview.light import Light
from svdcli.multiview.meshes import Mesh, to_linear, to_srgb
from svdcli.multiview.render import render
from svdcli.multiview.sampling import bilinear

SIDE = 96


def test_a_sphere_shows_as_its_closed_form(sphere: Mesh) -> None:
    """A sphere of radius R at distance r subtends asin(R/r); from outside its outline is a circle about the centre."""
    cameras = static_orbit(10, 3).cameras(2.0, side=SIDE)
    view = next(render(sphere, cameras, Light.uniform(0.5)))
    focal = cameras.intrinsics[0, 0, 0]
    radius = focal * np.tan(np.arcsin(0.5 / 2.0))
    assert (view.rgba[..., 3] / 255).sum() == pytest.approx(np.pi * radius**2, rel=0.004)
    x = np.arange(SIDE) + 0.5 - SIDE / 2
    distance = np.hypot(*np.meshgrid(x, x))
    assert (view.rgba[..., 3][distance < radius - 1] == 255).all()
    assert (view.rgba[..., 3][distance > radius + 1] == 0).all()
    middle = view.depth[SIDE // 2, SIDE // 2]
    assert middle == pytest.approx(1.5, abs=2e-3)
    ray = np.array([x[60], x[40], focal]) / focal  # depth of one ray, from |c + d·ray| = R
    b, c = ray[2] * 2.0, 4 - 0.25
    expected = (b - np.sqrt(b * b - (ray @ ray) * c)) / (ray @ ray)
    assert view.depth[40, 60] == pytest.approx(expected, abs=2e-3)


def test_a_cube_covers_the_pixels_that_its_corners_say(cube: Mesh) -> None:
    cameras = static_orbit(0, 4).cameras(2.5, side=SIDE)  # azimuths 90, 180, 270, 0: straight at a face
    view = list(render(cube, cameras))[-1]
    corners = np.array([[0.5, y, z] for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    pixels, depth = cameras.project(corners, 3)
    side = np.ptp(pixels[:, 0])
    assert (view.rgba[..., 3] / 255).sum() == pytest.approx(side**2, rel=0.01)
    inside = view.depth[np.isfinite(view.depth)]
    assert np.allclose(inside, depth[0], atol=1e-4)
    assert np.allclose(view.normals[SIDE // 2, SIDE // 2], (1, 0, 0), atol=1e-5)


def test_white_in_uniform_light_shows_the_light_and_albedo_multiplies_it(plain: Callable[..., Mesh]) -> None:
    from trimesh.creation import icosphere

    made = icosphere(3, 0.5)
    grey = plain(made.vertices, made.faces, (0.2, 0.4, 0.6, 1.0))
    view = next(render(grey, static_orbit(0, 3).cameras(2, side=32), Light.uniform(0.8)))
    expected = np.rint(to_srgb(np.array([0.2, 0.4, 0.6]) * 0.8) * 255)
    assert np.abs(view.rgba[16, 16, :3] - expected).max() <= 1


def test_a_lambertian_sphere_under_half_a_sky_has_its_closed_form(sphere: Mesh) -> None:
    """Uniform radiance from the upper half only: irradiance / π = (1 + cos θ) / 2, θ the angle from straight up."""
    sky = np.zeros((64, 128, 3))
    sky[:32] = 1
    light = Light.from_map(sky)
    scale = light.at(np.array([[0.0, 0, 1]]))[0, 0]
    cameras = static_orbit(0, 3).cameras(2, side=SIDE)
    view = next(render(sphere, cameras, light))
    shown = to_linear(view.rgba[..., 0] / 255) / scale
    inside = np.isfinite(view.depth) & (view.rgba[..., 3] == 255)
    expected = (1 + view.normals[..., 2]) / 2
    assert np.abs(shown - expected)[inside].max() < 0.02


def test_light_comes_from_where_the_map_says_and_turns() -> None:
    lamp = np.zeros((32, 64, 3))
    lamp[14:18, 30:34] = 1  # the middle column lies at azimuth 180
    faces = np.array([[-1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0]])
    back, front, left, right = Light.from_map(lamp).at(faces)[:, 0]
    assert back > 0.5 and front == 0 and left == pytest.approx(right, rel=0.1)
    assert Light.from_map(lamp, turn_deg=180).at(faces)[1, 0] > 0.5
    assert Light.neutral().table.max() <= 0.9 + 1e-6


def test_a_light_map_is_read_and_nonsense_refused(shared: Path, tmp_path: Path) -> None:
    light = Light.from_file(next((shared / "hdri").glob("*.hdr")))
    assert 0 < light.table.min() and light.table.max() <= 0.9 + 1e-5
    (tmp_path / "x.hdr").write_bytes(b"no map")
    with pytest.raises(InputError, match="cannot be read"):
        Light.from_file(tmp_path / "x.hdr")


def test_views_reprojected_through_their_cameras_agree(cube: Mesh) -> None:
    """A pixel's depth in one view leads to the same colour and depth in the next: poses, depth and texture at once."""
    cameras = static_orbit(20, 24).cameras(2.4, side=128)
    first, second = list(render(cube, cameras.take([0, 1]), Light.uniform(0.9)))
    ys, xs = np.nonzero(np.isfinite(first.depth))
    pixels = np.stack([xs, ys], axis=1) + 0.5
    points = cameras.centres[0] + cameras.rays(0, pixels) * first.depth[ys, xs][:, None]
    there, depth = cameras.project(points, 1)
    seen = np.abs(bilinear(np.nan_to_num(second.depth, posinf=9), there) - depth) < 0.003
    assert seen.mean() > 0.7
    ours = first.rgba[ys, xs, :3][seen] / 255
    theirs = bilinear((second.rgba[..., :3] / 255).astype(np.float32), there[seen])
    assert np.median(np.abs(ours - theirs)) < 0.02
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95


def test_edges_are_finer_with_samples(sphere: Mesh) -> None:
    cameras = static_orbit(0, 3).cameras(2, side=48)
    coarse, fine, finest = (
        next(render(sphere, cameras, samples=n)).rgba[..., 3].astype(float) for n in (1, 4, 12)
    )
    assert set(np.unique(coarse)) == {0, 255}
    assert np.abs(fine - finest).mean() < np.abs(coarse - finest).mean() / 5


def test_one_looks_through_glass_front_to_back(plain: Callable[..., Mesh]) -> None:
    square = np.array([[0, -0.5, -0.5], [0, 0.5, -0.5], [0, 0.5, 0.5], [0, -0.5, 0.5]], float)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    front = plain(square + (0.2, 0, 0), faces, (1, 0, 0, 0.5)).parts[0]
    back = plain(square, faces, (0, 1, 0, 0.5)).parts[0]
    mesh = Mesh((back, front), np.zeros(3), 1.0)
    cameras = static_orbit(0, 4).cameras(3, side=32)
    pixel = list(render(mesh, cameras, Light.uniform(1.0)))[-1].rgba[16, 16]
    alpha = 1 - 0.5 * 0.5
    assert pixel[3] == round(alpha * 255)
    assert np.allclose(pixel[:3], np.rint(to_srgb(np.array([0.5, 0.25, 0]) / alpha) * 255), atol=1)
    masked = Mesh((back, replace(front, alpha_mode="mask", cutoff=0.6)), np.zeros(3), 1.0)
    assert list(render(masked, cameras, Light.uniform(1.0)))[-1].rgba[16, 16].tolist() == [0, 255, 0, 128]


def test_the_texture_is_upright_and_not_mirrored(tmp_path: Path) -> None:
    """OBJ: a quad that faces +z with a texture whose upper left quarter is red."""
    from PIL import Image

    from svdcli.multiview.meshes import load_mesh

    picture = np.full((8, 8, 3), 255, np.uint8)
    picture[:4, :4] = (255, 0, 0)
    Image.fromarray(picture).save(tmp_path / "t.png")
    (tmp_path / "m.mtl").write_text("newmtl a\nmap_Kd t.png\n")
    corners = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    (tmp_path / "m.obj").write_text(f"mtllib m.mtl\nusemtl a\n{corners}f 1/1 2/2 3/3\nf 1/1 3/3 4/4\n")
    view = list(
        render(load_mesh(tmp_path / "m.obj"), static_orbit(0, 4).cameras(2.5, side=32), Light.uniform(1.0))
    )[-1]
    assert view.rgba[10, 10, :3].tolist() == [255, 0, 0]
    assert view.rgba[10, 22, :3].tolist() == [255, 255, 255] and view.rgba[22, 10, :3].tolist() == [
        255,
        255,
        255,
    ]
