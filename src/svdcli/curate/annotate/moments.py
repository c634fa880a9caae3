"""Frames of a clip's own file at given moments, for the few annotators that its proxy is too small for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError
from svdcli.io.video import to_rgb

Frames = npt.NDArray[np.uint8]
_EARLY = 1e-4
"""seconds by which a frame may begin after the moment that it is taken for: rounding"""


def frames_at(video: Path, times: Sequence[float], side: int) -> Frames:
    """The frames that are shown `times` seconds after the first one, rising: (N, H, W, 3) 0..255, shortest side `side`
    at most. One pass on one thread. Raises InputError where the file cannot be decoded.
    """
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            return _pick(container, stream, times, side)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise InputError(
            f"The clip {video} cannot be decoded: {error}.", "Run svd curate split again."
        ) from error


def _pick(
    container: av.container.InputContainer, stream: av.VideoStream, times: Sequence[float], side: int
) -> Frames:
    picked: list[Frames] = []
    shown, first = None, 0.0
    for frame in container.decode(stream):
        if shown is None:
            first = float(frame.time or 0.0)
        else:
            while len(picked) < len(times) and float(frame.time or 0.0) - first > times[len(picked)] + _EARLY:
                picked.append(_scaled(to_rgb(shown), side))
        shown = frame
        if len(picked) == len(times):
            break
    if shown is None:
        raise ValueError("it has no frames")
    last = [_scaled(to_rgb(shown), side)] if len(picked) < len(times) else []
    return np.stack(picked + last * (len(times) - len(picked)))


def _scaled(frame: Frames, side: int) -> Frames:
    height, width = frame.shape[:2]
    scale = min(1.0, side / min(height, width))
    if scale == 1:
        return frame
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
