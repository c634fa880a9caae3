"""Pictures in: any file that people have, upright, in sRGB, as float32; and PNG out.

What the file says is honoured (EXIF rotation, ICC profile, 16 bits, transparency), what cannot be used is
refused in one sentence before memory is spent on it. No warning of the decoders reaches the user; what
matters is in `Picture.notes`.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from svdcli.errors import InputError
from svdcli.io.decode import decode, muted_stderr, upright
from svdcli.io.files import atomic_path, require_file
from svdcli.io.resample import crop, pad, resize

Fit = Literal["crop", "pad", "stretch"]

MIN_SIDE = 16
"""Smallest side in pixels that is still a picture."""
MAX_PIXELS = 100_000_000
"""Largest picture that is decoded: 100 Mpx, 1.2 GB as float32."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"}
    | {".ppm", ".pgm", ".pnm", ".apng", ".tga"}
)
"""What a folder or a glob counts as a picture; a file given by name may have any suffix."""

# What PIL's decoders raise on damaged files, as fuzzing shows; anything else is our bug and must be seen.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,  # a frame inside that claims to be huge
)
ANIMATIONS = frozenset({"GIF", "WEBP", "PNG", "AVIF"})
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


@dataclass(frozen=True)
class Picture:
    """One upright picture.

    pixels: float32 (H, W, 3) in [0, 1], sRGB, transparency already laid over the background.
    alpha: float32 (H, W) in [0, 1], or None where nothing is transparent.
    notes: what was done to it that its owner may not expect, a sentence each.
    """

    pixels: np.ndarray
    source: Path
    notes: tuple[str, ...] = ()
    alpha: np.ndarray | None = None


def read_picture(path: str | Path, background: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Picture:
    """Read a picture of any mode; `background` is the sRGB colour in [0, 1] under transparent parts.

    Raises InputError for what is missing, a folder, empty, no picture, truncated, under 16 pixels on a side
    or over 100 million pixels; the last is known from the header, before anything is decoded.
    """
    file = require_file(path, "picture")
    notes: list[str] = []
    with quiet():
        image = _open(file)
        with image:
            _check_size(file, image.size)
            try:
                if getattr(image, "is_animated", False) and image.format in ANIMATIONS:
                    notes.append(f"{file.name} is an animation: its first frame is used.")
                with muted_stderr() if image.format == "TIFF" else nullcontext():
                    image.load()
                    pixels, alpha = decode(file, image, notes)
                orientation = image.getexif().get(0x0112, 1)
            except DAMAGED as error:
                raise _damaged(file) from error
    pixels = upright(pixels, orientation)
    if alpha is not None and float(alpha.min()) < 1.0:
        alpha = np.ascontiguousarray(upright(alpha, orientation))
        under = np.asarray(background, np.float32)
        pixels = pixels * alpha[..., None] + under * (1 - alpha[..., None])
        notes.append(f"{file.name} has transparent parts: they are laid over the background colour.")
    else:
        alpha = None
    return Picture(np.ascontiguousarray(pixels, np.float32).clip(0, 1), file, tuple(notes), alpha)


def is_animated(path: Path) -> bool:
    """Whether a file is a picture that moves: several frames in a gif, webp, apng or avif."""
    with quiet():
        try:
            with Image.open(path) as image:
                return bool(getattr(image, "is_animated", False)) and image.format in ANIMATIONS
        except DAMAGED:
            return False


def find_pictures(patterns: Sequence[str | Path]) -> list[Path]:
    """Files, folders and globs -> picture files, each once.

    The patterns keep the order in which they were given (two frames to interpolate have an order); what one
    folder or glob holds is in natural order, frame2 before frame10. Folders are not searched deeper; `**`
    in a glob does that. Hidden files are left out. Raises InputError for a pattern that leads to nothing.
    """
    if not patterns:
        raise InputError("No picture was given.", "Give a picture file, a folder of pictures or a glob.")
    found: dict[Path, None] = {}
    for pattern in patterns:
        for path in _expand(os.path.expanduser(str(pattern))):
            found.setdefault(path)
    return list(found)


def fit_picture(picture: Picture, width: int, height: int, how: Fit) -> np.ndarray:
    """The picture at that size: float32 (height, width, 3) in [0, 1]; untouched where the size matches.

    crop: scaled to cover, the middle kept. pad: scaled to fit, the rest in the mean colour of its border.
    stretch: both sides scaled. Scaling is antialiased Lanczos; 8-bit values give exactly what PIL gives.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture cannot be {width}x{height}")
    pixels = picture.pixels
    if pixels.shape[:2] == (height, width):
        return pixels
    if how == "stretch":
        return resize(pixels, width, height)
    if how == "crop":
        return crop(pixels, width, height)
    if how == "pad":
        return pad(pixels, width, height)
    raise ValueError(f"unknown fit {how!r}")


def to_bytes(pixels: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Pixels in [0, 1], of any shape -> 0..255, rounded."""
    return np.asarray(np.rint(pixels * 255), np.uint8)


def write_png(path: str | Path, pixels: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Write (H, W, 3), uint8 or floats in [0, 1], as an 8-bit PNG with `text` chunks, atomically.

    Raises as `atomic_path` does.
    """
    with atomic_path(path) as temporary:
        encode_png(temporary, pixels, text)


def encode_png(path: Path, pixels: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """`write_png` to a path that is temporary already."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.nan_to_num(pixels).clip(0, 1) * 255).astype(np.uint8)
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value) if not value.isascii() else info.add_text(key, value)
    Image.fromarray(pixels).save(path, format="PNG", pnginfo=info, compress_level=4)


# --- refusing ---


@contextmanager
def quiet() -> Iterator[None]:
    """Keep PIL's warnings and log lines from the user."""
    logger = logging.getLogger("PIL")
    was_disabled, handler = logger.disabled, logging.NullHandler()
    logger.addHandler(handler)  # with any handler, the last-resort one that prints to stderr stays silent
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeHandler(handler)
        logger.disabled = was_disabled


def _open(file: Path) -> Image.Image:
    """Read the header only."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError as error:
        count = re.search(r"\d{6,}", str(error))
        raise _too_large(file, f"{int(count[0]) / 1e6:,.0f}" if count else "several hundred") from error
    except UnidentifiedImageError as error:
        raise _unknown(file) from error
    except DAMAGED as error:
        raise _damaged(file) from error


def _check_size(file: Path, size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _too_large(file, f"{width * height / 1e6:,.0f}", f" ({width}x{height})")
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{file} is too small: {width}x{height} pixels.",
            f"Give a picture of at least {MIN_SIDE}x{MIN_SIDE}.",
        )


def _too_large(file: Path, megapixels: str, size: str = "") -> InputError:
    return InputError(
        f"{file} is too large: {megapixels} million pixels{size}.",
        f"Scale it down first, to at most {MAX_PIXELS // 10**6} million.",
    )


def _damaged(file: Path) -> InputError:
    return InputError(
        f"{file} is truncated or damaged and cannot be decoded.", "Copy or export the picture again."
    )


def _unknown(file: Path) -> InputError:
    with file.open("rb") as stream:
        head = stream.read(512)
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in {b"heic", b"heix", b"mif1", b"heim", b"hevc"}:
        return InputError(
            f"{file} is a HEIC picture, which cannot be read here.", "Export it as JPEG or PNG."
        )
    if brand == b"avif" or (head.startswith(_SIGNATURES) and head[8:12] not in {b"AVI ", b"WAVE"}):
        return _damaged(file)
    if brand or head[:4] == b"\x1aE\xdf\xa3" or head[8:12] == b"AVI ":
        return InputError(f"{file} is a video, not a picture.", "Give a picture, or one frame of the video.")
    if b"<svg" in head:
        return InputError(f"{file} is an SVG drawing, not a picture of pixels.", "Export it as PNG.")
    text = b"\0" not in head and sum(byte < 9 or 13 < byte < 32 for byte in head) == 0
    kind = "text" if text else "data of an unknown format"
    return InputError(f"{file} is not a picture: it holds {kind}.", "Save it as PNG or JPEG and try again.")


# --- finding ---


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        pictures = [entry for entry in path.iterdir() if _is_picture(entry)]
        if not pictures:
            raise InputError(
                f"There is no picture in the folder {path}.", "Pictures end in .png, .jpg, .webp and such."
            )
        return sorted(pictures, key=_natural)
    if path.exists() or not glob.has_magic(pattern):
        return [require_file(path, "picture")]
    pictures = [Path(match) for match in glob.glob(pattern, recursive=True) if _is_picture(Path(match))]
    if not pictures:
        raise InputError(
            f"No picture matches {pattern}.", "Check the pattern; it is taken from the current folder."
        )
    return sorted(pictures, key=_natural)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _natural(path: Path) -> list[Any]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts] + [(-1, str(path))]
