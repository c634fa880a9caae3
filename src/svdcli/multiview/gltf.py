"""What a GLB or GLTF file claims, checked before anything is loaded: buffers, pictures, faces, extensions."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from svdcli.errors import InputError

_MAGIC, _JSON, _BIN = b"glTF", 0x4E4F534A, 0x004E4942
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
UNREADABLE = {"KHR_draco_mesh_compression": "Draco", "EXT_meshopt_compression": "meshopt"}
"""Required extensions without which there is no geometry to read."""


def check_gltf(path: Path, max_faces: int) -> list[str]:
    """Raise InputError, with the reason, for a file that cannot become a mesh; return notes on what will be lost."""
    tree, binary = read_tree(path)
    try:
        _check_extensions(path, tree)
        _check_buffers(path, tree, binary)
        faces = count_faces(tree)
        notes = _missing_pictures(path, tree)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: its description contradicts itself.", "Export it again."
        ) from error
    if faces > max_faces:
        raise InputError(
            f"{path} has {faces:,} faces, more than {max_faces:,}.", "Simplify the mesh, or raise the limit."
        )
    return notes


def read_tree(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON part, and the bytes of the binary chunk that follows it (0 for .gltf)."""
    data = path.read_bytes()
    binary = 0
    if data[:4] == _MAGIC:
        if len(data) < 20:
            raise InputError(f"{path} is truncated: it ends inside its header.", "Copy or download it again.")
        _, version, length, size, kind = struct.unpack("<4sIIII", data[:20])
        if version != 2 or kind != _JSON:
            raise InputError(
                f"{path} is glTF version {version}, which cannot be read.", "Export it as glTF 2.0."
            )
        if length > len(data):
            raise InputError(
                f"{path} is truncated: {len(data):,} bytes of {length:,}.", "Copy or download it again."
            )
        start = 20 + size
        if start + 8 <= len(data):
            binary, kind = struct.unpack("<II", data[start : start + 8])
            binary = binary if kind == _BIN else 0
        data = data[20:start]
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: it is not glTF.", "Export it again.") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} is damaged: it is not glTF.", "Export it again.")
    return tree, binary


def count_faces(tree: dict[str, Any]) -> int:
    """Triangles of all meshes that nodes use, as often as they use them."""
    accessors = tree.get("accessors", [])
    of_mesh = []
    for mesh in tree.get("meshes", []):
        total = 0
        for primitive in mesh["primitives"]:
            corners = primitive.get("indices", primitive["attributes"].get("POSITION"))
            count = accessors[corners]["count"] if corners is not None else 0
            mode = primitive.get("mode", _TRIANGLES)
            total += {_TRIANGLES: count // 3, _STRIP: count - 2, _FAN: count - 2}.get(mode, 0)
        of_mesh.append(total)
    return sum(of_mesh[node["mesh"]] for node in tree.get("nodes", []) if "mesh" in node)


def _check_extensions(path: Path, tree: dict[str, Any]) -> None:
    for name in tree.get("extensionsRequired", []):
        if name in UNREADABLE:
            raise InputError(
                f"{path} is compressed with {UNREADABLE[name]}, which cannot be read here.",
                "Export it without mesh compression (for example: gltf-transform copy).",
            )


def _check_buffers(path: Path, tree: dict[str, Any], binary: int) -> None:
    """Every buffer is there and as long as it says, every view inside its buffer."""
    lengths = []
    for index, buffer in enumerate(tree.get("buffers", [])):
        uri, needed = buffer.get("uri"), buffer["byteLength"]
        if uri is None:
            here = binary if index == 0 else 0
        elif uri.startswith("data:"):
            here = len(base64.b64decode(uri.partition(",")[2]))
        else:
            file = path.parent / unquote(uri)
            if not file.is_file():
                raise InputError(f"{path} needs {uri}, which is missing.", "Keep the buffer beside the file.")
            here = file.stat().st_size
        if here < needed:
            raise InputError(
                f"{path} lacks {needed - here:,} bytes of its buffer.", "Copy or download it again."
            )
        lengths.append(needed)
    for view in tree.get("bufferViews", []):
        if view.get("byteOffset", 0) + view["byteLength"] > lengths[view["buffer"]]:
            raise InputError(f"{path} is damaged: a part lies outside its buffer.", "Export it again.")


def _missing_pictures(path: Path, tree: dict[str, Any]) -> list[str]:
    notes = []
    for image in tree.get("images", []):
        uri = image.get("uri")
        if uri and not uri.startswith("data:") and not (path.parent / unquote(uri)).is_file():
            notes.append(f"The texture {unquote(uri)} is missing.")
    return notes
