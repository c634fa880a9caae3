"""The measures of one clip by name, each a function of the clip and what it was made of; and of many clips, kept on disk.

Those that measure what a VBench dimension (2311.17982) measures bear its name; where VBench uses a network that is not used
here, `about` says what stands in its place, and the figures are not VBench's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from svdcli.data.motion import dense_flow, grey_frames, motion_score
from svdcli.errors import InputError, UsageError
from svdcli.evaluate.frames import first_frame_psnr, flicker, sharpness, warp_error
from svdcli.evaluate.protocols import digest
from svdcli.evaluate.similarity import ssim
from svdcli.evaluate.videos import Clip, Manifested, content_hash, read_whole, why_not
from svdcli.io.images import fit_picture, read_picture

VERSION = 1
"""raised when a result changes: kept values of another version are measured again"""


@dataclass(frozen=True)
class Seen:
    """A clip as the measures get it."""

    frames: Clip
    """(T, H, W, 3)"""
    fps: float
    picture: npt.NDArray[np.floating] | None = None
    """(H, W, 3) in [0, 1]: what it was made of, at the clip's size"""


@dataclass(frozen=True)
class Measure:
    """A number of a clip."""

    about: str
    better: int
    """1: more is better, -1: less is, 0: neither"""
    of: Callable[[Seen], float]
    least_frames: int = 1
    needs_picture: bool = False


def _picture(seen: Seen) -> npt.NDArray[np.floating]:
    assert seen.picture is not None
    return seen.picture


def dynamic_degree(frames: Clip, fps: float) -> float:
    """1 where a clip moves, else 0: VBench's rule on Farnebäck's flow in place of RAFT's.

    At about 8 frames a second, the fastest 5 % of pixels must go beyond 6/256 of the shortest side in a quarter of the pairs.
    """
    stride = max(1, round(fps / 8))
    grey = grey_frames(frames[::stride], min(256, *frames.shape[1:3]))
    if len(grey) < 2:
        return 0.0
    limit, moving = 6 / 256 * min(grey[0].shape), 0
    for before, after in pairwise(grey):
        speed = np.sort(np.linalg.norm(dense_flow(before, after), axis=-1), axis=None)
        moving += float(speed[-max(1, len(speed) // 20) :].mean()) > limit
    return float(moving >= max(1, round(4 * len(grey) / 16)))


def temporal_flickering(frames: Clip) -> float:
    """1 - mean |f[t] - f[t+1]| / 255, as VBench has it, which means it for static scenes: motion lowers it too."""
    gaps = [np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)]
    return 1 - float(np.mean(gaps)) / 255


def colour_drift(frames: Clip) -> float:
    """How far the mean colour of the last tenth is from that of the first, in [0, 1], Euclidean over RGB / sqrt(3)."""
    part = max(1, len(frames) // 10)
    gap = frames[:part].mean((0, 1, 2)) - frames[-part:].mean((0, 1, 2))
    return float(np.linalg.norm(gap)) / 255 / 3**0.5


def sharpness_kept(frames: Clip) -> float:
    """Detail of the last frame over that of the first: below 1 a clip blurs as it goes. 1 where the first has none."""
    first = sharpness(frames[:1])
    return sharpness(frames[-1:]) / first if first > 0 else 1.0


MEASURES: dict[str, Measure] = {
    "motion": Measure("mean flow, in shortest sides a second", 0, lambda s: motion_score(s.frames, s.fps), 2),
    "dynamic_degree": Measure(
        "VBench's rule with Farnebäck's flow for RAFT's: moves (1) or not (0)",
        0,
        lambda s: dynamic_degree(s.frames, s.fps),
        2,
    ),
    "first_frame_psnr": Measure(
        "first frame against the picture, dB", 1, lambda s: first_frame_psnr(s.frames, _picture(s)), 1, True
    ),
    "first_frame_ssim": Measure(
        "first frame against the picture", 1, lambda s: ssim(s.frames[0] / 255.0, _picture(s)), 1, True
    ),
    "temporal_flickering": Measure(
        "VBench's: 1 - mean change of a pixel; for static scenes",
        1,
        lambda s: temporal_flickering(s.frames),
        2,
    ),
    "flicker": Measure("second difference in time over brightness", -1, lambda s: flicker(s.frames), 3),
    "warp_error": Measure("a frame against the next, warped back", -1, lambda s: warp_error(s.frames), 2),
    "colour_drift": Measure("mean colour, last against first", -1, lambda s: colour_drift(s.frames), 2),
    "sharpness_kept": Measure(
        "detail of the last frame over the first's", 1, lambda s: sharpness_kept(s.frames), 2
    ),
}
FLICKER = ("temporal_flickering", "flicker", "warp_error", "colour_drift", "sharpness_kept", "dynamic_degree")
FAITHFUL = ("first_frame_psnr", "first_frame_ssim")
NOT_HERE = {
    "subject_consistency": "needs DINO ViT-B/16",
    "motion_smoothness": "needs AMT-S",
    "imaging_quality": "needs MUSIQ",
    "aesthetic_quality": "needs CLIP ViT-L/14 and LAION's head",
}
"""VBench dimensions that are not computed, and why"""

Row = dict[str, float]


def measure_clip(seen: Seen, names: Sequence[str]) -> Row:
    """The named measures of a clip; those that need a picture, or more frames, and lack them are absent. Raises InputError."""
    if unknown := [name for name in names if name not in MEASURES]:
        raise UsageError(f"There is no measure {unknown[0]}.", f"Measures: {', '.join(MEASURES)}.")
    chosen = {name: MEASURES[name] for name in names}
    return {
        name: measure.of(seen)
        for name, measure in chosen.items()
        if len(seen.frames) >= measure.least_frames
        and (seen.picture is not None or not measure.needs_picture)
    }


def measure_clips(
    clips: Sequence[Manifested],
    names: Sequence[str],
    pictures: Mapping[str, Path],
    cache: Path | None,
    on_video: Callable[[str], None] = lambda note: None,
) -> tuple[dict[str, Row], dict[str, str]]:
    """Many clips -> ({path: row}, {path: why it is left out}). Values are kept by the contents of clip and picture.

    The picture of a clip is that of its name, else its sidecar's `source`. Raises InputError where no clip can be measured.
    """
    rows: dict[str, Row] = {}
    left_out: dict[str, str] = {}
    with closing(_open(cache)) as kept:
        for clip in clips:
            try:
                rows[str(clip.path)] = _measured(clip, names, pictures, kept)
                on_video(clip.path.name)
            except (InputError, OSError) as error:
                left_out[str(clip.path)] = why_not(error)
                on_video(f"{clip.path.name}: left out")
    if not rows:
        raise InputError(
            f"None of {len(clips)} videos can be measured; {Path(next(iter(left_out))).name}: {next(iter(left_out.values()))}.",
            "Look at one.",
        )
    return rows, left_out


def _measured(
    clip: Manifested, names: Sequence[str], pictures: Mapping[str, Path], kept: sqlite3.Connection
) -> Row:
    picture = find_picture(clip, pictures)
    fit = str(clip.manifest.get("fit", "crop"))
    source = content_hash(picture) + fit if picture else ""
    key = digest([content_hash(clip.path), source, VERSION])
    row: Row = dict(kept.execute("SELECT name, value FROM measures WHERE clip = ?", (key,)).fetchall())
    if lacking := [name for name in names if name not in row]:
        frames, fps = read_whole(clip.path)
        new = measure_clip(Seen(frames, fps, _fitted(picture, frames, fit) if picture else None), lacking)
        with kept:
            kept.executemany(
                "INSERT OR REPLACE INTO measures VALUES (?, ?, ?)", [(key, n, v) for n, v in new.items()]
            )
        row |= new
    return {name: row[name] for name in names if name in row}


def find_picture(clip: Manifested, pictures: Mapping[str, Path]) -> Path | None:
    """What a clip was made of, as far as it is known and still there."""
    given = pictures.get(clip.path.stem)
    source = Path(str(clip.manifest["source"])) if clip.manifest.get("source") else None
    return given or (source if source is not None and source.is_file() else None)


def _fitted(picture: Path, frames: Clip, fit: str) -> npt.NDArray[np.floating]:
    height, width = frames.shape[1:3]
    how: Any = fit if fit in ("crop", "pad", "stretch") else "crop"
    return np.asarray(fit_picture(read_picture(picture), width, height, how))


def _open(cache: Path | None) -> sqlite3.Connection:
    try:
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
        base = sqlite3.connect(cache / "measures.sqlite" if cache is not None else ":memory:", timeout=60)
        base.execute(
            "CREATE TABLE IF NOT EXISTS measures (clip TEXT, name TEXT, value REAL, PRIMARY KEY (clip, name))"
        )
    except (OSError, sqlite3.Error) as error:
        raise UsageError(
            f"Measures cannot be kept in {cache}: {error}.", "Choose another --cache."
        ) from error
    return base


def summarise(rows: Mapping[str, Row], num_draws: int = 2000) -> dict[str, dict[str, Any]]:
    """Means over clips, with 95 % intervals (bootstrap over clips) and how many clips each rests on."""
    found = {}
    for name, measure in MEASURES.items():
        values = np.array([row[name] for row in rows.values() if name in row])
        if len(values):
            found[name] = bootstrap(values, num_draws) | {"about": measure.about}
    return found


def bootstrap(values: npt.NDArray[np.float64], num_draws: int = 2000) -> dict[str, Any]:
    """The mean of values (N,) and its 95 % interval, from always the same draws.

    There is none (NaN) of one value, or where some are infinite.
    """
    rng, num = np.random.default_rng(0), len(values)
    means = values[rng.integers(0, num, (num_draws, num))].mean(1)
    known = num > 1 and np.isfinite(means).all()  # PSNR of equal pictures is infinite
    low, high = np.percentile(means, [2.5, 97.5]) if known else (np.nan, np.nan)
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "num": num}
