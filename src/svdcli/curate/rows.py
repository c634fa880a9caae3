"""The rows that the stages of curation pass on, and that its tables hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from svdcli.errors import InputError

Hdr = Literal["", "pq", "hlg"]
CutKind = Literal["start", "hard", "gradual", "limit", "trim", "damage", "end"]
"""what a clip begins or ends with: the source's own ends, a cut, the longest length that is allowed, a black or frozen
part that was cut off, frames that are damaged or missing"""


@dataclass(frozen=True)
class Source:
    """A video as it was found, and what normalising it takes."""

    id: str
    """the first 16 hexadecimal digits of the SHA-256 of its bytes"""
    path: str
    """where it was found, as the input list said it"""
    size: int
    """bytes"""
    codec: str
    width: int
    """pixels, upright, with square pixels"""
    height: int
    """pixels, upright, with square pixels"""
    time_base: Fraction
    """seconds a tick"""
    start_pts: int
    """the first frame's time, ticks"""
    end_pts: int
    """the end of the last frame, ticks"""
    num_frames: int
    fps: float
    """mean frame rate, frames a second"""
    rotation_deg: int = 0
    """degrees that the decoder's picture is turned by, anticlockwise: 0, 90, 180 or 270"""
    sample_aspect: Fraction = Fraction(1)
    """width of a coded pixel by its height"""
    interlaced: bool = False
    bit_depth: int = 8
    hdr: Hdr = ""
    variable_frame_rate: bool = False

    @property
    def seconds(self) -> float:
        return float((self.end_pts - self.start_pts) * self.time_base)


@dataclass(frozen=True)
class CutClip:
    """A clip that was cut out of a source, written and checked."""

    id: str
    """SOURCE-START-END, in ticks of the source: also its key in a shard"""
    source: str
    """id of its source"""
    start_pts: int
    """its first frame, ticks of the source"""
    end_pts: int
    """the end of its last frame, ticks of the source"""
    start: float
    """seconds"""
    end: float
    """seconds"""
    opens: CutKind
    closes: CutKind
    confidence: float
    """of the less certain of its two ends, 0..1"""
    path: str
    """of the video, from the curation folder"""
    size: int
    """bytes"""
    digest: str
    """SHA-256 of the video's bytes"""
    width: int
    """pixels, as written: upright, cropped"""
    height: int
    num_frames: int
    fps: float
    method: Literal["copy", "smart", "encode"]
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    """pixels cut off left, top, right, bottom of the upright source: its letterbox"""


def clip_id(source: str, start_pts: int, end_pts: int) -> str:
    """A key that WebDataset can hold; negative ticks, which some sources begin with, are written m7."""
    return f"{source}-{start_pts}-{end_pts}".replace("--", "-m")


def read_clip(path: Path, digest: str) -> bytes:
    """The video of a clip. Raises InputError where it is missing, or not the one that was checked."""
    try:
        video = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}.", "Run svd curate split again."
        ) from error
    if hashlib.sha256(video).hexdigest() != digest:
        raise InputError(
            f"{path} has changed since it was cut: it is not the file that was checked.",
            "Run svd curate split again.",
        )
    return video
