"""The dataset: what `svd train` reads, appended to, taken from, and the same bytes whatever killed the packing."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from svdcli.curate.packing.dataset import remove_clips
from svdcli.curate.packing.pack import pack
from svdcli.curate.packing.statistics import YEAR, statistics
from svdcli.curate.packing.takedown import remove_source
from svdcli.curate.select.select import select
from svdcli.data.clip import Clip
from svdcli.data.dataset import count_videos, open_dataset
from svdcli.data.shards import ShardWriter, open_place, read_bytes, read_index
from svdcli.errors import InputError
from svdcli.recipe.curation import Pack
from svdcli.recipe.recipe import Data

pytest.importorskip("pyarrow.parquet")
pytest.importorskip("duckdb")
SETTINGS = ("duplicates=keep", "similarity.drop=nothing", "aesthetic.drop=nothing")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def keys(place: Path) -> list[str]:
    return list(read_index(place)["key"].to_pylist())


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch, mp4s: list[bytes]) -> None:
    """Shards of three clips."""
    size = 2 * (max(map(len, mp4s)) + 2560) + 1
    assert size <= 3 * (min(map(len, mp4s)) + 2048)
    first = ShardWriter.__init__

    def init(self: ShardWriter, place: str | Path, prefix: str = "", shard_bytes: int = size) -> None:
        first(self, place, prefix, min(shard_bytes, size) if shard_bytes < 2**62 else shard_bytes)

    monkeypatch.setattr(ShardWriter, "__init__", init)


def test_train_reads_what_is_packed(tmp_path: Path, corpus: ModuleType, mp4s: list[bytes]) -> None:
    clips = corpus.write_whole(tmp_path, mp4s)
    captions = {clip.id: [f"film of {clip.start:g}"] for clip in clips}
    corpus.write_scores(tmp_path, "caption_video", {"caption_video": str}, captions)
    moves = {clip.id: ["pan_left" if clip.start else "static"] for clip in clips}
    corpus.write_scores(tmp_path, "camera", {"camera": str}, moves)
    select(tmp_path, corpus.settings(*SETTINGS))
    done = pack(tmp_path, Pack(), tmp_path / "dataset")
    stay = clips[3:11]  # the lowest quarter of motion goes, and the last is full of text
    assert (done.added, done.present, done.removed, dict(done.lost)) == (8, 0, 0, {})
    rows = {row["key"]: Clip.from_row(row) for row in read_index(tmp_path / "dataset").to_pylist()}
    assert list(rows) == sorted(clip.id for clip in stay)
    one = rows[stay[1].id]
    assert (one.source, one.start, one.end, one.fps, one.num_frames) == ("film 1.mp4", 0.0, 2.0, 8.0, 16)
    assert (
        one.motion == pytest.approx(4 / 12)
        and one.text_area == 0.02
        and one.similarities == pytest.approx((0.2, 0.3, 0.4))
    )
    assert one.caption_video == "film of 0" and one.caption_image == "" and 4 <= (one.aesthetic or 0) <= 5
    filesystem, root = open_place(tmp_path / "dataset")
    for clip in stay:
        assert hashlib.sha256(read_bytes(filesystem, root, rows[clip.id])).hexdigest() == clip.digest
    data = Data(source=tmp_path / "dataset", held_out=("film 2*",), width=96, height=64, frame_cache=None)
    assert count_videos(data) == (5, 3)
    pans = sum(row.camera == "pan_left" for row in rows.values())
    assert 0 < pans < 8 and sum(count_videos(data.model_copy(update={"camera": "pan_left"}))) == pans
    train, held = open_dataset(data, tmp_path / "cache")
    assert {video.name for video in train.videos} | {video.name for video in held.videos} == set(rows)
    video = next(video for video in train.videos if video.name == one.key)
    frames = train.take(video, [0, 15])
    assert frames.shape == (2, 64, 96, 3) and 10 < frames[1].mean() - frames[0].mean() < 20


def test_later_clips_come_behind_and_a_rerun_changes_nothing(
    tmp_path: Path, corpus: ModuleType, mp4s: list[bytes], small_shards: None
) -> None:
    corpus.write_whole(tmp_path, mp4s)
    select(tmp_path, corpus.settings(*SETTINGS))
    place = tmp_path / "dataset"
    pack(tmp_path, Pack(), place)
    before = files(place)
    assert len(before) == 6 and pack(tmp_path, Pack(), place).present == 8 and files(place) == before
    later = corpus.write_whole(tmp_path, mp4s, num_sources=2, first=7)
    select(tmp_path, corpus.settings(*SETTINGS))
    done = pack(tmp_path, Pack(), place)
    after = files(place)
    assert done.present == 8 and done.added == len(keys(place)) - 8 > 3
    assert {name: after[name] for name in before} == before
    assert set(keys(place)[8:]) <= {clip.id for clip in later}


def test_a_killed_packing_ends_in_the_same_bytes(
    tmp_path: Path, corpus: ModuleType, mp4s: list[bytes], small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus.write_whole(tmp_path, mp4s)
    select(tmp_path, corpus.settings(*SETTINGS))
    pack(tmp_path, Pack(), tmp_path / "whole")
    add = ShardWriter.add
    for after in (1, 3, 5):
        place, count = tmp_path / f"killed{after}", 0

        def killed(self: ShardWriter, clip: Clip, video: bytes, after: int = after) -> Clip:
            nonlocal count
            count += 1
            if count > after:
                raise KeyboardInterrupt
            return add(self, clip, video)

        monkeypatch.setattr(ShardWriter, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            pack(tmp_path, Pack(), place)
        monkeypatch.setattr(ShardWriter, "add", add)
        assert len(list(place.glob("*.tar"))) == after // 3
        pack(tmp_path, Pack(), place)
        assert files(place) == files(tmp_path / "whole")


def test_what_cannot_be_packed_is_named_and_stops_nothing(
    tmp_path: Path, corpus: ModuleType, mp4s: list[bytes]
) -> None:
    with pytest.raises(InputError, match="holds no sources"):
        pack(tmp_path, Pack(), tmp_path / "dataset")
    clips = corpus.write_whole(tmp_path, mp4s)
    with pytest.raises(InputError, match="not filtered yet"):
        pack(tmp_path, Pack(), tmp_path / "dataset")
    select(tmp_path, corpus.settings(*SETTINGS))
    (tmp_path / clips[4].path).unlink()
    (tmp_path / clips[5].path).write_bytes(b"another")
    done = pack(tmp_path, Pack(), tmp_path / "dataset")
    assert done.added == 6 and set(done.lost) == {clips[4].id, clips[5].id}
    assert (
        "cannot be read" in done.lost[clips[4].id]
        and "not the file that was checked" in done.lost[clips[5].id]
    )
    (tmp_path / clips[4].path).write_bytes(mp4s[(1 + 0) % 3])
    assert pack(tmp_path, Pack(), tmp_path / "dataset").added == 1


def test_clips_that_are_no_longer_kept(
    tmp_path: Path, corpus: ModuleType, mp4s: list[bytes], small_shards: None
) -> None:
    corpus.write_whole(tmp_path, mp4s)
    select(tmp_path, corpus.settings(*SETTINGS))
    pack(tmp_path, Pack(), tmp_path / "dataset")
    select(tmp_path, corpus.settings(*SETTINGS, "motion.drop=lowest 50%"), refreeze=True)
    with pytest.raises(InputError, match="3 clips that the filter no longer keeps"):
        pack(tmp_path, Pack(), tmp_path / "dataset")
    assert pack(tmp_path, Pack(stale="remove"), tmp_path / "dataset").removed == 3
    assert len(keys(tmp_path / "dataset")) == 5


def test_takedown_touches_the_shards_of_its_source_alone(
    tmp_path: Path, corpus: ModuleType, mp4s: list[bytes], small_shards: None
) -> None:
    clips = corpus.write_whole(tmp_path, mp4s, num_sources=4)
    corpus.write_whole(tmp_path, mp4s, num_sources=1, first=9)
    select(tmp_path, corpus.settings(*SETTINGS, "motion.drop=nothing"))
    place = tmp_path / "dataset"
    pack(tmp_path, Pack(), place)
    before, held = files(place), {row["key"]: row["shard"] for row in read_index(place).to_pylist()}
    gone = {clip.id for clip in clips if clip.source == clips[4].source}
    its = {held[key][:-4] for key in gone if key in held}
    assert 0 < len(its) < len(set(held.values()))
    done = remove_source(tmp_path, "films/film 1.mp4")
    after = files(place)
    assert done.clips == 4 and done.dataset.clips == len(gone & held.keys())
    for name in before:
        if name.split(".")[0] not in its:
            assert after[name] == before[name]
    for key in gone:
        assert not any(key.encode() in content for content in after.values())
        assert not list(tmp_path.rglob(f"{key}.*"))
    assert set(keys(place)) == held.keys() - gone
    filesystem, root = open_place(place)
    for row in read_index(place).to_pylist():
        read_bytes(filesystem, root, Clip.from_row(row))
        with tarfile.open(place / row["shard"]) as tar:
            assert f"{row['key']}.mp4" in tar.getnames()
    assert statistics(tmp_path)["all"].num_clips == 16
    select(tmp_path, corpus.settings(*SETTINGS, "motion.drop=nothing"))
    assert pack(tmp_path, Pack(), place).added == 0 and files(place) == after
    lines = [
        json.loads(line)
        for path in (tmp_path / "journal").iterdir()
        for line in path.read_text().splitlines()
    ]
    assert [(line["stage"], line["item"]) for line in lines] == [("remove", clips[4].source)]
    with pytest.raises(InputError, match="no source films/film 1.mp4"):
        remove_source(tmp_path, "films/film 1.mp4")


def test_statistics_are_those_of_table_1(tmp_path: Path, corpus: ModuleType, mp4s: list[bytes]) -> None:
    corpus.write_whole(tmp_path, mp4s)
    assert set(statistics(tmp_path)) == {"all"}
    select(tmp_path, corpus.settings(*SETTINGS))
    found = statistics(tmp_path)
    every, kept = found["all"], found["kept"]
    assert (every.num_clips, every.num_sources, every.clips_per_source, every.cuts_per_source) == (
        12,
        3,
        4,
        3,
    )
    assert (every.mean_seconds, every.std_seconds, every.mean_frames) == (2.0, 0.0, 16.0)
    assert (
        every.total_years == pytest.approx(24 / YEAR) and kept.num_clips == 8 and kept.scored["motion"] == 8
    )


def test_a_killed_removal_is_mended_by_the_same_command(
    tmp_path: Path, corpus: ModuleType, mp4s: list[bytes], small_shards: None
) -> None:
    corpus.write_whole(tmp_path, mp4s)
    select(tmp_path, corpus.settings(*SETTINGS))
    place = tmp_path / "dataset"
    pack(tmp_path, Pack(), place)
    before, first = files(place), keys(place)[:1]
    assert remove_clips(place, first).rewritten == ("000000.tar",)
    after = files(place)
    (place / "000000.parquet").write_bytes(before["000000.parquet"])  # the shard is new, its index not yet
    assert remove_clips(place, first).clips == 1 and files(place) == after
    gone = {row["key"] for row in read_index(place).to_pylist() if row["shard"] == "000001.tar"}
    assert remove_clips(place, gone).deleted == ("000001.tar",)
    assert files(place) == {name: data for name, data in after.items() if not name.startswith("000001")}
