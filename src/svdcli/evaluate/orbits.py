"""Orbits on disk as `svd eval views` compares them: pictures over white, masks, azimuths. Cameras beyond that are multiview's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError
from svdcli.evaluate.videos import read_whole
from svdcli.io.images import SUFFIXES, find_pictures, read_picture
from svdcli.multiview.transforms import NAME as CAMERAS
from svdcli.multiview.transforms import picture_path, read_transforms

VIDEOS = {".mp4", ".webm", ".gif", ".mov", ".mkv"}
NEAR_WHITE = 250 / 255
"""pictures without transparency: the object is what is darker than this in some channel"""
_ASIDE = ("mask", "depth", "sheet", "normal", "input")


@dataclass(frozen=True)
class OrbitViews:
    """V views around one object."""

    name: str
    pixels: npt.NDArray[np.floating]
    """(V, H, W, 3) in [0, 1], over white"""
    object: npt.NDArray[np.bool_]
    """(V, H, W): where it is"""
    azimuths_deg: npt.NDArray[np.float64]
    """(V,) in [0, 360), 0 at the conditioning view, which is the last"""
    notes: tuple[str, ...] = ()


def find_orbits(folder: Path) -> dict[str, Path]:
    """Objects by name: a video or a folder of views each; a folder of views itself is one. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", "Give a folder that holds an orbit of each object.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        views = path.is_dir() and ((path / CAMERAS).is_file() or _pictures(path))
        if (views or path.suffix.lower() in VIDEOS) and not path.name.startswith("."):
            found.setdefault(path.stem if path.is_file() else path.name, path)
    if not found and ((folder / CAMERAS).is_file() or _pictures(folder)):
        return {folder.resolve().name: folder}
    if not found:
        raise InputError(f"There is no orbit in {folder}.", "An orbit is a video, or a folder of views.")
    return found


def load_orbit(name: str, path: Path) -> OrbitViews:
    """A video or a folder of views. Raises InputError for pictures of several sizes, or fewer than two."""
    if path.is_file():
        frames, _ = read_whole(path)
        pixels = frames.astype(np.float32) / np.float32(255)
        return OrbitViews(name, pixels, _dark(pixels), _even(len(pixels)), ("masks: all that is not white",))
    azimuths, files = _cameras(path)
    pictures = [read_picture(file) for file in files]
    if len(pictures) < 2 or len({p.pixels.shape for p in pictures}) != 1:
        raise InputError(
            f"{path} does not hold two or more views of one size.", "Views are numbered pictures."
        )
    pixels = np.stack([p.pixels for p in pictures])
    if all(p.alpha is None for p in pictures):
        return OrbitViews(name, pixels, _dark(pixels), azimuths, ("masks: all that is not white",))
    whole = np.ones(pixels.shape[1:3], np.float32)
    alpha = np.stack([whole if p.alpha is None else p.alpha for p in pictures])
    return OrbitViews(name, pixels, alpha > 0.5, azimuths)


def _dark(pixels: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    return np.asarray((pixels < NEAR_WHITE).any(-1))


def _even(num: int) -> npt.NDArray[np.float64]:
    """An orbit of `num` views whose last is the conditioning one (SV3D §3.1)."""
    return np.arange(1, num + 1) * 360.0 / num % 360


def _pictures(folder: Path) -> list[Path]:
    if not any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        return []
    return [path for path in find_pictures([folder]) if not any(word in path.stem for word in _ASIDE)]


def _cameras(folder: Path) -> tuple[npt.NDArray[np.float64], list[Path]]:
    """Azimuths and files, from transforms.json where there is one."""
    if not (folder / CAMERAS).is_file():
        files = _pictures(folder)
        return _even(len(files)), files
    transforms = read_transforms(folder / CAMERAS)
    azimuths = transforms.cameras.azimuths_deg
    return (azimuths - azimuths[-1]) % 360, [picture_path(folder, name) for name in transforms.images]
