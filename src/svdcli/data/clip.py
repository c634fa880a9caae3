"""The clip: one row of the index that curation writes and training reads.

What it is: where a clip comes from, what it looks like, what was measured of it, where its bytes lie. What it is
not: the pixels; see `shards` for the bytes and `reader` for the frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_type_hints

from svdcli.errors import InputError

_HINT = "Write the index with svdcli.data.shards, or rename its columns as svdcli.data.clip.Clip names them."


@dataclass(frozen=True)
class Clip:
    """A row of the index, with the same column names in Parquet. An absent score is null, an absent caption ""."""

    key: str
    """name of the clip: that of its members in the shard, less their endings"""
    source: str
    """name of the video that it was cut from"""
    start: float
    """where it begins in that video, seconds"""
    end: float
    """where it ends there, seconds"""
    fps: float
    """mean frame rate, frames a second"""
    width: int
    """pixels, upright"""
    height: int
    """pixels, upright"""
    num_frames: int
    motion: float | None = None
    """mean optical-flow speed, shortest sides per second, as `svdcli.data.motion.motion_score` measures it"""
    text_area: float | None = None
    """share of the picture that text covers, 0..1"""
    aesthetic: float | None = None
    """aesthetic score, 1..10"""
    camera: str = ""
    """what the camera does, as curation's annotator `camera` names it: static, pan_left, zoom_in, …"""
    similarities: tuple[float, ...] = ()
    """cosine similarities with first, middle and last frame, of each caption that there is: image, video, summary"""
    caption_image: str = ""
    """of the middle frame alone"""
    caption_video: str = ""
    caption_summary: str = ""
    """the two others in one sentence"""
    shard: str = ""
    """the tar's file name beside the index"""
    offset: int = 0
    """first byte of the video within the shard"""
    size: int = 0
    """bytes of the video"""
    digest: str = ""
    """the first 32 hexadecimal digits of the SHA-256 of the video's bytes"""

    def to_row(self) -> dict[str, Any]:
        """The row, by column."""
        return asdict(self) | {"similarities": list(self.similarities)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Clip:
        """A row of an index -> Clip; columns that it does not know are left out.

        Raises InputError where a column is missing, of another type, or says what cannot be.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = row.get(field.name)
            if value is None:
                if field.default is MISSING:
                    raise InputError(f"The index of the dataset has no {field.name} for a clip.", _HINT)
                continue
            values[field.name] = _of_type(field.name, _KINDS[field.name], value)
        clip = cls(**values)
        sound = clip.fps > 0 and math.isfinite(clip.fps) and clip.num_frames > 0
        if not sound or clip.width < 1 or clip.height < 1 or clip.offset < 0 or clip.size < 0:
            size = f"{clip.width}x{clip.height}, {clip.num_frames} frames at {clip.fps:g} a second"
            raise InputError(f"The index says of clip {clip.key!r} what cannot be: {size}.", _HINT)
        return clip


_KINDS: dict[str, Any] = {
    name: {float | None: float, tuple[float, ...]: tuple}.get(kind, kind)
    for name, kind in get_type_hints(Clip).items()
}


def _of_type(name: str, kind: type, value: Any) -> Any:
    try:
        if kind is tuple:
            return tuple(float(v) for v in value)
        if kind is str and not isinstance(value, str):
            raise TypeError
        return kind(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The index says {name} = {value!r} of a clip, which is no {kind.__name__}.", _HINT
        ) from error


def schema() -> Any:
    """The pyarrow schema of the index."""
    import pyarrow as pa

    types = {str: pa.string(), float: pa.float64(), int: pa.int64(), tuple: pa.list_(pa.float64())}
    return pa.schema([(field.name, types[_KINDS[field.name]]) for field in fields(Clip)])
