"""The real side of a model's report: what is held out, how it is cut, which protocol fits it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from svdcli.errors import InputError
from svdcli.evaluate.cases import View, cut_cases, find_held_out, spread
from svdcli.evaluate.model_report import fitting_protocol
from svdcli.evaluate.videos import read_whole
from svdcli.io.images import read_picture
from svdcli.io.video import write_video

VIEW = View(num_frames=4, fps=4.0, width=32, height=16)


def write(path: Path, num_frames: int, fps: float = 8.0) -> Path:
    """Frame t is grey of 10 t, so that a frame tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.broadcast_to(10 * np.arange(num_frames)[:, None, None, None], (num_frames, 24, 48, 3))
    write_video(path, frames.astype(np.uint8), fps, {}, "gif")
    return path


def numbers(path: Path) -> list[int]:
    return [round(float(frame.mean()) / 10) for frame in read_whole(path)[0]]


def test_clips_are_cut_at_the_models_rate_and_size_and_spread_over_the_video(tmp_path: Path) -> None:
    videos = [write(tmp_path / "long.take.gif", 24), write(tmp_path / "short.gif", 3)]
    cases, left_out = cut_cases(videos, tmp_path / "out", VIEW, per_video=3)
    assert left_out == {} and [case.name for case in cases] == [
        "long-take-0000", "long-take-0008", "long-take-0017", "short-0000"
    ]  # fmt: skip
    assert [numbers(case.real) for case in cases if case.real] == [
        [0, 2, 4, 6],
        [8, 10, 12, 14],
        [17, 19, 21, 23],
    ]
    assert cases[3].real is None  # too short for a clip, not for a picture
    for case in cases:
        frames, fps = read_whole(case.still)
        assert frames.shape == (4, 16, 32, 3) and fps == pytest.approx(4)
        assert (frames == frames[0]).all()
        assert np.rint(read_picture(case.picture).pixels * 255) == pytest.approx(frames[0])


def test_what_was_cut_is_kept_and_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    videos = [write(tmp_path / "a.gif", 12), tmp_path / "bad.mp4"]
    videos[1].write_text("no video")
    first, left_out = cut_cases(videos, tmp_path / "out", VIEW, 1)
    assert left_out == {"bad.mp4": "no video"}
    videos[0].write_text("gone")  # it is not opened again
    assert cut_cases(videos, tmp_path / "out", VIEW, 1)[0] == first
    with pytest.raises(InputError, match="None of 1 videos can be read; bad.mp4: no video"):
        cut_cases(videos[1:], tmp_path / "other", VIEW, 1)


def test_videos_of_one_stem_have_names_of_their_own(tmp_path: Path) -> None:
    videos = [
        write(tmp_path / "x" / "a.gif", 4),
        write(tmp_path / "y" / "a.gif", 4),
        write(tmp_path / "b.gif", 4),
    ]
    cases, _ = cut_cases(videos, tmp_path / "out", VIEW, 1)
    assert len({case.name for case in cases}) == 3 and cases[2].name == "b-0000"


def test_the_models_recipe_says_what_it_never_saw(tmp_path: Path) -> None:
    videos = [tmp_path / name for name in ("pig.mp4", "dog.mp4", "cat.mp4")]
    assert find_held_out(videos, '[data]\nheld_out = ["pig*"]') == videos[:1]
    assert find_held_out(videos, "[data]\nheld_out_share = 1.0") == videos
    for recipe in ("", "[data]\nwidth = 3", "no = toml = at all"):
        assert find_held_out(videos, recipe) == []


def test_a_protocol_is_taken_whole_or_called_custom() -> None:
    assert fitting_protocol("matched", View(14, 7.0, 8, 8)).name == "matched"  # type: ignore[union-attr]
    assert fitting_protocol("matched", View(25, 6.0, 8, 8)).name == "matched"  # type: ignore[union-attr]
    assert fitting_protocol("stylegan-v", View(25, 6.0, 8, 8)).name == "stylegan-v"  # type: ignore[union-attr]
    shorter = fitting_protocol("matched", View(10, 7.0, 8, 8))
    assert shorter is not None and (shorter.name, shorter.num_frames, shorter.fps) == ("custom", 10, 7.0)
    assert fitting_protocol("matched", View(8, 7.0, 8, 8)) is None  # I3D pools over time


def test_a_few_are_spread_over_all() -> None:
    assert spread(list(range(10)), 3) == [0, 4, 9] and spread([1, 2], 5) == [1, 2]
