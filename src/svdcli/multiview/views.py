"""A folder of views -> pictures, masks and cameras of one size; and back.

Read are our own orbits and nerfstudio's folders (transforms.json), COLMAP's (images/ beside sparse/0/), and pictures
alone, for which an orbit is assumed. Masks are the pictures' transparency, mask files, or, for want of both, all that
differs from a background of one colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.io.images import find_pictures, read_picture, write_png
from svdcli.multiview.cameras import FOV_DEG, Cameras, Orbit, static_orbit
from svdcli.multiview.transforms import (
    NAME,
    Transforms,
    names_of,
    picture_path,
    read_transforms,
    write_transforms,
)

MAX_SIDE = 800
"""Pictures are scaled down to this before anything is computed from them."""
MIN_VIEWS = 3
SPECK = 0.005
"""Of the largest piece's area: smaller pieces of what differs from a background are noise."""
ASSUMED_ELEVATION_DEG, ASSUMED_RADIUS = 10.0, 2.0


@dataclass(frozen=True)
class Views:
    """pixels: float32 (V, H, W, 3) in [0, 1], sRGB, over white. alpha: float32 (V, H, W) in [0, 1].

    names: the pictures' paths inside the folder. upright: whether the world's z axis is known to point up.
    assumed: whether the cameras are a guess.
    notes: what was assumed or done, a sentence each.
    """

    pixels: np.ndarray
    alpha: np.ndarray
    cameras: Cameras
    names: tuple[str, ...]
    upright: bool = True
    assumed: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cameras)

    def scaled(self, side: int) -> Views:
        """The same views, the longer side `side` pixels at most."""
        height, width = self.alpha.shape[1:]
        factor = side / max(height, width)
        if factor >= 1:
            return self
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return replace(
            self,
            pixels=np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in self.pixels]),
            alpha=np.stack([cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in self.alpha]),
            cameras=self.cameras.resized(*size),
        )


def load_views(folder: Path, max_side: int = MAX_SIDE) -> Views:
    """Read a folder; pictures without cameras are taken as a static orbit, for `on_orbit` to correct.

    Raises InputError for a folder without pictures, with fewer than three, or whose objects cannot be told from
    the background.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", "Give a folder of views.")
    found = _find_cameras(folder)
    notes: list[str] = []
    if found is None:
        pictures = [
            path for path in find_pictures([folder]) if "mask" not in path.stem and "sheet" not in path.stem
        ]
        transforms, upright = _assumed(pictures), True
        notes.append(
            f"There is no camera file: {len(pictures)} pictures in order are taken as an even orbit, counter-clockwise, "
            "the last one in front."
        )
    else:
        transforms, upright = found
    if len(transforms.cameras) < MIN_VIEWS:
        raise InputError(
            f"{folder} has {len(transforms.cameras)} views; at least {MIN_VIEWS} are needed.", "Give more."
        )
    pixels, alpha = _read_all(folder, transforms, max_side, notes)
    height, width = alpha.shape[1:]
    cameras = transforms.cameras.resized(width, height)
    return Views(pixels, alpha, cameras, transforms.images, upright, found is None, tuple(notes))


def on_orbit(
    views: Views, elevation_deg: float | None = None, fov_deg: float | None = None, orbit: Orbit | None = None
) -> Views:
    """Pictures without cameras, on an orbit that the user knows. Raises InputError for a path of another length."""
    orbit = orbit or static_orbit(
        ASSUMED_ELEVATION_DEG if elevation_deg is None else elevation_deg, len(views)
    )
    if len(orbit.azimuths_deg) != len(views):
        raise InputError(
            f"The path has {len(orbit.azimuths_deg)} views, the folder {len(views)} pictures.",
            "They must agree.",
        )
    cameras = orbit.cameras(ASSUMED_RADIUS, fov_deg or FOV_DEG, views.cameras.width)
    return replace(views, cameras=cameras)


def write_views(
    folder: Path,
    pictures: Sequence[np.ndarray],
    cameras: Cameras,
    facts: Mapping[str, Any] | None = None,
    depths: Sequence[np.ndarray] = (),
) -> None:
    """Write pictures (uint8, RGB or RGBA), depths (float32, as 16-bit millimetres of a unit world) and cameras.

    Depth is stored as nerfstudio reads it: 1000 · depth, 0 where nothing is.
    """
    names = names_of(len(pictures))
    for name, picture in zip(names, pictures, strict=True):
        write_png(folder / name, picture)
    depth_names = tuple(name.replace("view", "depth") for name in names) if depths else ()
    for name, depth in zip(depth_names, depths, strict=True):
        millimetres = np.where(np.isfinite(depth), np.rint(depth * 1000), 0).clip(0, 65535).astype(np.uint16)
        with atomic_path(folder / name) as temporary:
            cv2.imwrite(str(temporary), millimetres)
    shown = {"conditioning_view": len(cameras) - 1} | dict(facts or {})
    write_transforms(folder / NAME, Transforms(cameras, tuple(names), (), depth_names, None, shown))


# ---- cameras


def _find_cameras(folder: Path) -> tuple[Transforms, bool] | None:
    """(cameras, whether z points up), or None where there is no camera file."""
    if (folder / NAME).exists():
        return read_transforms(folder / NAME), True
    from svdcli.multiview.colmap import find_model, read_model

    model = find_model(folder)
    return None if model is None else (read_model(model).transforms(folder), False)


def _assumed(pictures: Sequence[Path]) -> Transforms:
    first = read_picture(pictures[0]).pixels
    if first.shape[0] != first.shape[1]:
        raise InputError("Pictures without cameras must be square.", "Crop them, or write a transforms.json.")
    cameras = static_orbit(ASSUMED_ELEVATION_DEG, len(pictures)).cameras(ASSUMED_RADIUS, side=first.shape[0])
    return Transforms(cameras, tuple(path.name for path in pictures))


# ---- pictures and masks


def _read_all(
    folder: Path, transforms: Transforms, max_side: int, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    cameras = transforms.cameras
    factor = min(1.0, max_side / max(cameras.width, cameras.height))
    size = max(1, round(cameras.width * factor)), max(1, round(cameras.height * factor))
    masks = transforms.masks or (None,) * len(cameras)
    pixels, alphas, keyed = [], [], 0
    for view, (name, mask) in enumerate(zip(transforms.images, masks, strict=True)):
        picture = read_picture(picture_path(folder, name))
        if picture.pixels.shape[:2] != (cameras.height, cameras.width):
            raise InputError(
                f"{picture.source} is not {cameras.width}x{cameras.height} as its camera says.",
                "Scale the pictures, or mend the camera file.",
            )
        colour, alpha = picture.pixels, picture.alpha
        if alpha is None:
            alpha = _mask_file(folder, name, mask)
        if alpha is None:
            alpha, keyed = key_out(picture.pixels, picture.source), keyed + 1
        if transforms.distortion is not None and transforms.distortion[view].any():
            K, lens = cameras.intrinsics[view], transforms.distortion[view]
            colour, alpha = (cv2.undistort(np.ascontiguousarray(x), K, lens) for x in (colour, alpha))
        pixels.append(cv2.resize(colour, size, interpolation=cv2.INTER_AREA).astype(np.float32))
        alphas.append(cv2.resize(alpha, size, interpolation=cv2.INTER_AREA).astype(np.float32))
    if keyed:
        notes.append(
            f"{keyed} views have no mask: all that differs from the background colour is the object."
        )
    return np.stack(pixels), np.stack(alphas)


def _mask_file(folder: Path, name: str, given: str | None) -> np.ndarray | None:
    """Coverage (H, W) from a mask named in the camera file or lying in `masks/`; white is the object."""
    stem = Path(name).stem
    near = Path(name).parent
    places = [folder / given] if given else []
    for base in (folder / "masks", folder / near.parent / "masks", folder / near):
        places += [base / f"{Path(name).name}.png", base / f"{stem}_mask.png"]
        places += [base / f"{stem}.png", base / f"{stem}.jpg"] if base.name == "masks" else []
    for place in places:
        if place.is_file():
            picture = read_picture(place)
            return picture.pixels.mean(axis=2) if picture.alpha is None else picture.alpha
    if given:
        raise InputError(f"The mask {folder / given} is missing.", "Mend the camera file.")
    return None


def border_colour(pixels: np.ndarray) -> np.ndarray:
    """The median colour (3,) of a picture's border."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.median(border, axis=0)


def key_out(pixels: np.ndarray, source: Path) -> np.ndarray:
    """What differs from the colour of the border: coverage (H, W). Raises InputError where that is not one colour."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    background = border_colour(pixels)
    if (np.abs(border - background).max(axis=1) > 0.08).mean() > 0.2:
        raise InputError(
            f"{source} has no mask, and its background is not of one colour.",
            "Give transparent pictures, or masks in a folder `masks` beside them.",
        )
    difference = np.abs(pixels - background).max(axis=2)
    return without_specks(np.clip((difference - 0.03) / 0.06, 0, 1).astype(np.float32))


def without_specks(alpha: np.ndarray) -> np.ndarray:
    """Coverage (H, W) without what stands apart from the object and is tiny beside it: noise, above all at the frame's border,
    where it would say that the frame cuts the object off.
    """
    _, labels = cv2.connectedComponents((alpha > 0).astype(np.uint8))
    solid = np.bincount(labels.ravel(), weights=(alpha > 0.5).ravel())
    solid[0] = 0
    return np.where((solid < SPECK * solid.max())[labels], np.float32(0), alpha)
