"""Animated gif and webp, and folders of png frames: the kinds of video that PIL writes and reads.

Gif counts time in hundredths of a second and webp in thousandths, so the time of every frame is rounded,
not its duration: the whole lasts as long as it should. Equal frames in a row are merged by the encoders;
the rate that we keep in the metadata lets `read` part them again.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from svdcli.errors import InputError
from svdcli.io.images import DAMAGED, MAX_PIXELS, quiet, read_picture

RATE_KEY = "svdcli:fps"
"""The private text under which the exact frame rate is kept."""

_TICKS = {"gif": 100, "webp": 1000}  # a second
_MIN_TICKS = {"gif": 2, "webp": 1}  # below this, players take a tenth of a second
_DESCRIPTION = 0x010E  # EXIF ImageDescription
_PALETTE_FRAMES = 16
_PALETTE_PIXELS = 150_000
_OWN_PALETTE_GAIN = (
    1.5  # a palette for each frame must lower the error by this factor to be worth its flicker
)
_MAX_FRAMES = 100_000


def write(
    path: Path, frames: np.ndarray, rate: Fraction, metadata: Mapping[str, str], kind: str
) -> tuple[str, ...]:
    """Write frames uint8 (T, H, W, 3) to `path`; returns notes."""
    durations, notes = _durations(len(frames), rate, kind)
    text = json.dumps({**metadata, RATE_KEY: str(rate)}, sort_keys=True)  # ASCII, as both formats need it
    if kind == "gif":
        first, *rest = _quantized(frames)
        first.save(
            path,
            format="GIF",
            save_all=True,
            append_images=rest,
            duration=durations,
            loop=0,
            comment=text.encode(),
        )
    else:
        first, *rest = [Image.fromarray(frame) for frame in frames]
        exif = Image.Exif()
        exif[_DESCRIPTION] = text
        first.save(
            path, format="WEBP", save_all=True, append_images=rest, duration=durations, loop=0,
            quality=90, method=2, exif=exif.tobytes(),
        )  # fmt: skip
    return notes


def is_animation_format(file: Path) -> bool:
    """Whether the bytes are those of a gif, webp or png, which are read here."""
    with file.open("rb") as stream:
        head = stream.read(12)
    return head.startswith((b"GIF8", b"\x89PNG")) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def read(file: Path, max_frames: int | None) -> tuple[np.ndarray, float]:
    """(frames uint8 (T, H, W, 3), frames a second), longer frames repeated. Raises InputError."""
    still = InputError(
        f"{file} is a still picture, not a video.", "Give a video such as mp4, mov, webm, gif or webp."
    )
    pictures: list[np.ndarray] = []
    milliseconds: list[float] = []
    with quiet():
        try:
            with Image.open(file) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"{file} is too large: {image.width}x{image.height}.", "Scale it down first."
                    )
                rate = _stored_rate(image)
                if not getattr(image, "is_animated", False) and rate is None:
                    raise still
                for frame in ImageSequence.Iterator(image):
                    frame.load()
                    pictures.append(_opaque(frame))
                    milliseconds.append(_shown_for(frame))
                    if max_frames is not None and len(pictures) >= max_frames:
                        break
            frames = np.stack(pictures)
        except DAMAGED as error:
            raise InputError(
                f"{file} is truncated or damaged and cannot be decoded.", "Copy or export the video again."
            ) from error
    counts, fps = _repeats(milliseconds, rate)
    return np.repeat(frames, counts, axis=0)[:max_frames], fps


def read_folder(folder: Path, max_frames: int | None) -> tuple[np.ndarray, float]:
    """The frames of a folder that `write_video` made, or of any folder of png pictures (6 a second)."""
    files = _frame_files(folder)
    frames = [np.rint(read_picture(file).pixels * 255).astype(np.uint8) for file in files[:max_frames]]
    for file, frame in zip(files, frames, strict=False):
        if frame.shape != frames[0].shape:
            raise InputError(
                f"{file} has another size than the frames before it.", "Make all frames one size."
            )
    with Image.open(files[0]) as image:
        return np.stack(frames), float(_stored_rate(image) or 6)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts of a gif, webp, png or folder of png frames. Raises InputError."""
    file = _frame_files(path)[0] if path.is_dir() else path
    with quiet():
        try:
            with Image.open(file) as image:
                texts = _texts(image)
        except DAMAGED as error:
            raise InputError(f"{file} is truncated or damaged.", "Copy or export the file again.") from error
    texts.pop(RATE_KEY, None)
    return texts


def _frame_files(folder: Path) -> list[Path]:
    files = [
        file for file in folder.iterdir() if file.suffix.lower() == ".png" and not file.name.startswith(".")
    ]
    if not files:
        raise InputError(
            f"The folder {folder} holds no png frames.", "Give a video, or a folder of 00000.png, ..."
        )
    return sorted(
        files, key=lambda file: [int(n) if n.isdecimal() else -1 for n in re.split(r"(\d+)", file.stem)]
    )


# --- time ---


def _durations(num_frames: int, rate: Fraction, kind: str) -> tuple[list[int], tuple[str, ...]]:
    """Milliseconds of each frame in whole ticks of the format; their sum is nearest to num_frames / rate."""
    ticks, least = _TICKS[kind], _MIN_TICKS[kind]
    edges = [round(Fraction(index * ticks) / rate) for index in range(num_frames + 1)]
    counts = [after - before for before, after in itertools.pairwise(edges)]
    notes: tuple[str, ...] = ()
    if min(counts) < least:
        counts = [max(count, least) for count in counts]
        notes = (
            f"A {kind} plays at most {ticks // least} frames a second: not {float(rate):g}, so it is slower.",
        )
    most = 65535 if kind == "gif" else 2**24 - 1
    return [min(count, most) * 1000 // ticks for count in counts], notes


def _shown_for(frame: Image.Image) -> float:
    duration = float(frame.info.get("duration") or 0)
    return duration if duration > 10 else 100.0  # as browsers do with absent and tiny durations


def _repeats(milliseconds: list[float], rate: Fraction | None) -> tuple[list[int], float]:
    """How often each frame is repeated, and the constant rate that results."""
    total = sum(milliseconds)
    if rate is not None:
        unit = 1000 / float(rate)
    elif max(milliseconds) - min(milliseconds) <= 10:  # equal but for rounding
        return [1] * len(milliseconds), round(1000 * len(milliseconds) / total, 6)
    else:
        unit = min(milliseconds)
    counts = [max(1, round(duration / unit)) for duration in milliseconds]
    if sum(counts) > _MAX_FRAMES:
        return [1] * len(milliseconds), 1000 * len(milliseconds) / total
    return counts, float(rate) if rate is not None else 1000 / unit


# --- text ---


def _texts(image: Image.Image) -> dict[str, str]:
    if image.format == "PNG":
        return {key: str(value) for key, value in getattr(image, "text", {}).items()}
    if image.format == "GIF":
        comment = image.info.get("comment", b"")
        text = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
    else:
        text = str(image.getexif().get(_DESCRIPTION, ""))
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        stored = None
    if isinstance(stored, dict) and all(isinstance(value, str) for value in stored.values()):
        return stored
    return {"comment": text} if text else {}


def _stored_rate(image: Image.Image) -> Fraction | None:
    try:
        rate = Fraction(_texts(image).get(RATE_KEY, ""))
    except (ValueError, ZeroDivisionError):
        return None
    return rate if rate > 0 else None


# --- colour ---


def _opaque(frame: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3), transparent parts over white."""
    if frame.mode in {"RGBA", "LA", "PA"} or "transparency" in frame.info:
        rgba = frame.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))
    return np.asarray(frame.convert("RGB"))


def _quantized(frames: np.ndarray) -> list[Image.Image]:
    """Frames of 256 colours: one palette for all, which cannot flicker, unless many are far better."""
    images = [Image.fromarray(frame) for frame in frames]
    shared = _palette(frames[np.unique(np.linspace(0, len(frames) - 1, _PALETTE_FRAMES).round().astype(int))])
    probes = sorted({0, len(images) // 2, len(images) - 1})
    loss_shared = sum(_error(images[index], shared) for index in probes)
    loss_own = sum(_error(images[index], _palette(frames[index : index + 1])) for index in probes)
    if loss_shared <= _OWN_PALETTE_GAIN * loss_own + len(probes):  # a squared step of error is not seen
        palettes = [shared] * len(images)
    else:
        palettes = [_palette(frame[None]) for frame in frames]
    dither = Image.Dither.FLOYDSTEINBERG
    return [
        image.quantize(palette=palette, dither=dither)
        for image, palette in zip(images, palettes, strict=True)
    ]


def _palette(frames: np.ndarray) -> Image.Image:
    """The 256 colours of frames (T, H, W, 3) by median cut, from so few pixels that it is quick."""
    step = max(1, round((frames[..., 0].size / _PALETTE_PIXELS) ** 0.5))
    pixels = np.concatenate(list(frames[:, step // 2 :: step, step // 2 :: step]), axis=0)
    return Image.fromarray(pixels).quantize(256, method=Image.Quantize.MEDIANCUT)


def _error(image: Image.Image, palette: Image.Image) -> float:
    """Mean squared difference over colours that this palette makes, in 8-bit steps."""
    quantized = image.quantize(palette=palette, dither=Image.Dither.NONE)
    difference = np.asarray(image, np.float32) - np.asarray(quantized.convert("RGB"), np.float32)
    return float(np.square(difference).mean())
