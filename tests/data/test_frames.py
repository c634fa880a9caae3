"""Reading a folder of videos: rate, size, crop, broken files, the cache, clips."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from svdcli.data import frames as frames_module
from svdcli.data.frames import (
    FrameSet,
    Video,
    cover,
    decode_video,
    find_videos,
    load_frames,
    split_frames,
    split_paths,
)
from svdcli.errors import InputError
from svdcli.io.video import write_video
from svdcli.recipe.recipe import Data


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


def load(paths: list[Path], cache: Path, **changes: float) -> FrameSet:
    settings = {"width": 64, "height": 64, "max_fps": 12.0, "max_frames": 100} | changes
    return load_frames(paths, cache=cache, **settings)  # type: ignore[arg-type]


def test_a_folder_is_read_thinned_and_cropped(folder: Path, tmp_path: Path) -> None:
    found = load(find_videos(folder), tmp_path / "cache")
    assert [(v.name, v.fps, v.start, v.num_frames) for v in found.videos] == [
        ("b.mp4", 12.0, 0, 6),
        ("a.mp4", 10.0, 6, 8),
    ]
    assert found.frames.shape == (14, 64, 64, 3) and found.frames.dtype == np.uint8
    assert numbers(found.frames[:6]) == [0, 2, 4, 6, 8, 10]
    assert numbers(found.frames[6:]) == list(range(8))
    assert isinstance(found.frames, np.memmap) and found.skipped == ()


def test_max_frames_keeps_the_start(folder: Path) -> None:
    frames, fps = decode_video(folder / "b.mp4", 64, 64, 8.0, 3)
    assert fps == 8.0 and numbers(frames) == [0, 3, 6]


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
    found = load(find_videos(folder), tmp_path / "cache")
    assert found.skipped == ("c.mp4",) and len(found.videos) == 2
    assert load(find_videos(folder), tmp_path / "cache").skipped == ("c.mp4",)  # from the cache too
    with pytest.raises(InputError, match="None of 1 videos can be decoded"):
        load([folder / "c.mp4"], tmp_path / "cache")


def test_an_error_without_words_is_survived(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = decode_video

    def decode(path: Path, *rest: object) -> object:
        if path.name == "b.mp4":
            raise AssertionError
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(frames_module, "decode_video", decode)
    assert load(find_videos(folder), tmp_path / "cache").skipped == ("b.mp4",)


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
        load(find_videos(folder), cache, **changes)
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


def data(folder: Path, **changes: object) -> Data:
    settings = {"source": folder, "width": 64, "height": 64, "held_out": ("a*",)}
    return Data(**(settings | changes))  # type: ignore[arg-type]


def test_training_and_held_out_are_apart(folder: Path, tmp_path: Path) -> None:
    kept, apart = split_frames(data(folder), tmp_path / "cache")
    assert [v.name for v in kept.videos] == ["b.mp4"] and [v.name for v in apart.videos] == ["a.mp4"]
    kept_paths, apart_paths = split_paths(data(folder))
    assert [p.name for p in kept_paths + apart_paths] == ["b.mp4", "a.mp4"]


def test_datasets_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    for held_out, counts in (((), "2 videos to train on and 0 held out"), (("*",), "0 videos to train on")):
        with pytest.raises(InputError, match=counts) as caught:
            split_paths(data(folder, held_out=held_out))
        assert "data.held_out" in caught.value.hint
    with pytest.raises(InputError, match="is not a folder") as caught:
        find_videos(Path("no/such/place"))
    assert str(Path.cwd()) in caught.value.hint
    with pytest.raises(InputError, match="leaves none of 2 videos"):
        find_videos(folder, ("*",))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="There is no video"):
        find_videos(tmp_path / "empty")
