"""One picture against another: squared error, PSNR, SSIM; over all pixels or over some of them.

Pictures are float (H, W, 3) in [0, 1], gamma-encoded sRGB, as everybody measures them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from svdcli.errors import InputError

Picture = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

SSIM_SIGMA, SSIM_SIDE = 1.5, 11
_K1, _K2 = 0.01, 0.03


def check_pair(a: Picture, b: Picture) -> None:
    """Raises InputError where the two are not finite pictures of one size."""
    if a.shape != b.shape or a.ndim != 3 or a.shape[-1] != 3 or 0 in a.shape:
        raise InputError(
            f"Pictures of shapes {a.shape} and {b.shape} cannot be compared.", "Bring both to one size."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("A picture holds values that are not finite.", "Look for what made them NaN.")


def mse(a: Picture, b: Picture, where: Mask | None = None) -> float:
    """Mean squared error over all channels of the pixels in `where` (H, W)."""
    check_pair(a, b)
    error = (np.asarray(a, np.float64) - b) ** 2
    return float(error.mean() if where is None else error[where].mean())


def psnr_of(error: float) -> float:
    """Mean squared error of values in [0, 1] -> dB; inf where it is 0."""
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(a: Picture, b: Picture, where: Mask | None = None) -> float:
    """Structural similarity (Wang et al. 2004): Gaussian window 11x11, sigma 1.5, each channel alone, the mean.

    The map is averaged over the whole picture, its borders reflected (as torchmetrics does; skimage leaves 5 pixels of
    border out), or over the pixels in `where` (H, W). Raises InputError for pictures under 11 pixels a side.
    """
    check_pair(a, b)
    if min(a.shape[:2]) < SSIM_SIDE:
        raise InputError(
            f"SSIM needs {SSIM_SIDE} pixels a side, not {a.shape[:2]}.", "Compare larger pictures."
        )
    x, y = (torch.from_numpy(np.ascontiguousarray(p, np.float64)).permute(2, 0, 1)[:, None] for p in (a, b))
    reach = SSIM_SIDE // 2
    found = _ssim_map(*(functional.pad(p, (reach,) * 4, mode="reflect") for p in (x, y)))
    return float(found.mean() if where is None else found[:, 0, torch.from_numpy(where)].mean())


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """(C, 1, H, W) twice -> (C, 1, H - 10, W - 10)."""
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + _K1**2) / (mean_x**2 + mean_y**2 + _K1**2)
    return light * (2 * covariance + _K2**2) / (var_x + var_y + _K2**2)


def _blur(x: Tensor) -> Tensor:
    offsets = torch.arange(SSIM_SIDE, dtype=x.dtype) - SSIM_SIDE // 2
    kernel = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    kernel = kernel / kernel.sum()
    return functional.conv2d(functional.conv2d(x, kernel[None, None, :, None]), kernel[None, None, None])
