"""Measures of one clip, frame by frame, without any network.

Each sees one thing and can be fooled by the others: a still picture repeated has no flicker and no warp
error, noise is sharp. Read them together, and beside motion_score.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.data.motion import dense_flow, grey_frames
from svdcli.errors import InputError

Frames = npt.NDArray[np.uint8] | npt.NDArray[np.floating]
"""uint8 in 0..255, or floating point in [0, 1]."""

WARP_SIDE = 256
"""Shortest side, in pixels, to which larger clips are shrunk before they are warped."""

ROUNDED = 10 * float(np.log10(12 * 255**2))
"""PSNR of a picture that is rounded to 256 levels, dB (58.9): nearer than that, frames of a video cannot be told apart."""

_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # BT.709, on the gamma-encoded values


def psnr(a: Frames, b: Frames) -> float:
    """Two pictures or clips of one shape -> peak signal-to-noise ratio over all pixels, dB (inf where equal).

    The peak is 1 after scaling: uint8 counts as 0..255, floating point as [0, 1]. Raises InputError where the
    shapes differ.
    """
    if a.shape != b.shape or a.size == 0:
        message = f"Pictures of shapes {a.shape} and {b.shape} cannot be compared."
        raise InputError(message, "Bring both to the same size first.")
    error = float(np.mean((_unit(a) - _unit(b)) ** 2, dtype=np.float64))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def first_frame_psnr(frames: Frames, picture: Frames) -> float:
    """Clip (T, H, W, 3) and the picture (H, W, 3) it was made from -> PSNR of its first frame, dB, at most ROUNDED.

    How faithful image-to-video is to its input; the VAE's own reconstruction of the picture is its ceiling, unless the
    picture's own pixels are carried into the clip.
    """
    return min(psnr(_clip(frames, 1)[0], picture), ROUNDED)


def flicker(frames: Frames) -> float:
    """Clip (T, H, W, 3), T >= 3 -> mean |f[t-1] - 2 f[t] + f[t+1]| over its mean brightness; 0 is steady.

    The second difference leaves out stillness and slow fades, which are not flicker, but not fast motion of
    fine texture: compare clips of like motion. Dividing by the brightness keeps dark clips from looking
    steady.
    """
    unit = _unit(_clip(frames, 3))
    change = np.abs(np.diff(unit, n=2, axis=0)).mean(dtype=np.float64)
    return float(change) / max(float(unit.mean(dtype=np.float64)), 1 / 255)


def sharpness(frames: Frames) -> float:
    """Clip (T, H, W, 3) -> detail per contrast: std of the Laplacian of luma over std of luma, frame mean.

    Contrast and brightness do not change it, the size of the picture does: compare at one size. A flat frame
    counts 0. Give `frames[-1:]` and `frames[:1]` to see how much a clip blurs as it goes.
    """
    values = []
    for luma in _unit(_clip(frames, 1)) @ _LUMA:
        contrast = float(luma.std())
        values.append(float(cv2.Laplacian(luma, cv2.CV_32F).std()) / contrast if contrast > 1e-6 else 0.0)
    return float(np.mean(values))


def warp_error(frames: Frames) -> float:
    """Clip (T, H, W, 3), T >= 2 -> mean absolute difference, in [0, 1], of a frame and the next, warped back.

    Farnebäck flow, at 256 pixels on the shortest side or fewer. Pixels that are hidden in the next frame are
    left out by forward-backward consistency (Sundaram et al. 2010; used so by Lai et al. 2018, 1808.00449). A
    pair in which flow is inconsistent on more than half of the pixels is too broken to follow, and counts in
    full.
    """
    whole = _eight_bit(_clip(frames, 2))
    side = min(WARP_SIDE, *whole.shape[1:3])
    grey = grey_frames(whole, side)
    height, width = grey[0].shape
    colour = [cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) for f in whole]
    errors = []
    for (grey_a, grey_b), (colour_a, colour_b) in zip(pairwise(grey), pairwise(colour), strict=True):
        forward, backward = dense_flow(grey_a, grey_b), dense_flow(grey_b, grey_a)
        error = np.abs(colour_a - _pull(colour_b, forward)).mean(-1) / 255
        seen = _consistent(forward, backward)
        errors.append(float(error[seen].mean() if seen.mean() > 0.5 else error.mean()))
    return float(np.mean(errors))


def _pull(picture: npt.NDArray[np.float32], flow: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Picture (H, W, C) read at p + flow[p] (H, W, 2)."""
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    pulled = cv2.remap(
        picture,
        columns + flow[..., 0],
        rows + flow[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(pulled, dtype=np.float32)


def _consistent(forward: npt.NDArray[np.float32], backward: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Where going forward and back ends at the start, inside of the picture: (H, W)."""
    height, width = forward.shape[:2]
    rows, columns = np.indices((height, width), dtype=np.float32)
    x, y = columns + forward[..., 0], rows + forward[..., 1]
    back = _pull(backward, forward)
    gap = ((forward + back) ** 2).sum(-1)
    close = gap < 0.01 * ((forward**2).sum(-1) + (back**2).sum(-1)) + 0.5
    return np.asarray(close & (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1), dtype=np.bool_)


def _unit(values: Frames) -> npt.NDArray[np.float32]:
    """To float32 in [0, 1]: half of what float64 takes, and a clip may be large."""
    scaled = np.asarray(values, dtype=np.float32)
    if values.dtype != np.uint8 and not np.isfinite(scaled).all():
        raise InputError("A frame holds values that are not finite.", "Look for what made them NaN.")
    return scaled / np.float32(255) if values.dtype == np.uint8 else scaled


def _eight_bit(values: Frames) -> npt.NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return np.asarray(values, dtype=np.uint8)
    return np.asarray(np.rint(values.clip(0, 1) * 255), dtype=np.uint8)


def _clip(frames: Frames, at_least: int) -> Frames:
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        message = f"A clip must be (T, H, W, 3), not {frames.shape}."
        raise InputError(message, "Read it with svdcli.io.video.read_video.")
    if len(frames) < at_least:
        message = f"This measure needs {at_least} frames, and the clip has {len(frames)}."
        raise InputError(message, "Give a longer clip.")
    return frames
