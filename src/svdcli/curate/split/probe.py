"""What a source is, before anything is decoded at length: its stamps, its shape, and what normalising it takes.

Every packet is read (that costs a thousandth of decoding it), since headers lie: about length, rate and number of
frames. What cannot be used is refused in one sentence.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from svdcli.curate.rows import Hdr, Source
from svdcli.curate.split.opening import HINT, Ticks, opened
from svdcli.errors import InputError
from svdcli.io.files import require_file

_HDR: dict[int, Hdr] = {16: "pq", 18: "hlg"}  # transfer characteristics of ISO/IEC 23091-2
_GAP_SECONDS = 2.0  # a frame is shown no longer than this, or ten usual steps, whichever is more
_LOOKED_AT = 8  # frames decoded to see rotation, interlacing and pixel format


@dataclass(frozen=True)
class Packets:
    """The video packets of a source, in the order of the file, which is that of decoding."""

    pts: Ticks
    """(N,) when each is shown, ticks"""
    ends: Ticks
    """(N,) when it ends to be shown, ticks"""
    keys: npt.NDArray[np.bool_]
    """(N,) whether it can be decoded alone"""
    sound: bool
    """whether the stamps are whole, each shown at a time of its own: else nothing can be sought by them"""
    ordered: bool
    """whether each says when it is decoded: else nothing can be copied"""


@dataclass(frozen=True)
class Probe:
    """A source and its packets."""

    source: Source
    packets: Packets
    sought: bool
    """whether seeking in it can be relied on"""


def probe(path: Path) -> Probe:
    """What `path` is. Raises InputError, in a sentence, where it is nothing that clips can be cut out of."""
    require_file(path, "video")
    with opened(path) as (container, stream):
        base = Fraction(stream.time_base or 0)
        if not base:
            raise InputError(f"{path} does not say its time base.", "Convert it to mp4 first.")
        packets, last_tick = _read_packets(path, container, stream)
        orderly = container.format.name != "avi"  # its stamps are counted, not stored
    looks = _look(path)
    stamps = np.unique(packets.pts) if packets.sound else packets.pts
    width, height = _upright_size(looks)
    span = last_tick - int(stamps[0])
    source = Source(
        id=digest(path)[:16],
        path=os.fsencode(path).decode("utf-8", "backslashreplace"),
        size=path.stat().st_size,
        codec=looks.codec,
        width=width,
        height=height,
        time_base=base,
        start_pts=int(stamps[0]),
        end_pts=last_tick,
        num_frames=len(stamps),
        fps=float(len(stamps) / (span * base)),
        rotation_deg=looks.rotation_deg,
        sample_aspect=looks.sample_aspect,
        interlaced=looks.interlaced,
        bit_depth=looks.bit_depth,
        hdr=looks.hdr,
        variable_frame_rate=is_variable(stamps),
    )
    return Probe(source, packets, orderly and packets.sound)


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_variable(stamps: Ticks) -> bool:
    """Whether more than one in fifty steps between rising stamps differs from the usual one, beyond rounding."""
    steps = np.diff(stamps)
    if not len(steps):
        return False
    usual = float(np.median(steps))
    return bool(np.mean(np.abs(steps - usual) > max(1.5, 0.1 * usual)) > 0.02)


def usual_step(stamps: Ticks) -> int:
    """The median step between rising stamps, ticks, at least one."""
    return max(1, int(np.median(np.diff(stamps)))) if len(stamps) > 1 else 1


def _read_packets(path: Path, container: Any, stream: Any) -> tuple[Packets, int]:
    """The packets, and the tick at which the last one ends to be shown."""
    rows: list[tuple[int | None, int, bool]] = []
    ordered = True
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                stamp = packet.pts if packet.pts is not None else packet.dts
                rows.append((stamp, packet.duration or 0, packet.is_keyframe))
                ordered = ordered and packet.dts is not None
    except (av.FFmpegError, OSError):
        pass  # the end of what can be read; what came before it counts
    stamped = [row for row in rows if row[0] is not None]
    if len(stamped) < 2:
        what = "no frame" if not rows else "a single frame" if len(rows) == 1 else "no time stamps"
        raise InputError(f"{path} has {what}, so no clip can be cut out of it.", HINT)
    pts = np.array([row[0] for row in stamped], np.int64)
    durations = np.array([row[1] for row in stamped], np.int64)
    keys = np.array([row[2] for row in stamped], bool)
    order = np.argsort(pts, kind="stable")
    rising = pts[order]
    step = usual_step(rising)
    longest = max(10 * step, int(_GAP_SECONDS / stream.time_base))
    shown = np.where((durations > 0) & (durations <= 10 * step), durations, step)
    ends = np.empty_like(pts)
    ends[order[:-1]] = np.minimum(rising[1:], rising[:-1] + longest)
    ends[order[-1]] = rising[-1] + shown[order[-1]]
    sound = len(stamped) == len(rows) and bool((np.diff(rising) > 0).all())
    return Packets(pts, ends, keys, sound, ordered), int(ends[order[-1]])


# --- a look at the first frames ---


@dataclass(frozen=True)
class _Looks:
    codec: str
    width: int
    height: int
    rotation_deg: int
    sample_aspect: Fraction
    interlaced: bool
    bit_depth: int
    hdr: Hdr


def _look(path: Path) -> _Looks:
    with opened(path) as (container, stream):
        frames = []
        try:
            for frame in container.decode(stream):
                frames.append(frame)
                if len(frames) == _LOOKED_AT:
                    break
        except (av.FFmpegError, OSError) as error:
            if not frames:
                raise InputError(
                    f"{path} cannot be decoded: {error.strerror or error}.", "Copy or export it again."
                ) from error
        if not frames:
            raise InputError(f"{path} cannot be decoded: no frame comes out.", "Copy or export it again.")
        first = frames[0]
        return _Looks(
            codec=stream.codec_context.name,
            width=first.width,
            height=first.height,
            rotation_deg=round(first.rotation / 90) % 4 * 90,
            sample_aspect=_aspect(stream),
            interlaced=2 * sum(bool(frame.interlaced_frame) for frame in frames) > len(frames),
            bit_depth=max(component.bits for component in first.format.components),
            hdr=_HDR.get(int(first.color_trc), ""),
        )


def _aspect(stream: Any) -> Fraction:
    """Width of a coded pixel by its height; 1 where nothing or nonsense is said."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    return Fraction(aspect) if Fraction(1, 4) <= aspect <= 4 else Fraction(1)


def square_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Coded width, height -> even ones with square pixels, the shorter measure enlarged; as they are if nearly so."""
    if abs(aspect - 1) <= Fraction(1, 100):
        return width, height
    wide = round(width * aspect / 2) * 2 if aspect > 1 else width
    high = round(height / aspect / 2) * 2 if aspect < 1 else height
    return wide, high


def _upright_size(looks: _Looks) -> tuple[int, int]:
    width, height = square_size(looks.width, looks.height, looks.sample_aspect)
    return (height, width) if looks.rotation_deg in {90, 270} else (width, height)
