"""Camera moves: as fast as they are told, in the direction that they are told, never off the picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from svdcli.data.camera import CLOSEST, KINDS, Kind, camera_move, move, with_camera_moves
from svdcli.data.footage import Joined, Video
from svdcli.data.frames import FrameSet
from svdcli.data.motion import dense_flow, grey_frames, motion_score

REACHES = (0.04, 0.12, 0.22, 0.34)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    noise = np.random.default_rng(0).normal(128, 60, (96, 128, 3))
    return np.clip(cv2.GaussianBlur(noise, (0, 0), 3) * 4 - 384, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_farther_the_faster(picture: np.ndarray, kind: Kind) -> None:
    scores = [motion_score(move(picture, 8, kind, reach, 0.5), 8.0) for reach in REACHES]
    assert all(b > 1.2 * a for a, b in zip(scores, scores[1:], strict=False)), scores


def test_the_speed_of_a_pan_is_its_reach(picture: np.ndarray) -> None:
    """`reach` of the width in seven of eight frames, seen through a view of 1 - reach of the sides."""
    clip = move(picture, 8, "pan", 0.2, 0.0)
    flow = dense_flow(*grey_frames(clip[3:5], 64))[8:-8, 8:-8]
    expected = -0.2 / 7 / 0.8 * 64 * 128 / 96  # pixels: the view goes right, the picture left
    assert np.median(flow[..., 0]) == pytest.approx(expected, rel=0.15)
    assert abs(np.median(flow[..., 1])) < 0.2


@pytest.mark.parametrize(("kind", "sign"), [("in", 1), ("out", -1)])
def test_zooms_grow_or_shrink(picture: np.ndarray, kind: Kind, sign: int) -> None:
    flow = dense_flow(*grey_frames(move(picture, 6, kind, 0.3)[2:4], 64))
    rows, columns = np.mgrid[: flow.shape[0], : flow.shape[1]]
    outward = (
        flow[..., 0] * (columns - flow.shape[1] / 2) + flow[..., 1] * (rows - flow.shape[0] / 2)
    ).mean()
    assert np.sign(outward) == sign


def test_a_zoom_in_is_a_zoom_out_backwards(picture: np.ndarray) -> None:
    assert np.array_equal(move(picture, 5, "in", 0.3), move(picture, 5, "out", 0.3)[::-1])
    assert np.array_equal(move(picture, 5, "in", 0.3)[0], picture)


@pytest.mark.parametrize("angle", [0.0, 0.9, 2.3, 4.0, 5.5])
def test_a_pan_stays_on_the_picture(angle: float) -> None:
    """A ramp rises everywhere in every view: edges repeated to fill a view would be flat."""
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (96, 128, 3)).copy()
    steps = np.diff(move(ramp, 6, "pan", 1 - CLOSEST, angle)[..., 0].astype(int), axis=2)
    assert (steps[:, :, 4:-4].reshape(6, -1, 4).sum(axis=2) > 0).all()


def test_moves_differ_and_follow_the_seed(picture: np.ndarray) -> None:
    a, b = (camera_move(picture, 4, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(a, b) and a.shape == (4, 96, 128, 3) and a.dtype == np.uint8
    assert not np.array_equal(a, camera_move(picture, 4, np.random.default_rng(2)))


def test_a_set_with_moves_behind_it(picture: np.ndarray) -> None:
    frames = FrameSet(np.stack([picture] * 3), (Video("a", 10.0, 0, 3),), {"broken.mp4": "cut off"})
    more = with_camera_moves(frames, 2, 5, 12.0, seed=0)
    assert [(v.part, v.start, v.num_frames, v.fps) for v in more.videos] == [
        (0, 0, 3, 10),
        (1, 0, 5, 12),
        (1, 5, 5, 12),
    ]
    assert list(more.skipped) == ["broken.mp4"] and more.size(more.videos[1]) == (128, 96)
    again = with_camera_moves(frames, 2, 5, 12.0, seed=0)
    for video in more.videos:
        assert np.array_equal(more.take(video, [0, 2]), again.take(video, [0, 2]))
        assert more.identity(video) == again.identity(video)
    assert len({more.identity(video) for video in more.videos}) == 3
    assert with_camera_moves(frames, 0, 5, 12.0, seed=0) is frames


def test_the_set_is_not_copied(picture: np.ndarray) -> None:
    frames = FrameSet(np.stack([picture] * 3), (Video("a", 10.0, 0, 3),))
    more = with_camera_moves(frames, 1, 4, 12.0, seed=0)
    assert isinstance(more, Joined) and more.parts[0] is frames
