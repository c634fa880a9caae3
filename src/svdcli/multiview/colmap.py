"""COLMAP's sparse model, text and binary: cameras and poses read, text written.

Its conventions are ours (world-to-camera, OpenCV axes, first pixel centre at (0.5, 0.5)); only its world is turned and
scaled as it likes, and nothing says which way is up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from svdcli.errors import InputError
from svdcli.io.files import atomic_folder
from svdcli.multiview.cameras import Cameras
from svdcli.multiview.transforms import Transforms

PLACES = ("sparse/0", "sparse", "colmap/sparse/0", ".")
_MODELS = {0: "SIMPLE_PINHOLE", 1: "PINHOLE", 2: "SIMPLE_RADIAL", 3: "RADIAL", 4: "OPENCV"}
_NUM_PARAMS = {"SIMPLE_PINHOLE": 3, "PINHOLE": 4, "SIMPLE_RADIAL": 4, "RADIAL": 5, "OPENCV": 8}


@dataclass(frozen=True)
class Lens:
    """One camera of a model. distortion: OpenCV's k1 k2 p1 p2 k3."""

    width: int
    height: int
    intrinsics: np.ndarray
    distortion: np.ndarray


@dataclass(frozen=True)
class Model:
    """Registered pictures in the order of their names: poses (V, 4, 4) world-to-camera, the lens of each."""

    names: tuple[str, ...]
    world_to_camera: np.ndarray
    lenses: tuple[Lens, ...]

    def transforms(self, folder: Path) -> Transforms:
        """As a camera file of `folder`, whose pictures lie in `images/` or in itself. Raises InputError where the
        pictures have several sizes."""
        sizes = {(lens.width, lens.height) for lens in self.lenses}
        if len(sizes) > 1:
            raise InputError(f"The pictures of {folder} have several sizes.", "Scale them to one size first.")
        (width, height) = sizes.pop()
        inside = "images/" if (folder / "images").is_dir() else ""
        return Transforms(
            Cameras(self.world_to_camera, np.stack([lens.intrinsics for lens in self.lenses]), width, height),
            tuple(inside + name for name in self.names),
            distortion=np.stack([lens.distortion for lens in self.lenses]),
        )


def find_model(folder: Path) -> Path | None:
    """Where below `folder` a sparse model lies, if there is one."""
    for place in PLACES:
        for suffix in (".bin", ".txt"):
            if (folder / place / f"cameras{suffix}").is_file() and (
                folder / place / f"images{suffix}"
            ).is_file():
                return folder / place
    return None


def read_model(folder: Path) -> Model:
    """Read cameras and images, binary before text. Raises InputError for a damaged, empty or fisheye model."""
    suffix = ".bin" if (folder / "cameras.bin").is_file() else ".txt"
    cameras, images = folder / f"cameras{suffix}", folder / f"images{suffix}"
    try:
        if suffix == ".bin":
            with cameras.open("rb") as stream:
                lenses = dict(_binary_lenses(stream))
            with images.open("rb") as stream:
                shots = list(_binary_images(stream))
        else:
            lenses = dict(_text_lenses(_lines(cameras)))
            shots = list(_text_images(_lines(images)))
        shots.sort()
        poses = np.stack([_pose(quaternion, shift) for _, quaternion, shift, _ in shots])
        names = tuple(name for name, *_ in shots)
        return Model(names, poses, tuple(lenses[key] for *_, key in shots))
    except (OSError, ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder} is not a COLMAP model with registered pictures.", "Run COLMAP again."
        ) from error


def write_model(folder: Path, cameras: Cameras, names: tuple[str, ...], points: np.ndarray | None = None,
                colours: np.ndarray | None = None) -> None:  # fmt: skip
    """Write cameras.txt, images.txt and points3D.txt; points (N, 3), colours uint8 (N, 3), both may be absent."""
    with atomic_folder(folder) as temporary:
        rows = []
        for view, K in enumerate(cameras.intrinsics):
            numbers = " ".join(repr(float(x)) for x in (K[0, 0], K[1, 1], K[0, 2], K[1, 2]))
            rows.append(f"{view + 1} PINHOLE {cameras.width} {cameras.height} {numbers}")
        (temporary / "cameras.txt").write_text(
            "\n".join(["# id model width height fx fy cx cy", *rows]) + "\n"
        )
        rows = []
        for view, (pose, name) in enumerate(zip(cameras.world_to_camera, names, strict=True)):
            numbers = " ".join(repr(float(x)) for x in (*quaternion_of(pose[:3, :3]), *pose[:3, 3]))
            rows += [f"{view + 1} {numbers} {view + 1} {name}", ""]
        (temporary / "images.txt").write_text(
            "\n".join(["# id qw qx qy qz tx ty tz camera name", *rows]) + "\n"
        )
        rows = []
        if points is not None:
            shades = np.full(points.shape, 128, np.uint8) if colours is None else colours
            for index, (point, shade) in enumerate(zip(points, shades, strict=True)):
                place = " ".join(f"{x:.6g}" for x in point)
                rows.append(f"{index + 1} {place} {shade[0]} {shade[1]} {shade[2]} 0")
        (temporary / "points3D.txt").write_text("\n".join(["# id x y z r g b error", *rows]) + "\n")


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z), w ≥ 0, of a rotation (3, 3): the eigenvector of the largest eigenvalue (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    K = np.array(
        [
            [a - e - i, 0, 0, 0],
            [b + d, e - a - i, 0, 0],
            [c + g, f + h, i - a - e, 0],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    values, vectors = np.linalg.eigh(K / 3)  # reads the lower triangle
    x, y, z, w = vectors[:, values.argmax()]
    return np.array([w, x, y, z]) * (1 if w >= 0 else -1)


# ---- reading


def _pose(quaternion: np.ndarray, shift: np.ndarray) -> np.ndarray:
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = shift
    return pose


def _lens(model: str, width: int, height: int, params: list[float]) -> Lens:
    if model not in _NUM_PARAMS:
        raise InputError(f"{model} lenses are not supported.", "Run COLMAP's image_undistorter first.")
    single = model in {"SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"}
    fx, fy, cx, cy, *rest = [params[0], *params] if single else params
    distortion = np.zeros(5)
    distortion[: len(rest)] = rest
    return Lens(width, height, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), distortion)


def _unpack(stream: BinaryIO, form: str) -> tuple:
    size = struct.calcsize("<" + form)
    return struct.unpack("<" + form, stream.read(size))


def _binary_lenses(stream: BinaryIO) -> Iterator[tuple[int, Lens]]:
    for _ in range(_unpack(stream, "Q")[0]):
        key, model, width, height = _unpack(stream, "iiQQ")
        name = _MODELS.get(model, f"COLMAP's model {model}")
        yield key, _lens(name, width, height, list(_unpack(stream, f"{_NUM_PARAMS.get(name, 0)}d")))


def _binary_images(stream: BinaryIO) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    for _ in range(_unpack(stream, "Q")[0]):
        _, *numbers, camera = _unpack(stream, "i7di")
        name = bytearray()
        while (letter := stream.read(1)) not in {b"\0", b""}:
            name += letter
        stream.seek(24 * _unpack(stream, "Q")[0], 1)  # the points that it sees
        yield name.decode(), np.array(numbers[:4]), np.array(numbers[4:]), camera


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def _text_lenses(lines: list[str]) -> Iterator[tuple[int, Lens]]:
    for line in filter(str.strip, lines):
        key, model, width, height, *params = line.split()
        yield int(key), _lens(model, int(width), int(height), [float(x) for x in params])


def _text_images(lines: list[str]) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
    """Two lines a picture: the pose, and the points that it sees, which may be an empty line."""
    for line in lines[::2]:
        if line.strip():
            _, *numbers, camera, name = line.split(maxsplit=9)
            values = np.array([float(x) for x in numbers])
            yield name, values[:4], values[4:], int(camera)
