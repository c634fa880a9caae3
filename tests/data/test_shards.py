"""Clips and shards: what is written is what is read, by any tool, whatever kills the writer."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from svdcli.data import shards
from svdcli.data.clip import Clip
from svdcli.data.shards import ShardWriter, open_place, read_bytes, read_index
from svdcli.errors import InputError, MachineError

CLIP = Clip(
    "a-1",
    "film.mp4",
    1.5,
    3.5,
    24.0,
    96,
    64,
    48,
    0.25,
    None,
    5.5,
    "pan_left",
    (0.25, 0.5, 0.125),
    "a cat",
    "a cat runs ä",
    "",
)


def clips_in(place: str | Path) -> list[Clip]:
    return [Clip.from_row(row) for row in read_index(place).to_pylist()]


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    assert Clip.from_row(CLIP.to_row()) == CLIP
    with ShardWriter(tmp_path) as writer:
        written = writer.add(CLIP, b"video")
    (read,) = clips_in(tmp_path)
    assert read == written and replace(read, shard="", offset=0, size=0, digest="") == CLIP


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fps": 0.0}, "what cannot be"),
        ({"num_frames": 0}, "what cannot be"),
        ({"width": "wide"}, "width = 'wide'"),
        ({"source": 7}, "source = 7"),
        ({"height": None}, "no height"),
        ({"offset": -1}, "what cannot be"),
    ],
)
def test_rows_that_cannot_be(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Clip.from_row(CLIP.to_row() | change)
    assert Clip.from_row(CLIP.to_row() | {"a column of another tool": 1}) == CLIP


def test_bytes_come_back_by_offset_and_tar_lists_them(tmp_path: Path) -> None:
    videos = {f"clip_{i}": bytes([i]) * (400 + 331 * i) for i in range(7)}
    with ShardWriter(tmp_path, shard_bytes=4000) as writer:
        for key, video in videos.items():
            writer.add(replace(CLIP, key=key), video)
    found = clips_in(tmp_path)
    assert [c.key for c in found] == list(videos) and len({c.shard for c in found}) > 1
    filesystem, root = open_place(tmp_path)
    for clip in found:
        assert read_bytes(filesystem, root, clip) == videos[clip.key]
    for shard in {c.shard for c in found}:
        with tarfile.open(tmp_path / shard) as tar:
            keys = [c.key for c in found if c.shard == shard]
            assert tar.getnames() == [f"{key}.{kind}" for key in keys for kind in ("mp4", "json")]
            for member in tar.getmembers():
                data = tar.extractfile(member)
                assert data is not None
                if member.name.endswith("json"):
                    assert json.load(data)["caption_video"] == "a cat runs ä"
                else:
                    assert data.read() == videos[member.name[:-4]]


def test_the_same_clips_make_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        with ShardWriter(tmp_path / name) as writer:
            writer.add(CLIP, b"video")
    one, other = ((tmp_path / name / "000000.tar").read_bytes() for name in "ab")
    assert one == other


def test_a_url_holds_shards_too() -> None:
    with ShardWriter("memory://bucket/set") as writer:
        writer.add(CLIP, b"video bytes")
    (clip,) = clips_in("memory://bucket/set")
    assert read_bytes(*open_place("memory://bucket/set"), clip) == b"video bytes"
    with pytest.raises(MachineError, match="cannot be opened"):
        open_place("nosuchthing://bucket")


def test_a_killed_writer_leaves_nothing_that_an_index_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.add(CLIP, b"first")

    class Killed(BaseException):
        pass

    with pytest.raises(Killed), ShardWriter(tmp_path) as writer:
        writer.add(replace(CLIP, key="b"), b"second")
        raise Killed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.parquet", "000000.tar"]

    real = shards.require_pyarrow
    pa, pq = real()

    class Broken:
        @staticmethod
        def write_table(*args: object) -> None:
            raise Killed

    monkeypatch.setattr(shards, "require_pyarrow", lambda: (pa, Broken))
    with pytest.raises(Killed), ShardWriter(tmp_path) as writer:
        writer.add(replace(CLIP, key="b"), b"second")
    monkeypatch.setattr(shards, "require_pyarrow", real)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.parquet", "000000.tar", "000001.tar"]
    assert [c.key for c in clips_in(tmp_path)] == ["a-1"]
    with ShardWriter(tmp_path) as writer:  # and the shard without index makes room
        writer.add(replace(CLIP, key="c"), b"third")
    assert [(c.key, c.shard) for c in clips_in(tmp_path)] == [("a-1", "000000.tar"), ("c", "000001.tar")]
    assert read_bytes(*open_place(tmp_path), clips_in(tmp_path)[1]) == b"third"


def test_damage_is_an_input_error(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        clip = writer.add(CLIP, b"video" * 100)
        with pytest.raises(InputError, match="Two clips are called 'a-1'"):
            writer.add(CLIP, b"x")
        for key in ("a.b", "", "a/b", "x" * 91):
            with pytest.raises(InputError, match="cannot be called"):
                writer.add(replace(CLIP, key=key), b"x")
    place, tar = open_place(tmp_path), tmp_path / "000000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole.replace(b"videovideo", b"vidEovideo", 1))
    with pytest.raises(InputError, match="not those of the index"):
        read_bytes(*place, clip)
    tar.write_bytes(whole[: clip.offset + 9])
    with pytest.raises(InputError, match="ends within clip 'a-1'"):
        read_bytes(*place, clip)
    tar.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        read_bytes(*place, clip)
    (tmp_path / "000000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="is damaged"):
        read_index(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="names no clip"):
        read_index(tmp_path / "empty")
