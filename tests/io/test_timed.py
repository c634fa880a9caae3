"""Videos frame by frame: their times and their sound come through."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from svdcli.errors import InputError
from svdcli.io.timed import open_timed, write_timed
from svdcli.io.video import read_video, write_video

RATE = Fraction(30000, 1001)


def pictures(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    ramp = np.linspace(0, 255, width)[None, None, :, None] + np.arange(count)[:, None, None, None] * 4
    return np.broadcast_to(ramp % 256, (count, height, width, 3)).astype(np.uint8)


def with_sound(path: Path, codec: str, begin: float = 0.0, times: tuple[int, ...] = tuple(range(12))) -> Path:
    """A video whose frames are shown at `times` / 12 + begin seconds, with a tone of two seconds."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4" if path.suffix != ".webm" else "libvpx", rate=12)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1200)
        sound = container.add_stream(codec, rate=48000, layout="mono")
        for index, frame in enumerate(pictures(len(times))):
            shown = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
                format="yuv420p"
            )
            shown.pts, shown.time_base = round((times[index] / 12 + begin) * 1200), Fraction(1, 1200)
            container.mux(video.encode(shown))
        tone = (np.sin(np.arange(96000) * 0.05) * 8000).astype(np.int16)
        resampler = av.AudioResampler(
            sound.codec_context.format, "mono", 48000, sound.codec_context.frame_size or 960
        )
        samples = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = 48000, 0, Fraction(1, 48000)
        for part in [*resampler.resample(samples), *resampler.resample(None)]:
            container.mux(sound.encode(part))
        for stream in (video, sound):
            container.mux(stream.encode(None))
    return path


def heard(path: Path) -> tuple[str, float]:
    """Codec and seconds of sound."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        name = track.codec_context.codec.canonical_name
        return name, sum(frame.samples for frame in container.decode(track)) / track.codec_context.sample_rate


def shown_at(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


def test_frames_times_and_a_rate_that_is_no_whole_number(tmp_path: Path) -> None:
    frames = pictures(9)
    write_video(tmp_path / "a.mp4", frames, RATE, {}, "mp4")
    video = open_timed(tmp_path / "a.mp4")
    assert (video.rate, video.width, video.height, video.num_frames, video.has_sound) == (
        RATE,
        48,
        32,
        9,
        False,
    )
    expected, _ = read_video(tmp_path / "a.mp4")
    for (frame, time), index in zip(video.frames(), range(9), strict=True):
        assert np.array_equal(frame, expected[index])
        assert time * video.time_base == pytest.approx(index / RATE, abs=1e-6)
    doubled = ((frame, 2 * time) for frame, time in video.frames())
    write_timed(tmp_path / "b.mp4", doubled, 2 * RATE, video.time_base / 2, {"comment": "x"}, "mp4")
    again = open_timed(tmp_path / "b.mp4")
    assert shown_at(tmp_path / "b.mp4") == pytest.approx([float(i / RATE) for i in range(9)], abs=1e-5)
    assert again.rate == pytest.approx(RATE, rel=0.07)  # eight gaps and the last frame


@pytest.mark.parametrize(
    ("name", "codec", "kept"),
    [("a.mp4", "aac", "aac"), ("a.webm", "libopus", "opus"), ("a.mkv", "pcm_s16le", "aac")],
)
def test_sound_is_copied_or_made_aac(tmp_path: Path, name: str, codec: str, kept: str) -> None:
    video = open_timed(with_sound(tmp_path / name, codec))
    assert video.has_sound
    notes = write_timed(
        tmp_path / "b.mp4", video.frames(), video.rate, video.time_base, {}, "mp4", video.path
    )
    assert notes == ()
    assert heard(tmp_path / "b.mp4") == (kept, pytest.approx(heard(video.path)[1], abs=0.06))


def test_uneven_times_stay_and_the_first_frame_is_at_zero(tmp_path: Path) -> None:
    times = (0, 1, 2, 6, 7, 11)
    video = open_timed(with_sound(tmp_path / "a.mkv", "aac", begin=0.5, times=times))
    write_timed(tmp_path / "b.mp4", video.frames(), video.rate, video.time_base, {}, "mp4", video.path)
    assert shown_at(tmp_path / "b.mp4") == pytest.approx([time / 12 for time in times], abs=2e-3)
    assert heard(tmp_path / "b.mp4")[1] == pytest.approx(1.5, abs=0.06)  # what came before is not heard


def test_other_kinds_have_no_sound_and_say_so(tmp_path: Path) -> None:
    video = open_timed(with_sound(tmp_path / "a.mp4", "aac"))
    notes = write_timed(tmp_path / "b", video.frames(), video.rate, video.time_base, {}, "png", video.path)
    assert notes == ("The sound is left out: only mp4 has any.",)
    assert np.array_equal(read_video(tmp_path / "b")[0], read_video(video.path)[0])


def test_an_animation_is_read_too(tmp_path: Path) -> None:
    write_video(tmp_path / "a.gif", pictures(5), 10, {}, "gif")
    video = open_timed(tmp_path / "a.gif")
    assert (video.rate, video.num_frames) == (10, 5) and len(list(video.frames())) == 5


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="is not a video"):
        open_timed(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4", pictures(9), 8, {}, "mp4")
    whole = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        open_timed(tmp_path / "b.mp4")
