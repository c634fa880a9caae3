"""Clips out of a source: copied between keyframes, or decoded, normalised and encoded again.

What is written begins at tick 0 and has no edit list, which some readers ignore: copied frames that are shown in another
order than decoded carry negative composition offsets instead, encoded ones come in order. The same source and settings
make the same bytes: one encoder thread, no dates, no versions of the writing library.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from svdcli.curate.rows import Source
from svdcli.curate.split.opening import Picture, Shown, frames, opened
from svdcli.curate.split.probe import Probe, square_size
from svdcli.curate.split.samples import Crop
from svdcli.curate.split.scan import THUMB, TINY
from svdcli.curate.split.tonemap import tonemap
from svdcli.recipe.curation import Split

COPIED = frozenset({"h264", "hevc", "vp9", "av1", "mpeg4"})
"""codecs that mp4 and the training readers take as they are"""
KEY_SECONDS = 2.0
"""between keyframes of what is encoded, seconds: a reader decodes no more than that to reach a frame"""
MUXER = {"movflags": "+faststart+negative_cts_offsets", "use_editlist": "0", "fflags": "+bitexact"}
_BT709 = 1


@dataclass(frozen=True)
class Written:
    """What a clip must hold, to be checked."""

    stamps: tuple[Fraction, ...]
    """when each frame is shown, seconds, from 0"""
    width: int
    height: int
    ends: tuple[Picture, Picture]
    """thumbnails (4, 4, 3) of the first and the last frame"""


def must_encode(source: Source, crop: Crop, settings: Split) -> bool:
    """Whether normalising leaves nothing to copy."""
    shape = square_size(1000, 1000, source.sample_aspect)
    deep = source.bit_depth > 8 and not (source.hdr and settings.hdr == "keep")
    skewed = shape != (1000, 1000) or source.rotation_deg
    return bool(source.codec not in COPIED or skewed or source.interlaced or deep or any(crop))


# --- copying ---


def copy_ends(found: Probe, start: int, end: int) -> tuple[int, int] | None:
    """Ticks start..end -> the places (first, last + 1) among the packets of the longest stretch within that begins
    and ends at keyframes, or at the end of the source; None where there is none."""
    packets = found.packets
    keys = np.flatnonzero(packets.keys)
    first = keys[packets.pts[keys] >= start]
    behind = keys[packets.pts[keys] <= end]
    last = len(packets.pts) if int(packets.ends.max()) <= end else int(behind[-1]) if len(behind) else 0
    return (int(first[0]), last) if len(first) and int(first[0]) < last else None


def copied_stamps(found: Probe, first: int, last: int) -> np.ndarray:
    """The stamps of packets first..last-1 in rising order, less those shown before the first: they need more."""
    stamps = np.sort(found.packets.pts[first:last])
    return stamps[stamps >= found.packets.pts[first]]


def write_copy(path: Path, found: Probe, first: int, last: int, file: Path, settings: Split) -> None:
    """Copy packets first..last-1 of the source's video, as counted by `probe`, into an mp4."""
    start = int(found.packets.pts[first])
    shown = set(copied_stamps(found, first, last).tolist())
    end = int(found.packets.ends[first:last].max())
    base = found.source.time_base
    with opened(path) as (container, stream), av.open(str(file), "w", format="mp4", options=MUXER) as out:
        copy = out.add_stream_from_template(stream)
        sound = _Sound(container, out, settings, start * base, end * base)
        container.seek(start, stream=stream)
        left = len(shown)
        for packet in container.demux([stream, *sound.streams]):
            if packet.stream is not stream:
                sound.take(packet)
            elif packet.size and packet.pts in shown and left:
                left -= 1
                packet.pts, packet.dts = packet.pts - start, packet.dts - start
                packet.stream = copy
                out.mux(packet)
            elif not left and sound.done(packet):
                break


class _Sound:
    """The first sound track, copied within a stretch of time; none where the settings drop it or mp4 cannot hold it."""

    def __init__(self, container: Any, out: Any, settings: Split, start: Fraction, end: Fraction) -> None:
        tracks = container.streams.audio if settings.audio == "keep" else ()
        fit = [
            track
            for track in tracks
            if track.codec_context and track.codec_context.name in {"aac", "mp3", "mp3float", "ac3", "opus"}
        ][:1]
        self.streams = fit
        self.copy = out.add_stream_from_template(fit[0]) if fit else None
        self.out, self.start, self.end = out, start, end

    def take(self, packet: Any) -> None:
        """A packet of sound: written if it begins within the stretch."""
        if packet.pts is None or not self.start <= packet.pts * packet.time_base < self.end:
            return
        shift = round(self.start / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.pts - shift
        packet.stream = self.copy
        self.out.mux(packet)

    def take_all(self, container: Any) -> None:
        """All packets of sound of a container of its own."""
        for packet in container.demux(self.streams) if self.streams else ():
            self.take(packet)

    def done(self, packet: Any) -> bool:
        """Whether a video packet lies so far behind the stretch that its sound has come by."""
        seconds = 1 if self.streams else 0
        return packet.dts is None or packet.dts * packet.time_base > self.end + seconds


# --- encoding ---


def write_exact(
    path: Path, found: Probe, start: int, end: int, crop: Crop, file: Path, settings: Split
) -> Written:
    """Decode the frames from tick `start` until `end`, normalise and encode them; stamps stay to the tick."""
    source = found.source
    unit = Fraction(1, source.time_base.denominator)
    stamps: list[Fraction] = []
    ends: list[Any] = []
    with (
        opened(path) as (container, stream),
        opened(path) as (voices, _),
        av.open(str(file), "w", format="mp4", options=MUXER) as out,
    ):
        normalise: Normaliser | None = None
        encoder: Any = None
        sound = _Sound(voices, out, settings, start * source.time_base, end * source.time_base)
        for shown in frames_from(container, stream, found, start):
            if shown.stamp >= end:
                break
            if normalise is None:
                normalise = Normaliser(shown.frame, source, crop, settings)
                encoder = _encoder(out, normalise, source, unit, settings)
                sound.take_all(voices)  # only now: no stream may be added once something is written
            for ready in normalise(shown):
                stamps.append((ready.stamp - start) * source.time_base)
                ends = [*ends[:1], _encode(out, encoder, ready, start, source)]
        assert normalise is not None, "no frame within the span"
        for ready in normalise.finish():
            stamps.append((ready.stamp - start) * source.time_base)
            ends = [*ends[:1], _encode(out, encoder, ready, start, source)]
        _mux(out, encoder.encode(None), last=(end - start) * source.time_base.numerator)
    return Written(tuple(stamps), normalise.width, normalise.height, (thumb(ends[0]), thumb(ends[-1])))


def _encode(out: Any, encoder: Any, ready: Shown, start: int, source: Source) -> Any:
    """Encode a normalised frame at its own time, and give it back."""
    ready.frame.pts = (ready.stamp - start) * source.time_base.numerator
    ready.frame.time_base = Fraction(1, source.time_base.denominator)
    _mux(out, encoder.encode(ready.frame))
    return ready.frame


def frames_from(container: Any, stream: Any, found: Probe, start: int) -> Iterator[Any]:
    """The frames from `start` on: sought where stamps can be relied on, else all decoded from the beginning."""
    if found.sought:
        container.seek(start, stream=stream)
    for shown in frames(container, stream):
        if shown.stamp >= start:
            yield shown


def _encoder(out: Any, normalise: Normaliser, source: Source, unit: Fraction, settings: Split) -> Any:
    rate = Fraction(source.fps).limit_denominator(1001) or Fraction(1)
    stream = out.add_stream("libx264", rate=rate, options=x264_options(source, settings))
    set_up(stream.codec_context, normalise, unit)
    return stream


def x264_options(source: Source, settings: Split) -> dict[str, str]:
    """One thread, so that the bytes are always the same; frames in order, so that no edit list is needed."""
    return {
        "crf": str(settings.crf),
        "preset": settings.preset,
        "threads": "1",
        "bf": "0",
        "g": str(max(1, round(KEY_SECONDS * source.fps))),
        "flags": "+bitexact",
    }


def set_up(context: Any, normalise: Normaliser, unit: Fraction) -> None:
    """Give an encoder the shape, colours and clock of the frames that it will get."""
    context.width, context.height, context.pix_fmt = normalise.width, normalise.height, normalise.pix_fmt
    context.time_base = unit
    context.color_range = 1
    if normalise.tags is not None:
        context.color_primaries, context.color_trc, context.colorspace = normalise.tags


def _mux(out: Any, packets: list[Any], last: int | None = None) -> None:
    """Write packets; the very last is shown until tick `last`."""
    for packet in packets:
        if last is not None and packet is packets[-1]:
            packet.duration = last - packet.pts
        out.mux(packet)


class Normaliser:
    """Decoded frames -> upright ones with square pixels, progressive, cropped, 8 bits deep unless HDR is kept."""

    def __init__(self, frame: Any, source: Source, crop: Crop, settings: Split) -> None:
        left, top, right, bottom = crop
        width, height = (frame.width - left - right) & ~1, (frame.height - top - bottom) & ~1
        square = square_size(width, height, source.sample_aspect)
        self.mapped = source.hdr if settings.hdr == "tonemap" else ""
        keep = bool(source.hdr) and settings.hdr == "keep"
        self.pix_fmt = "yuv420p10le" if keep else "yuv420p"
        chain = [("bwdif", "mode=send_frame:parity=auto:deint=all")] if source.interlaced else []
        chain.append(("crop", f"{width}:{height}:{left}:{top}:exact=1"))
        chain += [("scale", f"{square[0]}:{square[1]}:flags=bicubic"), ("setsar", "1")]
        turns: dict[int, list[tuple[str, str]]] = {
            90: [("transpose", "cclock")],
            180: [("hflip", ""), ("vflip", "")],
            270: [("transpose", "clock")],
        }
        chain += turns.get(source.rotation_deg, [])
        chain.append(("format", "rgb48le" if self.mapped else self.pix_fmt))
        self.width, self.height = square if source.rotation_deg in {0, 180} else square[::-1]
        tags = tuple(int(tag) for tag in (frame.color_primaries, frame.color_trc, frame.colorspace))
        named = 2 not in tags and frame.format.name.startswith("yuv")
        self.tags = (_BT709,) * 3 if self.mapped else tags if named else None
        self.graph = _graph(frame, chain)
        self.waiting: deque[int] = deque()

    def __call__(self, shown: Shown) -> Iterator[Shown]:
        """The frames that are ready once this one is given: itself, or while fields are put together those before."""
        self.waiting.append(shown.stamp)
        self.graph.push(shown.frame)
        yield from self._ready()

    def finish(self) -> Iterator[Shown]:
        """The frames that are still waiting."""
        self.graph.push(None)
        yield from self._ready()

    def _ready(self) -> Iterator[Shown]:
        while self.waiting:
            try:
                frame = self.graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            if self.mapped:
                frame = av.VideoFrame.from_ndarray(tonemap(frame.to_ndarray(), self.mapped), format="rgb24")
                frame = frame.reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    src_color_range=ColorRange.JPEG,
                    dst_color_range=ColorRange.MPEG,
                )
            frame.pict_type = 0  # else the source's keyframes are forced on the encoder
            yield Shown(self.waiting.popleft(), frame, False)


def _graph(frame: Any, chain: list[tuple[str, str]]) -> Any:
    graph = av.filter.Graph()
    nodes = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format.name, time_base=Fraction(1, 90_000)
        )
    ]
    nodes += [graph.add(name, arguments or None) for name, arguments in [*chain, ("buffersink", "")]]
    for left, right in zip(nodes, nodes[1:], strict=False):
        left.link_to(right)
    graph.configure()
    return graph


def thumb(frame: Any) -> Picture:
    """A frame -> the thumbnail (4, 4, 3) by which it is known again, whatever its size."""
    return thumb_of(frame.to_ndarray(format="rgb24"))


def thumb_of(pixels: Picture) -> Picture:
    """(H, W, 3) -> (4, 4, 3), by way of the tiny picture, as a scan makes them."""
    tiny = cv2.resize(np.ascontiguousarray(pixels), TINY, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(tiny, (THUMB, THUMB), interpolation=cv2.INTER_AREA), np.uint8)
