"""The proxy of a clip: small frames, three key frames, and how it goes by, kept so that annotators decode nothing again."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svdcli.curate.course import Course
from svdcli.errors import InputError
from svdcli.io.files import atomic_path

SMALL_SIDE = 64
"""shortest side of the small frames, pixels"""
SMALL_FPS = 2.0
"""small frames a second, the rate of the paper's optical flow"""
KEY_SIDE = 448
"""shortest side of the key frames at most, pixels; larger than what CLIP and text detection look at"""


@dataclass(frozen=True)
class Proxy:
    """What annotators look at."""

    times: np.ndarray
    """(N,) float64, seconds from the clip's start of each small frame, rising"""
    small: np.ndarray
    """(N, h, w, 3) uint8 sRGB, shortest side SMALL_SIDE or less, at SMALL_FPS; at least the first and the last frame"""
    keys: np.ndarray
    """(3, H, W, 3) uint8 sRGB, shortest side KEY_SIDE at most: the kept pictures nearest to the first, middle and last frame,
    as a rule within a quarter of a second; kept as JPEG"""
    course: Course
    """of all its frames"""

    def save(self, path: Path) -> None:
        """Write it whole or not at all; the same proxy makes the same bytes."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            keys: dict[str, Any] = {f"key_{place}": jpeg(key) for place, key in enumerate(self.keys)}
            np.savez_compressed(
                file, times=self.times, small=self.small, course=self.course.as_array(), **keys
            )

    @classmethod
    def load(cls, path: Path) -> Proxy:
        """Raises InputError where the file is missing or damaged."""
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                keys = np.stack([from_jpeg(arrays[f"key_{place}"]) for place in range(3)])
                return cls(arrays["times"], arrays["small"], keys, Course.from_array(arrays["course"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"The proxy {path} cannot be read: {error}.", "Run svd curate split again."
            ) from error


def jpeg(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 sRGB -> the bytes of a JPEG file of high quality, (N,) uint8."""
    import cv2

    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]


def from_jpeg(content: np.ndarray) -> np.ndarray:
    """The inverse of `jpeg`. Raises ValueError where that is no picture."""
    import cv2

    picture = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if len(content) else None
    if picture is None:
        raise ValueError("a key frame in it is damaged")
    return picture
