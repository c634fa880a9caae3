"""Distances between sets against closed forms, against scipy's matrix root, and for their bias."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from svdcli.errors import InputError
from svdcli.evaluate.frechet import (
    frechet_distance,
    gaussian_frechet_distance,
    kernel_distance,
    paired_kernel_estimate,
    video_features,
)
from svdcli.evaluate.i3d import I3D

Array = npt.NDArray[np.float64]


def with_moments(generator: np.random.Generator, num: int, mean: Array, root: Array) -> Array:
    """Samples whose *sample* mean is exactly `mean`, and whose sample covariance is exactly root @ root.T."""
    raw = generator.standard_normal((num, len(mean)))
    raw -= raw.mean(0)
    white = np.linalg.svd(raw, full_matrices=False)[0] * np.sqrt(num - 1)
    return np.asarray(white @ root.T + mean)


def test_equal_covariances_leave_the_distance_of_the_means() -> None:
    generator = np.random.default_rng(0)
    root, mean, shift = (
        generator.standard_normal((6, 6)),
        generator.standard_normal(6),
        generator.standard_normal(6),
    )
    a, b = with_moments(generator, 40, mean, root), with_moments(generator, 55, mean + shift, root)
    assert frechet_distance(a, b) == pytest.approx(float(shift @ shift), rel=1e-9)


def test_commuting_covariances_have_their_closed_form() -> None:
    generator = np.random.default_rng(1)
    turn = np.linalg.qr(generator.standard_normal((5, 5)))[0]
    std_a, std_b = np.array([1, 2, 3, 0.5, 0]), np.array([2, 2, 0.1, 0, 0])
    a = with_moments(generator, 30, np.zeros(5), turn * std_a)
    b = with_moments(generator, 30, np.ones(5), turn * std_b)
    assert frechet_distance(a, b) == pytest.approx(5 + float(((std_a - std_b) ** 2).sum()), rel=1e-9)


def test_agrees_with_scipys_matrix_root() -> None:
    sqrtm = pytest.importorskip("scipy.linalg").sqrtm
    generator = np.random.default_rng(2)
    a = generator.standard_normal((80, 12)) @ generator.standard_normal((12, 12))
    b = generator.standard_normal((90, 12)) @ generator.standard_normal((12, 12)) + 0.3
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    shift = a.mean(0) - b.mean(0)
    expected = float(shift @ shift + np.trace(cov_a + cov_b - 2 * np.real(sqrtm(cov_a @ cov_b))))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_same_set_is_at_no_distance_even_where_covariances_are_singular() -> None:
    few = np.random.default_rng(3).standard_normal((10, 60)) * 50
    assert frechet_distance(few, few) < 1e-9 * float(few.var())
    assert frechet_distance(few, few + 1) == pytest.approx(60, rel=1e-9)


def test_one_dimension_by_hand() -> None:
    one = np.ones((1, 1))
    assert gaussian_frechet_distance(np.array([1.0]), 4 * one, np.array([4.0]), 9 * one) == pytest.approx(
        9 + 1
    )


def test_few_samples_bias_frechet_but_not_the_kernel() -> None:
    generator = np.random.default_rng(4)
    frechet, kernel = [], []
    for _ in range(60):
        a, b = generator.standard_normal((2, 12, 16))
        frechet.append(frechet_distance(a, b))
        kernel.append(kernel_distance(a, b))
    assert np.mean(frechet) > 5
    assert abs(np.mean(kernel)) < 4 * np.std(kernel) / np.sqrt(len(kernel))
    assert min(kernel) < 0


def test_kernel_distance_is_the_mean_over_pairs_by_hand() -> None:
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [0.0], [1.0]])
    # (xy + 1)^3. Within a: 1. Within b, over its three pairs: (1 + 27 + 1) / 3. Across: 1, 1, 1 and 27, 1, 8.
    assert kernel_distance(a, b) == pytest.approx(1 + 29 / 3 - 2 * 39 / 6)


def test_pairs_are_compared_across_and_never_with_themselves() -> None:
    """A set and its own copy are at 0, where the kernel distance of independent sets falls below; by hand; coverage."""
    generator = np.random.default_rng(3)
    a = generator.standard_normal((20, 5))
    assert abs(paired_kernel_estimate(a, a).value) < 1e-12 and kernel_distance(a, a) < -0.1
    b = a + generator.standard_normal((20, 5)) + 0.5

    def k(x: Array, y: Array) -> float:
        return float((x @ y / 5 + 1) ** 3)

    pairs = [(i, j) for i in range(20) for j in range(20) if i != j]
    by_hand = np.mean([k(a[i], a[j]) + k(b[i], b[j]) - k(a[i], b[j]) - k(b[i], a[j]) for i, j in pairs])
    assert paired_kernel_estimate(a, b).value == pytest.approx(by_hand)
    truth = kernel_distance(
        generator.standard_normal((4000, 5)), 2**0.5 * generator.standard_normal((4000, 5)) + 0.5
    )
    held = 0
    for _ in range(200):
        x = generator.standard_normal((40, 5))
        found = paired_kernel_estimate(x, x + generator.standard_normal((40, 5)) + 0.5)
        held += found.low <= truth <= found.high
    assert held / 200 >= 0.85
    with pytest.raises(InputError, match="one size"):
        paired_kernel_estimate(a, b[1:])


def test_kernel_distance_sees_spread_with_equal_means() -> None:
    generator = np.random.default_rng(5)
    narrow, wide = generator.standard_normal((2, 200, 8)) * np.array([1.0, 1.5])[:, None, None]
    assert kernel_distance(narrow, wide) > 10 * abs(kernel_distance(narrow[:100], narrow[100:]))


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((5, 3)), np.zeros((5, 4))),
        (np.zeros((1, 3)), np.zeros((5, 3))),
        (np.zeros(3), np.zeros((5, 3))),
        (np.full((5, 3), np.nan), np.zeros((5, 3))),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(measure, a: Array, b: Array) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError):
        measure(a, b)


class Probe(I3D):
    """Returns what it was given: the mean of each channel, and the batch size it saw."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.anchor = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, pixels: torch.Tensor):  # type: ignore[no-untyped-def]
        self.seen.append(pixels)
        return type("Answer", (), {"logits": pixels.mean((2, 3, 4)), "pooled": pixels.amax((2, 3, 4))})


def test_features_are_made_in_batches_of_scaled_pixels_in_order() -> None:
    def clips() -> Iterator[npt.NDArray[np.uint8]]:
        for value in (0, 51, 102, 153, 255):
            yield np.full((10, 30 + value, 40, 3), value, np.uint8)

    probe = Probe()
    features = video_features(probe, clips(), batch_size=2)
    assert [tuple(x.shape) for x in probe.seen] == [(2, 3, 10, 224, 224)] * 2 + [(1, 3, 10, 224, 224)]
    assert features.dtype == np.float64
    assert features[:, 0] == pytest.approx([-1, -0.6, -0.2, 0.2, 1], abs=1e-5)


def test_frames_are_shrunk_without_aliasing() -> None:
    stripes = np.zeros((9, 448, 896, 3), np.uint8)
    stripes[:, :, ::4] = 255
    probe = Probe()
    video_features(probe, [stripes])
    assert (
        probe.seen[0][..., 8:-8].amax() < -0.3
    )  # a quarter of white; without antialiasing whole stripes survive


@pytest.mark.parametrize(
    "clips",
    [
        [],
        [np.zeros((10, 8, 8, 3), np.float32)],
        [np.zeros((10, 8, 8), np.uint8)],
        [np.zeros((10, 8, 8, 3), np.uint8), np.zeros((11, 8, 8, 3), np.uint8)],
    ],
)
def test_clips_that_cannot_be_measured_are_refused(clips: list[npt.NDArray[np.uint8]]) -> None:
    with pytest.raises(InputError):
        video_features(Probe(), clips)
