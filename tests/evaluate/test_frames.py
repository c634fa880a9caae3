"""Frame measures against values known in closed form, and each for what it must and must not react to."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from svdcli.errors import InputError
from svdcli.evaluate.frames import first_frame_psnr, flicker, psnr, sharpness, warp_error

Clip = npt.NDArray[np.uint8]


def pan(num_frames: int = 6, step: float = 2.0, side: int = 96) -> Clip:
    """A window that slides over a smooth coloured texture: (T, side, side, 3)."""
    noise = np.random.default_rng(0).random((24, 48, 3)).astype(np.float32)
    texture = cv2.resize(noise, (4 * side, 2 * side), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    moves = [np.array([[1, 0, -step * i - 8], [0, 1, -8]], dtype=np.float32) for i in range(num_frames)]
    frames = [cv2.warpAffine(texture, move, (side, side), flags=cv2.INTER_LINEAR) for move in moves]
    return (np.stack(frames) * 255).astype(np.uint8)


def constant(*levels: int) -> Clip:
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])


def test_psnr_of_a_known_error() -> None:
    a = np.full((4, 5, 3), 100, np.uint8)
    assert psnr(a, a + 10) == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    assert psnr(np.zeros((2, 2, 3)), np.full((2, 2, 3), 0.1)) == pytest.approx(20, abs=1e-4)
    assert psnr(a, a) == float("inf")


def test_psnr_takes_bytes_and_floats_alike() -> None:
    clip = pan(2)
    assert psnr(clip[0], clip[1]) == pytest.approx(psnr(clip[0] / 255, clip[1]), abs=1e-4)


def test_first_frame_is_the_one_compared() -> None:
    clip = constant(100, 0, 255)
    assert first_frame_psnr(clip, np.full((8, 8, 3), 110 / 255, np.float32)) == pytest.approx(
        28.131, abs=1e-2
    )


def test_a_first_frame_that_is_the_picture_counts_as_rounded() -> None:
    clip = constant(100, 0, 255)
    assert first_frame_psnr(clip, clip[0]) == pytest.approx(58.92, abs=0.01)
    assert psnr(clip, clip) == float("inf")


def test_psnr_refuses_other_sizes() -> None:
    with pytest.raises(InputError):
        first_frame_psnr(constant(1, 2), np.zeros((9, 8, 3), np.uint8))


def test_flicker_of_an_alternating_clip() -> None:
    assert flicker(constant(100, 120, 100, 120)) == pytest.approx(40 / 110, rel=1e-5)


def test_flicker_ignores_fades_and_brightness() -> None:
    assert flicker(constant(50, 100, 150, 200)) == pytest.approx(0, abs=1e-6)
    assert flicker(constant(10, 12, 10)) == pytest.approx(flicker(constant(100, 120, 100)), rel=1e-5)
    assert flicker(constant(0, 0, 0)) == 0


def test_warp_error_of_a_pan_is_far_below_the_plain_difference() -> None:
    clip = pan()
    plain = float(np.abs(np.diff(clip.astype(float), axis=0)).mean() / 255)
    assert warp_error(clip) < 0.25 * plain
    assert warp_error(clip / 255) == pytest.approx(warp_error(clip), rel=0.02)


def test_warp_error_sees_what_does_not_follow_the_motion() -> None:
    generator = np.random.default_rng(1)
    clip = pan()
    boiling = np.clip(clip + generator.normal(0, 25, clip.shape), 0, 255).astype(np.uint8)
    noise = generator.integers(0, 256, clip.shape, dtype=np.uint8)
    assert warp_error(boiling) > 3 * warp_error(clip)
    assert warp_error(noise) > 2 * warp_error(boiling)


def test_warp_error_of_a_still_clip_is_nothing() -> None:
    assert warp_error(np.repeat(pan(1), 3, axis=0)) < 1e-3


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    clip = pan(2)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in clip])
    faint = (clip / 255 * 0.5 + 0.2).astype(np.float32)
    assert sharpness(blurred) < 0.7 * sharpness(clip)
    assert sharpness(faint) == pytest.approx(sharpness(clip), rel=0.01)
    assert sharpness(constant(7)) == 0


@pytest.mark.parametrize(("measure", "at_least"), [(flicker, 3), (warp_error, 2), (sharpness, 1)])
def test_short_or_misshapen_clips_are_refused(measure, at_least: int) -> None:  # type: ignore[no-untyped-def]
    clip = pan(at_least, side=32)
    assert np.isfinite(measure(clip))
    with pytest.raises(InputError):
        measure(clip[1:])
    with pytest.raises(InputError):
        measure(clip[..., 0])
