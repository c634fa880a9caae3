"""What the camera does in a clip, from small frames: a robust affine fit to the flow between them, and a class.

Signs are the camera's, not the picture's. `pan` > 0: it turns or moves right, the picture runs left. `tilt` > 0: it
turns or rises up, the picture runs down. `zoom` > 0: in, by focal length or by moving, the picture grows. `roll` > 0:
it turns clockwise as seen from behind it, the picture turns anticlockwise. `shear` > 0: the upper part of the picture
runs right of the lower part. Lengths are in shortest sides of the picture.

What it is not: a pose. A pan and a sideways move are one class, and so are a zoom and a move ahead. An orbit is told
by what only a moved camera brings about: while the whole hardly drifts, what is nearer than the centre runs one way
and what is farther the other. A camera that follows somebody over a nearer ground looks alike, and is called so too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.data.motion import dense_flow, grey_frames
from svdcli.errors import InputError

SIDE = 64
"""shortest side of the pictures that flow is computed on, pixels"""
COARSE = 16
"""and of those that give it a first guess, which reaches a fifth of the side"""

STEP = 2
"""every so many points of the flow, each way, are fitted"""
TRIALS = 64
"""fits to three points each, of which the one that most of the picture follows begins the robust fit"""
ROUNDS = 6
NOISE = 0.003
"""what flow errs by, shortest sides: a fifth of a pixel"""
TUKEY = 4.685
"""where the biweight ends, in scales: the usual constant, 95 % efficient for a normal error"""
FOLLOWS = 0.015
"""a point follows the fit to within this many shortest sides: a pixel"""
RADIUS = 0.5
"""how far from the centre zoom and roll are compared with pan and tilt, shortest sides"""
STEADY = 0.6
"""share of the picture that follows a roll; an orbit has depth, which an affine field cannot follow"""

Class = Literal[
    "static",
    "pan_left",
    "pan_right",
    "tilt_up",
    "tilt_down",
    "zoom_in",
    "zoom_out",
    "roll",
    "orbit",
    "handheld",
]
"""the words of indices, recipes, LoRAs and labels alike"""
GROUPS: dict[str, tuple[Class, ...]] = {
    "horizontal": ("pan_left", "pan_right"),
    "vertical": ("tilt_up", "tilt_down"),
    "zoom": ("zoom_in", "zoom_out"),
}
"""coarser labels: any of these is right (SVD §4.4 has horizontal, zooming and static)"""
STILL = 0.01
"""shortest sides a second below which nothing counts as a move"""
MOMENTS_PER_SECOND = 2.0
FEWEST_MOMENTS = 4
Vector = npt.NDArray[np.float64]
Grey = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Move:
    """What a camera does, a second."""

    pan: float
    """shortest sides"""
    tilt: float
    """shortest sides"""
    zoom: float
    """natural logarithm of the scale"""
    roll: float
    """radians"""
    shear: float
    """sideways run of the upper part against the lower, shortest sides a shortest side of height"""
    follows: float
    """share of the picture, weighted by texture, that follows the fit, 0..1"""


def camera_class(
    frames: npt.NDArray[np.uint8], fps: float, still: float = STILL
) -> tuple[Class, Move, float]:
    """A clip (T, H, W, 3), T >= 2, at `fps` -> its class, its mean move, its shake (shortest sides a second).

    Frames are taken about twice a second, as curation takes them, or oftener where a clip is so short that few would be left.
    """
    stride = max(1, min(round(fps / MOMENTS_PER_SECOND), (len(frames) - 1) // (FEWEST_MOMENTS - 1)))
    chosen = frames[::stride]
    times = np.arange(len(chosen)) * stride / fps
    moves, gaps = camera_moves(chosen, times), np.diff(times)
    mean, shake = mean_move(moves, gaps), shake_of(moves, gaps)
    return classify(mean, shake, still), mean, shake


def is_right(label: str, found: Class) -> bool:
    """Whether a clip asked to be `label` (a class, or one of GROUPS) is one. Raises InputError for other labels.

    "zoom-in", "Zoom in" and "zoom_in" are one label.
    """
    label = label.strip().lower().replace("-", "_").replace(" ", "_")
    if label not in get_args(Class) and label not in GROUPS:
        known = ", ".join([*get_args(Class), *GROUPS])
        raise InputError(f"There is no camera move {label!r}.", f"Labels: {known}.")
    return found == label or found in GROUPS.get(label, ())


def camera_moves(small: npt.NDArray[np.uint8], times: Vector) -> list[Move]:
    """Frames (N, h, w, 3) at times (N,) in seconds -> N - 1 moves, by the second."""
    fine, coarse = grey_frames(small, SIDE), grey_frames(small, COARSE)
    moves = []
    for (a, b), (far_a, far_b), gap in zip(pairwise(fine), pairwise(coarse), np.diff(times), strict=True):
        moves.append(fit_move(_flow(a, b, far_a, far_b), a, float(gap)))
    return moves


def _flow(a: Grey, b: Grey, far_a: Grey, far_b: Grey) -> Flow:
    """Flow at SIDE, in shortest sides. Begun from nothing it is right where little moves, begun from that at COARSE where
    much does, and smeared elsewhere; so each point takes the one by which the pictures agree better around it.
    """
    guess = cv2.resize(
        dense_flow(far_a, far_b) * (SIDE / COARSE), a.shape[::-1], interpolation=cv2.INTER_LINEAR
    )
    near, far = dense_flow(a, b), dense_flow(a, b, np.asarray(guess, np.float32))
    better = _disagreement(a, b, far) < _disagreement(a, b, near)
    return np.asarray(np.where(better[..., None], far, near) / SIDE, np.float32)


def _disagreement(a: Grey, b: Grey, flow: Flow) -> npt.NDArray[np.float32]:
    """(h, w): how far the second picture, fetched back along the flow, is from the first, around each point."""
    rows, columns = np.mgrid[: a.shape[0], : a.shape[1]].astype(np.float32)
    fetched = cv2.remap(
        b, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(cv2.blur(cv2.absdiff(a, fetched).astype(np.float32), (7, 7)))


def fit_move(flow: Flow, grey: Grey, gap: float) -> Move:
    """Flow (h, w, 2) in shortest sides, the picture that it starts from, and the seconds between -> the move.

    An affine field by iteratively reweighted least squares: every point weighs by its texture, and less the farther
    it is from the fit (Tukey's biweight, on the scale of the median residual), so that what moves by itself falls out.
    """
    height, width = grey.shape
    rows, columns = np.mgrid[STEP // 2 : height : STEP, STEP // 2 : width : STEP]
    side = min(height, width)
    x, y = (columns - (width - 1) / 2).ravel() / side, (rows - (height - 1) / 2).ravel() / side
    basis = np.stack([np.ones_like(x), x, y], axis=1)
    target = flow[rows, columns].reshape(-1, 2).astype(np.float64)
    texture = _texture(grey)[rows, columns].ravel()
    fit = _consensus(basis, target, texture)
    for _ in range(ROUNDS):
        miss = np.linalg.norm(target - basis @ fit, axis=1)
        scale = max(NOISE, _weighted_median(miss, texture))
        weighted = basis * (texture * _biweight(miss / (TUKEY * scale)))[:, None]
        fit = np.linalg.lstsq(weighted.T @ basis, weighted.T @ target, rcond=None)[0]
    miss = np.linalg.norm(target - basis @ fit, axis=1)
    (right, down), (across_x, down_x), (across_y, down_y) = fit
    return Move(
        pan=float(-right) / gap,
        tilt=float(down) / gap,
        zoom=float(np.log(max(0.1, 1 + (across_x + down_y) / 2))) / gap,
        roll=float(across_y - down_x) / 2 / gap,
        shear=float(-(across_y + down_x) / 2) / gap,
        follows=float(texture[miss < FOLLOWS].sum() / texture.sum()),
    )


def _consensus(basis: Vector, target: Vector, texture: Vector) -> Vector:
    """The affine field (3, 2) through three points that most of the texture follows, of TRIALS that are drawn."""
    draw = np.random.default_rng(0).choice(len(basis), size=(TRIALS, 3), p=texture / texture.sum())
    area = np.linalg.det(basis[draw])
    draw = draw[np.abs(area) > 0.02]  # points in a line, or close together, tell little
    if not len(draw):
        return np.zeros((3, 2))
    fits = np.linalg.solve(basis[draw], target[draw])
    miss = np.linalg.norm(target - basis @ fits, axis=-1)
    return np.asarray(fits[(_biweight(miss / (TUKEY * NOISE)) @ texture).argmax()])


def _biweight(errors: Vector) -> Vector:
    """Tukey's weight: 1 at no error, 0 from 1 on."""
    return np.asarray(np.clip(1 - errors**2, 0, None) ** 2)


def mean_move(moves: Sequence[Move], gaps: Vector) -> Move:
    """Of the clip, each move by its seconds."""
    values = np.array([astuple(move) for move in moves])
    return Move(*(float(value) for value in np.average(values, axis=0, weights=gaps)))


def shake_of(moves: Sequence[Move], gaps: Vector) -> float:
    """How much pan and tilt change from one pair of frames to the next, half of it: their going to and fro.

    Shortest sides a second; 0 for a single move.
    """
    drift = np.array([(move.pan, move.tilt) for move in moves])
    if len(drift) < 2:
        return 0.0
    change = np.linalg.norm(np.diff(drift, axis=0), axis=1) / 2
    return float(np.average(change, weights=gaps[:-1] + gaps[1:]))


def classify(mean: Move, shake: float, still: float) -> Class:
    """The strongest of the moves; `static` where none reaches `still`, shortest sides a second."""
    sideways = mean.roll - mean.shear  # how much faster the lower part runs than the upper one
    strengths = {
        "pan": abs(mean.pan),
        "tilt": abs(mean.tilt),
        "zoom": abs(mean.zoom) * RADIUS,
        "turn": abs(sideways) * RADIUS,
    }
    kind = max(strengths, key=lambda name: strengths[name])
    if max(shake, strengths[kind]) < still:
        return "static"
    if shake > strengths[kind]:
        return "handheld"
    if kind == "pan":
        return "pan_right" if mean.pan > 0 else "pan_left"
    if kind == "tilt":
        return "tilt_up" if mean.tilt > 0 else "tilt_down"
    if kind == "zoom":
        return "zoom_in" if mean.zoom > 0 else "zoom_out"
    rigid = mean.follows > STEADY and abs(mean.shear) < abs(mean.roll) / 2
    return "roll" if rigid else "orbit"


def _texture(grey: Grey) -> Vector:
    """(h, w) -> weights (h, w) above 0: how well a movement would show, from the smaller gradient round a point."""
    picture = grey.astype(np.float32) / 255
    smaller = cv2.cornerMinEigenVal(picture, blockSize=7, ksize=3)
    strength = np.sqrt(np.clip(smaller, 0, None)).astype(np.float64)
    return np.asarray(strength / (strength + 0.02) + 1e-4)


def _weighted_median(values: Vector, weights: Vector) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, total[-1] / 2)]])
