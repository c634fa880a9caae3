"""Image-based light for matt surfaces: what a surface of albedo 1 sends back, by the direction that it faces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from svdcli.errors import InputError
from svdcli.io.files import require_file
from svdcli.multiview.sampling import bilinear

_ENVIRONMENT = (32, 64)  # rows and columns of the map that is summed; the irradiance is smoother by far
_TABLE = (48, 96)
MEAN, BRIGHTEST = 0.55, 0.9
"""Exposure: the mean over all directions, but no direction so bright that white albedo would burn out."""


@dataclass(frozen=True)
class Light:
    """`table` (H, W, 3): irradiance / π by normal, linear. Rows from above (+z) to below, columns by azimuth 0 to 360."""

    table: np.ndarray
    name: str = "neutral"

    @classmethod
    def uniform(cls, level: float = 1.0) -> Light:
        """The same from everywhere: a surface shows `level` times its albedo."""
        return cls(np.full((*_TABLE, 3), level, np.float32), "uniform")

    @classmethod
    def neutral(cls) -> Light:
        """A white room: brighter from above, with one broad soft lamp over the conditioning view's left shoulder."""
        directions = _directions(*_ENVIRONMENT)
        lamp = _unit(np.array([0.6, -0.5, 0.65]))
        sky = 0.55 + 0.25 * directions[..., 2] + 1.1 * np.clip(directions @ lamp, 0, 1) ** 6
        return cls(_exposed(_irradiance(np.repeat(sky[..., None], 3, axis=2))))

    @classmethod
    def from_map(cls, environment: np.ndarray, name: str = "map", turn_deg: float = 0.0) -> Light:
        """From a latitude-longitude picture of linear radiance (H, W, 3), +z in its first row, exposed by `MEAN`.

        The middle column lies at azimuth 180° + `turn_deg`, and azimuth falls to the right, as seen from inside.
        """
        rows, columns = _ENVIRONMENT
        small = cv2.resize(
            np.maximum(environment, 0).astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA
        )
        shift = round(turn_deg / 360 * columns)
        return cls(_exposed(_irradiance(np.roll(small[:, ::-1], shift, axis=1))), name)

    @classmethod
    def from_file(cls, path: Path, turn_deg: float = 0.0) -> Light:
        """From a Radiance .hdr file. Raises InputError for anything else."""
        file = require_file(path, "light map")
        hint = "Give a latitude-longitude map as Radiance .hdr."
        if file.suffix.lower() != ".hdr":
            raise InputError(f"{file} is not a .hdr file.", hint)
        picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        if picture is None or picture.ndim != 3 or not np.isfinite(picture).all():
            raise InputError(f"{file} cannot be read as a light map.", hint)
        return cls.from_map(picture[..., ::-1], file.stem, turn_deg)

    def at(self, normals: np.ndarray) -> np.ndarray:
        """Unit normals (N, 3) -> what white albedo sends back (N, 3)."""
        rows, columns = self.table.shape[:2]
        azimuth = np.arctan2(normals[:, 1], normals[:, 0]) / (2 * np.pi) % 1
        polar = np.arccos(np.clip(normals[:, 2], -1, 1)) / np.pi
        around = np.concatenate([self.table[:, -1:], self.table, self.table[:, :1]], axis=1)
        return bilinear(around, np.stack([azimuth * columns + 1, polar * rows], axis=1), None)


def _irradiance(environment: np.ndarray) -> np.ndarray:
    """∫ L(ω) max(0, n·ω) dω / π for every n of the table."""
    rows, columns = environment.shape[:2]
    edges = np.cos(np.linspace(0, np.pi, rows + 1))
    solid = np.repeat((edges[:-1] - edges[1:])[:, None] * 2 * np.pi / columns, columns, axis=1)
    weighted = environment.reshape(-1, 3) * solid.reshape(-1, 1)
    incoming = _directions(rows, columns).reshape(-1, 3)
    cosine = np.maximum(_directions(*_TABLE).reshape(-1, 3) @ incoming.T, 0)
    return (cosine @ weighted / np.pi).reshape(*_TABLE, 3).astype(np.float32)


def _exposed(table: np.ndarray) -> np.ndarray:
    rows = len(table)
    weight = np.sin((np.arange(rows) + 0.5) / rows * np.pi)[:, None, None]
    mean = float((table * weight).mean() / weight.mean())
    brightest = float(table.max())
    if brightest <= 0:
        raise InputError("The light map is black.", "Give one that holds some light.")
    return table * min(MEAN / max(mean, 1e-12), BRIGHTEST / brightest)


def _directions(rows: int, columns: int) -> np.ndarray:
    """(rows, columns, 3): unit vectors at the centres of a latitude-longitude grid."""
    polar = (np.arange(rows) + 0.5) / rows * np.pi
    azimuth = (np.arange(columns) + 0.5) / columns * 2 * np.pi
    flat = np.sin(polar)[:, None]
    up = np.repeat(np.cos(polar)[:, None], columns, axis=1)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), up], axis=2)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)
