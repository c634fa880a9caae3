"""Tiny videos whose frames tell their own numbers."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from svdcli.data.clip import Clip
from svdcli.data.shards import ShardWriter
from svdcli.io.video import write_video


def grey(num_frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames each brighter than the one before: brightness tells the number."""
    levels = (40 + 5 * np.arange(num_frames)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(levels[:, None, None, None], (num_frames, height, width, 3)))


def numbers(frames: np.ndarray) -> list[int]:
    return np.round((np.asarray(frames).astype(float).mean(axis=(1, 2, 3)) - 40) / 5).astype(int).tolist()


def write_uneven(file: Path, frames: np.ndarray, ticks: list[int]) -> None:
    """An mp4 whose frames are shown at `ticks` ninetieths of a second."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 90)
        stream.codec_context.max_b_frames = 2
        for pixels, tick in zip(frames, ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 90)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def mp4(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """16 frames of 96×64 at 8 a second."""
    file = tmp_path_factory.mktemp("mp4") / "a.mp4"
    write_video(file, grey(16), 8.0, {}, "mp4")
    return file.read_bytes()


MakeShards = Callable[..., Path]


@pytest.fixture
def make_shards(tmp_path: Path, mp4: bytes) -> MakeShards:
    """A folder of so many clips in shards of three, of which some videos are replaced by other bytes."""

    def make(count: int, bad: dict[int, bytes] | None = None, name: str = "shards") -> Path:
        folder = tmp_path / name
        with ShardWriter(folder, shard_bytes=3 * (len(mp4) + 2048)) as writer:
            for i in range(count):
                clip = Clip(f"c{i:03d}", f"film{i // 2}.mp4", 0.0, 2.0, 8.0, 96, 64, 16, motion=0.1 + i / 10)
                writer.add(clip, (bad or {}).get(i, mp4))
        return folder

    return make
