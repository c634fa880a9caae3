"""Meshes of every format come in alike; bad ones are named."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdcli.errors import InputError
from svdcli.multiview.gltf import read_tree
from svdcli.multiview.meshes import TURNS, Mesh, Up, load_mesh, to_linear, to_srgb

trimesh = pytest.importorskip("trimesh")


def test_a_mesh_is_centred_with_largest_side_one(cube: Mesh) -> None:
    assert np.allclose(cube.vertices.min(axis=0), -0.5) and np.allclose(cube.vertices.max(axis=0), 0.5)
    assert cube.scale == pytest.approx(0.5)
    assert cube.parts[0].texture is not None and cube.parts[0].texture.shape == (64, 64, 4)


def test_gltf_is_turned_upright_with_its_front_to_x(tmp_path: Path) -> None:
    tall = trimesh.creation.box((1, 4, 2), trimesh.transformations.translation_matrix((5, 5, 5)))
    for suffix, sides in ((".glb", (0.5, 0.25, 1)), (".obj", (0.5, 0.25, 1)), (".ply", (0.25, 1, 0.5))):
        tall.export(tmp_path / f"tall{suffix}")
        mesh = load_mesh(tmp_path / f"tall{suffix}")
        assert np.ptp(mesh.vertices, axis=0) == pytest.approx(sides), suffix


@pytest.mark.parametrize("up", ["x", "-x", "y", "-y", "z", "-z"])
def test_any_axis_can_be_said_to_point_up(up: Up, tmp_path: Path) -> None:
    axis, sign = "xyz".index(up[-1]), -1 if up[0] == "-" else 1
    cone = trimesh.creation.cone(1, 4)  # its point at +z
    cone.apply_transform(trimesh.geometry.align_vectors([0, 0, 1], sign * np.eye(3)[axis]))
    cone.export(tmp_path / "cone.ply")
    mesh = load_mesh(tmp_path / "cone.ply", up=up)
    (point,) = np.flatnonzero(mesh.vertices[:, 2] > 0.4)
    assert mesh.vertices[point] == pytest.approx((0, 0, 0.5), abs=1e-6)
    assert np.linalg.det(TURNS[up]) == 1, "an object turned, not mirrored"


def test_nodes_move_and_mirror_their_meshes(tmp_path: Path) -> None:
    scene = trimesh.Scene()
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[:3, 3] = (3, 0, 0)
    box = trimesh.creation.box()
    scene.add_geometry(box, node_name="a")
    scene.add_geometry(box, node_name="b", transform=mirror)
    scene.export(tmp_path / "two.glb")
    mesh = load_mesh(tmp_path / "two.glb")
    assert len(mesh.parts) == 2 and np.ptp(mesh.vertices, axis=0)[1] == pytest.approx(1)
    for part in mesh.parts:  # outward winding, also of the mirrored one
        corners = part.vertices[part.faces]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert ((corners.mean(axis=1) - part.vertices.mean(axis=0)) * normal).sum(axis=1).min() > 0


def test_vertex_colours_are_srgb_in_ply_and_linear_in_gltf(tmp_path: Path) -> None:
    box = trimesh.creation.box()
    box.visual.vertex_colors = np.tile([128, 64, 255, 255], (8, 1)).astype(np.uint8)
    box.export(tmp_path / "c.ply")
    box.export(tmp_path / "c.glb")
    expected = np.array([128, 64, 255]) / 255
    assert np.allclose(load_mesh(tmp_path / "c.ply").parts[0].colours[0, :3], to_linear(expected), atol=1e-6)
    assert np.allclose(load_mesh(tmp_path / "c.glb").parts[0].colours[0, :3], expected, atol=1e-6)


def test_srgb_and_linear_undo_one_another() -> None:
    values = np.linspace(0, 1, 256)
    assert np.allclose(to_srgb(to_linear(values)), values, atol=1e-12)
    assert to_linear(np.array(0.5)) == pytest.approx(0.21404, abs=1e-5)


def _bad(tmp_path: Path, kind: str, cube_file: Path) -> Path:
    path = tmp_path / f"{kind}.glb"
    if kind == "truncated":
        path.write_bytes(cube_file.read_bytes()[:-500])
    elif kind == "garbage":
        path.write_bytes(b"glTF" + bytes(100))
    elif kind == "cloud":
        path = tmp_path / "cloud.ply"
        trimesh.PointCloud(np.random.default_rng(0).random((10, 3))).export(path)
    elif kind == "line":
        path = tmp_path / "line.obj"
        path.write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    elif kind == "buffers":
        path = tmp_path / "buffers.gltf"
        tree, _ = read_tree(cube_file)
        tree["buffers"][0]["uri"] = "gone.bin"
        path.write_text(json.dumps(tree))
    elif kind == "draco":
        path = tmp_path / "draco.gltf"
        path.write_text(json.dumps({"asset": {}, "extensionsRequired": ["KHR_draco_mesh_compression"]}))
    elif kind == "bomb":
        path = tmp_path / "bomb.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.obj", bytes(64 << 20))
    elif kind == "suffix":
        path = tmp_path / "mesh.blend"
        path.write_bytes(b"BLENDER")
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "truncated"),
        ("garbage", "cannot be read"),
        ("cloud", "no faces"),
        ("line", "degenerate"),
        ("buffers", r"gone\.bin, which is missing"),
        ("draco", "Draco"),
        ("bomb", "zip bomb"),
        ("suffix", "no mesh"),
        ("absent", "There is no file"),
    ],
)
def test_bad_meshes_are_named(tmp_path: Path, cube_file: Path, kind: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_mesh(_bad(tmp_path, kind, cube_file))


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_too_many_faces_are_known_before_loading(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimesh.creation.icosphere(2).export(tmp_path / f"s{suffix}")
    monkeypatch.setattr(trimesh, "load_scene", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(InputError, match="320 faces"):
        load_mesh(tmp_path / f"s{suffix}", max_faces=100)


def test_a_missing_texture_is_noted_and_an_archive_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "t.png")
    (tmp_path / "m.mtl").write_text("newmtl a\nKd 0.5 0.5 0.5\nmap_Kd t.png\n")
    obj = "mtllib m.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n"
    (tmp_path / "m.obj").write_text(obj)
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for name in ("m.obj", "m.mtl", "t.png"):
            archive.write(tmp_path / name, name)
    for name in ("m.obj", "m.zip"):
        mesh = load_mesh(tmp_path / name)
        assert mesh.notes == () and mesh.parts[0].texture is not None
        assert np.allclose(mesh.parts[0].base, 1)  # the grey under a texture is not multiplied in
    (tmp_path / "t.png").unlink()
    assert "t.png is missing" in load_mesh(tmp_path / "m.obj").notes[0]
