"""Sources opened safely, and their frames in the order and at the times that they are shown.

Only files are opened, by their absolute path and in formats that hold pictures themselves, so that a playlist can name
neither a URL nor another file. Decoding is in one thread, and goes on after damage.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

from svdcli.errors import InputError
from svdcli.io.video import is_cut_off

Ticks = npt.NDArray[np.int64]
Picture = npt.NDArray[np.uint8]

FORMATS = (
    "3g2,3gp,amr,apng,asf,avi,dv,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,"
    "ogg,rm,vc1,webm,wtv,yuv4mpegpipe"
)
"""formats that hold moving pictures themselves, as ffmpeg calls them: no playlists, no text, no still pictures"""
HINT = "Give a video such as mp4, mov, mkv, webm, avi or gif."
SMALL = {"skip_loop_filter": "bidir"}
"""how to decode what is looked at small: B frames are not deblocked, a fifth of the time for what cannot be seen then"""
_HELD_BACK = 2  # frames, while stamps that come in a wrong order are put right


@dataclass(frozen=True)
class Shown:
    """A decoded frame."""

    stamp: int
    """when it is shown, ticks of the stream"""
    frame: Any
    """PyAV's frame, not turned upright"""
    damaged: bool
    """whether it, or one that it may be predicted from, was lost or marked as corrupt"""


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first stream of moving pictures), decoding in this thread alone. Raises InputError."""
    file: str | IO[bytes] = os.path.abspath(path)
    try:
        str(file).encode("utf-8")
    except UnicodeEncodeError:  # a name that is no text: libavformat cannot be told it
        file = path.open("rb")
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        container = av.open(file, options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        _close(file)
        raise _unusable(path, error) from error
    try:
        yield container, _pictures(path, container)
    finally:
        container.close()
        _close(file)


def _close(file: str | IO[bytes]) -> None:
    if not isinstance(file, str):
        file.close()


def _pictures(path: Path, container: Any) -> Any:
    """The first video stream that is no cover picture, set to decode in one thread."""
    videos = container.streams.video
    stream = next((s for s in videos if not s.disposition & Disposition.attached_pic), None)
    if stream is None:
        if len(videos):
            raise InputError(f"{path} has no video, only a cover picture and sound.", HINT)
        what = "only sound" if len(container.streams.audio) else "no stream of pictures"
        raise InputError(f"{path} has no video: it holds {what}.", HINT)
    if stream.codec_context is None:
        raise InputError(f"{path} is of a codec that cannot be decoded here.", "Convert it to H.264 first.")
    stream.codec_context.thread_count = 1
    stream.thread_type = "NONE"
    return stream


def _unusable(path: Path, error: Exception) -> InputError:
    with path.open("rb") as stream:
        if is_cut_off(stream, path.stat().st_size):
            return InputError(
                f"{path} is cut off, and its table of contents with it.", "Copy or download it again."
            )
    reason = str(getattr(error, "strerror", None) or error).splitlines()[0].rstrip(".")
    return InputError(f"{path} is not a video: {reason.lower()}.", HINT)


def frames(container: Any, stream: Any) -> Iterator[Shown]:
    """Decode from where the container stands to its end, in rising order of stamps.

    A few containers (AVI with packed B-frames) stamp frames out of order; the stamps are sorted then. Frames without
    a time of their own are left out. After an error frames count as damaged up to the next that stands alone.
    """
    waiting: deque[tuple[Any, bool]] = deque()
    stamps: list[int] = []
    last: int | None = None
    for frame, damaged in _decoded(container, stream):
        if frame is not None and frame.pts is not None:
            waiting.append((frame, damaged))
            heapq.heappush(stamps, frame.pts)
        while len(waiting) > (_HELD_BACK if frame is not None else 0):
            stamp, (oldest, hurt) = heapq.heappop(stamps), waiting.popleft()
            if last is None or stamp > last:
                yield Shown(stamp, oldest, hurt)
                last = stamp


def _decoded(container: Any, stream: Any) -> Iterator[tuple[Any, bool]]:
    """(frame, whether damaged), and (None, False) at the end."""
    hurt = False
    try:
        for packet in container.demux(stream):
            hurt = hurt or packet.is_corrupt
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                hurt = True
                continue
            for frame in decoded:
                hurt = (hurt and not frame.key_frame) or frame.is_corrupt
                yield frame, hurt
    except (av.FFmpegError, OSError):
        pass  # the end of what can be read
    yield None, False
