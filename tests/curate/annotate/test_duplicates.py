"""Copies are found whatever was done to them, takes from one tripod are not, and time grows with the table."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from svdcli.curate.annotate.duplicates import DuplicatesAnnotator, packet_hash
from svdcli.curate.annotate.groups import Group, groups
from svdcli.errors import InputError
from svdcli.io.video import read_video

Frames = npt.NDArray[np.uint8]
FPS = 10
HASHER = DuplicatesAnnotator()


def scene(scenes: ModuleType, seed: int, num_frames: int = 40) -> Frames:
    """Four seconds of a bar that wanders over a picture that slides, its own for each seed; 180x320."""
    rng = np.random.default_rng(seed)
    wide = cv2.resize(scenes.procedural(seed), (480, 300), interpolation=cv2.INTER_CUBIC)
    path = np.cumsum(rng.normal(0, 12, (num_frames, 2)), axis=0).astype(int)
    speed = rng.uniform(0.5, 2)
    frames = []
    for index in range(num_frames):
        x, y = int(speed * index) + 20, 40
        frame = wide[y : y + 180, x : x + 320].copy()
        across, down = np.clip(path[index] + [150, 80], 0, [260, 120])
        frame[down : down + 60, across : across + 60] = 240
        frames.append(frame)
    return np.stack(frames)


def tripod(background: Frames, seed: int, num_frames: int = 40) -> Frames:
    """A take before a background that never moves: a dark spot goes its own way."""
    path = np.cumsum(np.random.default_rng(seed).normal(0, 14, (num_frames, 2)), axis=0).astype(int)
    frames = np.repeat(background[None], num_frames, axis=0).copy()
    for frame, step in zip(frames, path, strict=True):
        across, down = np.clip(step + [150, 80], 30, [290, 150])
        cv2.circle(frame, (int(across), int(down)), 28, (20, 20, 30), -1)
    return frames


def scaled(frames: Frames, factor: float) -> Frames:
    size = (int(frames.shape[2] * factor) // 2 * 2, int(frames.shape[1] * factor) // 2 * 2)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def cropped(frames: Frames, share: float) -> Frames:
    down, across = int(frames.shape[1] * share), int(frames.shape[2] * share)
    return np.ascontiguousarray(frames[:, down:-down, across:-across])


def recoded(frames: Frames, tmp_path: Path, crf: int) -> Frames:
    path = tmp_path / f"crf{crf}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf), "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return read_video(path)[0]


@pytest.fixture
def hashed(make_view: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Frames -> the row of their perceptual hashes, each with packets of its own."""
    monkeypatch.setattr("svdcli.curate.annotate.duplicates.packet_hash", lambda path: path.name)
    return lambda name, frames: HASHER.annotate([make_view(name, frames, FPS)])[0]


def test_copies_are_found_and_distinct_clips_are_not(hashed: Any, scenes: ModuleType, tmp_path: Path) -> None:
    rows, expected = [], []
    for seed in range(6):
        original = scene(scenes, seed)
        copies = {
            "coded": recoded(original, tmp_path, 38),
            "half": scaled(original, 0.5),
            "brighter": np.clip(original * 1.15 + 8, 0, 255).astype(np.uint8),
            "cropped": cropped(original, 0.04),
            "second": recoded(scaled(original, 0.5), tmp_path, 32),
        }
        rows.append(hashed(f"{seed}-original", original))
        rows += [hashed(f"{seed}-{name}", frames) for name, frames in copies.items()]
        expected.append({f"{seed}-original", *(f"{seed}-{name}" for name in copies)})
    found = groups(rows)
    assert [{group.keeper, *group.others} for group in found] == expected
    assert all(group.keeper.endswith(("brighter", "coded", "original")) for group in found)  # most pixels


def test_takes_from_one_tripod_are_distinct(hashed: Any, scenes: ModuleType, tmp_path: Path) -> None:
    background = cv2.resize(scenes.procedural(9), (320, 180))
    takes = [tripod(background, seed) for seed in range(6)]
    rows = [hashed(f"take{seed}", take) for seed, take in enumerate(takes)]
    assert groups(rows) == []
    assert groups([*rows, hashed("copy", recoded(takes[3], tmp_path, 34))]) == [Group("copy", ("take3",))]


def test_real_signers_before_one_wall_are_distinct(hashed: Any, shared: Path, tmp_path: Path) -> None:
    rows = []
    for name in ("book", "learn", "bird", "brother", "again"):
        frames, _ = read_video(shared / "videos" / f"intel_asl__{name}.mkv", 110)
        rows.append(hashed(name, scaled(frames, 0.5)[::3]))
        if name == "learn":
            rows.append(hashed("copy", recoded(scaled(frames, 0.4)[::3], tmp_path, 34)))
    assert groups(rows) == [Group("learn", ("copy",))]


def test_flat_clips_are_no_copies_of_each_other(hashed: Any) -> None:
    rows = [hashed(f"{level}", np.full((20, 90, 160, 3), level, np.uint8)) for level in (0, 90, 200)]
    assert all(set(row["phash"]) == {"0"} for row in rows)
    assert groups(rows) == []


def test_packets_are_the_same_in_any_container(make_view: Any, scenes: ModuleType, tmp_path: Path) -> None:
    view = make_view("a", scene(scenes, 1, 10), FPS, write=True)
    other = tmp_path / "b.mkv"
    with av.open(str(view.video)) as source, av.open(str(other), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert view.video.read_bytes() != other.read_bytes()
    assert packet_hash(view.video) == packet_hash(other)
    assert packet_hash(make_view("c", scene(scenes, 2, 10), FPS, write=True).video) != packet_hash(other)
    with pytest.raises(InputError, match="cannot be read"):
        packet_hash(tmp_path / "missing.mp4")


def test_exact_copies_of_flat_clips_are_found(hashed: Any) -> None:
    rows = [hashed(name, np.zeros((20, 90, 160, 3), np.uint8)) | {"packets": "same"} for name in "cab"]
    assert groups(rows) == [Group("a", ("b", "c"))]


def random_rows(number: int, share: float) -> list[dict[str, Any]]:
    """Rows of random hashes, of which the last `share` are copies of the first with 12 % of the bits flipped."""
    rng = np.random.default_rng(number)
    copies = int(number * share)
    pictures, changes = rng.random((number, 512)) < 0.5, rng.random((number, 224)) < 0.5
    pictures[-copies:] = pictures[:copies] ^ (rng.random((copies, 512)) < 0.12)
    changes[-copies:] = changes[:copies] ^ (rng.random((copies, 224)) < 0.1)
    return [
        {
            "clip": f"{index:06d}",
            "packets": str(index),
            "phash": np.packbits(pictures[index]).tobytes().hex(),
            "change_hash": np.packbits(changes[index]).tobytes().hex(),
            "pixels": 1 if index < number - copies else 2,
            "seconds": 1.0,
        }
        for index in range(number)
    ]


def test_groups_of_a_large_table_in_less_than_quadratic_time() -> None:
    seconds = []
    for number in (2000, 16000):
        rows = random_rows(number, 0.05)
        begun = time.process_time()
        found = groups(rows)
        seconds.append(time.process_time() - begun)
        wrong = [group for group in found if int(group.keeper) - int(group.others[0]) != number * 0.95]
        assert not wrong
        assert len(found) > 0.97 * number * 0.05
    assert seconds[1] < 24 * seconds[0]  # eight times the rows: quadratic would be 64


def test_order_changes_nothing_and_the_keeper_is_the_best() -> None:
    rows = random_rows(400, 0.1)
    reference = groups(rows)
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert groups(shuffled) == reference
    assert all(int(group.keeper) >= 360 for group in reference)  # those of more pixels
    same = [
        row | {"pixels": 1, "seconds": 2.0 if row["clip"] == "000001" else 1.0, "packets": "x"}
        for row in rows[:3]
    ]
    assert groups(same) == [Group("000001", ("000000", "000002"))]
    assert groups([]) == [] and groups(rows[:1]) == []


def test_embeddings_find_what_hashes_miss() -> None:
    rng = np.random.default_rng(0)
    rows = [row | {"change_hash": "0" * 56} for row in random_rows(300, 0.01)[:200]]
    vectors = rng.standard_normal((200, 3 * 64))
    vectors[150] = vectors[20] + 0.1 * rng.standard_normal(192)
    embeddings = {row["clip"]: vector.tolist() for row, vector in zip(rows, vectors, strict=True)}
    assert groups(rows) == []
    assert groups(rows, embeddings) == [Group("000020", ("000150",))]
    partial = {clip: value for clip, value in embeddings.items() if clip != "000150"}
    assert groups(rows, partial) == []
    rows[20], rows[150] = rows[20] | {"change_hash": "a5" * 28}, rows[150] | {"change_hash": "5a" * 28}
    assert groups(rows, embeddings) == []  # two takes: what changes is another
