"""An object out of its picture, and into the middle of a white square, as large as objects are in the renders of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from svdcli.errors import InputError, MachineError
from svdcli.io.images import Picture
from svdcli.io.resample import resize
from svdcli.multiview.cameras import FOV_DEG
from svdcli.multiview.views import border_colour, key_out

SOLID = 0.5
"""Coverage from which a pixel counts as the object's."""
EDGE = 2
"""Pixels at the rim of what the key finds that may be half background."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CENTRED = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)
CENTRED_MODELS = ("isnet", "rmbg")
"""What names of models hold that take colours in [-0.5, 0.5]; others take ImageNet's means and deviations."""
USUAL_SIDE = 1024
"""Pixels that a model is given which takes any size."""


@dataclass(frozen=True)
class Cutout:
    """An object over white: pixels (H, W, 3) sRGB, alpha (H, W), both float32 in [0, 1]. how: in words, where alpha came from."""

    pixels: np.ndarray
    alpha: np.ndarray
    how: str

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of what is solid. Raises InputError where nothing is."""
        rows, columns = (np.flatnonzero((self.alpha > SOLID).any(axis=axis)) for axis in (1, 0))
        if not len(rows):
            raise InputError(
                "Nothing of the picture is left once its background is gone.",
                "Give a transparent picture, or name a matting model: --cutout u2net.onnx.",
            )
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut_out(picture: Picture, model: Path | None = None) -> Cutout:
    """The object by the picture's own transparency, else by the model, else by a background of one colour.

    Raises InputError where the background has many colours and no model is given, and what the model's loading raises.
    """
    if picture.alpha is not None:
        return Cutout(picture.pixels, picture.alpha.astype(np.float32), "its own transparency")
    if model is not None:
        alpha = matte(picture.pixels, model)
        return Cutout(over_white(picture.pixels, alpha), alpha, model.name)
    under = border_colour(picture.pixels)
    alpha = softened(picture.pixels, without_holes(key_out(picture.pixels, picture.source)), under)
    whitened = picture.pixels + (1 - alpha[..., None]) * (
        1 - under
    )  # what shone through is the background's own colour
    return Cutout(whitened.clip(0, 1).astype(np.float32), alpha, "what differs from the background's colour")


def without_holes(alpha: np.ndarray) -> np.ndarray:
    """The same, solid wherever nothing leads to the border: parts of the object may have the background's colour."""
    clear = (alpha < SOLID).astype(np.uint8)
    _, labels = cv2.connectedComponents(np.pad(clear, 1, constant_values=1))
    inside = (labels[1:-1, 1:-1] != labels[0, 0]) & (clear > 0)
    return np.where(inside, np.float32(1), alpha)


def softened(pixels: np.ndarray, alpha: np.ndarray, under: np.ndarray) -> np.ndarray:
    """The same, its edge a mixture of the background's colour and that of the nearest pixel that is surely the object's."""
    sure = cv2.erode((alpha >= SOLID).astype(np.uint8), np.ones((2 * EDGE + 1,) * 2, np.uint8))
    if not sure.any():
        return alpha
    distance, labels = cv2.distanceTransformWithLabels(
        1 - sure, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((labels.max() + 1, 3), np.float32)
    colours[labels[sure > 0]] = pixels[sure > 0]
    way = colours[labels] - under
    mixed = ((pixels - under) * way).sum(axis=2) / np.maximum((way * way).sum(axis=2), 1e-6)
    edge = (sure == 0) & (distance <= 2 * EDGE + 1) & (alpha > 0)
    return np.where(edge, mixed.clip(0, 1), alpha).astype(np.float32)


def place(cutout: Cutout, side: int, share: float) -> np.ndarray:
    """The object in the middle of a white square (side, side, 3), the larger side of its box `share` of the square's.

    Raises InputError where nothing is left of it.
    """
    left, top, right, bottom = cutout.box
    length = max(right - left, bottom - top) / share
    x, y = (left + right - length) / 2, (top + bottom - length) / 2
    height, width = cutout.alpha.shape
    margin = int(np.ceil(max(0, -x, -y, x + length - width, y + length - height)))
    padded = np.pad(cutout.pixels, ((margin, margin), (margin, margin), (0, 0)), constant_values=1)
    box = x + margin, y + margin, x + margin + length, y + margin + length
    return resize(np.ascontiguousarray(padded), side, side, box).clip(0, 1)


def radius_of(share: float, fov_deg: float = FOV_DEG) -> float:
    """Distance from which an object of size 1 fills that share of the frame."""
    return float(1 / (2 * share * np.tan(np.radians(fov_deg) / 2)))


def over_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels (H, W, 3) seen through alpha (H, W)."""
    return (pixels * alpha[..., None] + 1 - alpha[..., None]).astype(np.float32)


# ---- by a model


def matte(pixels: np.ndarray, model: Path) -> np.ndarray:
    """Coverage (H, W) by a salient-object network in an ONNX file: U²-Net, IS-Net, BiRefNet, RMBG and their like.

    It takes (1, 3, h, w) and gives (1, 1, h, w) first; what comes out is spread to [0, 1]. Raises InputError where it is no
    such file, and MachineError where onnxruntime is absent.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError("A matting model needs onnxruntime.", "pip install onnxruntime") from error
    if model.suffix != ".onnx" or not model.is_file():
        raise InputError(f"{model} is not an ONNX file.", "Give a matting model such as u2net.onnx.")
    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        given = session.get_inputs()[0]
        height, width = (n if isinstance(n, int) else USUAL_SIDE for n in given.shape[2:4])
        mean, deviation = CENTRED if any(n in model.name.lower() for n in CENTRED_MODELS) else IMAGENET
        small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        x = ((small - np.array(mean)) / np.array(deviation)).astype(np.float32).transpose(2, 0, 1)[None]
        found = np.asarray(session.run(None, {given.name: x})[0], np.float32).reshape(-1, height, width)[0]
    except Exception as error:  # onnxruntime has its own tree of exceptions, none of which it promises
        raise InputError(
            f"{model.name} does not run: {error}.", "Give a model that makes a mask of a picture."
        ) from error
    if found.min() < 0 or found.max() > 1:
        found = 1 / (1 + np.exp(-found.clip(-30, 30)))
    low, high = float(found.min()), float(found.max())
    spread = (found - low) / max(high - low, 1e-6)
    size = pixels.shape[1], pixels.shape[0]
    return cv2.resize(spread, size, interpolation=cv2.INTER_LINEAR).astype(np.float32)
