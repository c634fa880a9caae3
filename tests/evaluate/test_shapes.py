"""Shapes from files of other tools, good and bad, all with z up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from svdcli.errors import InputError
from svdcli.evaluate.geometry import Shape, compare_shapes
from svdcli.evaluate.shapes import read_shape
from svdcli.multiview.meshes import UPRIGHT

CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 2) for z in (0, 3)], float)
QUADS = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
BRICK = Shape(CORNERS, np.array([t for q in QUADS for t in ([q[0], q[1], q[2]], [q[0], q[2], q[3]])]))
CLOUD = np.random.default_rng(0).random((500, 3))


def test_files_of_other_tools_are_read(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    mesh = trimesh.Trimesh(BRICK.vertices, BRICK.faces, process=False)
    (tmp_path / "a.ply").write_bytes(trimesh.exchange.ply.export_ply(mesh, encoding="ascii"))
    (tmp_path / "b.ply").write_bytes(trimesh.exchange.ply.export_ply(mesh))
    mesh.export(tmp_path / "c.stl")
    for name in ("a.ply", "b.ply", "c.stl"):
        found = read_shape(tmp_path / name)
        assert compare_shapes(BRICK, found, num_points=200)["volume_iou"] == 1.0, name
    mesh.apply_transform(np.pad(UPRIGHT.T, (0, 1)) + np.diag([0.0, 0, 0, 1]))  # y up, as these kinds have it
    for name in ("d.obj", "e.glb", "f.gltf"):
        mesh.export(tmp_path / name)
        found = read_shape(tmp_path / name)
        assert np.sort(found.vertices, axis=0) == pytest.approx(np.sort(BRICK.vertices, axis=0), abs=1e-6), (
            name
        )
        assert compare_shapes(BRICK, found, num_points=200)["volume_iou"] == 1.0, name


def test_clouds_of_other_tools_are_read(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    trimesh.PointCloud(CLOUD).export(tmp_path / "a.ply")
    np.savetxt(tmp_path / "b.xyz", np.c_[CLOUD, CLOUD], header="x y z r g b")
    lines = ["VERSION .7", "FIELDS x y z", "SIZE 4 4 4", "TYPE F F F", "COUNT 1 1 1", f"WIDTH {len(CLOUD)}", "HEIGHT 1",
             f"POINTS {len(CLOUD)}", "DATA ascii"]  # fmt: skip
    rows = [" ".join(f"{value:.7f}" for value in point) for point in CLOUD]
    (tmp_path / "c.pcd").write_text("\n".join([*lines, *rows]) + "\n")
    for name in ("a.ply", "b.xyz", "c.pcd"):
        found = read_shape(tmp_path / name)
        assert found.vertices == pytest.approx(CLOUD, abs=1e-6) and not len(found.faces), name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.ply",
            b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\nend_header\n1 2",
        ),
        ("a.ply", b"no header"),
        ("a.ply", b"ply\nformat binary_big_endian 1.0\nend_header\n"),
        ("a.ply", b"ply\nformat binary_little_endian 1.0\nelement vertex 99\nproperty float x\nend_header\n"),
        ("a.obj", b"v 1 2 nan\n"),
        ("a.obj", b"v 0 0 0\nf 1 2 3\n"),
        ("a.obj", b"# nothing"),
        ("a.xyz", b"1 2\n"),
        ("a.xyz", b"one two three\n"),
        ("a.glb", b"glTF"),
        ("a.stl", b"solid"),
        ("a.pcd", b"VERSION .7\n"),
        ("a.fbx", b"solid"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        read_shape(tmp_path / name)
