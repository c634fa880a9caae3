"""Antialiased scaling: Lanczos on floats, agreeing with PIL's 8-bit result, which diffusers uses."""

from __future__ import annotations

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]


def resize(pixels: np.ndarray, width: int, height: int, box: Box | None = None) -> np.ndarray:
    """float32 (H, W, C) in [0, 1] -> (height, width, C), of `box` (left, top, right, bottom) if given.

    Values that are 8-bit steps take PIL's 8-bit way and agree with it exactly; others keep their precision.
    Both ways clip between the horizontal and the vertical pass, so they differ by rounding only.
    """
    num_rows, num_columns = pixels.shape[:2]
    left, top, right, bottom = box or (0, 0, num_columns, num_rows)
    steps = np.rint(pixels * 255).astype(np.uint8)
    if pixels.shape[2] == 3 and np.array_equal(steps.astype(np.float32) / np.float32(255), pixels):
        image = Image.fromarray(steps).resize(
            (width, height), Image.Resampling.LANCZOS, box=(left, top, right, bottom)
        )
        return np.asarray(image, np.float32) / np.float32(255)
    planes = []
    for plane in np.moveaxis(pixels, 2, 0):
        image = Image.fromarray(np.ascontiguousarray(plane, np.float32))
        image = image.resize((width, num_rows), Image.Resampling.LANCZOS, box=(left, 0, right, num_rows))
        image = Image.fromarray(np.asarray(image).clip(0, 1))
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=(0, top, width, bottom))
        planes.append(np.asarray(image).clip(0, 1))
    return np.stack(planes, axis=2)


def crop(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scaled to cover width x height, the middle kept. Cuts whole pixels where nothing needs scaling."""
    num_rows, num_columns = pixels.shape[:2]
    scale = max(width / num_columns, height / num_rows)
    if scale == 1:
        top, left = (num_rows - height) // 2, (num_columns - width) // 2
        return pixels[top : top + height, left : left + width].copy()
    box_width, box_height = min(width / scale, num_columns), min(height / scale, num_rows)
    left, top = (num_columns - box_width) / 2, (num_rows - box_height) / 2
    return resize(pixels, width, height, (left, top, left + box_width, top + box_height))


def pad(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scaled to fit in width x height, in the middle of the mean colour of the picture's border."""
    num_rows, num_columns = pixels.shape[:2]
    scale = min(width / num_columns, height / num_rows)
    inner_width = min(max(round(num_columns * scale), 1), width)
    inner_height = min(max(round(num_rows * scale), 1), height)
    same = (inner_height, inner_width) == (num_rows, num_columns)
    inner = pixels if same else resize(pixels, inner_width, inner_height)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    canvas = np.empty((height, width, pixels.shape[2]), np.float32)
    canvas[:] = border.mean(axis=0, dtype=np.float64)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    canvas[top : top + inner_height, left : left + inner_width] = inner
    return canvas
