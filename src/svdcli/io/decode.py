"""From an opened picture file to float32 sRGB pixels, whatever its mode, depth, profile and orientation.

PIL reads 16-bit colour as 8 bits, so OpenCV reads it; colour profiles go through LittleCMS in 8 bits.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms


def decode(file: Path, image: Image.Image, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """(float32 (H, W, 3), alpha float32 (H, W) or None), not yet rotated."""
    if image.mode.startswith("I") or image.mode == "F":
        return _decode_grey(file, image, notes)
    deep = _decode_deep_colour(file, image)
    if deep is not None:
        pixels, alpha = deep
        return _profiled_deep(pixels, image, file, notes), alpha
    alpha = None
    if image.mode in {"La", "RGBa"}:  # premultiplied
        image = image.convert(image.mode.upper())
    if image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"), np.float32) / 255
    colour = image.convert(
        {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK", "LAB": "LAB"}.get(image.mode, "RGB")
    )
    rgb = _to_srgb(colour, image.info.get("icc_profile"), file, notes)
    return np.asarray(rgb, np.float32) / 255, alpha


def _decode_grey(file: Path, image: Image.Image, notes: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Grey of more than 8 bits: modes I;16 (any byte order), I and F."""
    values = np.asarray(image)
    alpha = None
    if isinstance(image.info.get("transparency"), int):
        alpha = (values != image.info["transparency"]).astype(np.float32)
    grey = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    top = 65535.0
    if not image.mode.startswith("I;16") and image.format != "PNG":  # nothing in the file says where white is
        largest = float(grey.max())
        top = next((white for white in (1.0, 255.0, 65535.0) if largest <= white), largest)
        if image.mode == "I" and top == 1.0:
            top = 255.0
        notes.append(f"{file.name} does not say which value is white: {top:g} is taken.")
    grey = (grey / top).clip(0, 1).astype(np.float32)
    return np.repeat(grey[..., None], 3, axis=2), alpha


def _decode_deep_colour(file: Path, image: Image.Image) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Colour of 16 bits a channel, which PIL cuts to 8; None where the picture is not that."""
    rawmodes = _rawmodes(file)
    if image.mode not in {"RGB", "RGBA", "LA"} or not any(";16" in raw for raw in rawmodes):
        return None
    import cv2

    with muted_stderr():
        values = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.ndim != 3 or values.shape[2] not in {3, 4}:
        return None
    values = values.astype(np.float32) / 65535
    return values[..., 2::-1], values[..., 3] if values.shape[2] == 4 else None


def _rawmodes(file: Path) -> list[str]:
    """How the file stores its pixels, as PIL names it; an unloaded picture tells, so it is opened again."""
    with Image.open(file) as header:
        arguments = [tile[3] for tile in header.tile]
    return [str(arg[0]) if isinstance(arg, tuple) and arg else str(arg) for arg in arguments]


@contextmanager
def muted_stderr() -> Iterator[None]:
    """libtiff and OpenCV write what they think of a damaged file straight to stderr; only this stops it."""
    try:
        saved = os.dup(2)
    except OSError:  # no stderr at all
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


# --- colour ---


def _to_srgb(colour: Image.Image, profile: bytes | None, file: Path, notes: list[str]) -> Image.Image:
    """8-bit L, RGB, CMYK or LAB -> RGB in sRGB, through the ICC profile where there is one."""
    if colour.mode == "LAB":
        return _through(ImageCms.createProfile("LAB"), colour)
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if colour.mode != "RGB" or not _is_srgb(source):
                colour = _through(source, colour)
                notes.append(f"{file.name} is converted from its own colour profile to sRGB.")
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append(f"{file.name} has a colour profile that does not fit it: it is read as sRGB.")
    return colour.convert("RGB")


def _through(profile: Any, colour: Image.Image) -> Image.Image:
    """Convert from the profile to sRGB."""
    converted = ImageCms.profileToProfile(colour, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # only a conversion in place gives None
    return converted


def _is_srgb(profile: Any) -> bool:
    """Whether the profile moves nothing by more than one 8-bit step; then pictures stay bit-exact."""
    levels = np.linspace(0, 255, 6).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(6, 36, 3)
    probe = _through(profile, Image.fromarray(grid))
    return int(np.abs(np.asarray(probe).astype(int) - grid).max()) <= 1


def _profiled_deep(pixels: np.ndarray, image: Image.Image, file: Path, notes: list[str]) -> np.ndarray:
    """16-bit colour through its profile; that library works in 8 bits, so only then precision is lost."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in {"RGB", "RGBA"}:
        return pixels
    num_notes = len(notes)
    coarse = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    converted = _to_srgb(coarse, profile, file, notes)
    if len(notes) == num_notes or "does not fit" in notes[-1]:
        return pixels
    notes[-1] = f"{file.name} is converted from its own colour profile to sRGB, in 8 bits."
    return np.asarray(converted, np.float32) / 255


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the EXIF orientation (1 to 8, anything else is upright) of (H, W, ...)."""
    if orientation in {5, 6, 7, 8}:
        array = array.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in {3, 4, 7, 8} else 1)
    columns = slice(None, None, -1 if orientation in {2, 3, 6, 7} else 1)
    return array[rows, columns]
