"""What tells that two clips are the same: a hash of their packets, and hashes of what they show and of how it changes.

`packets` finds copies of the very stream, in whatever container. `phash` is the usual perceptual hash (signs of the 64
lowest frequencies of a cosine transform against their median) of eight moments spread over the clip: it survives new
encoding, scaling and a little cropping, but it takes two takes from one tripod for the same. `change_hash` tells these
apart: the signs of the 32 lowest frequencies of the difference between one moment and the next. See `groups`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate import View
from svdcli.errors import InputError

MOMENTS = 8
PICTURE_BITS, CHANGE_BITS = 64, 32
SIDE = 32
"""the pictures that are transformed are squares of this side, pixels"""
FLAT = 4.0
"""pictures of a standard deviation below this, of 255, show nothing to compare"""
STILL = 0.7
"""mean difference, of 255, below which nothing has changed between two moments"""

_ZIGZAG = sorted(((u + v, u, v) for u in range(SIDE) for v in range(SIDE) if u + v), key=lambda place: place)
Bits = npt.NDArray[np.bool_]


class DuplicatesAnnotator:
    """Columns: `packets`, 32 hexadecimal digits; `phash`, 16 a moment, zeros where it is flat; `change_hash`, 8 a step
    from moment to moment, zeros where nothing changes; `pixels` of a frame and `seconds`, by which the copy that is
    kept is chosen.
    """

    name = "duplicates"
    version = 1
    columns: Mapping[str, type] = {
        "packets": str,
        "phash": str,
        "change_hash": str,
        "pixels": int,
        "seconds": float,
    }
    needs: tuple[str, ...] = ()
    batch = 64

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises InputError for a file that cannot be read."""
        rows = []
        for view in views:
            pictures = _moments(view.proxy.small)
            rows.append(
                {
                    "clip": view.clip.id,
                    "packets": packet_hash(view.video),
                    "phash": "".join(_digits(picture_bits(picture)) for picture in pictures),
                    "change_hash": "".join(
                        _digits(change_bits(a, b)) for a, b in zip(pictures, pictures[1:], strict=False)
                    ),
                    "pixels": view.clip.width * view.clip.height,
                    "seconds": view.clip.end - view.clip.start,
                }
            )
        return rows


def packet_hash(video: Path) -> str:
    """The first 128 bits of the SHA-256 of the packets of its first video stream. Raises InputError."""
    digest = hashlib.sha256()
    try:
        with av.open(str(video)) as container:
            for packet in container.demux(container.streams.video[0]):
                digest.update(bytes(packet))
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise InputError(
            f"The clip {video} cannot be read: {error}.", "Run svd curate split again."
        ) from error
    return digest.hexdigest()[:32]


def picture_bits(picture: npt.NDArray[np.float32]) -> Bits:
    """(SIDE, SIDE) 0..255 -> (64,); none is set where it is flat."""
    if picture.std() < FLAT:
        return np.zeros(PICTURE_BITS, bool)
    low = _lowest(picture, PICTURE_BITS)
    return np.asarray(low > np.median(low))


def change_bits(before: npt.NDArray[np.float32], after: npt.NDArray[np.float32]) -> Bits:
    """Two (SIDE, SIDE) 0..255 -> (32,); none is set where nothing changes."""
    change = after - before
    if np.abs(change).mean() < STILL:
        return np.zeros(CHANGE_BITS, bool)
    return _lowest(change, CHANGE_BITS) > 0


def _lowest(picture: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """The lowest frequencies, without the mean, in zigzag order."""
    waves = cv2.dct(picture)
    return np.array([waves[u, v] for _, u, v in _ZIGZAG[:count]], np.float32)


def _moments(small: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    """The middles of eight equal parts of the clip, grey and square."""
    chosen = [int((part + 0.5) / MOMENTS * len(small)) for part in range(MOMENTS)]
    grey = {
        index: cv2.cvtColor(np.ascontiguousarray(small[index]), cv2.COLOR_RGB2GRAY) for index in set(chosen)
    }
    square = {
        index: np.asarray(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float32)
        for index, picture in grey.items()
    }
    return [square[index] for index in chosen]


def _digits(bits: Bits) -> str:
    return np.packbits(bits).tobytes().hex()


def to_bits(digits: Sequence[str], width: int) -> Bits:
    """Hexadecimal hashes of equal length -> (N, parts, width)."""
    raw = np.frombuffer(bytes.fromhex("".join(digits)), np.uint8).reshape(len(digits), -1)
    return np.asarray(np.unpackbits(raw, axis=1).reshape(len(digits), -1, width).astype(bool))
