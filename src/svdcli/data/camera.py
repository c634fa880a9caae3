"""Camera moves made from still frames: pans and zooms of known speed.

What it is: extra training clips that tear motion apart from content, so that a small model must read the
motion bucket instead of guessing the motion from the picture. What it is not: real footage; a recipe says how
many of them it mixes in.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.data.footage import Footage, Joined, Video, cover
from svdcli.data.frames import FrameSet

Kind = Literal["in", "out", "pan"]
KINDS: tuple[Kind, ...] = ("in", "out", "pan")
CLOSEST = 0.66
"""The tightest view, as a share of the frame's side."""


def camera_move(
    frame: npt.NDArray[np.uint8], num_frames: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """One frame (H, W, 3) -> (T, H, W, 3): a zoom in, a zoom out or a pan, at a random, constant speed."""
    reach = rng.uniform(0.02, 1.0) * (1.0 - CLOSEST)
    kind = KINDS[rng.integers(3)]
    angle = rng.uniform(0, 2 * np.pi) if kind == "pan" else 0.0
    return move(frame, num_frames, kind, reach, angle)


def move(
    frame: npt.NDArray[np.uint8], num_frames: int, kind: Kind, reach: float, angle: float = 0.0
) -> npt.NDArray[np.uint8]:
    """One frame (H, W, 3) -> (T, H, W, 3), the farther the larger `reach` in (0, 1 - CLOSEST].

    A zoom goes between the whole picture and 1 - reach of its sides. A pan moves the view by `reach` of the
    sides at most, towards `angle` (radians, clockwise from the right), and never leaves the picture.
    """
    height, width = frame.shape[:2]
    centres = np.zeros((num_frames, 2))
    if kind == "pan":
        scales = np.full(num_frames, 1.0 - max(reach, 0.1))
        direction = np.array([np.cos(angle), np.sin(angle)])
        limit = reach / 2 / max(np.abs(direction))
        centres = np.linspace(-limit, limit, num_frames)[:, None] * direction
    else:
        scales = np.linspace(1.0, 1.0 - reach, num_frames)[:: 1 if kind == "in" else -1]
    return np.stack([view(frame, s, c, (width, height)) for s, c in zip(scales, centres, strict=True)])


def view(
    frame: npt.NDArray[np.uint8], scale: float, centre: npt.NDArray[np.float64], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """The part of a frame that is `scale` of its sides, `centre` (shares of the sides) off the middle.

    It is scaled up to the full size (W, H).
    """
    width, height = size
    left = (0.5 + centre[0] - scale / 2) * width
    top = (0.5 + centre[1] - scale / 2) * height
    matrix = np.array([[scale, 0.0, left + 0.5 * scale - 0.5], [0.0, scale, top + 0.5 * scale - 0.5]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(frame, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE))


def with_camera_moves(footage: Footage, count: int, num_frames: int, fps: float, seed: int) -> Footage:
    """The footage with `count` camera moves behind it, each of a random frame of a random video, at `fps`.

    The moves are made and held in memory, the footage is left where it is. They are of its first size.
    """
    if not count:
        return footage
    rng = np.random.default_rng(seed)
    videos = footage.videos
    width, height = footage.size(videos[0])
    clips, moves = [], []
    for index in range(count):
        video = videos[int(rng.integers(len(videos)))]
        still = footage.take(video, [int(rng.integers(video.num_frames))])[0]
        clips.append(camera_move(cover(still, width, height), num_frames, rng))
        moves.append(Video(f"camera-move-{index:04d}", fps, index * num_frames, num_frames))
    return Joined((footage, FrameSet(np.concatenate(clips), tuple(moves))))
