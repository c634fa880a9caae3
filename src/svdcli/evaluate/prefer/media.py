"""Videos for raters: without a name or a tag that tells which model made them, in a form that browsers play."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from svdcli.data.reader import Corrupt
from svdcli.errors import InputError
from svdcli.evaluate.videos import Clip, read_whole
from svdcli.io.images import read_picture, to_bytes, write_png
from svdcli.io.video import write_video

_PLAYABLE = {"mp4": {"h264", "av1", "vp9"}, "webm": {"vp8", "vp9", "av1"}}
MAX_FRAMES = 600


def blind_copy(video: Path, folder: Path, name: str) -> Path:
    """A copy called `name`, its pictures untouched where a browser can play them, its texts and sound left out.

    Else it becomes an mp4. Raises InputError where it cannot be read.
    """
    suffix = video.suffix.lower().removeprefix(".")
    if video.is_file() and suffix in _PLAYABLE and _is_plain(video, suffix):
        target = folder / f"{name}.{suffix}"
        _remux(video, target)
        return target
    frames, fps = _read(video)
    target = folder / f"{name}.mp4"
    write_video(target, frames, fps, {}, "mp4")
    return target


def _is_plain(video: Path, suffix: str) -> bool:
    read_first = _read(video)  # a video that breaks off would stop the study, not the plan
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            eight_bit = stream.codec_context.pix_fmt in ("yuv420p", "yuvj420p")
            return (
                stream.codec_context.name.removeprefix("lib") in _PLAYABLE[suffix]
                and eight_bit
                and len(read_first[0]) > 0
            )
    except (av.FFmpegError, OSError, IndexError) as error:
        raise InputError(f"{video} is not a video.", "Take it out of the folder.") from error


def _read(video: Path) -> tuple[Clip, float]:
    try:
        return read_whole(video, MAX_FRAMES)
    except Corrupt as error:
        raise InputError(
            f"{video} cannot be shown to anybody: {error.reason}.",
            "Take it out of the folder, or make it again.",
        ) from error


def _remux(video: Path, target: Path) -> None:
    options = {"movflags": "+faststart"} if target.suffix == ".mp4" else {}
    with av.open(str(video)) as source, av.open(str(target), "w", options=options) as sink:
        stream = source.streams.video[0]
        copy = sink.add_stream_from_template(stream)
        copy.metadata.clear()
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                sink.mux(packet)


def blind_picture(picture: Path, folder: Path, name: str) -> Path:
    """The picture as a png called `name`, without its texts. Raises InputError."""
    target = folder / f"{name}.png"
    write_png(target, to_bytes(read_picture(picture).pixels))
    return target


def spoil(frames: Clip, seed: int) -> Clip:
    """A copy that nobody who looks would call better: coarse blocks, its frames in disorder, noise."""
    rng = np.random.default_rng(seed)
    block = max(4, min(frames.shape[1:3]) // 16)
    coarse = frames[:, block // 2 :: block, block // 2 :: block].repeat(block, 1).repeat(block, 2)
    coarse = np.pad(coarse, ((0, 0), (0, block), (0, block), (0, 0)), mode="edge")[
        :, : frames.shape[1], : frames.shape[2]
    ]
    noisy = coarse[rng.permutation(len(frames))] + rng.normal(0, 40, (len(frames), *frames.shape[1:3], 1))
    return np.asarray(noisy.clip(0, 255), dtype=np.uint8)
