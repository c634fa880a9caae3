"""The picture's own pixels in decoded frames: against scenes whose true frames are known."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from svdcli.engine.detail import carry_detail, flows_to, trusted
from svdcli.errors import InputError
from svdcli.evaluate.frames import psnr

Clip = npt.NDArray[np.uint8]
SIDES = (72, 128)


def texture(height: int = SIDES[0], width: int = SIDES[1], seed: int = 0) -> npt.NDArray[np.uint8]:
    """A coloured picture with structure of all sizes."""
    rng = np.random.default_rng(seed)
    layers = (
        cv2.resize(rng.random((n, n, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
        for n in (4, 9, 30, 70)
    )
    return (255 * np.mean([*layers], axis=0)).clip(0, 255).astype(np.uint8)


def panned(num_frames: int = 6, step: int = 2) -> Clip:
    """A window that slides over a texture by whole pixels: every frame is known."""
    wide = texture(width=SIDES[1] + num_frames * step)
    return np.stack([wide[:, t * step : t * step + SIDES[1]] for t in range(num_frames)])


def decoded(frames: Clip, seed: int = 0) -> Clip:
    """As an autoencoder that blurs, with noise that changes from frame to frame."""
    noise = np.random.default_rng(seed).normal(0, 6, frames.shape)
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 2.5) for frame in frames])
    return (soft + noise).clip(0, 255).astype(np.uint8)


def test_a_moved_picture_is_sharp_again() -> None:
    true = panned()
    made = decoded(true)
    found = carry_detail(made, {0: true[0]})
    assert np.array_equal(found[0], true[0])
    inner = slice(12, -24)  # what came into view, at the right, nobody gave
    for t in range(1, len(true)):
        assert psnr(found[t, :, inner], true[t, :, inner]) > psnr(made[t, :, inner], true[t, :, inner]) + 3


def test_no_motion_is_added() -> None:
    """Of a scene that stands still each frame is the picture, however the decoder's noise flickers."""
    picture = texture()
    found = carry_detail(decoded(np.repeat(picture[None], 5, 0)), {0: picture})
    assert min(psnr(frame, picture) for frame in found[1:]) > 33
    exact = carry_detail(np.repeat(cv2.GaussianBlur(picture, (0, 0), 3)[None], 5, 0), {0: picture})
    assert np.array_equal(exact, np.repeat(picture[None], 5, 0))


def test_what_the_picture_does_not_show_stays_as_it_was_decoded() -> None:
    picture = texture()
    made = decoded(np.repeat(picture[None], 4, 0))
    made[2:, 20:60, 40:90] = (250, 20, 20)  # something red appears
    found = carry_detail(made, {0: picture})
    assert np.abs(found[3, 30:50, 50:80].astype(int) - made[3, 30:50, 50:80]).mean() < 12
    assert psnr(found[3, :, 108:], picture[:, 108:]) > psnr(made[3, :, 108:], picture[:, 108:]) + 5


def test_between_two_given_ones_both_have_their_share() -> None:
    """In a fade nothing moves: in the middle each counts half, near an end that end more."""
    first = texture()
    last = np.clip(first.astype(int) + 8, 0, 255).astype(np.uint8)
    blurred = cv2.GaussianBlur(first, (0, 0), 3)
    found = carry_detail(np.repeat(blurred[None], 5, 0), {0: first, 4: last}).astype(int)
    for t, share in enumerate((0, 0.25, 0.5, 0.75, 1)):
        assert np.abs(found[t] - (first + share * (last.astype(int) - first))).max() <= 0.5


def test_a_known_frame_in_the_middle_serves_both_sides() -> None:
    true = panned()
    found = carry_detail(decoded(true), {3: true[3]})
    assert np.array_equal(found[3], true[3])
    inner = slice(24, -24)
    assert all(psnr(found[t, :, inner], true[t, :, inner]) > 27 for t in range(6))


def test_flow_is_where_a_pixel_was() -> None:
    flows = flows_to(panned(), 0)
    middle = flows[:, 20:-20, 30:-30]
    for t in range(1, 5):
        assert np.abs(middle[t] - (2 * t, 0)).max() < 0.1


def test_trust_falls_with_disagreement_and_beyond_the_picture() -> None:
    grey = np.full((*SIDES, 3), 100, np.uint8)
    still = np.zeros((*SIDES, 2), np.float32)
    assert trusted(grey, grey, still) == pytest.approx(1)
    assert trusted(grey, grey + 60, still) == pytest.approx(np.exp(-1), rel=1e-3)
    aside = still + np.float32((16, 0))
    assert trusted(grey, grey, aside)[:, -1] == pytest.approx(np.exp(-1), rel=1e-3)
    assert trusted(grey, grey, aside)[:, :-16] == pytest.approx(1)


def test_frames_of_any_size() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 8, 10, 3)).astype(np.uint8)
    picture = texture(8, 10)
    found = carry_detail(frames, {0: picture})
    assert found.shape == frames.shape and np.array_equal(found[0], picture)
    assert np.array_equal(carry_detail(frames, {}), frames)
    with pytest.raises(InputError, match="10x8, and the given picture is 128x72"):
        carry_detail(frames, {0: texture()})
