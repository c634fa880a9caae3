"""Cameras as `transforms.json`, in nerfstudio's convention, and paths of orbits as JSON.

The matrix is camera-to-world in OpenGL's axes (x right, y up, z backward), the world has z up; nerfstudio's `w h fl_x
fl_y cx cy` are our intrinsics. What is ours alone stands under "svd" and other readers pass over it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from svdcli.errors import InputError
from svdcli.io.files import atomic_path, require_file
from svdcli.io.images import read_picture
from svdcli.multiview.cameras import OPENGL, Cameras, Orbit

NAME = "transforms.json"
DISTORTION = ("k1", "k2", "p1", "p2", "k3")
"""Lens coefficients in OpenCV's order."""


@dataclass(frozen=True)
class Transforms:
    """A camera file: cameras, and for each view its picture, mask and depth, as paths relative to the file.

    distortion: OpenCV's five lens coefficients of each view (V, 5), zero for a pinhole.
    facts: whatever stood under "svd".
    """

    cameras: Cameras
    images: tuple[str, ...]
    masks: tuple[str | None, ...] = ()
    depths: tuple[str | None, ...] = ()
    distortion: np.ndarray | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_transforms(path: Path, transforms: Transforms) -> None:
    """Write the file, atomically."""
    text = json.dumps(as_json(transforms), indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def as_json(transforms: Transforms) -> dict[str, Any]:
    """The content of the file. Intrinsics stand at the top where all views share them, else in each frame."""
    cameras = transforms.cameras
    lenses = [_lens(cameras, view) for view in range(len(cameras))]
    shared = all(lens == lenses[0] for lens in lenses)
    frames = []
    for view, image in enumerate(transforms.images):
        matrix = np.linalg.inv(cameras.world_to_camera[view]) @ OPENGL
        frame: dict[str, Any] = {"file_path": image}
        for key, files in (("mask_path", transforms.masks), ("depth_file_path", transforms.depths)):
            if files and files[view]:
                frame[key] = files[view]
        frames.append(frame | ({} if shared else lenses[view]) | {"transform_matrix": matrix.tolist()})
    top = {"camera_model": "OPENCV"} | (lenses[0] if shared else {})
    return top | {"frames": frames} | ({"svd": dict(transforms.facts)} if transforms.facts else {})


def read_transforms(path: Path) -> Transforms:
    """Read ours, nerfstudio's, or the original NeRF's file (`camera_angle_x`), for pictures of one size.

    Raises InputError for what is no such file, and for fisheye and equirectangular lenses.
    """
    tree = _tree(path)
    try:
        frames = tree["frames"]
        lenses = [_read_lens(path, {**tree, **frame}, frame["file_path"]) for frame in frames]
        matrices = np.array([frame["transform_matrix"] for frame in frames], float)
        if (
            matrices.ndim != 3
            or matrices.shape[1:] not in {(4, 4), (3, 4)}
            or not np.isfinite(matrices).all()
        ):
            raise ValueError("transform_matrix")
        poses = np.tile(np.eye(4), (len(frames), 1, 1))
        poses[:, : matrices.shape[1]] = matrices
        sizes = {lens[0] for lens in lenses}
        if len(sizes) > 1:
            raise InputError(f"The pictures of {path} have several sizes.", "Scale them to one size first.")
        (width, height) = sizes.pop()
        cameras = Cameras(
            np.linalg.inv(poses @ OPENGL), np.stack([lens[1] for lens in lenses]), width, height
        )
        return Transforms(
            cameras,
            tuple(str(frame["file_path"]) for frame in frames),
            tuple(frame.get("mask_path") for frame in frames),
            tuple(frame.get("depth_file_path") for frame in frames),
            np.stack([lens[2] for lens in lenses]),
            tree.get("svd", {}),
        )
    except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
        raise InputError(
            f"{path} is not a camera file: {_reason(error)}.", "It should be as nerfstudio describes it."
        ) from error


def read_path(path: Path) -> Orbit:
    """An orbit from JSON: a transforms.json, or {"azimuths_deg": [...], "elevations_deg": [...]}.

    Azimuths are made relative to the last view, the conditioning one. Raises InputError for anything else.
    """
    tree = _tree(path)
    if "frames" in tree:
        cameras = read_transforms(path).cameras
        azimuths, elevations = cameras.azimuths_deg, cameras.elevations_deg
    else:
        try:
            azimuths = np.array(tree["azimuths_deg"], float)
            elevations = np.broadcast_to(np.array(tree["elevations_deg"], float), azimuths.shape).copy()
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is not a path of an orbit.",
                'Write {"azimuths_deg": [...], "elevations_deg": [...]}.',
            ) from error
    if azimuths.ndim != 1 or len(azimuths) < 2 or not np.isfinite([azimuths, elevations]).all():
        raise InputError(f"{path} is not a path of an orbit.", "It needs two or more finite angles.")
    if np.abs(elevations).max() > 89:
        raise InputError(
            f"{path} has an elevation beyond 89°.", "Keep elevations between -89 and 89 degrees."
        )
    return Orbit((azimuths - azimuths[-1]) % 360, elevations)


def _lens(cameras: Cameras, view: int) -> dict[str, Any]:
    K = cameras.intrinsics[view]
    numbers = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    return {"w": cameras.width, "h": cameras.height} | {key: float(value) for key, value in numbers.items()}


def _read_lens(
    path: Path, frame: Mapping[str, Any], image: str
) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """(width, height), intrinsics (3, 3) and distortion (5,)."""
    model = frame.get("camera_model", "OPENCV")
    if model not in {"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE"}:
        raise InputError(
            f"{path} has {model} lenses, which are not supported.", "Undistort the pictures first."
        )
    if "w" not in frame:
        height, width = read_picture(picture_path(path.parent, image)).pixels.shape[:2]
        frame = {**frame, "w": width, "h": height}
    width, height = int(frame["w"]), int(frame["h"])
    if "fl_x" in frame:
        focal = float(frame["fl_x"])
    else:
        focal = width / 2 / np.tan(float(frame["camera_angle_x"]) / 2)
    across, down = float(frame.get("cx", width / 2)), float(frame.get("cy", height / 2))
    intrinsics = np.array([[focal, 0, across], [0, float(frame.get("fl_y", focal)), down], [0, 0, 1]])
    return (width, height), intrinsics, np.array([float(frame.get(key, 0)) for key in DISTORTION])


def picture_path(folder: Path, name: str) -> Path:
    """Where a picture named in a camera file lies; NeRF's files leave out the suffix."""
    path = folder / name
    return path if path.exists() or path.suffix else path.with_suffix(".png")


def _tree(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(require_file(path, "camera file").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON.", "Write it again.") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no JSON object.", "It should be as nerfstudio describes it.")
    return tree


def _reason(error: Exception) -> str:
    return (
        f"{error} is missing or wrong" if isinstance(error, KeyError | ValueError) else "it has another shape"
    )


def names_of(num_views: int) -> Sequence[str]:
    """The names of rendered views: view_000.png and so on."""
    return [f"view_{view:03d}.png" for view in range(num_views)]
