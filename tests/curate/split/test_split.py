"""A source becomes clips: every one checked, none with a cut in it, every second accounted for."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import decord
import edits
import numpy as np
import pytest

from svdcli.curate.proxy import Proxy
from svdcli.curate.split.check import fault, has_edit_list
from svdcli.curate.split.clipping import Written, thumb_of, write_exact
from svdcli.curate.split.probe import probe
from svdcli.curate.split.smart import annex_b
from svdcli.curate.split.split import SplitResult, split_source
from svdcli.errors import InputError
from svdcli.recipe.curation import Split

LENGTH = 30
SETTINGS = Split(min_seconds=0.4, max_seconds=8.0, preset="ultrafast", trim=False)


def edited(file: Path, **options) -> edits.Edit:
    """Three shots of 1.2 seconds with hard cuts between."""
    edit = edits.Edit()
    for seed in (1, 4, 7):
        edit.cut(edits.actors(seed, LENGTH))
    edits.write(file, edit.frames, **options)
    return edit


def ticks_of(result: SplitResult) -> list[tuple[int, int]]:
    return [(clip.start_pts // 3600, clip.end_pts // 3600) for clip in result.clips]


def assert_accounted(result: SplitResult) -> None:
    kept = sum(clip.end - clip.start for clip in result.clips)
    assert kept + sum(result.lost.values()) == pytest.approx(result.source.seconds, abs=1e-6)


@pytest.mark.parametrize("clipping", ["exact", "snap", "smart"])
def test_clips_begin_and_end_at_the_cuts(tmp_path: Path, clipping: str) -> None:
    edit = edited(tmp_path / "a.mp4")
    result = split_source(tmp_path / "a.mp4", tmp_path, SETTINGS.model_copy(update={"clipping": clipping}))
    assert ticks_of(result) == [(0, 30), (30, 60), (60, 90)]
    assert [(clip.opens, clip.closes) for clip in result.clips] == [
        ("start", "hard"),
        ("hard", "hard"),
        ("hard", "end"),
    ]
    assert_accounted(result)
    for clip, first in zip(result.clips, (0, 30, 60), strict=True):
        video = decord.VideoReader(str(tmp_path / clip.path), num_threads=1)
        assert len(video) == clip.num_frames == LENGTH
        for number in (0, LENGTH - 1):  # no frame of a neighbour
            seen = video[number].asnumpy().astype(float)
            assert np.abs(seen - edit.frames[first + number]).mean() < 12
        assert not has_edit_list(tmp_path / clip.path)


def test_what_keyframes_allow_is_copied_bit_for_bit(tmp_path: Path) -> None:
    edited(tmp_path / "a.mp4")
    result = split_source(tmp_path / "a.mp4", tmp_path, SETTINGS)
    assert {clip.method for clip in result.clips} == {"copy"}  # the encoder put keyframes at the cuts
    with av.open(str(tmp_path / "a.mp4")) as whole:
        frames = [frame.to_ndarray(format="rgb24") for frame in whole.decode(video=0)]
    with av.open(str(tmp_path / result.clips[1].path)) as clip:
        copied = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    assert np.array_equal(np.stack(copied), np.stack(frames[30:60]))


def test_snapping_moves_both_ends_inwards(tmp_path: Path) -> None:
    edited(tmp_path / "a.mp4", gop=8, scenecut=False, bframes=2)
    settings = SETTINGS.model_copy(update={"max_snap_loss": 0.6})
    result = split_source(tmp_path / "a.mp4", tmp_path, settings)
    assert ticks_of(result) == [(0, 24), (32, 56), (64, 90)]
    assert {clip.method for clip in result.clips} == {"copy"}
    assert result.lost["snapped"] == pytest.approx(16 / 25)
    assert_accounted(result)


def test_where_snapping_costs_too_much_the_clip_is_cut_exactly(tmp_path: Path) -> None:
    edited(tmp_path / "a.mp4", gop=100, scenecut=False)
    result = split_source(tmp_path / "a.mp4", tmp_path, SETTINGS)
    assert ticks_of(result) == [(0, 30), (30, 60), (60, 90)]
    assert {clip.method for clip in result.clips} == {"encode"}


def test_smart_copies_the_middle_and_encodes_the_ends(tmp_path: Path) -> None:
    edit = edited(tmp_path / "a.mp4", gop=8, scenecut=False, bframes=2)
    settings = SETTINGS.model_copy(update={"clipping": "smart"})
    result = split_source(tmp_path / "a.mp4", tmp_path, settings)
    assert ticks_of(result) == [(0, 30), (30, 60), (60, 90)] and not result.lost
    assert {clip.method for clip in result.clips} == {"smart"}
    for clip, first in zip(result.clips, (0, 30, 60), strict=True):
        frames = decord.VideoReader(str(tmp_path / clip.path), num_threads=1)[:].asnumpy().astype(float)
        assert np.abs(frames - np.stack(edit.frames[first : first + 30])).mean((1, 2, 3)).max() < 12


def test_parameter_sets_get_start_codes() -> None:
    box = bytes([1, 66, 0, 10, 0xFF, 0xE1, 0, 3]) + b"SPS" + bytes([1, 0, 2]) + b"PP"
    assert annex_b(box) == b"\0\0\0\1SPS\0\0\0\1PP"
    assert annex_b(b"\0\0\0\1already") == b"\0\0\0\1already"


def test_run_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    edited(tmp_path / "a.mp4", gop=100, scenecut=False)
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        assert split_source(tmp_path / "a.mp4", folder, SETTINGS).clips
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) == 6 and files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


def test_stamps_of_a_variable_rate_stay_to_the_tick(tmp_path: Path) -> None:
    ticks = np.cumsum([0, *[3000] * 29, *[9000] * 30, *[3000] * 30]).tolist()
    edited(tmp_path / "a.mp4", ticks=ticks)
    for clipping in ("exact", "snap"):
        settings = SETTINGS.model_copy(update={"clipping": clipping})
        result = split_source(tmp_path / "a.mp4", tmp_path, settings)
        assert [clip.start_pts for clip in result.clips] == [0, ticks[30], ticks[60]]
        for clip, first in zip(result.clips, (0, 30, 60), strict=True):
            with av.open(str(tmp_path / clip.path)) as container:
                stream = container.streams.video[0]
                seen = [frame.pts * stream.time_base for frame in container.decode(stream)]
            assert seen == [Fraction(tick - ticks[first], edits.TICKS) for tick in ticks[first : first + 30]]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"sar": Fraction(4, 3)}, (214, 90)),
        ({"pix_fmt": "yuv420p10le"}, (160, 90)),
        ({"pix_fmt": "yuv444p"}, (160, 90)),
    ],
)
def test_normalised(tmp_path: Path, options: dict, size: tuple[int, int]) -> None:
    edited(tmp_path / "a.mp4", **options)
    result = split_source(tmp_path / "a.mp4", tmp_path, SETTINGS)
    assert len(result.clips) == 3 and {(clip.width, clip.height) for clip in result.clips} == {size}
    source = probe(tmp_path / result.clips[0].path).source
    assert (source.sample_aspect, source.bit_depth, source.interlaced) == (1, 8, False)
    with av.open(str(tmp_path / result.clips[0].path)) as container:
        assert (
            container.streams.video[0].codec_context.pix_fmt == "yuv420p" or result.clips[0].method == "copy"
        )


def test_fields_become_frames_one_for_each(tmp_path: Path) -> None:
    edits.write(tmp_path / "a.mp4", edits.moving(1, 30)[:, :64], bframes=0, options={"flags": "+ildct"})
    (clip,) = split_source(tmp_path / "a.mp4", tmp_path, SETTINGS).clips
    assert (clip.method, clip.num_frames, clip.height) == ("encode", 30, 64)
    assert not probe(tmp_path / clip.path).source.interlaced


def test_rotated_sources_come_out_upright(shared: Path, tmp_path: Path) -> None:
    file = shared / "cuts" / "pyscenedetect__issue-134-rotate.mp4"
    found = probe(file)
    written = write_exact(file, found, 0, 5 * 1001, (0, 0, 0, 0), tmp_path / "a.mp4", SETTINGS)
    assert (written.width, written.height) == (544, 1280) and len(written.stamps) == 5
    with av.open(str(file)) as container:
        frame = next(container.decode(video=0))
        wanted = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
    with av.open(str(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 0
        assert np.abs(frame.to_ndarray(format="rgb24").astype(float) - wanted).mean() < 4


def test_hdr_is_dropped_mapped_or_kept(tmp_path: Path) -> None:
    options = {"x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
    edited(tmp_path / "a.mp4", pix_fmt="yuv420p10le", options=options)
    with pytest.raises(InputError, match="PQ"):
        split_source(tmp_path / "a.mp4", tmp_path, SETTINGS.model_copy(update={"hdr": "drop"}))
    for policy, depth, transfer in (("tonemap", 8, ""), ("keep", 10, "pq")):
        settings = SETTINGS.model_copy(update={"hdr": policy, "clipping": "exact"})
        result = split_source(tmp_path / "a.mp4", tmp_path, settings)
        source = probe(tmp_path / result.clips[0].path).source
        assert (source.bit_depth, source.hdr) == (depth, transfer)


def test_letterbox_is_cropped_and_said(tmp_path: Path) -> None:
    frames = [np.pad(frame, ((20, 20), (0, 0), (0, 0))) for frame in edits.moving(6, 30) // 2 + 60]
    edits.write(tmp_path / "a.mp4", frames)
    (clip,) = split_source(tmp_path / "a.mp4", tmp_path, SETTINGS).clips
    assert clip.crop == (0, 20, 0, 20) and (clip.width, clip.height) == (160, 90)
    kept = SETTINGS.model_copy(update={"letterbox": "keep"})
    (clip,) = split_source(tmp_path / "a.mp4", tmp_path, kept).clips
    assert clip.crop == (0, 0, 0, 0) and clip.height == 130


def test_black_and_frozen_ends_are_trimmed(tmp_path: Path) -> None:
    shot = edits.moving(2, 40, 1.5)
    black = [np.zeros_like(shot[0])] * 15
    edits.write(tmp_path / "a.mp4", [*black, *shot, *[shot[-1]] * 40])
    settings = SETTINGS.model_copy(update={"trim": True, "clipping": "exact"})
    result = split_source(tmp_path / "a.mp4", tmp_path, settings)
    (clip,) = result.clips
    assert clip.start_pts == 15 * 3600 and clip.closes == "trim"
    assert abs(clip.end_pts - 55 * 3600) <= 2 * 3600
    assert result.lost["frozen"] > 1.4
    assert_accounted(result)


def test_long_shots_become_equal_parts_and_short_ones_are_left_out(tmp_path: Path) -> None:
    edits.write(tmp_path / "a.mp4", [*edits.moving(2, 100), *edits.actors(5, 8)], gop=500)
    settings = SETTINGS.model_copy(update={"max_seconds": 1.5, "clipping": "exact"})
    result = split_source(tmp_path / "a.mp4", tmp_path, settings)
    assert [clip.num_frames for clip in result.clips] == [33, 34, 33]
    assert result.clips[0].closes == result.clips[1].opens == "limit"
    assert result.lost == {"short": pytest.approx(8 / 25)}


def test_damaged_frames_are_in_no_clip(tmp_path: Path) -> None:
    file = edits.write(tmp_path / "a.mp4", edits.moving(3, 75), gop=25, scenecut=False, bframes=0)
    content = bytearray(file.read_bytes())
    with av.open(str(file)) as container:
        hurt = [packet for packet in container.demux(video=0) if packet.size][30]
        place, size = hurt.pos, hurt.size
    content[place + 8 : place + size] = bytes(size - 8)
    file.write_bytes(content)
    result = split_source(file, tmp_path, SETTINGS)
    assert result.lost["damaged"] > 0 and result.clips
    assert all(clip.end_pts <= 30 * 3600 or clip.start_pts >= 50 * 3600 for clip in result.clips)
    assert_accounted(result)


def test_sound_is_dropped_or_kept(tmp_path: Path) -> None:
    edited(tmp_path / "mute.mp4")
    with av.open(str(tmp_path / "mute.mp4")) as mute, av.open(str(tmp_path / "a.mp4"), "w") as out:
        copy = out.add_stream_from_template(mute.streams.video[0])
        voice = out.add_stream("aac", rate=8000)
        for packet in mute.demux(video=0):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
        for i in range(29):
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 8000, i * 1024
            out.mux(voice.encode(tone))
        out.mux(voice.encode(None))
    for clipping in ("snap", "exact"):
        for audio in ("drop", "keep"):
            settings = SETTINGS.model_copy(update={"audio": audio, "clipping": clipping})
            result = split_source(tmp_path / "a.mp4", tmp_path, settings)
            with av.open(str(tmp_path / result.clips[1].path)) as container:
                assert bool(container.streams.audio) == (audio == "keep")
                if audio == "keep":
                    seconds = sum(p.duration * p.time_base for p in container.demux(audio=0) if p.size)
                    assert seconds == pytest.approx(1.2, abs=0.15)


def test_the_proxy_shows_the_clip(tmp_path: Path) -> None:
    edit = edited(tmp_path / "a.mp4")
    clip = split_source(tmp_path / "a.mp4", tmp_path, SETTINGS).clips[1]
    proxy = Proxy.load(tmp_path / "proxies" / clip.id[:2] / f"{clip.id}.npz")
    assert (
        proxy.times[0] == 0 and (np.diff(proxy.times) > 0).all() and proxy.times[-1] < clip.end - clip.start
    )
    assert len(proxy.small) == len(proxy.times) >= 3 and min(proxy.small.shape[1:3]) == 64
    assert proxy.keys.shape == (3, 90, 160, 3)
    for key, number in zip(proxy.keys, (30, None, 59), strict=True):
        if number is not None:
            assert np.abs(key.astype(float) - edit.frames[number]).mean() < 12
    course = proxy.course
    assert len(course.times) == clip.num_frames and course.times[0] == 0 == course.change[0]
    assert course.times[-1] == pytest.approx((clip.num_frames - 1) / clip.fps, abs=1e-4)
    shown = np.stack(edit.frames[30:60]).mean((1, 2)) @ (0.299, 0.587, 0.114)
    assert np.abs(course.light - shown).max() < 4


# --- the check ---


@pytest.fixture
def clip(tmp_path: Path) -> tuple[Path, Written]:
    source = edits.write(tmp_path / "source.mp4", edits.moving(3, 20, 2.0))
    file = tmp_path / "clip.mp4"
    return file, write_exact(source, probe(source), 0, 20 * 3600, (0, 0, 0, 0), file, SETTINGS)


def test_a_sound_clip_passes(clip: tuple[Path, Written]) -> None:
    assert fault(*clip, whole=True) == fault(*clip, whole=False) == ""


def test_each_fault_is_told(clip: tuple[Path, Written]) -> None:
    file, meant = clip
    other = thumb_of(edits.moving(9, 1)[0])
    faults = {
        "19": replace(meant, stamps=meant.stamps[:-1]),
        "off": replace(meant, stamps=(*meant.stamps[:-1], Fraction(20, 25))),
        "160x90": replace(meant, width=158),
        "last frame": replace(meant, ends=(meant.ends[0], other)),
        "first frame": replace(meant, ends=(other, meant.ends[1])),
    }
    for said, wrong in faults.items():
        assert said in fault(file, wrong, whole=False)


def test_an_edit_list_is_a_fault(tmp_path: Path, clip: tuple[Path, Written]) -> None:
    """What ffmpeg writes of frames in another order than that of decoding, and decord does not mind."""
    file = edits.write(tmp_path / "b.mp4", edits.moving(3, 20, 2.0), bframes=2)
    assert has_edit_list(file)
    assert "edit list" in fault(file, clip[1], whole=True)


def test_a_clip_that_fails_its_check_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from svdcli.curate.split import split

    edited(tmp_path / "a.mp4")
    seen: list[bool] = []

    def strict(file: Path, meant: Written, whole: bool) -> str:
        seen.append(whole)
        return "" if whole else "copied"  # only what was encoded is decoded whole

    monkeypatch.setattr(split, "fault", strict)
    result = split_source(tmp_path / "a.mp4", tmp_path, SETTINGS)
    assert {clip.method for clip in result.clips} == {"encode"} and seen == [False, True] * 3

    monkeypatch.setattr(split, "fault", lambda *_, **__: "never right")
    result = (
        split_source(tmp_path / "a.mp4", tmp_path / "sub", SETTINGS)
        if (tmp_path / "sub").mkdir() is None
        else None
    )
    assert not result.clips and result.lost["unreadable"] == pytest.approx(result.source.seconds)
    assert not list((tmp_path / "sub").rglob("*.mp4"))
