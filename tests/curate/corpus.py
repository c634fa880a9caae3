"""A curation folder of made-up clips, as the stages before the filter leave one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from svdcli.curate import tables
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
    Proxy(np.arange(5) / 2, frames, frames[[0, 2, 4]]).save(proxy)
