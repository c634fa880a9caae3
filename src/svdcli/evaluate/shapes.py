"""Files of shapes: meshes and point clouds of the usual kinds, all in the project's world, where z is up.

glTF and OBJ have y up and face +z, and are turned as `multiview.meshes` turns them for its renders; PLY, STL, PCD and XYZ are
taken as they are. Nothing is moved or scaled. PLY, OBJ and XYZ are read without any package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError
from svdcli.evaluate.geometry import Array, Shape
from svdcli.io.files import require_file
from svdcli.multiview.meshes import UPRIGHT, load_mesh, load_scene
from svdcli.multiview.o3d import read_cloud

Faces = npt.NDArray[np.int64]
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4", "double": "f8",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4", "float32": "f4",
    "float64": "f8",
}  # fmt: skip


def read_shape(path: Path) -> Shape:
    """A mesh or cloud; PLY ascii or little-endian, glTF also zipped. Raises InputError, and MachineError for absent packages."""
    require_file(path, "shape")
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path.name} is no shape that can be read.", f"Shapes end in {', '.join(READERS)}.")
    try:
        vertices, faces = read(path)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise InputError(
            f"{path} is damaged, or of a form that is not read: {error}.", "Export it again."
        ) from error
    if not len(vertices) or not np.isfinite(vertices).all():
        raise InputError(f"{path} has no points, or some that are not finite.", "Export it again.")
    if len(faces) and not (0 <= faces.min() and faces.max() < len(vertices)):
        raise InputError(f"{path} has faces of vertices that are not there.", "Export it again.")
    return Shape(vertices, faces)


def _read_gltf(path: Path) -> tuple[Array, Faces]:
    mesh = load_mesh(path)
    return mesh.vertices / mesh.scale + mesh.centre, mesh.faces


def _read_stl(path: Path) -> tuple[Array, Faces]:
    meshes = list(load_scene(path, path).geometry.values())
    faces = np.concatenate([np.asarray(mesh.faces, np.int64) for mesh in meshes])
    return np.concatenate([np.asarray(mesh.vertices, float) for mesh in meshes]), faces


def _read_pcd(path: Path) -> tuple[Array, Faces]:
    return read_cloud(path), np.empty((0, 3), np.int64)


def _read_xyz(path: Path) -> tuple[Array, Faces]:
    """Three numbers a line; what follows them, such as colours, is passed over."""
    rows = [line.split()[:3] for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row and not row[0].startswith("#")]
    return np.array(rows, float).reshape(-1, 3), np.empty((0, 3), np.int64)


def _read_ply(path: Path) -> tuple[Array, Faces]:
    head, separator, body = path.read_bytes().partition(b"end_header\n")
    if not head.startswith(b"ply") or not separator:
        raise ValueError("no PLY header")
    lines = head.decode("ascii").split("\n")
    form = next(line.split()[1] for line in lines if line.startswith("format"))
    if form not in ("ascii", "binary_little_endian"):
        raise ValueError(f"format {form}")
    elements: list[tuple[str, int, list[list[str]]]] = []
    for line in lines:
        words = line.split()
        if words[:1] == ["element"]:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"]:
            elements[-1][2].append(words[1:])
    read = _ascii_element if form == "ascii" else _binary_element
    rest: Any = body.split() if form == "ascii" else body
    vertices, faces = np.empty((0, 3)), np.empty((0, 3), np.int64)
    for name, count, properties in elements:
        rows, rest = read(rest, count, properties)
        if name == "vertex":
            names = [words[-1] for words in properties]
            vertices = np.stack([np.array([row[names.index(k)] for row in rows], float) for k in "xyz"], 1)
        elif name == "face":
            at = next(i for i, words in enumerate(properties) if words[0] == "list")
            faces = _triangles([row[at] for row in rows])
    return vertices, faces


def _ascii_element(
    words: list[bytes], count: int, properties: list[list[str]]
) -> tuple[list[Any], list[bytes]]:
    rows, at = [], 0
    for _ in range(count):
        row: list[Any] = []
        for kind, *_ in properties:
            if kind == "list":
                length = int(words[at])
                row.append([int(w) for w in words[at + 1 : at + 1 + length]])
                at += 1 + length
            else:
                row.append(float(words[at]))
                at += 1
        rows.append(row)
    return rows, words[at:]


def _binary_element(body: bytes, count: int, properties: list[list[str]]) -> tuple[Any, bytes]:
    if all(words[0] != "list" for words in properties):
        kind = np.dtype([(words[-1], "<" + _TYPES[words[0]]) for words in properties])
        return np.frombuffer(body, kind, count), body[count * kind.itemsize :]
    rows, at = [], 0
    for _ in range(count):
        row: list[Any] = []
        for words in properties:
            number = np.dtype("<" + _TYPES[words[1] if words[0] == "list" else words[0]])
            value = np.frombuffer(body, number, 1, at)[0]
            at += number.itemsize
            if words[0] == "list":
                item = np.dtype("<" + _TYPES[words[2]])
                row.append(np.frombuffer(body, item, int(value), at).tolist())
                at += int(value) * item.itemsize
            else:
                row.append(value)
        rows.append(row)
    return rows, body[at:]


def _read_obj(path: Path) -> tuple[Array, Faces]:
    vertices: list[list[float]] = []
    polygons: list[list[int]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            vertices.append([float(w) for w in words[1:4]])
        elif words[:1] == ["f"]:
            numbers = [int(w.split("/")[0]) for w in words[1:]]
            polygons.append([n - 1 if n > 0 else len(vertices) + n for n in numbers])
    return np.array(vertices, float).reshape(-1, 3) @ UPRIGHT.T, _triangles(polygons)


def _triangles(polygons: list[list[int]]) -> Faces:
    fans = [[p[0], p[i], p[i + 1]] for p in polygons for i in range(1, len(p) - 1)]
    return np.array(fans, np.int64).reshape(-1, 3)


READERS: dict[str, Callable[[Path], tuple[Array, Faces]]] = {
    ".ply": _read_ply, ".obj": _read_obj, ".glb": _read_gltf, ".gltf": _read_gltf, ".stl": _read_stl, ".pcd": _read_pcd,
    ".xyz": _read_xyz,
}  # fmt: skip
