"""The class of short clips at any rate, as evaluation asks for it; curation's tests film seventy moves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from svdcli.data.camera import Kind, move
from svdcli.data.camera_class import camera_class, is_right
from svdcli.errors import InputError

MOVES: list[tuple[Kind, float, bool, str]] = [
    ("in", 0, False, "zoom_in"), ("out", 0, False, "zoom_out"), ("pan", 0, False, "pan_right"), ("pan", 0, True, "pan_left"),
    ("pan", np.pi / 2, False, "tilt_down"), ("pan", np.pi / 2, True, "tilt_up"),
]  # fmt: skip


def texture(seed: int) -> npt.NDArray[np.uint8]:
    """A picture with detail of several sizes."""
    rng = np.random.default_rng(seed)
    layers = [rng.random((96 // s, 128 // s, 3)).repeat(s, 0).repeat(s, 1) for s in (4, 8, 16)]
    return (np.mean(layers, axis=0) * 255).astype(np.uint8)


@pytest.mark.parametrize(("num_frames", "fps"), [(2, 2.0), (8, 8.0), (14, 7.0), (25, 24.0), (60, 30.0)])
@pytest.mark.parametrize(("kind", "angle", "reverse", "expected"), MOVES)
def test_moves_of_known_kind_are_named_at_any_length_and_rate(
    num_frames: int, fps: float, kind: Kind, angle: float, reverse: bool, expected: str
) -> None:
    reach = 0.1 if num_frames == 2 else 0.2
    frames = move(texture(0), num_frames, kind, reach, angle)
    found, mean, shake = camera_class(frames[::-1] if reverse else frames, fps)
    assert found == expected, (mean, shake)


def test_the_speed_does_not_depend_on_the_rate() -> None:
    """0.2 of 4/3 sides, seen through a view of 0.8 of them, in T - 1 frames."""
    for num_frames, fps in ((8, 8.0), (31, 30.0)):
        _, mean, _ = camera_class(move(texture(1), num_frames, "pan", 0.2), fps)
        assert mean.pan == pytest.approx(0.2 * 4 / 3 / 0.8 * fps / (num_frames - 1), rel=0.1)


def test_a_still_clip_is_static_and_a_shaken_one_is_handheld() -> None:
    still = texture(2)[None].repeat(9, 0)
    assert camera_class(still, 7.0)[0] == "static"
    rng = np.random.default_rng(0)
    shaken = np.stack([np.roll(f, rng.integers(-6, 7, 2), (0, 1)) for f in still])
    assert camera_class(shaken, 7.0)[0] == "handheld"


def test_labels_may_be_coarse_or_spelt_otherwise_but_must_be_known() -> None:
    assert (
        is_right("Horizontal", "pan_left")
        and is_right("zoom-in", "zoom_in")
        and is_right("tilt up", "tilt_up")
    )
    assert not is_right("zoom", "static") and not is_right("pan_left", "pan_right")
    with pytest.raises(InputError, match="no camera move"):
        is_right("wobble", "static")
