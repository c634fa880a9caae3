"""A cloud as files that other programs open: PLY, PCD, XYZ, GLB, a mesh, an untrained Gaussian splat, a picture.

PLY, PCD and XYZ keep the project's world (z up); GLB turns it to glTF's (y up). Stored colours are sRGB, except in GLB,
where glTF wants them linear.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from svdcli.errors import UsageError
from svdcli.io.files import atomic_path
from svdcli.io.images import write_png
from svdcli.multiview.hull import Surface
from svdcli.multiview.meshes import UPRIGHT, to_linear
from svdcli.multiview.points import Cloud
from svdcli.multiview.splat import turntable
from svdcli.multiview.surface import vertex_normals

SH_DEGREE_0 = 0.28209479177387814
"""√(1/4π): a splat's colour is ½ + this · f_dc (Kerbl et al. 2023)."""
_OPACITY = 0.95
_FLATNESS = 0.2  # a splat's thickness beside its width


def export(cloud: Cloud, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the cloud in each of `FORMATS` that is named; the paths. Raises UsageError for another name."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UsageError(f"There is no format {unknown[0]}.", f"Choose from {', '.join(FORMATS)}.")
    paths = []
    for name in dict.fromkeys(formats):
        file, write = FORMATS[name]
        write(folder / file, cloud)
        paths.append(folder / file)
    return paths


def write_ply(path: Path, cloud: Cloud) -> None:
    """Binary: x y z nx ny nz (float), red green blue (uchar), confidence (float)."""
    fields = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    fields += [(name, "u1") for name in ("red", "green", "blue")] + [("confidence", "<f4")]
    values = [*cloud.points.T, *cloud.normals.T, *_bytes(cloud.colours).T, cloud.confidence]
    _write_ply_table(path, np.rec.fromarrays(values, dtype=fields))


def write_pcd(path: Path, cloud: Cloud) -> None:
    """PCD 0.7, binary: x y z normal_x normal_y normal_z rgb (packed into a float, as PCL does)."""
    names = ("x", "y", "z", "normal_x", "normal_y", "normal_z", "rgb")
    red, green, blue = _bytes(cloud.colours).astype(np.uint32).T
    packed = (red << 16 | green << 8 | blue).view(np.float32)
    data = np.stack([*cloud.points.T, *cloud.normals.T, packed], axis=1).astype("<f4")
    head = [
        "# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", f"FIELDS {' '.join(names)}",
        "SIZE 4 4 4 4 4 4 4", "TYPE F F F F F F F", "COUNT 1 1 1 1 1 1 1", f"WIDTH {len(data)}", "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {len(data)}", "DATA binary\n",
    ]  # fmt: skip
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join(head).encode() + data.tobytes())


def write_xyz(path: Path, cloud: Cloud) -> None:
    """Text: x y z red green blue (0 to 255), a point a line."""
    table = np.concatenate([cloud.points, _bytes(cloud.colours)], axis=1)
    with atomic_path(path) as temporary:
        np.savetxt(temporary, table, fmt="%.6f %.6f %.6f %d %d %d")


def write_point_glb(path: Path, cloud: Cloud) -> None:
    """glTF points with colours and normals."""
    write_glb(path, cloud.points, cloud.normals, cloud.colours, None)


def write_mesh_glb(path: Path, cloud: Cloud) -> None:
    """glTF triangles with colours at the vertices."""
    surface = cloud.surface
    write_glb(path, surface.vertices, vertex_normals(surface), cloud.surface_colours, surface.faces)


def write_mesh_ply(path: Path, cloud: Cloud) -> None:
    """Binary: vertices with sRGB colours, triangles."""
    surface: Surface = cloud.surface
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    values = [*surface.vertices.T, *_bytes(cloud.surface_colours).T]
    faces = np.empty(len(surface.faces), dtype=[("count", "u1"), ("index", "<i4", (3,))])
    faces["count"], faces["index"] = 3, surface.faces
    _write_ply_table(path, np.rec.fromarrays(values, dtype=fields), faces)


def write_gaussians(path: Path, cloud: Cloud) -> None:
    """A 3D Gaussian splat that nobody trained, as gsplat and its viewers read it: a flat disc on each point, spherical
    harmonics of degree 0, log scales, logit opacity, quaternion w x y z."""
    from scipy.spatial import cKDTree

    spacing = cKDTree(cloud.points).query(cloud.points, k=min(4, len(cloud.points)))[0][:, 1:].mean(axis=1)
    scales = np.log(np.maximum(spacing, 1e-7))[:, None] + np.log([1.0, 1.0, _FLATNESS])
    opacity = np.full(len(cloud.points), np.log(_OPACITY / (1 - _OPACITY)))
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"]
    names += ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    values = [
        *cloud.points.T,
        *np.zeros((3, len(opacity))),
        *((cloud.colours - 0.5) / SH_DEGREE_0).T,
        opacity,
    ]
    values += [*scales.T, *_turn_from_z(cloud.normals).T]
    _write_ply_table(path, np.rec.fromarrays(values, dtype=[(name, "<f4") for name in names]))


def write_turntable(path: Path, cloud: Cloud) -> None:
    """A picture of the cloud itself from eight sides, as PNG."""
    write_png(path, turntable(cloud.points, cloud.colours))


FORMATS: dict[str, tuple[str, Callable[[Path, Cloud], None]]] = {
    "ply": ("points.ply", write_ply),
    "pcd": ("points.pcd", write_pcd),
    "xyz": ("points.xyz", write_xyz),
    "glb": ("points.glb", write_point_glb),
    "mesh": ("mesh.ply", write_mesh_ply),
    "mesh-glb": ("mesh.glb", write_mesh_glb),
    "gaussians": ("gaussians.ply", write_gaussians),
    "turntable": ("turntable.png", write_turntable),
}
"""Name -> (file, writer)."""


def write_glb(
    path: Path, points: np.ndarray, normals: np.ndarray, colours: np.ndarray, faces: np.ndarray | None
) -> None:
    """One glTF primitive: points, or triangles where `faces` is given. Colours sRGB in [0, 1]."""
    position, normal = ((values @ UPRIGHT).astype("<f4") for values in (points, normals))  # UPRIGHT's inverse
    colour = np.ones((len(points), 4), "<f4")
    colour[:, :3] = to_linear(colours)
    arrays = [(position, "VEC3", 5126), (normal, "VEC3", 5126), (colour, "VEC4", 5126)]
    if faces is not None:
        arrays.append((faces.astype("<u4").ravel(), "SCALAR", 5125))
    views, accessors, binary = [], [], b""
    for index, (array, kind, component) in enumerate(arrays):
        views.append({"buffer": 0, "byteOffset": len(binary), "byteLength": array.nbytes})
        accessor = {"bufferView": index, "componentType": component, "count": len(array), "type": kind}
        if index == 0:
            accessor |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        accessors.append(accessor)
        binary += array.tobytes()
    primitive = {"attributes": {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}, "mode": 0 if faces is None else 4}
    if faces is not None:
        primitive |= {"indices": 3}
    tree = {
        "asset": {"version": "2.0", "generator": "svdcli"},
        "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "accessors": accessors, "bufferViews": views, "buffers": [{"byteLength": len(binary)}],
    }  # fmt: skip
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary))
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            head
            + struct.pack("<II", len(text), 0x4E4F534A)
            + text
            + struct.pack("<II", len(binary), 0x004E4942)
            + binary
        )


def _write_ply_table(path: Path, vertices: np.ndarray, faces: np.ndarray | None = None) -> None:
    types = {"float32": "float", "uint8": "uchar"}
    head = ["ply", "format binary_little_endian 1.0", "comment svdcli", f"element vertex {len(vertices)}"]
    assert vertices.dtype.names
    head += [f"property {types[str(vertices.dtype[name])]} {name}" for name in vertices.dtype.names]
    if faces is not None:
        head += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    with atomic_path(path) as temporary:
        body = vertices.tobytes() + (b"" if faces is None else faces.tobytes())
        temporary.write_bytes("\n".join([*head, "end_header\n"]).encode() + body)


def _bytes(colours: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(colours, 0, 1) * 255).astype(np.uint8)


def _turn_from_z(normals: np.ndarray) -> np.ndarray:
    """Quaternions (N, 4), w x y z, that turn +z to the normals."""
    quaternion = np.stack([1 + normals[:, 2], -normals[:, 1], normals[:, 0], np.zeros(len(normals))], axis=1)
    quaternion[normals[:, 2] < -0.999999] = (0.0, 1.0, 0.0, 0.0)
    return quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
