"""The two readers: the same frames at the same times, and the same opinion of what is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svdcli.data.reader import Corrupt, ReaderName, mean_fps, nearest, open_reader
from svdcli.errors import InputError

from .conftest import grey, numbers, write_uneven  # type: ignore[import-not-found]

READERS: tuple[ReaderName, ...] = ("decord", "pyav")
TICKS = [0, 9, 12, 21, 24, 60, 63, 90]


def test_decord_and_pyav_agree(mp4: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(mp4)
    readers = [open_reader(s, "a", r) for s in (mp4, tmp_path / "a.mp4") for r in READERS]
    wanted = [3, 3, 15, 0, 9]
    expected = np.stack(readers[0].read(wanted))
    assert numbers(expected) == wanted
    for reader in readers:
        assert reader.times == pytest.approx(np.arange(16) / 8, abs=1e-6)
        assert np.array_equal(np.stack(reader.read(wanted)), expected)


@pytest.mark.parametrize("reader", READERS)
def test_uneven_times_are_the_real_ones(reader: ReaderName, tmp_path: Path) -> None:
    write_uneven(tmp_path / "v.mp4", grey(8), TICKS)
    video = open_reader(tmp_path / "v.mp4", "v", reader)
    assert video.times == pytest.approx(np.array(TICKS) / 90, abs=1e-5)
    even = nearest(video.times, np.arange(5) / 5)  # at 0, 18, 36, 54 and 72 ticks
    assert even.tolist() == [0, 3, 4, 5, 6] and numbers(video.read(even.tolist())) == [0, 3, 4, 5, 6]


@pytest.mark.parametrize("reader", READERS)
def test_what_is_broken_is_said_why(reader: ReaderName, mp4: bytes, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("this is no film")
    for source, reason in ((text, "no video"), (b"", "empty file"), (mp4[: len(mp4) // 2], "cut off")):
        with pytest.raises(Corrupt) as caught:
            open_reader(source, "clip", reader)
        assert caught.value.reason == reason and caught.value.exit_code == 4
        assert str(caught.value).startswith(f"clip: {reason}") and "\n" not in str(caught.value)


def test_folders_of_frames_go_by_number(tmp_path: Path) -> None:
    for number, frame in zip((1, 2, 10, 11), grey(4), strict=True):
        Image.fromarray(frame).save(tmp_path / f"shot2_{number}.png")
    Image.fromarray(grey(1)[0]).save(tmp_path / "cover.png")  # no number, no frame
    video = open_reader(tmp_path, "shot", "decord", 4.0)
    assert video.times.tolist() == [0, 0.25, 0.5, 0.75] and numbers(video.read([0, 2, 3])) == [0, 2, 3]
    with pytest.raises(InputError, match="at what rate") as caught:
        open_reader(tmp_path, "shot", "decord")
    assert "data.frames_fps" in caught.value.hint and not isinstance(caught.value, Corrupt)
    (tmp_path / "shot2_2.png").write_bytes(b"no picture")
    with pytest.raises(Corrupt, match="shot: damaged frames: shot2_2.png"):
        open_reader(tmp_path, "shot", "decord", 4.0).read([1])


def test_nearest_frames_and_mean_rate() -> None:
    times = np.array([0.0, 0.1, 0.4])
    assert nearest(times, np.array([-1, 0.04, 0.05, 0.06, 0.26, 9])).tolist() == [0, 0, 0, 1, 2, 2]
    assert nearest(np.zeros(1), np.array([0.0, 3.0])).tolist() == [0, 0]
    assert mean_fps(times) == pytest.approx(5) and mean_fps(times[:1]) == 0
