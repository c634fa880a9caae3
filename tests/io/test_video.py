"""Videos: exact rate, right length, right colour, the manifest inside, and every bad file one sentence."""

import errno
import json
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from svdcli.errors import InputError, MachineError, UsageError
from svdcli.io.video import exact_rate, read_metadata, read_video, write_video

KINDS = ["mp4", "gif", "webp", "png"]
MANIFEST = json.dumps({"bundle": "nano", "seed": 3, "prompt": 'Käse; "x"=#\n猫 \\', "long": "y" * 3000})


def clip(num_frames: int = 5, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth, moving, coloured clip, every frame different."""
    rows, columns = np.mgrid[:height, :width]
    frames = [np.stack([columns * 3 + 9 * t, rows * 4, 40 * t + 0 * rows], -1) for t in range(num_frames)]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def target(folder, kind):
    return folder / ("frames" if kind == "png" else f"a.{kind}")


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(a.astype(float) - b).mean(), 1e-9)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fps", [6, 7.5])
def test_round_trip(tmp_path, kind, fps, capfd):
    frames, path = clip(), target(tmp_path, kind)
    assert write_video(path, frames, fps, {"comment": MANIFEST}, kind) == ()
    read, rate = read_video(path)
    assert read.dtype == np.uint8 and read.shape == frames.shape and rate == fps
    assert psnr(read, frames) > {"mp4": 36, "gif": 28, "webp": 33, "png": 90}[kind]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"comment": MANIFEST},
        {"comment": MANIFEST, "description": "what", "svd_seed": "12", "title": "Käse"},
    ],
)
def test_metadata_comes_back_unchanged(tmp_path, kind, metadata):
    path = target(tmp_path, kind)
    write_video(path, clip(3), 6, metadata, kind)
    assert read_metadata(path) == metadata


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame_and_equal_frames_keep_their_number(tmp_path, kind):
    still = np.repeat(clip(1), 7, axis=0)
    still[4:] = 255 - still[4:]
    for frames in (clip(1), still):
        path = target(tmp_path, kind)
        write_video(path, frames, 6, {}, kind)
        read, rate = read_video(path)
        assert read.shape == frames.shape and rate == 6
        assert psnr(read, frames) > 27


# --- mp4 ---


@pytest.mark.parametrize("fps", ["6", "7.5", "1/2", "24000/1001", "29.97", "12.3456", "60"])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_mp4_rate_and_duration_are_exact(tmp_path, fps, num_frames):
    path, rate = tmp_path / "a.mp4", Fraction(fps)
    write_video(path, clip(num_frames, 16, 16), float(rate), {}, "mp4")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        assert stream.duration * stream.time_base == num_frames / rate
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert times == [index / rate for index in range(num_frames)]


def test_mp4_plays_everywhere(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, clip(), 6, {}, "mp4")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (
            1,
            1,
            1,
            1,
        )
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # can be shown before it is loaded whole


def test_mp4_colours(tmp_path):
    wanted = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 120, 40]])
    frames = np.broadcast_to(wanted[:, None, None], (6, 32, 32, 3)).astype(np.uint8)
    write_video(tmp_path / "a.mp4", frames, 6, {}, "mp4")
    read, _ = read_video(tmp_path / "a.mp4")
    assert np.abs(read[:, 8:24, 8:24].astype(int) - frames[:, 8:24, 8:24]).max() <= 4
    with av.open(
        str(tmp_path / "a.mp4")
    ) as container:  # the matrix is that of the tag: BT.709 red has luma 63
        assert next(container.decode(video=0)).to_ndarray()[16, 16] == pytest.approx(63, abs=1)


@pytest.mark.parametrize(("height", "width"), [(33, 48), (32, 47), (17, 31)])
def test_mp4_with_odd_sides_grows_by_an_edge_and_says_so(tmp_path, height, width):
    frames = clip(3, height, width)
    notes = write_video(tmp_path / "a.mp4", frames, 6, {}, "mp4")
    assert len(notes) == 1 and f"{width}x{height}" in notes[0]
    read, _ = read_video(tmp_path / "a.mp4")
    assert read.shape[1:3] == (height + height % 2, width + width % 2)
    assert psnr(read[:, :height, :width], frames) > 33
    assert np.abs(read[:, -1, -1].astype(int) - frames[:, -1, -1]).max() < 25


def test_mp4_is_turned_upright(tmp_path):
    path = tmp_path / "a.mp4"
    frames = clip(3)
    write_video(path, frames, 6, {}, "mp4")
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # the display matrix: version and flags, times, ids, layer, volume
    one = 0x10000
    matrix = [
        0,
        one,
        0,
        -one & 0xFFFFFFFF,
        0,
        0,
        0,
        0,
        0x40000000,
    ]  # a quarter turn clockwise, as phones write it
    data[place : place + 36] = b"".join(value.to_bytes(4, "big") for value in matrix)
    path.write_bytes(bytes(data))
    read, _ = read_video(path)
    assert read.shape == (3, 64, 48, 3)
    assert psnr(read, np.rot90(frames, -1, axes=(1, 2))) > 33


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1001, 1e-9])
def test_bad_rates(tmp_path, fps):
    with pytest.raises(UsageError, match="frame rate"):
        write_video(tmp_path / "a.mp4", clip(1), fps, {}, "mp4")
    assert list(tmp_path.iterdir()) == []


def test_exact_rate():
    assert exact_rate(24000 / 1001) == Fraction(24000, 1001) and exact_rate(29.97) == Fraction(2997, 100)
    assert exact_rate(6) == 6 and exact_rate(Fraction(15, 2)) == Fraction(15, 2)


@pytest.mark.parametrize("shape", [(0, 32, 32, 3), (32, 32, 3), (2, 32, 32, 4)])
def test_bad_arrays_are_our_bugs(tmp_path, shape):
    with pytest.raises(ValueError):
        write_video(tmp_path / "a.mp4", np.zeros(shape, np.uint8), 6, {}, "mp4")


# --- gif and webp ---


def shown(path) -> list[float]:
    with Image.open(path) as image:
        return [(frame.load(), frame.info["duration"])[1] for frame in ImageSequence.Iterator(image)]


@pytest.mark.parametrize(("kind", "tick"), [("gif", 10), ("webp", 1)])
@pytest.mark.parametrize("fps", [7, 12.5, 24000 / 1001])
def test_whole_duration_is_right(tmp_path, kind, tick, fps):
    path = tmp_path / f"a.{kind}"
    assert write_video(path, clip(25, 16, 24), fps, {}, kind) == ()
    durations = shown(path)
    assert len(durations) == 25
    assert sum(durations) == pytest.approx(25_000 / fps, abs=tick / 2)
    assert max(durations) - min(durations) <= tick


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animations_loop(tmp_path, kind):
    write_video(tmp_path / f"a.{kind}", clip(3), 6, {}, kind)
    with Image.open(tmp_path / f"a.{kind}") as image:
        assert image.info["loop"] == 0 and image.is_animated


def test_gif_too_fast_says_so(tmp_path):
    notes = write_video(tmp_path / "a.gif", clip(4), 100, {}, "gif")
    assert len(notes) == 1 and "50 frames a second" in notes[0]
    assert shown(tmp_path / "a.gif") == [20] * 4


def test_gif_shares_one_palette_unless_that_is_far_worse(tmp_path):
    def loss(frames):
        write_video(tmp_path / "a.gif", frames, 6, {}, "gif")
        read, _ = read_video(tmp_path / "a.gif")
        return psnr(read, frames), len(np.unique(read.reshape(-1, 3), axis=0))

    quality, num_colours = loss(np.stack([np.roll(clip(1)[0], 3 * shift, axis=1) for shift in range(6)]))
    assert quality > 30 and num_colours <= 256
    quality, num_colours = loss(clip(6))  # each frame is another plane of the colour cube
    assert quality > 33 and num_colours > 600


def test_foreign_gif_with_uneven_delays(tmp_path):
    images = [Image.fromarray(frame) for frame in clip(3)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[100, 300, 100])
    read, rate = read_video(tmp_path / "a.gif")
    assert rate == 10 and len(read) == 5 and np.array_equal(read[1], read[3])
    images[0].save(
        tmp_path / "b.gif", save_all=True, append_images=images[1:], duration=[160, 170, 170], comment=b"hi"
    )
    read, rate = read_video(tmp_path / "b.gif")
    assert rate == 6 and len(read) == 3 and read_metadata(tmp_path / "b.gif") == {"comment": "hi"}


# --- png frames ---


def test_png_frames(tmp_path):
    frames = clip(12)
    write_video(tmp_path / "frames", frames, 7.5, {"comment": MANIFEST}, "png")
    assert sorted(entry.name for entry in (tmp_path / "frames").iterdir()) == [
        f"{i:05d}.png" for i in range(12)
    ]
    assert np.array_equal(read_video(tmp_path / "frames")[0], frames)
    write_video(tmp_path / "frames", frames[:2], 6, {}, "png")
    assert len(list((tmp_path / "frames").iterdir())) == 2  # nothing of the longer one is left
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no png frames"):
        read_video(tmp_path / "empty")
    Image.new("RGB", (20, 20)).save(tmp_path / "frames" / "00002.png")
    with pytest.raises(InputError, match="another size"):
        read_video(tmp_path / "frames")


# --- reading what is bad ---


@pytest.mark.parametrize("kind", KINDS)
def test_max_frames(tmp_path, kind):
    write_video(target(tmp_path, kind), clip(6), 6, {}, kind)
    assert len(read_video(target(tmp_path, kind), max_frames=4)[0]) == 4
    assert len(read_video(target(tmp_path, kind), max_frames=9)[0]) == 6


def refused(path, match):
    for read in (read_video, read_metadata):
        with pytest.raises(InputError, match=match) as caught:
            read(path)
        assert str(path) in caught.value.message and "\n" not in caught.value.message and caught.value.hint


def test_not_videos(tmp_path, capfd):
    refused(tmp_path / "none.mp4", "There is no file")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "empty")
    for name in ("text.mp4", "text.txt", "text.srt"):
        (tmp_path / name).write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n" * 20)
        refused(tmp_path / name, "is not a video")
    (tmp_path / "noise.mp4").write_bytes(
        np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8).tobytes()
    )
    refused(tmp_path / "noise.mp4", "is not a video")
    write_video(tmp_path / "real.mp4", clip(2), 6, {}, "mp4")
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile real.mp4\n")
    refused(tmp_path / "list.ffconcat", "is not a video")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
def test_still_pictures_are_no_videos(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(clip(1)[0]).save(path)
    with pytest.raises(InputError, match="still picture"):
        read_video(path)


def test_sound_only(tmp_path):
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    refused(path, "no picture track")


def test_video_without_frames(tmp_path):
    path = tmp_path / "a.y4m"
    path.write_bytes(b"YUV4MPEG2 W32 H32 F6:1 Ip A0:0 C420jpeg\n")
    with pytest.raises(InputError, match="has no frames"):
        read_video(path)


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated(tmp_path, suffix, share, capfd):
    frames = np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3)).astype(np.uint8)
    write_video(tmp_path / f"whole.{suffix}", frames, 6, {}, suffix)
    whole = (tmp_path / f"whole.{suffix}").read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_video(path)
    assert capfd.readouterr() == ("", "")


def test_gif_that_claims_to_be_huge(tmp_path):
    write_video(tmp_path / "a.gif", clip(2), 6, {}, "gif")
    data = bytearray((tmp_path / "a.gif").read_bytes())
    data[6:10] = (12_000).to_bytes(2, "little") * 2
    (tmp_path / "a.gif").write_bytes(bytes(data))
    with pytest.raises(InputError, match="too large: 12000x12000"):
        read_video(tmp_path / "a.gif")


@pytest.mark.parametrize("suffix", ["mp4", "gif", "webp"])
def test_damage_anywhere_is_one_sentence_or_a_video(tmp_path, suffix, capfd):
    random = np.random.default_rng(0)
    write_video(tmp_path / f"whole.{suffix}", clip(3), 6, {"comment": MANIFEST}, suffix)
    whole = np.frombuffer((tmp_path / f"whole.{suffix}").read_bytes(), np.uint8)
    path = tmp_path / f"broken.{suffix}"
    for _ in range(20):
        broken = whole.copy()
        broken[random.integers(0, len(broken), 8)] = random.integers(0, 256, 8)
        path.write_bytes(broken.tobytes())
        for read in (read_video, read_metadata):
            try:
                read(path)
            except InputError as error:
                assert str(path) in error.message
    assert capfd.readouterr() == ("", "")


# --- writing where it cannot be ---


@pytest.mark.parametrize("kind", KINDS)
def test_missing_folder_and_full_disk(tmp_path, kind, monkeypatch):
    with pytest.raises(UsageError, match="no folder"):
        write_video(tmp_path / "none" / "a", clip(1), 6, {}, kind)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(av, "open", full)
    with pytest.raises(MachineError, match="disk is full") as caught:
        write_video(target(tmp_path, kind), clip(1), 6, {}, kind)
    assert f"{target(tmp_path, kind)} " in caught.value.message  # the name that the user knows
    assert list(tmp_path.iterdir()) == []
