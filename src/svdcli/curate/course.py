"""How a video goes by: a few numbers of every frame, taken while it is decoded anyway."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DARK = 20
"""brightness, of 255, up to which a pixel counts as black"""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Course:
    """Numbers of T frames, in the order in which they are shown."""

    times: Numbers
    """(T,) seconds from the first, rising"""
    light: Numbers
    """(T,) mean brightness, 0..255"""
    lit: Numbers
    """(T,) share of the pixels that are brighter than DARK"""
    change: Numbers
    """(T,) mean absolute difference of the brightness of pixels from the frame before, 0..255; of the first 0"""

    def as_array(self) -> npt.NDArray[np.float32]:
        """(T, 4)"""
        return np.stack([self.times, self.light, self.lit, self.change], axis=1).astype(np.float32)

    @classmethod
    def from_array(cls, rows: npt.NDArray[np.float32]) -> Course:
        """The inverse of `as_array`. Raises ValueError for another shape."""
        if rows.ndim != 2 or rows.shape[1] != 4 or not len(rows):
            raise ValueError(f"the numbers of its frames are of shape {rows.shape}")
        return cls(*rows.astype(np.float64).T)


class CourseMeter:
    """Takes every frame, small and grey."""

    def __init__(self) -> None:
        self._rows = array("f")
        self._before: npt.NDArray[np.uint8] | None = None

    def push(self, grey: npt.NDArray[np.uint8]) -> None:
        """The next frame, (h, w): of few single pixels, for the mean of many hides the noise that tells a still scene from a
        frozen picture."""
        import cv2

        change = 0.0 if self._before is None else cv2.norm(grey, self._before, cv2.NORM_L1) / grey.size
        lit = cv2.countNonZero(cv2.compare(grey, DARK, cv2.CMP_GT)) / grey.size  # type: ignore[call-overload]
        self._rows.extend((cv2.mean(grey)[0], lit, change))
        self._before = grey

    def course(self, first: int, last: int, times: Numbers) -> Course:
        """Of frames first..last-1, which are shown at these times."""
        light, lit, change = (
            np.frombuffer(self._rows, np.float32).reshape(-1, 3)[first:last].astype(np.float64).T
        )
        change[:1] = 0
        return Course(times - times[0], light, lit, change)
