"""What the camera does in a clip, read from optical flow: for camera LoRAs (SVD §4.4: horizontal, zooming, static)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.data.motion import dense_flow, grey_frames
from svdcli.errors import InputError

Move = Literal["static", "pan-left", "pan-right", "tilt-up", "tilt-down", "zoom-in", "zoom-out"]
FLOW_SIDE = 128
"""Shortest side, in pixels, at which flow is computed."""
STILL = 0.02
"""Shortest sides a second below which the camera stands still."""
GROUPS = {
    "horizontal": ("pan-left", "pan-right"),
    "vertical": ("tilt-up", "tilt-down"),
    "zoom": ("zoom-in", "zoom-out"),
}
"""coarser labels: any of these is right"""


def camera_move(frames: npt.NDArray[np.uint8], fps: float) -> tuple[Move, dict[str, float]]:
    """Clip (T, H, W, 3), T >= 2 -> the camera's move, and its speeds: x, y and zoom, in shortest sides a second.

    Each pair's flow is explained by one similarity (RANSAC, so that what moves by itself does not decide). x is positive where
    the camera goes right, y where it goes down, zoom where it goes in, counted at the middle of an edge of the shortest side.
    """
    grey = grey_frames(frames, min(FLOW_SIDE, *frames.shape[1:3]))
    steps = [_step(a, b) for a, b in pairwise(grey)]
    x, y, zoom = (np.mean(steps, axis=0) * fps).tolist()
    speeds = {"x": x, "y": y, "zoom": zoom}
    strongest = max(speeds, key=lambda name: abs(speeds[name]))
    names: dict[str, tuple[Move, Move]] = {
        "x": ("pan-right", "pan-left"), "y": ("tilt-down", "tilt-up"), "zoom": ("zoom-in", "zoom-out")
    }  # fmt: skip
    if abs(speeds[strongest]) < STILL:
        return "static", speeds
    return names[strongest][0 if speeds[strongest] > 0 else 1], speeds


def is_right(label: str, found: Move) -> bool:
    """Whether a clip asked to be `label` (a move, or horizontal, vertical, zoom) is one. Raises InputError for other labels."""
    label = label.strip().lower().replace("_", "-").replace(" ", "-")
    singles = {"static", *(move for moves in GROUPS.values() for move in moves)}
    if label not in singles and label not in GROUPS:
        raise InputError(
            f"There is no camera move {label!r}.", f"Labels: {', '.join(sorted(singles | set(GROUPS)))}."
        )
    return found == label or found in GROUPS.get(label, ())


def _step(before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> tuple[float, float, float]:
    """Of two frames: how far the camera went right, down and in, in shortest sides."""
    height, width = before.shape
    flow = dense_flow(before, after)
    rows, columns = np.mgrid[4 : height - 4 : 6, 4 : width - 4 : 6]
    start = np.stack([columns.ravel(), rows.ravel()], 1).astype(np.float32)
    end = start + flow[rows.ravel(), columns.ravel()]
    cv2.setRNGSeed(0)
    found: Any = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC, ransacReprojThreshold=1.0)
    matrix = found[0]
    if matrix is None:  # no similarity explains three points
        return 0.0, 0.0, 0.0
    side = min(height, width)
    centre = np.array([width / 2, height / 2, 1.0])
    shift = matrix @ centre - centre[:2]
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    return float(-shift[0] / side), float(-shift[1] / side), (scale - 1) / 2
