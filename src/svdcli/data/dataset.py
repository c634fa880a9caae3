"""The dataset that a recipe names, opened: which clips there are, which are held out, what could not be read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch
from functools import cache as cache_once
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from svdcli.data.clip import Clip
from svdcli.data.footage import Footage, dice, is_held_out
from svdcli.data.frames import FrameSet, file_stamp, load_frames
from svdcli.data.reader import PICTURE_SUFFIXES, Corrupt, by_reason, mean_fps, numbered_pictures, open_reader
from svdcli.data.shards import index_files, open_place, read_bytes, read_index
from svdcli.data.stream import Choice, Index, Stream
from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.recipe.recipe import Data

CAMERA = "camera"
"""Column of an index that names what the camera does, as curation's annotator `camera` writes it."""
VIDEO_SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif"}


def open_dataset(data: Data, cache: Path) -> tuple[Footage, Footage]:
    """The recipe's clips as (training, held out). What is decoded or measured once is kept in `cache`.

    Raises InputError where either is empty, where a file of the dataset's own is damaged, and where more than
    `data.max_corrupt_share` of a folder's videos cannot be read.
    """
    if has_shards(data):
        return _open_shards(data, cache)
    if data.frame_cache or (data.frame_cache is None and len(data.sizes) == 1):
        return _open_frames(data, cache)
    return _open_folder(data, cache)


def has_shards(data: Data) -> bool:
    """Whether the source is a folder or URL of shards."""
    return holds_shards(data.location)


def holds_shards(location: str) -> bool:
    """Whether a folder or URL is one of shards."""
    return "://" in location or bool(index_files(location))


def count_videos(data: Data) -> tuple[int, int]:
    """How many clips there are (to train on, held out), before any is decoded. Raises as `open_dataset` does."""
    if has_shards(data):
        kept, held = _shard_split(data, read_index(data.location, _columns(data)))
        return int(kept.sum()), int(held.sum())
    apart = held_apart(data, [(path.name, path.name) for path in find_videos(data)])
    return require_both(int((~apart).sum()), int(apart.sum()))


def held_apart(data: Data, names: Sequence[tuple[str, str]]) -> np.ndarray:
    """Which of (name, source) are held out (N,): by their names, or a share of the sources; of few sources one at least."""
    flags = np.array([is_held_out(*pair, data.held_out, data.held_out_share) for pair in names], bool)
    sources = {source for _, source in names}
    if data.held_out_share and not flags.any() and len(sources) > 1:
        flags = np.array([source == min(sources, key=dice) for _, source in names])
    return flags


def require_both(num_kept: int, num_apart: int) -> tuple[int, int]:
    if not num_kept or not num_apart:
        raise InputError(
            f"There are {num_kept} videos to train on and {num_apart} held out; both need one at least.",
            "List some of the file names, not all, under data.held_out, or set data.held_out_share.",
        )
    return num_kept, num_apart


# ---- a folder ------------------------------------------------------------------------------------------


def find_videos(data: Data) -> list[Path]:
    """Video files and folders of numbered frames below the source, in order of their names, less the excluded.

    Raises InputError where there is none.
    """
    folder = data.source
    if not folder.is_dir():
        hint = f"Give a folder of videos as data.source; a relative path starts at {Path.cwd()}."
        raise InputError(f"The dataset {folder} is not a folder.", hint)
    found = videos_below(folder)
    if data.camera is not None:
        raise InputError(
            f"data.camera = {data.camera!r} needs an index that knows each clip's camera, and {folder} is a folder of videos.",
            "Curate it with `svd curate run`, or list the clips by name in data.include.",
        )
    kept = [p for p in found if is_wanted(data, p.name)]
    if not found:
        raise InputError(
            f"There is no video in {folder}.",
            f"Videos end in {', '.join(sorted(VIDEO_SUFFIXES))}; frames are folders of numbered png or jpg.",
        )
    if not kept:
        raise InputError(
            f"data.exclude and data.include leave none of {len(found)} videos in {folder}.", "Leave more."
        )
    return kept


def is_wanted(data: Data, *names: str) -> bool:
    """Whether a clip of those names is among the included and not among the excluded."""

    def match(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(name, pattern) for name in names for pattern in patterns)

    return not match(data.exclude) and (not data.include or match(data.include))


def videos_below(folder: Path, suffixes: Collection[str] = VIDEO_SUFFIXES) -> list[Path]:
    """Files of those suffixes and folders of numbered frames at any depth, in order of their names."""
    found, pictured = [], set[Path]()
    for path in folder.rglob("*"):
        suffix = path.suffix.lower()
        if suffix in suffixes and path.is_file():
            found.append(path)
        elif suffix in PICTURE_SUFFIXES:
            pictured.add(path.parent)
    return sorted([*found, *(path for path in pictured if len(numbered_pictures(path)) > 1)])


def _open_frames(data: Data, cache: Path) -> tuple[Footage, Footage]:
    if len(data.sizes) > 1:
        raise InputError(
            "data.frame_cache keeps frames of one size, and data.buckets has several.", "Drop one."
        )
    paths = find_videos(data)
    how = data.width, data.height, data.max_fps, data.max_frames, cache, data.reader, data.frames_fps
    whole = load_frames(paths, *how)
    require_readable(len(paths), whole.skipped, data.max_corrupt_share)
    texts = {path.name: text for path in paths if (text := _caption(path))}
    flags = held_apart(data, [(video.name, video.name) for video in whole.videos])
    kept = tuple(video for video, flag in zip(whole.videos, flags, strict=True) if not flag)
    apart = tuple(video for video, flag in zip(whole.videos, flags, strict=True) if flag)
    require_both(len(kept), len(apart))
    sets: list[FrameSet] = [replace(whole, videos=videos, texts=texts) for videos in (kept, apart)]
    return sets[0], replace(sets[1], skipped={})


def _caption(path: Path) -> str:
    """The text beside a video, under its name: a.txt for a.mp4."""
    beside = path.with_suffix(".txt")
    return " ".join(beside.read_text(encoding="utf-8", errors="replace").split()) if beside.is_file() else ""


def _open_folder(data: Data, cache: Path) -> tuple[Footage, Footage]:
    paths = find_videos(data)
    clips, skipped = _probe_all(data, paths, cache)
    require_readable(len(paths), skipped, data.max_corrupt_share)

    def stamp(clip: Clip) -> str:
        return json.dumps(file_stamp(data.source / clip.source, data.source))

    flags = held_apart(data, [(clip.key, clip.key) for clip in clips])
    kept = [clip for clip, flag in zip(clips, flags, strict=True) if not flag]
    apart = [clip for clip, flag in zip(clips, flags, strict=True) if flag]
    require_both(len(kept), len(apart))
    return _streams(data, kept, apart, lambda clip: data.source / clip.source, stamp, cache, skipped)


def _probe_all(data: Data, paths: Iterable[Path], cache: Path) -> tuple[list[Clip], dict[str, str]]:
    """Size, rate and length of each video, kept in the cache while the file stays as it is; why others have none."""
    file = cache / "probes.json"
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    probes = {}
    for path in paths:
        said = json.dumps([file_stamp(path, data.source), str(data.source), data.frames_fps, data.reader])
        key = hashlib.sha256(said.encode()).hexdigest()[:32]
        probes[key] = known.get(key) or _probe(data, path)
    if not probes.keys() <= known.keys():
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(known | probes))
    clips = [Clip.from_row(row) for row in probes.values() if "reason" not in row]
    return clips, {str(row["name"]): str(row["reason"]) for row in probes.values() if "reason" in row}


def _probe(data: Data, path: Path) -> dict[str, object]:
    try:
        reader = open_reader(path, path.name, data.reader, data.frames_fps)
        height, width = reader.read([0])[0].shape[:2]
    except Corrupt as error:
        return {"name": path.name, "reason": error.reason}
    times = reader.times
    fps = round(mean_fps(times), 3) or data.max_fps
    span = float(times[-1]) + 1 / fps
    source = str(path.relative_to(data.source))
    clip = Clip(path.name, source, 0.0, span, fps, width, height, len(times), caption_video=_caption(path))
    return asdict(clip)


# ---- shards --------------------------------------------------------------------------------------------


def _columns(data: Data) -> list[str] | None:
    """What of an index must be read to split it; all of it where it may lack a column, which is then named."""
    return None if data.camera is not None else ["key", "source"]


def _shard_split(data: Data, table: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of an index are trained on, and which are held out (N,); data.exclude leaves out the others."""
    columns = ("key", "source")
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InputError(
            f"The index in {data.location} has no column {missing[0]}.", "See svdcli.data.clip.Clip."
        )
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    names = [(str(key), Path(str(source)).name) for key, source in rows]
    left = np.array([is_wanted(data, *pair) for pair in names])
    if not left.any():
        raise InputError(
            f"data.exclude and data.include leave none of {len(names)} clips in {data.location}.",
            "Leave more.",
        )
    left &= _filmed(data, table)
    apart = np.zeros_like(left)
    apart[left] = held_apart(data, [pair for pair, kept in zip(names, left, strict=True) if kept])
    require_both(int((left & ~apart).sum()), int((left & apart).sum()))
    return left & ~apart, left & apart


def _filmed(data: Data, table: Any) -> np.ndarray:
    """Which rows have the camera class that the recipe wants (N,)."""
    if data.camera is None:
        return np.ones(len(table), dtype=bool)
    classes = table[CAMERA].to_pylist() if CAMERA in table.column_names else []
    known = {str(value) for value in classes if value}
    if not known:
        raise InputError(
            f"The index in {data.location} knows no clip's camera, so data.camera = {data.camera!r} chooses nothing.",
            "Curate with the camera annotator, or list the clips by name in data.include.",
        )
    found = np.array([value == data.camera for value in classes])
    if not found.any():
        raise InputError(
            f"No clip in {data.location} has the camera class {data.camera!r}.",
            f"There are {', '.join(sorted(known))}.",
        )
    return found


def _open_shards(data: Data, cache: Path) -> tuple[Footage, Footage]:
    table = read_index(data.location)
    kept, held = (Index(table.filter(rows)) for rows in _shard_split(data, table))
    filesystem, root = open_place(data.location)
    fetch = partial(read_bytes, filesystem, root)

    @cache_once
    def shard_state(shard: str) -> str:
        info = filesystem.info(f"{root}/{shard}")
        return str([info.get(name) for name in ("size", "mtime", "LastModified", "ETag", "etag", "updated")])

    def stamp(clip: Clip) -> str:
        state = clip.digest or shard_state(clip.shard)  # an index that others wrote may have no digests
        return f"{clip.shard} {clip.offset} {clip.size} {state}"

    return _streams(data, kept, held, fetch, stamp, cache, {})


def _streams(
    data: Data,
    kept: list[Clip] | Index,
    apart: list[Clip] | Index,
    fetch: Callable[[Clip], Path | bytes],
    stamp: Callable[[Clip], str],
    cache: Path,
    skipped: Mapping[str, str],
) -> tuple[Footage, Footage]:
    choice = Choice(data.sizes, data.max_fps, data.max_frames, data.reader, data.frames_fps)
    return (
        Stream(kept, choice, fetch, stamp, cache, skipped),
        Stream(apart, choice, fetch, stamp, cache, {}),
    )


# ---- what cannot be read -------------------------------------------------------------------------------


def require_readable(count: int, skipped: Mapping[str, str], share: float) -> None:
    """Raise InputError where more than a share of the clips cannot be read, naming the first."""
    if len(skipped) <= share * count:
        return
    some = ", ".join(sorted(skipped)[:3]) + (", ..." if len(skipped) > 3 else "")
    raise InputError(
        f"{len(skipped)} of {count} clips cannot be read ({by_reason(skipped.values())}): {some}.",
        "Mend them, list them under data.exclude, or raise data.max_corrupt_share.",
    )
