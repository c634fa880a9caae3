"""Open3D, loaded with the one system library that its wheel lacks.

The wheel links to libusb-1.0, which servers and containers seldom have; the package `libusb-package` carries it. It
has to be in the process before Open3D is.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from svdcli.errors import MachineError

INSTALL = f"{sys.executable} -m pip install 'svdcli[multiview]'"


@cache
def open3d() -> Any:
    """The module. Raises MachineError where it, or libusb, is missing."""
    _load_libusb()
    try:
        import open3d
    except ModuleNotFoundError as error:
        raise MachineError(
            "Objects and point clouds need the package open3d.", f"Install it: {INSTALL}"
        ) from error
    except (ImportError, OSError) as error:  # a system library that the wheel links to
        raise MachineError(
            f"Open3D cannot be loaded: {error}", f"Install what it links to: {INSTALL}"
        ) from error
    open3d.utility.set_verbosity_level(open3d.utility.VerbosityLevel.Error)
    return open3d


def raycaster(vertices: np.ndarray, faces: np.ndarray) -> Any:
    """A RaycastingScene of one mesh: vertices (N, 3) float, faces (F, 3) int."""
    o3d = open3d()
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor(np.ascontiguousarray(vertices, np.float32)),
        o3d.core.Tensor(np.ascontiguousarray(faces, np.uint32)),
    )
    return scene


def cast_depths(scene: Any, origins: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Where rays (N, 3) first strike a scene, in lengths of the ray: (N,), inf where nowhere."""
    both = np.concatenate([origins, rays], axis=1).astype(np.float32)
    return scene.cast_rays(open3d().core.Tensor(both))["t_hit"].numpy()


def read_cloud(path: Path) -> np.ndarray:
    """The points (N, 3) of a PCD file, ascii or binary; none where it is damaged."""
    return np.asarray(open3d().io.read_point_cloud(str(path)).points, float)


def _load_libusb() -> None:
    """Put libusb into the process, from the package or from the system; Open3D's own error says if neither had it."""
    try:
        import libusb_package

        path = libusb_package.get_library_path()
    except ImportError:
        return
    if path:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
