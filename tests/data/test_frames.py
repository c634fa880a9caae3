"""Reading a folder of videos: rate, size, crop, broken files, the cache, clips."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from svdcli.data import frames as frames_module
from svdcli.data.footage import Video, cover, nearest_size
from svdcli.data.frames import FrameSet, Wanted, decode_video, load_frames
from svdcli.data.motion import motion_score
from svdcli.data.reader import Corrupt
from svdcli.errors import InputError
from svdcli.io.video import write_video


def footage(num_frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Grey frames, each brighter than the one before: its brightness tells its number."""
    levels = (40 + 5 * np.arange(num_frames)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)))


def numbers(frames: np.ndarray) -> list[int]:
    return np.round((frames.astype(float).mean(axis=(1, 2, 3)) - 40) / 5).astype(int).tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    videos = tmp_path / "videos"
    (videos / "deep").mkdir(parents=True)
    write_video(videos / "b.mp4", footage(12), 24.0, {}, "mp4")
    write_video(videos / "deep" / "a.mp4", footage(8, 96, 64), 10.0, {}, "mp4")
    (videos / "notes.txt").write_text("no video")
    return videos


def videos_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.mp4"))


def load(paths: list[Path], cache: Path, **changes: float) -> FrameSet:
    settings = {"width": 64, "height": 64, "max_fps": 12.0, "max_frames": 100} | changes
    return load_frames(paths, cache=cache, **settings)  # type: ignore[arg-type]


def test_a_folder_is_read_thinned_and_cropped(folder: Path, tmp_path: Path) -> None:
    found = load(videos_in(folder), tmp_path / "cache")
    assert [(v.name, v.fps, v.start, v.num_frames) for v in found.videos] == [
        ("b.mp4", 12.0, 0, 6),
        ("a.mp4", 10.0, 6, 8),
    ]
    assert found.frames.shape == (14, 64, 64, 3) and found.frames.dtype == np.uint8
    assert numbers(found.frames[:6]) == [0, 2, 4, 6, 8, 10]
    assert numbers(found.frames[6:]) == list(range(8))
    assert isinstance(found.frames, np.memmap) and found.skipped == {}


def test_max_frames_keeps_the_start(folder: Path) -> None:
    frames, times = decode_video(folder / "b.mp4", Wanted(64, 64, 8.0, 3))
    assert times.tolist() == pytest.approx([0, 1 / 8, 2 / 8]) and numbers(frames) == [0, 3, 6]


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (200, 333), (63, 65), (1080, 13)])
@pytest.mark.parametrize("size", [(64, 64), (256, 144)])
def test_cover_is_exact_in_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    frame = np.full((*shape, 3), 77, np.uint8)
    out = cover(frame, *size)
    assert out.shape == (size[1], size[0], 3) and (out == 77).all()


def test_cover_crops_the_middle() -> None:
    frame = np.zeros((64, 128, 3), np.uint8)
    frame[:, 32:96] = 255
    assert (cover(frame, 64, 64) == 255).all()


def test_a_broken_file_is_skipped_and_named(folder: Path, tmp_path: Path) -> None:
    (folder / "c.mp4").write_bytes(b"not a video at all")
    found = load(videos_in(folder), tmp_path / "cache")
    assert found.skipped == {"c.mp4": "no video"} and len(found.videos) == 2
    assert load(videos_in(folder), tmp_path / "cache").skipped == {"c.mp4": "no video"}  # from the cache too
    with pytest.raises(InputError, match="None of 1 videos can be decoded"):
        load([folder / "c.mp4"], tmp_path / "cache")


def test_the_cache_is_reused_until_something_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    real = decode_video
    monkeypatch.setattr(
        frames_module, "decode_video", lambda path, *rest: (decoded.append(path.name), real(path, *rest))[1]
    )
    cache = tmp_path / "cache"

    def times(**changes: float) -> int:
        decoded.clear()
        load(videos_in(folder), cache, **changes)
        return len(decoded)

    assert times() == 2 and times() == 0
    assert times(width=72) == 2 and times(max_fps=6.0) == 2 and times(max_frames=4) == 2
    assert times() == 0
    os.utime(folder / "b.mp4", (1, 1))
    assert times() == 2 and times() == 0
    write_video(folder / "c.mp4", footage(4), 10.0, {}, "mp4")
    assert times() == 3
    next(cache.glob("*.npy")).unlink()  # an index whose frames are gone
    for path in cache.glob("*.npy"):
        path.unlink()
    assert times() == 3


def test_a_clip_strides_and_ends_with_its_video() -> None:
    rows = np.arange(20, dtype=np.uint8)[:, None, None, None]
    first, second = Video("a", 10.0, 0, 8), Video("b", 10.0, 8, 12)
    frames = FrameSet(rows, (first, second))
    assert frames.clip(second, 1, 4, 3).ravel().tolist() == [9, 12, 15, 18]
    assert frames.clip(first, 0, 3, 2).ravel().tolist() == [0, 2, 4]
    assert frames.clip(first, 5, 4, 1).ravel().tolist() == [5, 6, 7]  # and not the next video's
    assert frames.clip(first, 0, 4, 3).ravel().tolist() == [0, 3, 6]


def test_rows_are_taken_by_number_and_identified() -> None:
    rows = np.arange(20, dtype=np.uint8)[:, None, None, None]
    first, second = Video("a", 10.0, 0, 8), Video("b", 10.0, 8, 12)
    frames = FrameSet(rows, (first, second), key="k")
    assert frames.take(second, [0, 5, 2]).ravel().tolist() == [8, 13, 10]
    names = [
        frames.identity(first),
        frames.identity(second),
        FrameSet(rows, (first,), key="l").identity(first),
    ]
    bare = FrameSet(rows, (first,))
    changed = rows.copy()
    changed[3] += 1  # any frame, not every seventh
    names += [bare.identity(first), FrameSet(changed, (first,)).identity(first)]
    assert len(set(names)) == 5 and bare.identity(first) == FrameSet(rows.copy(), (first,)).identity(first)


def test_motion_is_measured_once_and_is_the_motion_score(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tile = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    frames = FrameSet(np.stack([np.roll(tile, 2 * t, axis=1) for t in range(10)]), (Video("a", 10.0, 2, 8),))
    video, real, calls = frames.videos[0], frames_module.pair_motion, []
    monkeypatch.setattr(frames_module, "pair_motion", lambda *pair: (calls.append(1), real(*pair))[1])
    score = frames.motion(video, [1, 3, 5], 7.0)
    assert score == motion_score(frames.take(video, [1, 3, 5]), 7.0) > 0.4
    assert frames.motion(video, [1, 3, 5], 14.0) == pytest.approx(2 * score) and len(calls) == 2
    assert frames.motion(video, [3, 5, 7], 7.0) > 0 and len(calls) == 3
    assert frames.motion(video, [3], 7.0) == 0


def test_a_clip_goes_to_the_size_nearest_in_aspect() -> None:
    sizes = ((256, 144), (192, 192), (144, 256))
    for (width, height), expected in {
        (1920, 1080): 0,
        (1400, 960): 0,
        (1200, 960): 1,
        (1000, 1000): 1,
        (720, 1280): 2,
        (3000, 500): 0,
    }.items():
        assert nearest_size(width, height, sizes) == expected, (width, height)
        assert nearest_size(height, width, sizes) == 2 - expected


def test_shrinking_is_antialiased() -> None:
    """A chessboard of single pixels becomes grey, not one of its two colours."""
    board = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    small = cover(board, 64, 64).astype(int)
    assert abs(small - 127).max() <= 2


def test_half_a_video_is_no_video(folder: Path) -> None:
    with pytest.raises(Corrupt, match="cut off"):
        (folder / "half.mp4").write_bytes((folder / "b.mp4").read_bytes()[:-400])
        decode_video(folder / "half.mp4", Wanted(64, 64, 12.0, 9))
