"""Features of many videos, one at a time, kept on disk: a second run, or one after a kill, measures only the rest."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from svdcli.errors import InputError, UsageError
from svdcli.evaluate.frechet import Array
from svdcli.evaluate.networks import Network
from svdcli.evaluate.protocols import Protocol, digest
from svdcli.evaluate.videos import Clip, content_hash, frame_numbers, mean_fps, open_video, why_not

OnVideo = Callable[[str], None]


@dataclass
class FeatureSet:
    """What a set of videos looks like to a network."""

    features: Array
    """(N, D)"""
    names: list[str]
    hashes: list[str]
    fps: list[float]
    sizes: list[tuple[int, int]]
    """(H, W) of each video itself"""
    left_out: dict[str, str] = field(default_factory=dict)
    """videos that could not be measured, and why"""
    num_cached: int = 0

    def thinned(self, num: int) -> FeatureSet:
        """`num` of the videos, chosen by their content, so that the same ones are chosen each time."""
        kept = sorted(np.argsort(self.hashes, kind="stable")[:num].tolist())
        return FeatureSet(
            self.features[kept],
            [self.names[i] for i in kept],
            [self.hashes[i] for i in kept],
            [self.fps[i] for i in kept],
            [self.sizes[i] for i in kept],
            self.left_out,
            self.num_cached,
        )

    @property
    def digest(self) -> str:
        """Of the contents: equal for the same videos in any order, under any name."""
        return digest(sorted(self.hashes))


def default_cache() -> Path:
    """Where features are kept unless told otherwise."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(home).expanduser() / "svdcli" / "features"


class FeatureStore:
    """One SQLite file a network and view; each video's features are on disk before the next video is opened."""

    def __init__(self, folder: Path | None, protocol: Protocol, network: Network) -> None:
        name = digest({"view": protocol.view(), "network": network.sha256, "version": 1})
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            place = str(folder / f"{name}.sqlite") if folder is not None else ":memory:"
            self.base = sqlite3.connect(place, timeout=60)
            self.base.execute(
                "CREATE TABLE IF NOT EXISTS features (video TEXT PRIMARY KEY, fps REAL, height INT, width INT, vector BLOB)"
            )
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"Features cannot be kept in {folder}: {error}.", "Choose another --cache."
            ) from error

    def get(self, video: str) -> tuple[float, tuple[int, int], Array] | None:
        row = self.base.execute(
            "SELECT fps, height, width, vector FROM features WHERE video = ?", (video,)
        ).fetchone()
        return (row[0], (row[1], row[2]), np.frombuffer(row[3], np.float64)) if row else None

    def put(self, video: str, fps: float, size: tuple[int, int], vector: Array) -> None:
        with self.base:
            row = video, fps, *size, vector.astype(np.float64).tobytes()
            self.base.execute("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        self.base.close()


def measure_features(
    videos: Sequence[Path],
    protocol: Protocol,
    network: Network,
    cache: Path | None,
    on_video: OnVideo = lambda note: None,
) -> FeatureSet:
    """Features of every video, by the protocol; those that cannot be measured are left out, each with its reason.

    One video is held at a time. `cache` None keeps nothing. Raises InputError where none can be measured.
    """
    result, rows = FeatureSet(np.empty((0, 0)), [], [], [], []), []
    with closing(FeatureStore(cache, protocol, network)) as store:
        for path in videos:
            note = path.name
            try:
                key = content_hash(path)
                found = store.get(key)
                result.num_cached += found is not None
                if found is None:
                    fps, size, clip = take_clip(path, protocol, key)
                    vector = network.embed([clip])[0]
                    if not np.isfinite(vector).all():
                        raise InputError("the network makes numbers of it that are not finite")
                    found = fps, size, vector
                    store.put(key, *found)
            except (InputError, OSError) as error:
                result.left_out[str(path)] = why_not(error)
                on_video(f"{note}: left out")
                continue
            result.names.append(str(path))
            result.hashes.append(key)
            result.fps.append(found[0])
            result.sizes.append(found[1])
            rows.append(found[2])
            on_video(note)
    if not rows:
        name, reason = next(iter(result.left_out.items()))
        raise InputError(
            f"None of {len(videos)} videos can be measured; {Path(name).name}: {reason}.", "See the protocol."
        )
    result.features = np.stack(rows)
    return result


def take_clip(path: Path, protocol: Protocol, key: str) -> tuple[float, tuple[int, int], Clip]:
    """A video -> (its own rate, its own (H, W), the protocol's clip uint8 (T, h, w, 3)). Raises InputError.

    `key` decides where a random window begins.
    """
    reader = open_video(path)
    start = int(key[:8], 16) / 2**32 if protocol.window == "random" else 0.0
    frames = reader.read(frame_numbers(reader.times, protocol.num_frames, protocol.fps, start))
    size = frames[0].shape[:2]
    clip = np.stack(frames) if protocol.size is None else np.stack(list(_covering(frames, *protocol.size)))
    return mean_fps(reader.times), (int(size[0]), int(size[1])), clip


def _covering(frames: Sequence[npt.NDArray[np.uint8]], height: int, width: int) -> Iterator[Clip]:
    """Each frame scaled to cover (height, width), bilinear with antialiasing, and its middle cut out."""
    for frame in frames:
        rows, columns = frame.shape[:2]
        scale = max(height / rows, width / columns)
        if scale != 1:
            rows, columns = max(height, round(rows * scale)), max(width, round(columns * scale))
            pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
            pixels = functional.interpolate(
                pixels, size=(rows, columns), mode="bilinear", antialias=True, align_corners=False
            )
            frame = pixels[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        top, left = (rows - height) // 2, (columns - width) // 2
        yield frame[top : top + height, left : left + width]
