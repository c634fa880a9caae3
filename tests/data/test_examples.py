"""Which frames make a batch: pure in (seed, step, part), each clip once a round, in real time, the corrupt replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from svdcli.data.dataset import open_dataset
from svdcli.data.examples import Batches, Example, Examples, Wish
from svdcli.data.footage import Footage, Video
from svdcli.data.frames import FrameSet
from svdcli.errors import InputError
from svdcli.io.video import write_video
from svdcli.recipe.recipe import Data

from .conftest import grey, numbers, write_uneven  # type: ignore[import-not-found]

MakeShards = Callable[..., Path]
SHUFFLE = Wish((4,), (4.0, 8.0), sampling="shuffle", max_corrupt_share=0.6)


def shards(source: Path, cache: Path, **changes: object) -> Footage:
    settings = {"source": source, "width": 64, "height": 64, "held_out": ("c000",)} | changes
    return open_dataset(Data(**settings), cache)[0]  # type: ignore[arg-type]


def draw(examples: Examples, step: int, part: int = 0) -> list[Example]:
    seed = [0, step, part, 0]
    return examples.draw(seed, np.random.default_rng(seed))


def rows(num_videos: int, num_frames: int, fps: float = 8.0) -> FrameSet:
    frames = np.arange(num_videos * num_frames, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    frames = frames.repeat(16, 1).repeat(16, 2)
    return FrameSet(frames, tuple(Video(f"v{i}", fps, i * num_frames, num_frames) for i in range(num_videos)))


def test_every_clip_once_a_round_on_all_ranks(make_shards: MakeShards, tmp_path: Path) -> None:
    footage = shards(make_shards(13), tmp_path)  # 12 to train on
    ranks = [Examples(footage, SHUFFLE, Batches(2, parts=3)) for _ in range(3)]
    drawn = [e for step in range(2) for rank, part in enumerate(ranks) for e in draw(part, step, rank)]
    assert sorted(e.window.video.name for e in drawn) == [f"c{i:03d}" for i in range(1, 13)]
    assert len({e.window.fps for e in drawn}) == 12 and len({e.window.numbers for e in drawn}) > 5


def test_a_resumed_run_draws_the_same(make_shards: MakeShards, tmp_path: Path) -> None:
    source = make_shards(7)
    straight = Examples(shards(source, tmp_path), SHUFFLE, Batches(2))
    expected = [draw(straight, step) for step in range(5)][3]
    resumed = draw(Examples(shards(source, tmp_path), SHUFFLE, Batches(2)), 3)
    for a, b in zip(expected, resumed, strict=True):
        assert a.window == b.window and np.array_equal(a.pixels, b.pixels) and a.motion == b.motion
    other = Examples(shards(source, tmp_path), SHUFFLE, Batches(2, seed=1))
    assert any(
        [e.window.video for e in draw(other, step)] != [e.window.video for e in draw(straight, step)]
        for step in range(4)
    )


def test_frames_are_those_of_the_rate(make_shards: MakeShards, tmp_path: Path) -> None:
    footage = shards(make_shards(4), tmp_path)
    for step in range(6):
        for example in draw(Examples(footage, replace(SHUFFLE, fps=(4.0, 4.0)), Batches(2)), step):
            taken = example.window.numbers
            assert np.diff(taken).tolist() == [2, 2, 2] and numbers(example.pixels) == list(taken)
            video = footage.videos.index(example.window.video)
            assert example.motion == pytest.approx(0.1 + (video + 1) / 10)


def test_uneven_times_are_resampled_by_time(tmp_path: Path) -> None:
    """45 frames a second, then 9: frames are picked by the clock, not by counting."""
    (tmp_path / "v").mkdir()
    ticks = [*range(0, 60, 2), *range(60, 181, 10)]
    write_uneven(tmp_path / "v" / "b.mp4", grey(len(ticks)), ticks)
    write_video(tmp_path / "v" / "a.mp4", grey(4), 8.0, {}, "mp4")
    for cached in (True, False):
        settings = {"max_fps": 60.0, "frame_cache": cached, "held_out": ("a*",)}
        footage = shards(tmp_path / "v", tmp_path / "cache", **settings)
        wish = Wish((8,), (4.5, 4.5), sampling="shuffle")
        (example,) = draw(Examples(footage, wish, Batches(1)), 0)
        shown = np.array(ticks)[list(example.window.numbers)]
        assert np.diff(shown).tolist() == pytest.approx([20] * 7, abs=10)
        assert (shown[-1] - shown[0]) / 7 == pytest.approx(20, abs=1.5)


def test_batches_are_of_one_size_and_length(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    for i in range(6):
        wide = i % 2
        write_video(
            folder / f"b{i}.mp4", grey(16 if i < 3 else 6, 64 + 32 * wide, 96 - 32 * wide), 8.0, {}, "mp4"
        )
    write_video(folder / "a.mp4", grey(4), 8.0, {}, "mp4")
    changes = {"width": 96, "buckets": ((64, 96),), "held_out": ("a*",)}
    footage = shards(folder, tmp_path / "cache", **changes)
    for sampling in ("shuffle", "uniform_videos"):
        wish = Wish((4, 12), (8.0, 8.0), 1.1, sampling=sampling)  # type: ignore[arg-type]
        examples, seen = Examples(footage, wish, Batches(3)), Counter[tuple[int, ...]]()
        for step in range(12):
            batch = draw(examples, step)
            (shape,) = {e.pixels.shape for e in batch}
            assert batch[0].size == shape[2:0:-1]
            seen[shape] += 1
        assert {shape[1:3] for shape in seen} == {(64, 96), (96, 64)} and {shape[0] for shape in seen} == {
            4,
            12,
        }


def test_uniform_videos_stay_near_to_life() -> None:
    examples = Examples(rows(3, 30, 12.0), Wish((3, 5), (5.0, 9.0), 1.4), Batches(2))
    for step in range(20):
        batch = draw(examples, step)
        assert len({e.pixels.shape for e in batch}) == 1
        for example in batch:
            (stride,) = set(np.diff(example.window.numbers).tolist())
            assert 1 / 1.4 <= 12 / stride / example.window.fps <= 1.4
            assert example.window.numbers[-1] < 30
            first = example.window.video.start + example.window.numbers[0]
            assert example.pixels[0, 0, 0, 0] == first


def test_corrupt_clips_are_replaced_as_surely(make_shards: MakeShards, tmp_path: Path, mp4: bytes) -> None:
    source = make_shards(7, {2: b"no video", 5: mp4[:300]})
    runs = []
    for _ in range(2):
        examples = Examples(shards(source, tmp_path), SHUFFLE, Batches(3))
        runs.append([[e.window for e in draw(examples, step)] for step in range(4)])
        names = {window.video.name for batch in runs[-1] for window in batch}
        assert names == {"c001", "c003", "c004", "c006"} and all(len(batch) == 3 for batch in runs[-1])
        assert (
            examples.tally.corrupt == {"no video": 2, "cut off": 2}
            or sum(examples.tally.corrupt.values()) >= 4
        )
        assert examples.figures() == {"corrupt_clips": sum(examples.tally.corrupt.values())}
    assert runs[0] == runs[1]


def test_too_many_corrupt_clips_stop_the_run(make_shards: MakeShards, tmp_path: Path) -> None:
    examples = Examples(
        shards(make_shards(7, {2: b"no"}), tmp_path), replace(SHUFFLE, max_corrupt_share=0.05), Batches(6)
    )
    with pytest.raises(InputError, match=r"of \d+ clips cannot be read \(\d+ no video\): c002") as caught:
        for step in range(10):
            draw(examples, step)
    assert "data.max_corrupt_share" in caught.value.hint
    nothing = Examples(
        shards(make_shards(5, {i: b"no" for i in range(5)}, "all"), tmp_path), SHUFFLE, Batches(2)
    )
    with pytest.raises(InputError, match="20 of 20 clips cannot be read"):
        draw(nothing, 0)
    assert Examples(shards(make_shards(3, name="good"), tmp_path), SHUFFLE, Batches(2)).figures() == {}


@pytest.mark.parametrize("sampling", ["shuffle", "uniform_videos"])
def test_clips_that_no_footage_gives(sampling: str) -> None:
    for wish in (Wish((3, 30), (5.0, 9.0), 2.0), Wish((3,), (100.0, 120.0), 2.0)):
        with pytest.raises(InputError, match=r"No video gives clips of \d+ frames"):
            Examples(rows(2, 20), replace(wish, sampling=sampling), Batches(1))  # type: ignore[arg-type]


def test_clips_too_short_are_left_out_and_counted() -> None:
    footage = rows(3, 20)
    videos = (
        footage.videos[0],
        replace(footage.videos[1], num_frames=3),
        replace(footage.videos[2], fps=2.0),
    )
    examples = Examples(replace(footage, videos=videos), SHUFFLE, Batches(1))
    assert examples.left_out == 2 and {draw(examples, step)[0].window.video.name for step in range(5)} == {
        "v0"
    }


def test_images_are_clips_of_one_frame() -> None:
    examples = Examples(rows(2, 4), Wish((1,), (5.0, 5.0), sampling="shuffle"), Batches(2))
    assert all(e.pixels.shape[0] == 1 and e.motion == 0 for e in draw(examples, 0))


def test_scores_for_the_calibration(make_shards: MakeShards, tmp_path: Path) -> None:
    examples = Examples(shards(make_shards(4), tmp_path), replace(SHUFFLE, fps=(8.0, 8.0)), Batches(1))
    assert {round(score, 6) for score in examples.scores(30)} == {0.2, 0.3, 0.4}
