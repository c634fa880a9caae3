"""Videos out and in: mp4, gif, webp, or a folder of png frames, at the frame rate that was asked for.

A video is uint8 (T, H, W, 3) in sRGB plus a frame rate. Every kind carries a dictionary of texts, the
manifest among them, which `read_metadata` gives back unchanged. What is *not* here: the reader that
training uses (see `data`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Literal

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from svdcli.errors import InputError, UsageError
from svdcli.io import animation
from svdcli.io.files import atomic_folder, atomic_path, require_file
from svdcli.io.images import encode_png

Kind = Literal["mp4", "gif", "webp", "png"]

_CRF = "14"  # near transparent; a second of 1024x576 takes about a megabyte
_BT709 = 1  # the number of BT.709 for primaries, transfer and matrix alike (ISO/IEC 23091-2)
_MPEG_RANGE = 1
# The tags that every mp4 player knows; other names need the QuickTime form, which fewer tools show.
_MP4_TAGS = frozenset(
    {"title", "artist", "album", "comment", "genre", "copyright", "description", "synopsis"}
)
_CONTAINER_TAGS = frozenset({"major_brand", "minor_version", "compatible_brands", "encoder", "creation_time"})
# Formats through which ffmpeg reads text, single pictures, or other files that a playlist names.
_NOT_VIDEO = {"tty", "image2", "concat", "hls", "dash", "lavfi", "subviewer", "srt", "webvtt", "ass", "imf"}
_HINT = "Give a video such as mp4, mov, webm, gif or webp."


def write_video(
    path: str | Path, frames: np.ndarray, fps: float | Fraction, metadata: Mapping[str, str], kind: Kind
) -> tuple[str, ...]:
    """Write frames uint8 (T, H, W, 3) at `fps` frames a second, atomically; returns notes for the user.

    mp4: H.264 yuv420p with BT.709 tags, playable everywhere; odd sides grow by one pixel, and a note says
    so. The rate is exact and the last frame is shown as long as the others. gif, webp: looping, durations
    rounded so that the whole lasts T / fps. png: a folder of 00000.png, 00001.png, ... Raises UsageError
    for a frame rate that is not a positive number, and what `atomic_path` raises.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
    rate = exact_rate(fps)
    if kind == "mp4":
        with atomic_path(path) as temporary:
            return _write_mp4(temporary, frames, rate, metadata)
    if kind == "png":
        with atomic_folder(path) as folder:
            for index, frame in enumerate(frames):
                encode_png(folder / f"{index:05d}.png", frame, {**metadata, animation.RATE_KEY: str(rate)})
        return ()
    with atomic_path(path) as temporary:
        return animation.write(temporary, frames, rate, metadata, kind)


def read_video(path: str | Path, max_frames: int | None = None) -> tuple[np.ndarray, float]:
    """(frames uint8 (T, H, W, 3) upright, frames a second) of a video, gif, webp or folder of png frames.

    At most `max_frames` are read. In gif and webp a frame that is shown longer is repeated, so that the
    rate is constant. Raises InputError for what is missing, no video, a still picture, truncated, damaged
    or without frames.
    """
    if Path(path).is_dir():
        return animation.read_folder(Path(path), max_frames)
    file = require_file(path, "video")
    if animation.is_animation_format(file):
        return animation.read(file, max_frames)
    with opened(file) as container:
        return _read_frames(file, container, max_frames)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts that `write_video` was given, by name; of foreign files, theirs. Raises InputError."""
    if Path(path).is_dir() or animation.is_animation_format(file := require_file(path, "video")):
        return animation.read_metadata(Path(path))
    with opened(file) as container:
        return {key: value for key, value in container.metadata.items() if key not in _CONTAINER_TAGS}


def exact_rate(fps: float | Fraction) -> Fraction:
    """The frame rate as a fraction: 23.976023976... -> 24000/1001, 29.97 -> 2997/100. Raises UsageError."""
    if not math.isfinite(fps) or not 0 < fps <= 1000:
        raise UsageError(
            f"The frame rate must be above 0 and at most 1000, not {fps}.", "A usual value is 6."
        )
    rate = Fraction(fps).limit_denominator(10_000)
    if not rate:
        raise UsageError(f"The frame rate {fps} is too small.", "Give at least 0.001 frames a second.")
    return rate


# --- mp4 ---


def _write_mp4(
    path: Path, frames: np.ndarray, rate: Fraction, metadata: Mapping[str, str]
) -> tuple[str, ...]:
    notes = even_note(frames[0])
    with new_mp4(path, metadata) as container:
        stream = add_picture_stream(container, frames[0], rate, 1 / rate)
        for index, pixels in enumerate(frames):
            container.mux(stream.encode(to_yuv(even(pixels), index, 1 / rate)))
        container.mux(stream.encode(None))
    return notes


@contextmanager
def new_mp4(path: Path, metadata: Mapping[str, str]) -> Iterator[Any]:
    """A container to be filled, with those texts."""
    flags = "+faststart" if set(metadata) <= _MP4_TAGS else "+faststart+use_metadata_tags"
    with av.open(str(path), "w", format="mp4", options={"movflags": flags}) as container:
        container.metadata.update(metadata)
        yield container


def add_picture_stream(container: Any, first: np.ndarray, rate: Fraction, time_base: Fraction) -> Any:
    """H.264 for frames such as the first (H, W, 3), at about that rate, with times counted in `time_base` seconds."""
    # No B-frames: timestamps begin at 0 without an edit list, which some readers ignore.
    stream = container.add_stream("libx264", rate=rate, options={"crf": _CRF, "preset": "medium", "bf": "0"})
    stream.height, stream.width = even(first).shape[:2]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = time_base
    context.color_primaries = context.color_trc = context.colorspace = _BT709
    context.color_range = _MPEG_RANGE
    return stream


def even(pixels: np.ndarray) -> np.ndarray:
    """yuv420p has half the colour resolution, so both sides must be even: repeat the last row or column."""
    height, width = pixels.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return pixels
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def even_note(pixels: np.ndarray) -> tuple[str, ...]:
    """What a user should know where `even` changes the size."""
    (height, width), grown = pixels.shape[:2], even(pixels).shape
    if grown == pixels.shape:
        return ()
    size = f"{grown[1]}x{grown[0]}"
    return (f"The mp4 is {size}, not {width}x{height}: H.264 needs even sides, so the edge is repeated.",)


def to_yuv(pixels: np.ndarray, time: int, time_base: Fraction) -> av.VideoFrame:
    """Pixels (H, W, 3) as the frame that is shown at `time`, in units of `time_base` seconds."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    frame = frame.reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )
    frame.pts, frame.time_base = time, time_base
    return frame


# --- reading ---


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The file as a container with at least one video stream."""
    try:
        container = av.open(str(file))
    except (av.FFmpegError, OSError, ValueError) as error:
        if file_is_cut_off(file):
            raise truncated(file) from error
        raise InputError(f"{file} is not a video.", _HINT) from error
    with container:
        names = set(container.format.name.split(","))
        if any(name.endswith("_pipe") for name in names) or names == {"image2"}:
            raise InputError(f"{file} is a still picture, not a video.", _HINT)
        if names & _NOT_VIDEO:
            raise InputError(f"{file} is not a video.", _HINT)
        if not container.streams.video:
            raise InputError(f"{file} has no picture track, only sound or data.", _HINT)
        yield container


def _read_frames(file: Path, container: Any, max_frames: int | None) -> tuple[np.ndarray, float]:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    frames: list[np.ndarray] = []
    if file_is_cut_off(file):
        raise truncated(file)
    try:
        for frame in container.decode(stream):
            if max_frames is not None and len(frames) >= max_frames:
                break
            frames.append(to_rgb(frame))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise truncated(file) from error
    if not frames:
        raise InputError(f"{file} has no frames.", "Copy or export the video again.")
    if len({frame.shape for frame in frames}) > 1:
        raise InputError(f"The frames of {file} change their size.", "Convert it to one size first.")
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise InputError(f"{file} does not say its frame rate.", "Convert it to mp4 first.")
    return np.stack(frames), float(rate)


def to_rgb(frame: Any) -> np.ndarray:
    """A decoded PyAV frame -> uint8 (H, W, 3), upright."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # degrees counter-clockwise, as phones write it
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def file_is_cut_off(file: Path) -> bool:
    with file.open("rb") as stream:
        return is_cut_off(stream, file.stat().st_size)


def is_cut_off(stream: IO[bytes], size: int) -> bool:
    """Whether an mp4 or mov is shorter than its own boxes say; ffmpeg would quietly give fewer frames."""
    position = 0
    while position < size:
        stream.seek(position)
        header = stream.read(16)
        if position == 0 and header[4:8] not in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
            return False
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length == 0:
            return False
        if length < 8 or position + length > size:
            return True
        position += length
    return False


def truncated(file: Path) -> InputError:
    return InputError(
        f"{file} is truncated or damaged and cannot be decoded.", "Copy or export the video again."
    )
