"""A video as frames with their times, read and written one after another, so that its length does not matter.

What it is: the way of a clip through a command that puts frames between its own, its time and its sound with it.
What it is not: the reader that training uses (see `data`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError
from svdcli.io import animation
from svdcli.io.files import atomic_folder, atomic_path, require_file
from svdcli.io.images import encode_png
from svdcli.io.video import (
    Kind,
    add_picture_stream,
    even,
    even_note,
    exact_rate,
    file_is_cut_off,
    new_mp4,
    opened,
    read_video,
    to_rgb,
    to_yuv,
    truncated,
    write_video,
)

Frame = npt.NDArray[np.uint8]
Timed = tuple[Frame, int]
"""A frame (H, W, 3) and when it is shown, in units of its video's time base."""
COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"})
"""Sound that mp4 players know; other kinds are made AAC."""


@dataclass(frozen=True)
class TimedVideo:
    """A video that can be read frame by frame."""

    path: Path
    width: int
    height: int
    rate: Fraction
    """frames a second, on average"""
    time_base: Fraction
    """seconds; frames are shown at multiples of it"""
    num_frames: int
    """as the file says, or an estimate by its duration where it does not"""
    has_sound: bool

    def frames(self) -> Iterator[Timed]:
        """The frames in their order, upright; the first is at 0. Raises InputError where they end too early."""
        if self.path.is_dir() or animation.is_animation_format(self.path):
            pixels, _ = read_video(self.path)
            yield from ((frame, index) for index, frame in enumerate(pixels))
            return
        with opened(self.path) as container:
            yield from _decoded(self, container)


def open_timed(path: str | Path) -> TimedVideo:
    """Raises InputError for what is missing, no video, cut off, without frames or a frame rate."""
    if Path(path).is_dir() or animation.is_animation_format(file := require_file(path, "video")):
        frames, fps = read_video(path)
        rate = Fraction(fps).limit_denominator(10_000)
        return TimedVideo(
            Path(path), frames.shape[2], frames.shape[1], rate, 1 / rate, len(frames), has_sound=False
        )
    if file_is_cut_off(file):
        raise truncated(file)
    with opened(file) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise InputError(f"{file} does not say its frame rate.", "Convert it to mp4 first.")
        try:
            first = to_rgb(next(container.decode(stream)))
        except (StopIteration, av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{file} has no frames.", "Copy or export the video again.") from error
        lasts = (container.duration or 0) / av.time_base
        return TimedVideo(
            file, first.shape[1], first.shape[0], Fraction(rate), Fraction(stream.time_base),
            stream.frames or max(1, round(lasts * rate)), bool(container.streams.audio),
        )  # fmt: skip


def last_frames(video: TimedVideo, count: int, fps: float) -> list[Frame]:
    """The last `count` frames of a video shown at `fps`, of its own the nearest ones (H, W, 3). Decodes all of it.

    Raises InputError where it is shorter than that, or ends too early.
    """
    span = Fraction(count - 1) / exact_rate(fps) / video.time_base
    known = deque[Timed]()
    for frame, time in video.frames():
        known.append((frame, time))
        while len(known) > 1 and known[1][1] <= time - span:
            known.popleft()
    if not known or known[-1][1] - known[0][1] < span - 1 / video.rate / video.time_base:
        raise InputError(
            f"{video.path.name} is shorter than the {count} frames at {fps:g} a second that it is to go on from.",
            f"Give a longer clip, or a rate nearer to its own: --fps {float(video.rate):g}",
        )
    wanted = [known[-1][1] - span * (count - 1 - i) / max(count - 1, 1) for i in range(count)]
    return [min(known, key=lambda timed: abs(timed[1] - w))[0] for w in wanted]  # noqa: B023


def _decoded(video: TimedVideo, container: Any) -> Iterator[Timed]:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    usual = max(1, round(1 / video.rate / video.time_base))
    begin, last = None, -usual
    try:
        for frame in container.decode(stream):
            pixels = to_rgb(frame)
            if pixels.shape[:2] != (video.height, video.width):
                raise InputError(
                    f"The frames of {video.path} change their size.", "Convert it to one size first."
                )
            begin = (frame.pts or 0) if begin is None else begin
            time = last + usual if frame.pts is None else frame.pts - begin
            last = max(time, last + 1)  # of two frames at one time the second comes a moment later
            yield pixels, last
    except (av.FFmpegError, OSError, ValueError) as error:
        raise truncated(video.path) from error


def write_timed(
    path: Path, frames: Iterable[Timed], rate: Fraction, time_base: Fraction, texts: Mapping[str, str],
    kind: Kind, sound: Path | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Write frames as they come, at about `rate` a second, atomically; returns notes for the user.

    mp4: each frame at its time, with the sound of the video at `sound`, whose first frame is at 0 here too. png: a folder. gif
    and webp have one rate, take all frames into memory, and like png have no sound. Raises what `write_video` raises.
    """
    silent = ("The sound is left out: only mp4 has any.",) if sound is not None and kind != "mp4" else ()
    if kind == "png":
        with atomic_folder(path) as folder:
            for index, (pixels, _) in enumerate(frames):
                encode_png(folder / f"{index:05d}.png", pixels, {**texts, animation.RATE_KEY: str(rate)})
        return silent
    if kind != "mp4":
        return silent + write_video(path, np.stack([pixels for pixels, _ in frames]), rate, texts, kind)
    coming = iter(frames)
    first = next(coming)
    with ExitStack() as stack:
        container = stack.enter_context(new_mp4(stack.enter_context(atomic_path(path)), texts))
        stream = add_picture_stream(container, first[0], rate, time_base)
        track = stack.enter_context(Sound.of(sound, container)) if sound is not None else None
        for pixels, time in chain([first], coming):
            container.mux(stream.encode(to_yuv(even(pixels), time, time_base)))
            if track is not None:
                track.copy(until=float(time * time_base))
        container.mux(stream.encode(None))
        if track is not None:
            track.copy()
    return even_note(first[0])


class Sound:
    """The sound of one video on its way into another: as it is where mp4 players know its kind, else as AAC."""

    def __init__(self, source: Any, container: Any) -> None:
        self.container, track = container, source.streams.audio[0]
        name = track.codec_context.codec.canonical_name
        self.copies = name in COPIED
        if self.copies:
            self.stream = container.add_stream_from_template(track)
        else:
            self.stream = container.add_stream("aac", rate=track.codec_context.sample_rate)
            layout = track.codec_context.layout  # of plain samples it is often not said
            self.stream.layout = {1: "mono", 2: "stereo"}.get(layout.nb_channels, layout)
        self.packets = source.demux(track)
        picture = source.streams.video[0]
        self.begin = float((picture.start_time or 0) * picture.time_base)
        """when the first picture is shown"""
        self.waiting: Any = None

    @classmethod
    @contextmanager
    def of(cls, path: Path, container: Any) -> Iterator[Sound]:
        """Of the video at that path, into the container."""
        with opened(path) as source:
            yield cls(source, container)

    def copy(self, until: float | None = None) -> None:
        """The sound up to that second of the pictures; None: what is left of it."""
        while True:
            packet = self.waiting or next(self.packets, None)
            if packet is None:
                return
            self.waiting = None
            if packet.dts is None or packet.pts is None:
                if not self.copies:  # the end
                    self._encode(packet)
                continue
            if until is not None and float(packet.pts * packet.time_base) - self.begin > until:
                self.waiting = packet
                return
            self._pass_on(packet)

    def _pass_on(self, packet: Any) -> None:
        if not self.copies:
            self._encode(packet)
            return
        shift = round(self.begin / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        if packet.dts >= 0:  # what is heard before the first picture stays out
            packet.stream = self.stream
            self.container.mux(packet)

    def _encode(self, packet: Any) -> None:
        for frame in packet.decode():
            frame.pts = None if frame.pts is None else frame.pts - round(self.begin / frame.time_base)
            self.container.mux(self.stream.encode(frame))
        if packet.dts is None:
            self.container.mux(self.stream.encode(None))
