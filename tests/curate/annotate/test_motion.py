"""Motion against known translations, and what it says where flow loses track."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from svdcli.curate.annotate.motion import MotionAnnotator
from svdcli.curate.annotate.raft import RaftAnnotator
from svdcli.errors import InputError, MachineError

Frames = npt.NDArray[np.uint8]
HEIGHT, WIDTH = 180, 320


def slide(texture: Frames, speed: float, angle: float, num_frames: int = 4) -> Frames:
    """A window that moves `speed` of its heights a second over a picture, two frames a second."""
    wide = cv2.resize(texture, (900, 600), interpolation=cv2.INTER_CUBIC)
    step = speed * HEIGHT / 2
    frames = []
    for index in np.arange(num_frames) - (num_frames - 1) / 2:
        x, y = 290 + index * step * np.cos(angle), 210 + index * step * np.sin(angle)
        place = np.array([[1, 0, -x], [0, 1, -y]], np.float32)
        frames.append(cv2.warpAffine(wide, place, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT))
    return np.stack(frames).astype(np.uint8)


def measured(make_view: Any, frames: Frames, fps: float = 2.0) -> dict[str, Any]:
    return MotionAnnotator(limit=0.2).annotate([make_view("a", frames, fps)])[0]


@pytest.mark.parametrize("speed", [0.02, 0.05, 0.1, 0.2, 0.3, 0.4])
def test_motion_is_the_speed_of_a_slide_up_to_its_saturation(
    make_view: Any, scenes: ModuleType, speed: float
) -> None:
    for seed in range(3):
        for angle in (0.0, 0.7, np.pi / 2):
            row = measured(make_view, slide(scenes.procedural(seed), speed, angle))
            assert row["motion"] == pytest.approx(speed, rel=0.1, abs=0.003), (seed, angle)
            assert not row["motion_saturated"]


def test_motion_of_photographs(make_view: Any, textures: list[Frames]) -> None:
    ratios = [
        measured(make_view, slide(texture, speed, 0.7))["motion"] / speed
        for texture in textures[:3]
        for speed in (0.1, 0.2, 0.35)
    ]
    assert ratios == pytest.approx([1.0] * len(ratios), abs=0.1)


@pytest.mark.parametrize("speed", [0.8, 1.2])
def test_what_is_too_fast_is_flagged(make_view: Any, scenes: ModuleType, speed: float) -> None:
    row = measured(make_view, slide(scenes.procedural(0), speed, 0.7, num_frames=3))
    assert row["motion"] < 0.7 * speed
    assert row["motion_saturated"]
    assert row["motion_saturation"] == 1.0


def test_size_shape_and_rate_do_not_change_the_number(make_view: Any, scenes: ModuleType) -> None:
    frames = slide(scenes.procedural(1), 0.2, 0.0)
    reference = measured(make_view, frames)["motion"]
    large = np.stack([cv2.resize(frame, (WIDTH * 2, HEIGHT * 2)) for frame in frames])
    portrait = np.ascontiguousarray(frames[:, :, :HEIGHT]).swapaxes(1, 2)
    assert measured(make_view, large)["motion"] == pytest.approx(reference, rel=0.05)
    assert measured(make_view, portrait)["motion"] == pytest.approx(reference, rel=0.1)
    assert measured(make_view, frames, fps=1.0)["motion"] == pytest.approx(reference / 2, rel=0.02)


def test_a_still_clip_does_not_move(make_view: Any, scenes: ModuleType) -> None:
    row = measured(make_view, np.repeat(slide(scenes.procedural(2), 0.1, 0.0)[:1], 5, axis=0))
    assert row["motion"] < 1e-4
    assert row["motion_saturation"] == 0


def test_a_single_moment_has_no_motion(make_view: Any, scenes: ModuleType) -> None:
    view = make_view("a", slide(scenes.procedural(0), 0.1, 0.0), 2)
    view.proxy.times[:] = 0.0
    with pytest.raises(InputError, match="a single moment"):
        MotionAnnotator(0.2).annotate([view])


def test_raft_without_torchvision_says_what_to_install(
    make_view: Any, scenes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torchvision", "torchvision.models", "torchvision.models.optical_flow"):
        monkeypatch.setitem(sys.modules, name, None)
    raft = RaftAnnotator(None, 0.2, "cpu")
    view = make_view("a", slide(scenes.procedural(0), 0.1, 0.0), 2)
    for _ in range(2):
        with pytest.raises(MachineError, match="RAFT needs torchvision") as caught:
            raft.annotate([view])
    assert "pip install torchvision" in caught.value.hint
    assert raft.version != MotionAnnotator(0.2).version
