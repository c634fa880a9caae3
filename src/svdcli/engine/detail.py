"""The given pictures' own pixels, carried along a clip's own motion into the frames that show the same things.

A small autoencoder blurs what it decodes, and a small network's noise flickers in it. But a clip made from a picture mostly
shows that picture, moved: where its frames say how, the picture's pixels are better than the decoder's. What comes into view,
or changes, stays as it was decoded. This is classical motion compensation behind the model, not a part of it: no motion is
added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError

Frame = npt.NDArray[np.uint8]
Frames = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]

CELL = 8.0
"""Pixels over which flow is averaged: a latent's, for within one the decoder invents"""
STEADY = 0.5
"""frames over which flow is averaged, so that a picture carried along does not tremble"""
TRUST = 60.0
"""levels of 255 by which a decoded frame differs from the moved decoded one where the picture counts for 1/e"""
LOOK = 4.0
"""pixels over which colours are averaged before that comparison: those that blur or noise alone parts still agree"""
BEYOND = 16.0
"""pixels out of the picture, whose edges are repeated, where it counts for 1/e"""
SMALLEST = 16
"""pixels a side that flow needs"""


def carry_detail(frames: Frames, given: Mapping[int, Frame]) -> Frames:
    """Decoded frames (T, H, W, 3) and, for some of them, the pictures (H, W, 3) that were given -> frames with their detail.

    A given frame becomes its picture, to the bit. Any other is, where it is explained by moving the decoded frame at the nearest
    given one before or after, that picture moved the same way; between two given ones they share it by their distance in time.
    Raises InputError where a picture is of another size.
    """
    for picture in given.values():
        if picture.shape != frames.shape[1:]:
            (height, width), (rows, columns) = frames.shape[1:3], picture.shape[:2]
            raise InputError(
                f"The decoded frames are {width}x{height}, and the given picture is {columns}x{rows}.",
                "Decode them with the bundle that made them.",
            )
    at = sorted(given)
    found = frames.astype(np.float32)
    for index in at:
        share = np.interp(np.arange(len(frames)), at, np.eye(len(at))[at.index(index)])
        for t, flow in enumerate(flows_to(frames, index)):
            if share[t] > 0:
                trust = share[t] * trusted(frames[t], frames[index], flow)
                found[t] += trust[..., None] * (moved(given[index], flow) - frames[t])
    for index, picture in given.items():
        found[index] = picture
    return np.rint(found).clip(0, 255).astype(np.uint8)


def flows_to(frames: Sequence[Frame] | Frames, index: int) -> Flow:
    """Frames (T, H, W, 3) -> where each pixel was, or will be, in frame `index`: (T, H, W, 2), x y in pixels, smooth."""
    grey = [_at_least(np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)) for frame in frames]
    height, width = frames[0].shape[:2]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flows = np.zeros((len(grey), height, width, 2), np.float32)
    for t in range(len(grey)):
        if t != index:
            flow = search.calc(grey[t], grey[index], None)  # type: ignore[call-overload]
            flows[t] = cv2.GaussianBlur(flow[:height, :width], (0, 0), CELL)
    rows = flows.reshape(len(flows), -1)
    steady = cv2.GaussianBlur(rows, (1, 3), 1.0, sigmaY=STEADY, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(steady, np.float32).reshape(flows.shape)


def trusted(frame: Frame, other: Frame, flow: Flow) -> npt.NDArray[np.float32]:
    """How well another frame, moved, explains a frame: (H, W) from 0 to 1, and less where the flow leads out of the picture."""
    gap = np.abs(cv2.GaussianBlur(moved(other, flow) - frame, (0, 0), LOOK)).mean(2)
    gap = cv2.GaussianBlur(gap, (0, 0), LOOK / 2)
    (x, y), (height, width) = _places(flow), gap.shape
    beyond = np.hypot(x - x.clip(0, width - 1), y - y.clip(0, height - 1))
    return np.asarray(np.exp(-np.square(gap / TRUST) - np.square(beyond / BEYOND)), np.float32)


def moved(frame: Frame, flow: Flow) -> npt.NDArray[np.float32]:
    """A frame (H, W, 3), each pixel fetched from where the flow (H, W, 2) points, by cubic curves, as straight lines would
    blur; edges are repeated."""
    x, y = _places(flow)
    found = cv2.remap(frame.astype(np.float32), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32)


def _places(flow: Flow) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    y, x = np.indices(flow.shape[:2], dtype=np.float32)
    return x + flow[..., 0], y + flow[..., 1]


def _at_least(grey: Frame) -> Frame:
    """A grey picture with its edges repeated to SMALLEST pixels a side."""
    height, width = (max(0, SMALLEST - side) for side in grey.shape)
    return np.pad(grey, ((0, height), (0, width)), "edge")
