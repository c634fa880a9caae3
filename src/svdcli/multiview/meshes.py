"""A mesh file -> parts with one material each, z up, centred, largest side 1.

glTF and OBJ files have y up and face +z; that front is turned to +x, where the conditioning view stands. PLY files are
taken as they are. Either may be said to have another axis up. Animations and skins are read in their rest pose; metal and
gloss are rendered as plain colour.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svdcli.errors import InputError, MachineError
from svdcli.io.files import require_file
from svdcli.io.images import MAX_PIXELS, quiet
from svdcli.multiview.gltf import check_gltf
from svdcli.multiview.o3d import INSTALL

SUFFIXES = (".glb", ".gltf", ".obj", ".ply")
MAX_FACES = 5_000_000
MAX_UNPACKED_BYTES = 1 << 30
MAX_RATIO = 200
"""How many times larger than itself an archive may unpack; honest meshes pack three- to twentyfold."""

Up = Literal["x", "-x", "y", "-y", "z", "-z"]
TURNS: dict[Up, np.ndarray] = {
    "x": np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    "-x": np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]),
    "y": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "-y": np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
    "z": np.eye(3),
    "-z": np.diag([1.0, -1.0, -1.0]),
}
"""Rotations from a file whose axis of that name points up to z up; where y is up, the front is turned from +z to +x."""
UPRIGHT = TURNS["y"]
"""What glTF says of itself: y up, front +z."""

AlphaMode = Literal["opaque", "mask", "blend"]


@dataclass(frozen=True)
class Part:
    """Triangles of one material.

    vertices, normals: (N, 3). faces: (F, 3). uv: (N, 2), v up, or None. colours: linear RGBA (N, 4), or None.
    base: linear RGBA (4,) that multiplies the rest. texture: sRGB uint8 (H, W, 4), first row at v = 1, or None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uv: np.ndarray | None
    colours: np.ndarray | None
    base: np.ndarray
    texture: np.ndarray | None
    alpha_mode: AlphaMode = "opaque"
    cutoff: float = 0.5


@dataclass(frozen=True)
class Mesh:
    """An object in the project's world. `centre` and `scale` lead there: x = (x_file_upright − centre) · scale.

    notes: what was lost or mended on the way, a sentence each.
    """

    parts: tuple[Part, ...]
    centre: np.ndarray
    scale: float
    notes: tuple[str, ...] = ()

    @property
    def num_faces(self) -> int:
        return sum(len(part.faces) for part in self.parts)

    @property
    def vertices(self) -> np.ndarray:
        """All vertices, part after part: (N, 3)."""
        return np.concatenate([part.vertices for part in self.parts])

    @property
    def faces(self) -> np.ndarray:
        """All faces (F, 3), as indices of `vertices`."""
        starts = np.cumsum([0, *(len(part.vertices) for part in self.parts[:-1])])
        return np.concatenate([part.faces + start for part, start in zip(self.parts, starts, strict=True)])

    @property
    def is_plain(self) -> bool:
        """True where nothing gives the object a colour: no texture, no vertex colours, no material."""
        return (
            all(
                part.texture is None and part.colours is None and np.allclose(part.base[:3], part.base[0])
                for part in self.parts
            )
            and len({tuple(part.base) for part in self.parts}) == 1
        )


def load_mesh(path: str | Path, max_faces: int = MAX_FACES, up: Up | None = None) -> Mesh:
    """Read GLB, GLTF, OBJ or PLY, also inside a zip archive. up: the axis of the file that points up, if not the usual one.

    Raises InputError, whose sentence is the reason, for what is missing, damaged, without faces, flat to a line, too
    large (known from the header where there is one), without its buffers, or an archive that unpacks to a flood.
    """
    file = require_file(path, "mesh")
    with _unpacked(file) as mesh_file:
        notes = _check(mesh_file, max_faces)
        scene = load_scene(file, mesh_file)
        parts = [part for part in map(_part, *_flat(scene)) if len(part.faces)]
        if not parts:
            raise InputError(
                f"{file} is empty: it has no faces.", "Point clouds and lines cannot be rendered."
            )
        if sum(len(part.faces) for part in parts) > max_faces:
            raise InputError(
                f"{file} has more than {max_faces:,} faces.", "Simplify the mesh, or raise the limit."
            )
        usual: Up = "z" if mesh_file.suffix.lower() == ".ply" else "y"
        return _placed(file, parts, TURNS[up or usual], tuple(notes))


# ---- before loading


@contextmanager
def _unpacked(file: Path) -> Iterator[Path]:
    """The file itself, or the one mesh inside an archive, unpacked to a temporary folder."""
    if not zipfile.is_zipfile(file):
        if file.suffix.lower() not in SUFFIXES:
            raise InputError(f"{file} is no mesh that can be read.", f"Meshes end in {', '.join(SUFFIXES)}.")
        yield file
        return
    with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        total = sum(entry.file_size for entry in entries)
        if total > min(MAX_UNPACKED_BYTES, MAX_RATIO * max(file.stat().st_size, 1 << 16)):
            raise InputError(
                f"{file} would unpack to {total / 2**20:,.0f} MiB, as a zip bomb does.",
                "Unpack it yourself, if you trust it, and give the mesh inside.",
            )
        if any(entry.flag_bits & 1 for entry in entries):
            raise InputError(f"{file} is encrypted.", "Unpack it first.")
        try:
            for entry in entries:
                archive.extract(entry, folder)  # drops `..` and absolute paths by itself
        except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError) as error:
            raise InputError(f"{file} is a damaged archive.", "Copy or download it again.") from error
        found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if len(found) != 1:
            raise InputError(f"{file} holds {len(found)} meshes, not one.", "Unpack it first.")
        yield found[0]


def _check(file: Path, max_faces: int) -> list[str]:
    """What the header can say already; the notes."""
    suffix = file.suffix.lower()
    if suffix in {".glb", ".gltf"}:
        return check_gltf(file, max_faces)
    if suffix == ".ply":
        with file.open("rb") as stream:
            head = stream.read(1 << 14).partition(b"end_header")[0].split()
        for word, kind, count in zip(head, head[1:], head[2:], strict=False):
            if (word, kind) == (b"element", b"face") and count.isdigit() and int(count) > max_faces:
                raise InputError(
                    f"{file} has {int(count):,} faces, more than {max_faces:,}.", "Simplify the mesh."
                )
    if suffix == ".obj":
        with file.open("rb") as stream:
            num_faces = sum(line.startswith(b"f ") for line in stream)
        if num_faces > max_faces:
            raise InputError(
                f"{file} has {num_faces:,} faces, more than {max_faces:,}.", "Simplify the mesh."
            )
        return _missing_obj_files(file)
    return []


def _missing_obj_files(file: Path) -> list[str]:
    notes = []
    with file.open("rb") as stream:
        named = [
            line.split(None, 1)[1].decode(errors="replace").strip()
            for line in stream
            if line[:7] == b"mtllib "
        ]
    for library in (file.parent / name for name in named):
        if not library.is_file():
            notes.append(f"The material file {library.name} is missing.")
            continue
        for line in library.read_text(errors="replace").splitlines():
            words = line.split()
            if words[:1] == ["map_Kd"] and len(words) > 1 and not (library.parent / words[-1]).is_file():
                notes.append(f"The texture {words[-1]} is missing.")
    return notes


# ---- loading


def load_scene(file: Path, mesh_file: Path) -> Any:
    """A trimesh Scene of `mesh_file`, called `file` in errors.

    What trimesh's readers raise on damaged files is of every kind, and all of it means the same.
    """
    try:
        import trimesh
    except ModuleNotFoundError as error:
        raise MachineError("Reading meshes needs the package trimesh.", f"Install it: {INSTALL}") from error
    try:
        with quiet():
            return trimesh.load_scene(mesh_file, process=False)
    except MemoryError as error:
        raise MachineError(f"{file} does not fit into the memory.", "Simplify the mesh.") from error
    except Exception as error:
        raise InputError(f"{file} is damaged and cannot be read as a mesh.", "Export it again.") from error


def _flat(scene: Any) -> tuple[list[Any], list[np.ndarray]]:
    """Every use of a mesh in the scene, and where it stands."""
    import trimesh

    uses = [scene.graph[node] for node in scene.graph.nodes_geometry]
    meshes = [(scene.geometry[name], matrix) for matrix, name in uses]
    kept = [(mesh, matrix) for mesh, matrix in meshes if isinstance(mesh, trimesh.Trimesh)]
    return [mesh for mesh, _ in kept], [matrix for _, matrix in kept]


def _part(mesh: Any, matrix: np.ndarray) -> Part:
    linear = matrix[:3, :3]
    vertices = np.asarray(mesh.vertices, float) @ linear.T + matrix[:3, 3]
    normals = np.asarray(mesh.vertex_normals, float) @ np.linalg.pinv(linear)
    faces = np.asarray(mesh.faces, np.int64)
    good = np.isfinite(vertices[faces]).all(axis=(1, 2))
    if np.linalg.det(linear) < 0:
        faces = faces[:, ::-1]
    material, visual = getattr(mesh.visual, "material", None), mesh.visual
    texture, base, mode, cutoff = _material(material)
    uv = getattr(visual, "uv", None)
    uv = np.asarray(uv, float) if uv is not None and len(uv) == len(vertices) else None
    return Part(
        vertices, faces[good], normals, uv, _vertex_colours(mesh), base,
        texture if uv is not None else None, mode, cutoff,
    )  # fmt: skip


def _material(material: Any) -> tuple[np.ndarray | None, np.ndarray, AlphaMode, float]:
    """(texture, base colour in linear light, alpha mode, cutoff) of glTF's materials and of OBJ's."""
    white = np.ones(4)
    if material is None:
        return None, white, "opaque", 0.5
    if hasattr(material, "baseColorTexture"):  # glTF: factors are linear
        texture = _pixels(material.baseColorTexture)
        factor = material.baseColorFactor
        base = white if factor is None else np.asarray(factor, float) / 255
        modes: dict[Any, AlphaMode] = {"MASK": "mask", "BLEND": "blend"}
        cutoff = 0.5 if material.alphaCutoff is None else float(material.alphaCutoff)
        return texture, base, modes.get(material.alphaMode, "opaque"), cutoff
    texture = _pixels(getattr(material, "image", None))
    diffuse = np.asarray(getattr(material, "diffuse", (255,) * 4), float) / 255
    if diffuse[3] == 0:  # exporters that write `d 0` mean opaque
        diffuse[3] = 1
    base = np.concatenate([to_linear(diffuse[:3]), diffuse[3:]])
    if texture is not None:  # exporters leave a grey Kd behind that no viewer multiplies in
        base = white
    blended = base[3] < 1 or (texture is not None and texture[..., 3].min() < 255)
    return texture, base, "blend" if blended else "opaque", 0.5


def _pixels(image: Any) -> np.ndarray | None:
    """A texture as sRGB uint8 (H, W, 4). Raises InputError where it would unpack to a flood of pixels."""
    if image is None:
        return None
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"A texture has {image.width}x{image.height} pixels.",
            f"Scale it to at most {MAX_PIXELS // 10**6} million.",
        )
    try:
        with quiet():
            return np.asarray(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError("A texture is damaged.", "Export the mesh again.") from error


def _vertex_colours(mesh: Any) -> np.ndarray | None:
    """Linear RGBA (N, 4). glTF stores them linear, PLY and OBJ as sRGB."""
    linear = mesh.visual.vertex_attributes.get("color") if mesh.visual.kind == "texture" else None
    source = str(mesh.metadata.get("file_name", mesh.source.file_name if mesh.source else "") or "").lower()
    if linear is not None and len(linear) == len(mesh.vertices):
        values = np.asarray(linear)
    elif mesh.visual.kind in {"vertex", "face"}:
        values = np.asarray(mesh.visual.vertex_colors)
    else:
        return None
    colours = values / 255 if values.dtype.kind in "ui" else values.astype(float)
    if colours.shape[1] == 3:
        colours = np.concatenate([colours, np.ones((len(colours), 1))], axis=1)
    if not source.endswith((".glb", ".gltf")):
        colours = np.concatenate([to_linear(colours[:, :3]), colours[:, 3:]], axis=1)
    return colours


def _placed(file: Path, parts: list[Part], turn: np.ndarray, notes: tuple[str, ...]) -> Mesh:
    """Turned upright, centred, the largest side 1; only vertices that faces use count."""
    used = np.concatenate([part.vertices[np.unique(part.faces)] for part in parts]) @ turn.T
    low, high = used.min(axis=0), used.max(axis=0)
    sides = np.sort(high - low)
    if not np.isfinite(sides).all() or sides[2] <= 0 or sides[1] < 1e-6 * sides[2]:
        raise InputError(f"{file} is degenerate: its faces have no area.", "Check the mesh in a viewer.")
    centre, scale = (low + high) / 2, 1 / float(sides[2])
    placed = []
    for part in parts:
        normals = part.normals @ turn.T
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        normals = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
        vertices = np.nan_to_num((part.vertices @ turn.T - centre) * scale)
        placed.append(replace(part, vertices=vertices, normals=normals))
    return Mesh(tuple(placed), centre, scale, notes)


def to_linear(srgb: np.ndarray) -> np.ndarray:
    """sRGB in [0, 1] -> linear light (IEC 61966-2-1)."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((np.maximum(srgb, 0) + 0.055) / 1.055) ** 2.4)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear light -> sRGB in [0, 1]; what is brighter than white is clipped."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
