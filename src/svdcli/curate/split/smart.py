"""Clips whose middle is copied between keyframes and whose ends are encoded, so that nothing is lost to snapping.

The pieces have parameter sets of their own, which H.264 carries in the stream before each keyframe (Annex B), so every
decoder switches where a piece begins. Encoded frames are in order; they are stamped to be decoded as early as the copied
ones are, so that decoding times rise throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from svdcli.curate.rows import Source
from svdcli.curate.split.clipping import (
    MUXER,
    Normaliser,
    Written,
    copied_stamps,
    frames_from,
    set_up,
    x264_options,
)
from svdcli.curate.split.opening import Picture, Shown, opened
from svdcli.curate.split.probe import Probe
from svdcli.recipe.curation import Split

_NO_CROP = (0, 0, 0, 0)


def can_be_smart(source: Source, width: int, height: int) -> bool:
    """Whether the ends of a copied clip can be encoded to fit its middle."""
    return source.codec == "h264" and source.bit_depth == 8 and width % 2 == 0 and height % 2 == 0


def write_smart(
    path: Path,
    found: Probe,
    span: tuple[int, int],
    packets: tuple[int, int],
    ends: tuple[Picture, Picture],
    file: Path,
    settings: Split,
) -> Written:
    """Write the frames from tick span[0] until span[1], of which packets[0]..packets[1]-1 are copied.

    `ends`: thumbnails of the span's first and last frames, as the scan saw them.
    """
    start, end = span
    middle = copied_stamps(found, *packets)
    source, unit = found.source, Fraction(1, found.source.time_base.denominator)
    writer = _Writer(found, start, unit, int(middle[0]), packets)
    with opened(path) as (container, stream), av.open(str(file), "w", format="mp4", options=MUXER) as out:
        copy = out.add_stream_from_template(stream)
        copy.codec_context.extradata = annex_b(stream.codec_context.extradata or b"")
        size = (stream.codec_context.width, stream.codec_context.height)
        for packet in _pieces(
            path, container, stream, writer, (int(middle[0]), int(middle[-1]), end), settings
        ):
            packet.stream = copy
            out.mux(packet)
    stamps = np.sort(found.packets.pts)
    stamps = stamps[(stamps >= start) & (stamps < end)]
    return Written(tuple(int(s - start) * source.time_base for s in stamps), *size, ends)


class _Writer:
    """How stamps of the source become those of the clip."""

    def __init__(self, found: Probe, start: int, unit: Fraction, key: int, packets: tuple[int, int]) -> None:
        self.found, self.start, self.unit, self.packets = found, start, unit, packets
        self.ticks = found.source.time_base.numerator
        self.shown = set(copied_stamps(found, *packets).tolist())
        self.early = 0
        """ticks of the source between decoding and showing a keyframe"""

    def encoded(self, packet: Any, duration: int) -> Any:
        packet.dts = packet.pts - self.early * self.ticks
        packet.duration, packet.time_base = duration, self.unit
        return packet

    def copied(self, packet: Any) -> Any:
        packet.pts = (packet.pts - self.start) * self.ticks
        packet.dts = (packet.dts - self.start) * self.ticks
        packet.duration, packet.time_base = packet.duration * self.ticks, self.unit
        return packet


def _pieces(
    path: Path, container: Any, stream: Any, writer: _Writer, bounds: tuple[int, int, int], settings: Split
) -> Iterator[Any]:
    """The packets of the head, the middle and the tail, in the order of decoding."""
    first, last, end = bounds
    middle = list(_copied(container, stream, writer, first))
    writer.early = (middle[0].pts - middle[0].dts) // writer.ticks
    with opened(path) as (other, pictures):
        yield from _encoded(
            frames_from(other, pictures, writer.found, writer.start), first, first, writer, settings
        )
    yield from middle
    with opened(path) as (other, pictures):
        yield from _encoded(frames_from(other, pictures, writer.found, last + 1), end, end, writer, settings)


def _copied(container: Any, stream: Any, writer: _Writer, first: int) -> Iterator[Any]:
    filtered = BitStreamFilterContext("h264_mp4toannexb", stream)
    container.seek(first, stream=stream)
    left = len(writer.shown)
    for packet in container.demux(stream):
        if packet.size and packet.pts in writer.shown:
            left -= 1
            for ready in filtered.filter(packet):
                yield writer.copied(ready)
        if not left:
            break


def _encoded(shown: Iterator[Shown], until: int, end: int, writer: _Writer, settings: Split) -> Iterator[Any]:
    """The frames before tick `until`, encoded; the last is shown until `end`."""
    encoder: Any = None
    source = writer.found.source
    packets = []
    for each in shown:
        if each.stamp >= until:
            break
        if encoder is None:
            normalise = Normaliser(each.frame, source, _NO_CROP, settings)
            encoder = av.CodecContext.create("libx264", "w")
            encoder.options = x264_options(source, settings)
            encoder.framerate = Fraction(source.fps).limit_denominator(1001)
            set_up(encoder, normalise, writer.unit)
        for ready in normalise(each):
            ready.frame.pts = (ready.stamp - writer.start) * writer.ticks
            ready.frame.time_base = writer.unit
            packets += encoder.encode(ready.frame)
    if encoder is None:  # the middle begins or ends where the clip does
        return
    packets += encoder.encode(None)
    stops = [*(packet.pts for packet in packets[1:]), (end - writer.start) * writer.ticks]
    for packet, stop in zip(packets, stops, strict=True):
        yield writer.encoded(packet, stop - packet.pts)


def annex_b(extradata: bytes) -> bytes:
    """The parameter sets of an avcC box (ISO/IEC 14496-15, 5.3.3.1) with start codes; others come back as they are."""
    if not extradata or extradata[0] != 1:
        return extradata
    found, place = b"", 5
    for mask in (0x1F, 0xFF):  # so many sequence sets, then so many picture sets
        count, place = extradata[place] & mask, place + 1
        for _ in range(count):
            size = int.from_bytes(extradata[place : place + 2], "big")
            found += b"\0\0\0\1" + extradata[place + 2 : place + 2 + size]
            place += 2 + size
    return found
