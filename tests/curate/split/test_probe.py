"""What a source is, and which files are none."""

from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import edits
import numpy as np
import pytest

from svdcli.curate.split.opening import frames, opened
from svdcli.curate.split.probe import is_variable, probe, square_size
from svdcli.errors import InputError

SHOT = edits.moving(1, 24)


def sound_file(file: Path, picture: bool = False) -> Path:
    """Half a second of a tone, with or without a cover picture."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        cover = None
        if picture:
            cover = container.add_stream("mjpeg", rate=25)
            cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
        for i in range(4):
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 8000, i * 1024
            container.mux(stream.encode(tone))
        if cover:
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(cover.encode(frame))
            container.mux(cover.encode(None))
        container.mux(stream.encode(None))
    return file


def test_a_plain_source(tmp_path: Path) -> None:
    source = probe(edits.write(tmp_path / "a.mp4", SHOT)).source
    assert (source.codec, source.width, source.height, source.num_frames) == ("h264", 160, 90, 24)
    assert source.fps == pytest.approx(25, abs=0.01)
    assert source.seconds == pytest.approx(24 / 25, abs=1e-3)
    assert not (source.interlaced or source.variable_frame_rate or source.hdr or source.rotation_deg)


def test_the_id_is_of_the_bytes_not_the_name(tmp_path: Path) -> None:
    one = edits.write(tmp_path / "a.mp4", SHOT)
    other = tmp_path / "-b 'quoted'\n.mkv"
    other.write_bytes(one.read_bytes())
    assert probe(one).source.id == probe(other).source.id


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sar": Fraction(4, 3)}, {"sample_aspect": Fraction(4, 3), "width": 214, "height": 90}),
        ({"pix_fmt": "yuv420p10le"}, {"bit_depth": 10}),
        ({"ticks": edits.even_ticks(12) + [43200 + 9000 * i for i in range(12)]}, {"variable_frame_rate": True}),
    ],
)  # fmt: skip
def test_what_normalising_it_takes(tmp_path: Path, options: dict, said: dict) -> None:
    source = probe(edits.write(tmp_path / "a.mp4", SHOT, **options)).source
    assert {name: getattr(source, name) for name in said} == said


def test_interlacing_is_told_by_the_frames(tmp_path: Path) -> None:
    file = edits.write(tmp_path / "a.mp4", SHOT[:, :64], bframes=0, options={"flags": "+ildct"})
    assert probe(file).source.interlaced


def test_hdr_is_told_by_its_transfer(tmp_path: Path) -> None:
    options = {"x264-params": "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"}
    file = edits.write(tmp_path / "a.mp4", SHOT, pix_fmt="yuv420p10le", options=options)
    assert probe(file).source.hdr == "pq"


def test_rotation_makes_it_upright(shared: Path) -> None:
    source = probe(shared / "cuts" / "pyscenedetect__issue-134-rotate.mp4").source
    assert (source.rotation_deg, source.width, source.height) == (270, 544, 1280)


def test_length_comes_from_the_packets_not_the_header(tmp_path: Path) -> None:
    file = edits.write(tmp_path / "a.mkv", SHOT)
    content = bytearray(file.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3  # the element Duration, 8 bytes
    content[at : at + 8] = struct.pack(">d", 36e6)  # milliseconds
    file.write_bytes(content)
    with av.open(str(file)) as container:
        assert container.duration == 36_000e6  # ten hours, a lie
    assert probe(file).source.seconds == pytest.approx(24 / 25, abs=2e-3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sound.m4a", "no video"),
        ("cover.mp4", "cover picture"),
        ("one.mp4", "single frame"),
        ("empty.mp4", "empty"),
        ("text.mp4", "not a video"),
        ("list.m3u8", "not a video"),
        ("concat.txt", "not a video"),
        ("still.png", "not a video"),
        ("cut.mp4", "cut off"),
        ("folder", "folder"),
        ("absent.mp4", "no file"),
    ],
)
def test_what_is_no_source_is_refused_with_its_reason(tmp_path: Path, name: str, reason: str) -> None:
    file = tmp_path / name
    whole = edits.write(tmp_path / "whole.mp4", SHOT)
    if name in {"sound.m4a", "cover.mp4"}:
        sound_file(file, picture=name == "cover.mp4")
    elif name == "one.mp4":
        edits.write(file, SHOT[:1])
    elif name == "folder":
        file.mkdir()
    elif name == "cut.mp4":
        file.write_bytes(whole.read_bytes()[:-400])  # its table of contents is at the end
    elif name == "still.png":
        import cv2

        cv2.imwrite(str(file), SHOT[0])
    elif name != "absent.mp4":
        lines = {
            "empty.mp4": "",
            "text.mp4": "no video at all\n" * 50,
            "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{whole}\n#EXT-X-ENDLIST\n",
            "concat.txt": f"ffconcat version 1.0\nfile {whole.name}\n",
        }
        file.write_text(lines[name])
    with pytest.raises(InputError, match=reason):
        probe(file)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.mp4"))
    try:
        file.write_bytes(edits.write(tmp_path / "a.mp4", SHOT).read_bytes())
    except OSError:
        pytest.skip("this file system takes no names that are no text")
    source = probe(file).source
    assert source.num_frames == 24
    source.path.encode("utf-8")  # a table can hold it


def test_frames_come_in_order_with_their_own_stamps(tmp_path: Path) -> None:
    ticks = [0, 100, 9000, 9100, 30000, 30001]
    file = edits.write(tmp_path / "a.mp4", SHOT[:6], ticks=ticks)
    with opened(file) as (container, stream):
        assert [shown.stamp for shown in frames(container, stream)] == ticks


def test_damage_is_seen_and_lasts_to_the_next_keyframe(tmp_path: Path) -> None:
    file = edits.write(tmp_path / "a.mp4", edits.actors(3, 60), gop=20, scenecut=False, bframes=0)
    content = bytearray(file.read_bytes())
    with av.open(str(file)) as container:
        hurt = [packet for packet in container.demux(video=0) if packet.size][25]
        place, size = hurt.pos, hurt.size
    content[place + 8 : place + size] = bytes(size - 8)
    file.write_bytes(content)
    with opened(file) as (container, stream):
        stream.codec_context.options = {"err_detect": "explode"}
        damaged = [shown.stamp // 3600 for shown in frames(container, stream) if shown.damaged]
    assert damaged and min(damaged) >= 25 and max(damaged) < 40


def test_variable_rate_is_more_than_rounding() -> None:
    assert not is_variable(np.array([0, 33, 67, 100, 133, 167, 200] * 1))
    assert is_variable(np.array([0, 33, 67, 167, 267, 300, 333]))


def test_square_pixels_are_even_and_never_smaller() -> None:
    assert square_size(720, 576, Fraction(16, 15)) == (768, 576)
    assert square_size(720, 480, Fraction(8, 9)) == (720, 540)
    assert square_size(720, 480, Fraction(1)) == (720, 480)
