"""One dataset, three ways to store it: what is found, held out, skipped, and refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdcli.data import stream as stream_module
from svdcli.data.dataset import count_videos, find_videos, open_dataset
from svdcli.data.footage import is_held_out
from svdcli.data.frames import FrameSet
from svdcli.data.reader import Corrupt, by_reason
from svdcli.data.stream import MOTION_FILE, Stream
from svdcli.errors import InputError
from svdcli.io.video import write_video
from svdcli.recipe.recipe import Data

from .conftest import grey, numbers  # type: ignore[import-not-found]

MakeShards = Callable[..., Path]


def data(source: Path, **changes: object) -> Data:
    settings = {"source": source, "width": 64, "height": 64, "held_out": ("a*",), "max_corrupt_share": 0.5}
    return Data(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    videos = tmp_path / "videos"
    (videos / "deep").mkdir(parents=True)
    write_video(videos / "b.mp4", grey(12), 24.0, {}, "mp4")
    (videos / "b.txt").write_text("a grey\nwall")
    write_video(videos / "deep" / "a.mp4", grey(8, 96, 64), 10.0, {}, "mp4")
    return videos


@pytest.mark.parametrize("cached", [True, False])
def test_a_folder_cached_or_streamed_is_the_same(folder: Path, tmp_path: Path, cached: bool) -> None:
    kept, apart = open_dataset(data(folder, frame_cache=cached, max_fps=12.0), tmp_path / "cache")
    assert isinstance(kept, FrameSet if cached else Stream)
    (video,) = kept.videos
    assert (video.name, video.num_frames, len(apart.videos)) == ("b.mp4", 6, 1)
    assert video.fps == pytest.approx(12) and kept.size(video) == (64, 64)
    assert kept.times(video) == pytest.approx(np.arange(6) / 12, abs=1e-6)
    frames = kept.take(video, [0, 2, 5])
    assert frames.shape == (3, 64, 64, 3) and numbers(frames) == [0, 4, 10]
    assert kept.captions(video) == ("", "a grey wall", "") and apart.captions(apart.videos[0]) == ("", "", "")


def test_numbered_frames_beside_videos(folder: Path, tmp_path: Path) -> None:
    shot = folder / "shot"
    shot.mkdir()
    for number, frame in enumerate(grey(12)):
        Image.fromarray(frame).save(shot / f"{number}.jpg")
    Image.fromarray(grey(1)[0]).save(folder / "poster.jpg")
    for cached in (True, False):
        settings = data(folder, frame_cache=cached, frames_fps=8.0)
        kept, _ = open_dataset(settings, tmp_path / "cache")
        video = next(v for v in kept.videos if v.name == "shot")
        assert video.fps == 8 and numbers(kept.take(video, [2, 10])) == [2, 10]
        with pytest.raises(InputError, match="at what rate"):
            open_dataset(data(folder, frame_cache=cached), tmp_path / "cache")


def test_shards_are_streamed(make_shards: MakeShards, tmp_path: Path) -> None:
    source = make_shards(8)
    settings = data(source, held_out=("c003", "film3.mp4"))
    kept, apart = open_dataset(settings, tmp_path)
    assert count_videos(settings) == (5, 3) == (len(kept.videos), len(apart.videos))
    assert [v.name for v in apart.videos] == ["c003", "c006", "c007"]
    assert numbers(kept.take(kept.videos[-1], [0, 7, 15])) == [0, 7, 15]
    assert kept.motion(kept.videos[1], range(4), 8.0) == pytest.approx(0.2)  # the index's
    assert kept.motion(kept.videos[1], range(0, 8, 2), 8.0) == pytest.approx(0.4)  # twice as fast as life
    left = open_dataset(data(source, exclude=("c001", "film2*"), held_out=("c000",)), tmp_path)[0]
    assert [v.name for v in left.videos] == ["c002", "c003", "c006", "c007"]


def test_sizes_are_chosen_by_aspect(folder: Path, tmp_path: Path) -> None:
    settings = data(folder, width=96, height=64, buckets=((64, 96),))
    kept, apart = open_dataset(settings, tmp_path)
    assert isinstance(kept, Stream) and kept.take(kept.videos[0], [0]).shape == (1, 64, 96, 3)
    assert apart.size(apart.videos[0]) == (64, 96) and apart.take(apart.videos[0], [0]).shape == (
        1,
        96,
        64,
        3,
    )
    with pytest.raises(InputError, match="frame_cache keeps frames of one size"):
        open_dataset(settings.model_copy(update={"frame_cache": True}), tmp_path)


def test_motion_is_measured_once_and_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = stream_module.motion_score, []
    monkeypatch.setattr(stream_module, "motion_score", lambda *a: (calls.append(1), real(*a))[1])
    tile = np.random.default_rng(0).integers(0, 255, (8, 12, 3)).repeat(8, axis=0).repeat(8, axis=1)
    write_video(
        folder / "m.mp4",
        np.stack([np.roll(tile, 2 * t, 1) for t in range(9)]).astype(np.uint8),
        8.0,
        {},
        "mp4",
    )
    scores = []
    for _ in range(2):  # the second opens anew, and reads what the first kept
        kept, _ = open_dataset(data(folder, frame_cache=False), tmp_path)
        video = next(v for v in kept.videos if v.name == "m.mp4")
        scores += [kept.motion(video, range(5), 8.0), kept.motion(video, range(2, 6), 8.0)]
    assert len(calls) == 1 and len(set(scores)) == 1
    assert scores[0] == pytest.approx(2 / 64 * 8, rel=0.25)
    with open(tmp_path / MOTION_FILE, "a") as file:
        file.write('\n["unfinished')
    open_dataset(data(folder, frame_cache=False), tmp_path)


def test_identity_follows_everything_that_changes_the_frames(
    folder: Path, make_shards: MakeShards, tmp_path: Path
) -> None:
    def identity(source: Path, **changes: object) -> str:
        footage, _ = open_dataset(
            data(source, **({"held_out": ("a*", "c001")} | changes)), tmp_path / "cache"
        )
        return footage.identity(footage.videos[0])

    shards, stream = make_shards(2), {"frame_cache": False}
    for source, base in ((folder, {}), (folder, stream), (shards, {})):
        first = identity(source, **base)
        assert identity(source, **base) == first
        changed = [
            identity(source, **base, **change)
            for change in (
                {"width": 72},
                {"height": 72},
                {"max_fps": 4.0},
                {"max_frames": 5},
                {"reader": "pyav"},
            )
        ]
        assert len({first, *changed}) == 6
    before = identity(folder), identity(folder, **stream)
    os.utime(folder / "b.mp4", ns=(1, 1))
    after = identity(folder), identity(folder, **stream)
    assert before[0] != after[0] and before[1] != after[1]
    other = make_shards(2, {0: (folder / "b.mp4").read_bytes()}, "other")
    assert identity(other) != identity(shards)


def test_corrupt_files_are_counted_by_reason(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "b.mp4").read_bytes()
    (folder / "c.mp4").write_text("a text")
    (folder / "d.mp4").write_bytes(whole[:-300])
    for cached in (True, False):
        kept, _ = open_dataset(data(folder, frame_cache=cached), tmp_path)
        assert kept.skipped == {"c.mp4": "no video", "d.mp4": "cut off"}
        assert by_reason(kept.skipped.values()) == "1 no video, 1 cut off"
        with pytest.raises(
            InputError, match=r"2 of 4 clips cannot be read \(1 no video, 1 cut off\): c.mp4, d.mp4"
        ):
            open_dataset(data(folder, frame_cache=cached, max_corrupt_share=0.4), tmp_path)
        with pytest.raises(InputError, match="2 of 2 clips cannot be read|None of 2 videos can be decoded"):
            open_dataset(data(folder, exclude=("a*", "b*"), frame_cache=cached), tmp_path)


def test_a_damaged_shard_is_a_corrupt_clip(make_shards: MakeShards, tmp_path: Path) -> None:
    source = make_shards(8, {1: b"no video at all"})
    (source / "000001.tar").unlink()
    kept, _ = open_dataset(data(source, held_out=("c002",)), tmp_path)
    reasons = {}
    for video in kept.videos:
        try:
            kept.take(video, [0])
        except Corrupt as error:
            reasons[video.name] = error.reason
    assert reasons.pop("c001") == "no video"
    assert reasons and set(reasons.values()) == {"unreadable"} and "c000" not in reasons


def test_held_out_by_chance_goes_by_source() -> None:
    apart = [is_held_out(f"c{i}", f"film{i // 4}", (), 0.3) for i in range(4000)]
    assert 0.24 < np.mean(apart) < 0.36
    assert all(len(set(apart[i : i + 4])) == 1 for i in range(0, 4000, 4))
    assert not any(is_held_out("c", f"film{i}", (), 0.0) for i in range(100))


def test_datasets_that_cannot_be(folder: Path, make_shards: MakeShards, tmp_path: Path) -> None:
    for held_out, counts in (((), "2 videos to train on and 0 held out"), (("*",), "0 videos to train on")):
        with pytest.raises(InputError, match=counts) as caught:
            count_videos(data(folder, held_out=held_out))
        assert "data.held_out" in caught.value.hint
    with pytest.raises(InputError, match="is not a folder") as caught:
        find_videos(data(Path("no/such/place")))
    assert str(Path.cwd()) in caught.value.hint
    with pytest.raises(InputError, match="leave none of 2 videos"):
        find_videos(data(folder, exclude=("*",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="There is no video"):
        find_videos(data(tmp_path / "empty"))
    with pytest.raises(InputError, match="leave none of 2 clips"):
        open_dataset(data(make_shards(2), exclude=("*",)), tmp_path)


def test_a_url_keeps_its_two_slashes() -> None:
    assert data(Path("s3://bucket/set")).location == "s3://bucket/set"
    assert data(Path("clips/set")).location == "clips/set" and data(Path("/a/b")).location == "/a/b"


def test_a_share_of_few_videos_is_one_at_least(mp4: bytes, tmp_path: Path) -> None:
    source = tmp_path / "few"
    source.mkdir()
    for name in "ab":
        (source / f"{name}.mp4").write_bytes(mp4)
    data = Data(source=source, width=64, height=64, held_out_share=1e-9)
    assert count_videos(data) == (1, 1)
    kept, apart = open_dataset(data, tmp_path / "cache")
    assert len(kept.videos) == len(apart.videos) == 1 and kept.videos[0].name != apart.videos[0].name
