"""Values of a picture between its pixels."""

from __future__ import annotations

import cv2
import numpy as np

_ROW = 4096  # OpenCV takes maps of at most 32767 rows and columns


def bilinear(image: np.ndarray, pixels: np.ndarray, outside: float | None = 0.0) -> np.ndarray:
    """`image` (H, W) or (H, W, C) at `pixels` (N, 2), first centre at (0.5, 0.5) -> (N,) or (N, C), float32.

    `outside` is the value beyond the border; None repeats the border's own. Positions are exact to 1/32 pixel.
    """
    count = len(pixels)
    if count == 0:
        return np.zeros((0, *image.shape[2:]), np.float32)
    rows = -(-count // _ROW)
    place = np.full((rows * _ROW, 2), -1e4, np.float32)
    place[:count] = np.clip(pixels, -1e4, 1e5) - 0.5
    x, y = place.reshape(rows, _ROW, 2).transpose(2, 0, 1)
    mode = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT
    value = (outside or 0.0,) * 4
    found = cv2.remap(image, x.copy(), y.copy(), cv2.INTER_LINEAR, borderMode=mode, borderValue=value)
    return found.reshape(rows * _ROW, *image.shape[2:])[:count]


def wrapped(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """A texture (H, W, C) that repeats, at `uv` (N, 2), v up from the last row -> (N, C)."""
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_WRAP)
    place = np.stack([uv[:, 0] % 1 * width + 1, (1 - uv[:, 1]) % 1 * height + 1], axis=1)
    return bilinear(padded, place, None)
