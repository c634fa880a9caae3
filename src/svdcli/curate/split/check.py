"""Every written clip is opened again, as a trainer will: by PyAV, which minds edit lists, and by decord, which does not.

Both must see the same frames at the same times, the first and last of them those that were meant. What was encoded here is
decoded whole once; of what was copied, packet by packet as the scan decoded it, only the two ends are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import numpy as np

from svdcli.curate.split.clipping import Written, thumb, thumb_of
from svdcli.curate.split.opening import SMALL, Picture

MOST_OFF = 16.0
"""levels of 255 by which a frame's thumbnail may differ: readers convert colours a little differently"""
_MOST_LATE = Fraction(1, 1000)  # seconds; decord gives stamps as floats
_BOXES = {b"moov", b"trak", b"edts"}  # the way to an edit list


def fault(file: Path, meant: Written, whole: bool) -> str:
    """What is wrong with a clip, in a few words, or "". `whole`: decode every frame, not only what shows its two ends."""
    if has_edit_list(file):
        return "it has an edit list"
    return _pyav_fault(file, meant, whole) or _decord_fault(file, meant)


def has_edit_list(file: Path) -> bool:
    """Whether an mp4 tells its readers to show something else than what it holds."""
    with file.open("rb") as stream:
        return any(kind == b"elst" for kind in _boxes(stream, 0, file.stat().st_size))


def _boxes(stream: IO[bytes], position: int, end: int) -> Iterator[bytes]:
    """The kinds of the boxes from a position, those within others included where an edit list may lie in them."""
    while position + 8 <= end:
        stream.seek(position)
        header = stream.read(16)
        size, body = int.from_bytes(header[:4], "big"), 8
        if size == 1:
            size, body = int.from_bytes(header[8:16], "big"), 16
        size = size or end - position
        if size < body:
            return
        yield header[4:8]
        if header[4:8] in _BOXES:
            yield from _boxes(stream, position + body, position + size)
        position += size


def _pyav_fault(file: Path, meant: Written, whole: bool) -> str:
    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            base = Fraction(stream.time_base or 1)
            stamps = sorted(packet.pts * base for packet in packets if packet.pts is not None)
            if wrong := _stamps_fault(stamps, meant):
                return wrong
            if (stream.codec_context.width, stream.codec_context.height) != (meant.width, meant.height):
                return f"it is {stream.codec_context.width}x{stream.codec_context.height}"
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            stream.codec_context.options = SMALL
            first = last = None
            count = 0
            for last in container.decode(stream):
                first, count = first or last, count + 1
                if not whole:
                    break
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        return f"PyAV cannot read it: {error}"
    if whole and count != len(meant.stamps):
        return f"{count} of {len(meant.stamps)} frames can be decoded"
    if first is None or last is None:
        return "no frame of it can be decoded"
    return _frames_fault([thumb(first), thumb(last)] if whole else [thumb(first)], meant)


def _stamps_fault(stamps: list[Fraction], meant: Written) -> str:
    if len(stamps) != len(meant.stamps):
        return f"it holds {len(stamps)} frames, not {len(meant.stamps)}"
    if stamps[0] != 0:
        return "it does not begin at 0"
    late = max(abs(stamp - wanted) for stamp, wanted in zip(stamps, meant.stamps, strict=True))
    return f"a frame is shown {float(late):.3f} s off" if late > _MOST_LATE else ""


def _frames_fault(ends: Sequence[Picture], meant: Written) -> str:
    """`ends`: thumbnails of the first frame, and of the last where it was decoded."""
    for name, seen, wanted in zip(("first", "last"), ends, meant.ends, strict=False):
        if np.abs(seen.astype(float) - wanted).mean() > MOST_OFF:
            return f"its {name} frame is not the one that was meant"
    return ""


def _decord_fault(file: Path, meant: Written) -> str:
    import decord

    try:
        video = decord.VideoReader(str(file), num_threads=1)
        if len(video) != len(meant.stamps):
            return f"decord sees {len(video)} frames, not {len(meant.stamps)}"
        ends = [0, len(video) - 1]
        begun = video.get_frame_timestamp(ends)[:, 0]
        off = max(abs(float(begun[1] - begun[0]) - float(meant.stamps[-1])), abs(float(begun[0])))
        if off > _MOST_LATE:
            return f"decord shows its last frame {off:.3f} s off"
        pixels = video.get_batch(ends).asnumpy()
        del video  # it decodes ahead as long as it lives
    except Exception as error:  # decord raises its own classes, and RuntimeError
        return f"decord cannot read it: {str(error).splitlines()[0][:120] if str(error) else type(error).__name__}"
    wrong = _frames_fault([thumb_of(pixels[0]), thumb_of(pixels[1])], meant)
    return f"in decord {wrong}" if wrong else ""
