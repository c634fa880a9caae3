"""A curation folder of made-up clips, as the stages before the filter leave one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from svdcli.curate import tables
from svdcli.curate.course import Course
from svdcli.curate.proxy import Proxy
from svdcli.curate.rows import CutClip, Source, clip_id
from svdcli.recipe.curation import load_curation
from svdcli.recipe.filter import Filter

TICKS = 1000
"""of a second"""


def settings(*overrides: str) -> Filter:
    """The section filter, with `motion.drop=nothing` and the like."""
    return load_curation(None, [f"filter.{override}" for override in overrides]).filter


ONLY_MOTION = (
    "duplicates=keep",
    "aesthetic.drop=nothing",
    "similarity.drop=nothing",
    "text_area.drop=nothing",
)


def source(number: int, path: str = "") -> Source:
    return Source(
        hashlib.sha256(str(number).encode()).hexdigest()[:16],
        path or f"films/film {number}.mp4", 5000, "h264", 64, 48, Fraction(1, TICKS), 0, 600 * TICKS, 4800, 8.0,
    )  # fmt: skip


def clip(of: Source, start: float, seconds: float, video: bytes = b"", **other: Any) -> CutClip:
    first, last = round(start * TICKS), round((start + seconds) * TICKS)
    name = clip_id(of.id, first, last)
    values: dict[str, Any] = dict(
        id=name, source=of.id, start_pts=first, end_pts=last, start=first / TICKS, end=last / TICKS, opens="hard",
        closes="end", confidence=1.0, path=f"clips/{name[:2]}/{name}.mp4", size=len(video),
        digest=hashlib.sha256(video).hexdigest(), width=96, height=64, num_frames=16, fps=8.0, method="copy",
    )  # fmt: skip
    return CutClip(**(values | other))


def write_rows(folder: Path, sources: Sequence[Source], clips: Sequence[CutClip]) -> None:
    """Append to the tables sources and clips."""
    for name, kind, rows in (("sources", Source, sources), ("clips", CutClip, clips)):
        ordered = sorted(map(tables.to_row, rows), key=lambda row: str(row["id"]))
        tables.append(tables.table_folder(folder, name), ordered, tables.row_schema(kind))


def write_scores(
    folder: Path,
    name: str,
    columns: Mapping[str, type],
    rows: Mapping[str, Sequence[Any] | str],
    version: int = 1,
) -> None:
    """Append to a table of scores, by clip its values, or why it has none."""
    made = []
    for clip_name, values in sorted(rows.items()):
        reason = values if isinstance(values, str) else ""
        content = [None] * len(columns) if isinstance(values, str) else values
        made.append(
            {"clip": clip_name, "version": version, **dict(zip(columns, content, strict=True))}
            | {"not_computed": reason}
        )
    schema = tables.scores_schema(columns)
    tables.append(tables.table_folder(folder, f"scores/{name}"), made, schema, key="clip")


def write_numbers(
    folder: Path, name: str, column: str, values: Mapping[str, float | None], version: int = 1
) -> None:
    """Append to a table of one number a clip."""
    rows = {clip_name: [value] for clip_name, value in values.items()}
    write_scores(folder, name, {column: float}, rows, version)


def write_files(folder: Path, row: CutClip, video: bytes, seed: int = 0) -> None:
    """The clip's video and proxy: drifting stripes whose colour is the seed's."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(60, 255, 3)
    wave = np.sin((np.arange(96)[None] + np.arange(64)[:, None]) / rng.uniform(3, 12))
    small = np.stack([np.roll(wave, 3 * t * seed, 1) for t in range(5)])[..., None] * 0.4 + 0.5
    frames = (small * colour).astype(np.uint8)
    path = folder / row.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(video)
    proxy = folder / "proxies" / row.id[:2] / f"{row.id}.npz"
    proxy.parent.mkdir(parents=True, exist_ok=True)
    course = Course(*np.zeros((4, 5)))
    Proxy(np.arange(5) / 2, frames, frames[[0, 2, 4]], course).save(proxy)


def write_whole(
    folder: Path, videos: Sequence[bytes], num_sources: int = 3, clips_each: int = 4, first: int = 0
) -> list[CutClip]:
    """Tables, videos and proxies of so many clips, scored by the four axes of the paper; rising motion."""
    sources = [source(first + i) for i in range(num_sources)]
    clips = [
        clip(of, 10 * k, 2, videos[(i + k) % len(videos)], opens="start" if k == 0 else "hard")
        for i, of in enumerate(sources)
        for k in range(clips_each)
    ]
    write_rows(folder, sources, clips)
    for number, row in enumerate(clips):
        write_files(
            folder,
            row,
            videos[(number // clips_each + number % clips_each) % len(videos)],
            first * 100 + number,
        )
    numbers = np.arange(len(clips)) / len(clips)
    rng = np.random.default_rng(first)
    ids = [row.id for row in clips]
    write_numbers(folder, "motion", "motion", dict(zip(ids, numbers.tolist(), strict=True)))
    write_numbers(
        folder, "aesthetic", "aesthetic", dict(zip(ids, (4 + rng.random(len(ids))).tolist(), strict=True))
    )
    write_numbers(folder, "caption_image", "unused", dict.fromkeys(ids, 0.0))
    likeness = {name: [0.3, [0.2, 0.3, 0.4]] for name in ids}
    write_scores(folder, "similarity", {"similarity": float, "similarities": list}, likeness)
    areas = {name: [0.02, [0.0, 0.25, 0.25, 0.5, 0.25, 0.5, 0.5, 0.25, 0.5]] for name in ids}
    areas[ids[-1]] = [0.2, [1.0, 0.1, 0.1, 0.9, 0.1, 0.9, 0.5, 0.1, 0.5]]
    write_scores(folder, "text", {"text_area": float, "text_boxes": list}, areas)
    return clips


HASHES = {"packets": str, "phash": str, "change_hash": str, "pixels": int, "seconds": float}


def write_hashes(folder: Path, clips: Sequence[CutClip], same: Mapping[str, str] | None = None) -> None:
    """Hashes that differ, but of clips in `same`, which have those of another."""
    made = {}
    for row in clips:
        name = (same or {}).get(row.id, row.id)
        seed = hashlib.sha256(name.encode()).hexdigest()
        phash = "".join(hashlib.sha256(f"{seed}{i}".encode()).hexdigest() for i in range(2))
        changes = hashlib.sha256(f"{seed}c".encode()).hexdigest()[:56]
        made[row.id] = [seed[:32], phash, changes, row.width * row.height, row.end - row.start]
    write_scores(folder, "duplicates", HASHES, made)
