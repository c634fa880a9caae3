"""Distances between two sets of videos in a feature space: Fréchet (FVD) and kernel (KID-style).

Fréchet distance is what papers report, but with few samples it is biased upwards, by an amount that depends
on the number of samples and on the model: with fewer samples than feature dimensions both covariances are
singular, and two halves of the *same* set are far apart. Compare only sets of the same size, and quote that
size. The kernel distance is unbiased at any size (so it may be slightly negative); with fewer than some
thousand clips trust it more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from svdcli.errors import InputError
from svdcli.evaluate.i3d import I3D, SIDE

Array = npt.NDArray[np.float64]

KERNEL_ROWS = 1024
"""Rows of the kernel matrix that are held at once: memory grows with the number of clips, not with its square."""
NORMAL_95 = 1.959964
"""Half the width of a 95 % interval, in standard errors."""


def video_features(
    network: I3D,
    clips: Iterable[npt.NDArray[np.uint8]],
    batch_size: int = 4,
    layer: Literal["logits", "pooled"] = "logits",
    antialias: bool = True,
) -> Array:
    """Clips, uint8 RGB (T, H, W, 3) of one T -> features (N, 400) of the logits or (N, 1024) of the pooling.

    Every frame is resized to 224x224 (bilinear, antialiased unless told otherwise), its aspect not kept. FVD is
    defined on the logits (Unterthiner et al. 2018, 1812.01717). Clips may be a generator: only `batch_size` of them are
    held. Raises InputError where there are no clips, or they differ in length or type.
    """
    device = next(network.parameters()).device
    found, num_frames = [], None
    for batch in _batches(clips, batch_size):
        for clip in batch:
            if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8:
                message = f"A clip must be uint8 (T, H, W, 3), not {clip.dtype} {clip.shape}."
                raise InputError(message, "Read it with svdcli.io.video.read_video.")
            num_frames = num_frames or len(clip)
            if len(clip) != num_frames:
                message = f"The clips differ in length: {num_frames} and {len(clip)} frames."
                raise InputError(message, "Cut all clips of both sets to the same number of frames.")
        pixels = torch.stack([_pixels(clip, antialias) for clip in batch])
        found.append(getattr(network(pixels.to(device)), layer).double().cpu().numpy())
    if not found:
        raise InputError("There are no clips to measure.", "Give at least two videos.")
    return np.concatenate(found)


def _batches(clips: Iterable[npt.NDArray[np.uint8]], size: int) -> Iterator[list[npt.NDArray[np.uint8]]]:
    rest = iter(clips)
    while batch := list(islice(rest, size)):
        yield batch


def _pixels(clip: npt.NDArray[np.uint8], antialias: bool) -> torch.Tensor:
    """uint8 (T, H, W, 3) -> float32 (3, T, 224, 224) in [-1, 1]."""
    frames = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2).float()
    frames = functional.interpolate(
        frames, size=(SIDE, SIDE), mode="bilinear", antialias=antialias, align_corners=False
    )
    return (frames / 127.5 - 1).permute(1, 0, 2, 3)


def frechet_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Features (N, D) and (M, D), N and M at least 2 -> squared Fréchet distance of their Gaussians.

    |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), Heusel et al. 2017 (1706.08500), in float64. See the
    module's docstring for its bias. Raises InputError for sets that cannot be compared.

    tr (S_a S_b)^(1/2) is the nuclear norm of X_a X_b^T, X being centred and divided by (N - 1)^(1/2). With fewer
    clips than dimensions that is the small and exact way; with more, it goes through the covariances.
    """
    a, b = _feature_sets(a, b)
    if min(len(a), len(b)) >= a.shape[1]:
        return Moments.of([a]).frechet(Moments.of([b]))
    x, y = ((f - f.mean(0)) / np.sqrt(len(f) - 1) for f in (a, b))
    overlap = float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    shift = a.mean(0) - b.mean(0)
    return max(0.0, float(shift @ shift + np.square(x).sum() + np.square(y).sum()) - 2 * overlap)


@dataclass
class Moments:
    """Number, mean (D,) and scatter (D, D) of features that arrive in batches and are not kept; float64."""

    num: int = 0
    mean: Array | float = 0.0
    scatter: Array | float = 0.0

    @classmethod
    def of(cls, batches: Iterable[npt.ArrayLike]) -> Moments:
        """Batches of features (B, D) -> their moments together."""
        moments = cls()
        for batch in batches:
            moments.add(batch)
        return moments

    def add(self, batch: npt.ArrayLike) -> None:
        """Take in features (B, D), by the update of Chan, Golub and LeVeque, which loses no digits to large means."""
        new = np.asarray(batch, dtype=np.float64)
        total = self.num + len(new)
        centre = new.mean(0)
        shift = centre - self.mean
        self.scatter = self.scatter + (new - centre).T @ (new - centre)
        self.scatter += np.outer(shift, shift) * (self.num * len(new) / total)
        self.mean = self.mean + shift * (len(new) / total)
        self.num = total

    @property
    def covariance(self) -> Array:
        """(D, D), divided by num - 1. Raises InputError for fewer than two clips."""
        if self.num < 2:
            raise InputError(f"A covariance needs two clips, not {self.num}.", "Give more videos.")
        return np.asarray(self.scatter / (self.num - 1), dtype=np.float64)

    def frechet(self, other: Moments) -> float:
        """The squared Fréchet distance to other moments."""
        return gaussian_frechet_distance(
            np.asarray(self.mean), self.covariance, np.asarray(other.mean), other.covariance
        )


def gaussian_frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Means (D,) and covariances (D, D) of two Gaussians -> their squared Fréchet (2-Wasserstein) distance.

    tr (S_a S_b)^(1/2) is the sum of the singular values of S_a^(1/2) S_b^(1/2) (the square roots of the
    eigenvalues of S_a^(1/2) S_b S_a^(1/2)). Both roots are of symmetric matrices, so singular covariances
    need no offset on the diagonal, nothing becomes complex, and no rounding error has its own root taken.
    """
    product = _symmetric_root(cov_a) @ _symmetric_root(cov_b)
    overlap = float(np.linalg.svd(product, compute_uv=False).sum())
    shift = np.asarray(mean_a, float) - np.asarray(mean_b, float)
    return max(0.0, float(shift @ shift + np.trace(cov_a) + np.trace(cov_b)) - 2 * overlap)


def kernel_distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Features (N, D) and (M, D), N and M at least 2 -> squared maximum mean discrepancy, unbiased.

    The kernel is (x.y / D + 1)^3, as in KID (Bińkowski et al. 2018, 1801.01401). Its expectation does not
    depend on N and M, and is 0 for equal distributions, so single results may lie a little below 0.
    """
    return kernel_estimate(a, b).value


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def kernel_estimate(a: npt.ArrayLike, b: npt.ArrayLike) -> Estimate:
    """`kernel_distance` with its interval, by leaving out each clip of either set in turn (jackknife).

    Exact and O(N M) time, O(N + M) memory: each clip's sums over the others are enough. With two clips in a set
    there is nothing to leave out, and the interval is infinite.
    """
    a, b = _feature_sets(a, b)
    n, m = len(a), len(b)
    own_a, own_b = _row_sums(a, a, skip_self=True), _row_sums(b, b, skip_self=True)
    cross_a, cross_b = _row_sums(a, b), _row_sums(b, a)
    within_a, within_b, cross = own_a.sum(), own_b.sum(), cross_a.sum()
    value = within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * cross / (n * m)
    if min(n, m) < 3:
        return Estimate(float(value), float("-inf"), float("inf"))
    less_a = (within_a - 2 * own_a) / ((n - 1) * (n - 2)) - 2 * (cross - cross_a) / ((n - 1) * m)
    less_b = (within_b - 2 * own_b) / ((m - 1) * (m - 2)) - 2 * (cross - cross_b) / ((m - 1) * n)
    variance = (n - 1) * less_a.var() + (m - 1) * less_b.var()
    reach = NORMAL_95 * float(np.sqrt(variance))
    return Estimate(float(value), float(value) - reach, float(value) + reach)


def paired_kernel_estimate(a: npt.ArrayLike, b: npt.ArrayLike) -> Estimate:
    """`kernel_estimate` for sets whose i-th clips belong together (N, D), such as a clip and its copy: N at least 2.

    No clip is compared with its own counterpart, whose likeness says nothing of the distributions and would pull the distance
    below 0: the mean over i != j of k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(b_i, a_j) (Gretton et al. 2012, lemma 6,
    eq. 4). O(N^2) memory. Of 40 pairs of Gaussians the interval holds the truth in 86 % of draws, not in 95 %.
    """
    a, b = _feature_sets(a, b)
    if len(a) != len(b):
        raise InputError(
            f"Pairs need sets of one size, not {len(a)} and {len(b)}.", "Leave out the same ones."
        )
    num = len(a)
    own, other, cross = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    likeness = own + other - cross - cross.T
    np.fill_diagonal(likeness, 0)
    total, rows = float(likeness.sum()), likeness.sum(1)
    value = total / (num * (num - 1))
    if num < 3:
        return Estimate(value, float("-inf"), float("inf"))
    less = (total - 2 * rows) / ((num - 1) * (num - 2))
    reach = NORMAL_95 * float(np.sqrt((num - 1) * less.var()))
    return Estimate(value, value - reach, value + reach)


def _feature_sets(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Array, Array]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        message = f"Features must be (N, D) with one D, not {first.shape} and {second.shape}."
        raise InputError(message, "Take both sets from the same layer of the same network.")
    if min(len(first), len(second)) < 2:
        message = f"A distance between sets needs two clips in each, not {len(first)} and {len(second)}."
        raise InputError(message, "Give more videos; hundreds, if the number is to mean something.")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("A feature is not a finite number.", "Look for broken clips or weights.")
    return first, second


def _symmetric_root(matrix: npt.ArrayLike) -> Array:
    values, vectors = np.linalg.eigh(np.asarray(matrix, dtype=np.float64))
    return np.asarray((vectors * np.sqrt(values.clip(min=0))) @ vectors.T, dtype=np.float64)


def _row_sums(a: Array, b: Array, skip_self: bool = False) -> Array:
    """For each row of `a` its kernel with all rows of `b`, summed; (N,)."""
    sums = np.empty(len(a))
    for start in range(0, len(a), KERNEL_ROWS):
        rows = slice(start, start + KERNEL_ROWS)
        sums[rows] = ((a[rows] @ b.T / a.shape[1] + 1) ** 3).sum(1)
    return sums - ((a * a).sum(1) / a.shape[1] + 1) ** 3 if skip_self else sums
