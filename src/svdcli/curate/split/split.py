"""One source into clips: probed, decoded once, cut where its shots change, normalised, written, and opened again.

Read top to bottom: `split_source` is the whole of it. It handles one source in one process; what keeps a hanging or
crashing decoder from stopping a run is the pipeline's, as is what to do with a source that cannot be used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np

from svdcli.curate.proxy import Proxy
from svdcli.curate.rows import CutClip, Source, clip_id
from svdcli.curate.split.check import fault
from svdcli.curate.split.clipping import (
    Crop,
    Written,
    copied_stamps,
    copy_ends,
    must_encode,
    write_copy,
    write_exact,
)
from svdcli.curate.split.probe import Probe, probe
from svdcli.curate.split.samples import clip_proxy, letterbox, upright_crop
from svdcli.curate.split.scan import Scan, scan
from svdcli.curate.split.smart import can_be_smart, write_smart
from svdcli.curate.split.spans import Span, spans
from svdcli.data.cuts import Cut
from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.recipe.curation import Split

Method = Literal["copy", "smart", "encode"]


@dataclass(frozen=True)
class SplitResult:
    """What a source became."""

    source: Source
    clips: list[CutClip]
    cuts: list[Cut]
    lost: dict[str, float]
    """seconds by reason: transition, damaged, black, frozen, short, snapped, unreadable; with those of the clips they
    sum to the source's"""


@dataclass(frozen=True)
class _Plan:
    """A clip before it is written."""

    span: Span
    method: Method
    start: int
    """tick of its first frame"""
    end: int
    """tick at which its last frame ends to be shown"""
    crop: Crop
    packets: tuple[int, int] = (0, 0)
    """places of what is copied"""


def split_source(path: Path, out: Path, settings: Split) -> SplitResult:
    """Cut the video at `path` into clips/ and proxies/ under the curation folder `out`.

    Every file is written whole or not at all, and the same source and settings make the same bytes. Raises InputError
    with the reason for a source that cannot be used, and what `atomic_path` raises.
    """
    found = probe(path)
    if found.source.hdr and settings.hdr == "drop":
        raise InputError(
            f"{path} is {found.source.hdr.upper()} video, which this recipe drops.",
            "Set split.hdr to tonemap or keep.",
        )
    for name in ("clips", "proxies"):
        (out / name).mkdir(parents=True, exist_ok=True)
    seen = scan(path, found, settings, out)
    with seen.samples.file:
        kept, lost = spans(seen, found.source.time_base, settings)
        clips = []
        for span in kept:
            plan = _plan(found, seen, span, settings)
            clip = _write(path, out, found, seen, plan, settings)
            whole = int(seen.ends[span.last - 1] - seen.stamps[span.first])
            if clip is None:
                lost["unreadable"] += whole
            else:
                lost["snapped"] += whole - (clip.end_pts - clip.start_pts)
                clips.append(clip)
    base = found.source.time_base
    seconds = {reason: float(ticks * base) for reason, ticks in sorted(lost.items()) if ticks}
    return SplitResult(_as_decoded(found.source, seen), clips, seen.cuts, seconds)


def _as_decoded(source: Source, seen: Scan) -> Source:
    """The source with what decoding it showed: headers and packets may promise more."""
    start, end = int(seen.stamps[0]), int(seen.ends[-1])
    fps = len(seen.stamps) / float((end - start) * source.time_base)
    return replace(source, start_pts=start, end_pts=end, num_frames=len(seen.stamps), fps=fps)


def _plan(found: Probe, seen: Scan, span: Span, settings: Split) -> _Plan:
    """How a span becomes a clip, and where it ends up to begin and end."""
    start, end = int(seen.stamps[span.first]), int(seen.ends[span.last - 1])
    crop = letterbox(seen.samples, start, end) if settings.letterbox == "crop" else (0, 0, 0, 0)
    exact = _Plan(span, "encode", start, end, crop)
    copyable = found.sought and found.packets.ordered and not must_encode(found.source, crop, settings)
    if settings.clipping == "exact" or not copyable:
        return exact
    packets = copy_ends(found, start, end)
    if packets is None:
        return exact
    stamps = copied_stamps(found, *packets)
    first, last = int(stamps[0]), int(found.packets.ends[packets[0] : packets[1]].max())
    kept, whole = last - first, end - start
    if not _as_scanned(seen, stamps):
        return exact
    if settings.clipping == "smart" and kept < whole:
        # sound is copied by whole clips only
        fits = settings.audio == "drop" and can_be_smart(found.source, seen.shape[1], seen.shape[0])
        return _Plan(span, "smart", start, end, crop, packets) if fits else exact
    too_short = kept * found.source.time_base < settings.min_seconds
    if too_short or kept < (1 - settings.max_snap_loss) * whole:
        return exact
    return _Plan(span, "copy", first, last, crop, packets)


def _as_scanned(seen: Scan, stamps: np.ndarray) -> bool:
    """Whether the frames to be copied are exactly those that were decoded."""
    first, last = np.searchsorted(seen.stamps, [stamps[0], stamps[-1]])
    return np.array_equal(seen.stamps[first : last + 1], stamps)


def _write(path: Path, out: Path, found: Probe, seen: Scan, plan: _Plan, settings: Split) -> CutClip | None:
    """Write a clip and its proxy; one that fails its check is made again exactly. None where that fails too."""
    for attempt in _attempts(seen, plan):
        key = clip_id(found.source.id, attempt.start, attempt.end)
        file, proxy = out / "clips" / key[:2] / f"{key}.mp4", out / "proxies" / key[:2] / f"{key}.npz"
        file.parent.mkdir(exist_ok=True)
        proxy.parent.mkdir(exist_ok=True)
        try:
            with atomic_path(file) as temporary:
                meant = _make(path, found, seen, attempt, temporary, settings)
                if wrong := fault(temporary, meant, whole=attempt.method != "copy"):
                    raise _Faulty(wrong)
                content = temporary.read_bytes()
        except _Faulty:
            continue
        clip = _row(found.source, attempt, meant, key, file.relative_to(out), content)
        _proxy(seen, found.source, attempt, clip, settings).save(proxy)
        return clip
    return None


class _Faulty(Exception):
    """A clip that was written and failed its check."""


def _attempts(seen: Scan, plan: _Plan) -> Iterator[_Plan]:
    """The plan, then encoding the whole span."""
    yield plan
    if plan.method != "encode":
        start, end = int(seen.stamps[plan.span.first]), int(seen.ends[plan.span.last - 1])
        yield _Plan(plan.span, "encode", start, end, plan.crop)


def _make(path: Path, found: Probe, seen: Scan, plan: _Plan, file: Path, settings: Split) -> Written:
    """Write the clip's file; what it must hold then."""
    if plan.method == "encode":
        return write_exact(path, found, plan.start, plan.end, plan.crop, file, settings)
    if plan.method == "smart":
        ends = seen.thumbs[plan.span.first], seen.thumbs[plan.span.last - 1]
        return write_smart(path, found, (plan.start, plan.end), plan.packets, ends, file, settings)
    write_copy(path, found, *plan.packets, file, settings)
    stamps = copied_stamps(found, *plan.packets)
    first, last = np.searchsorted(seen.stamps, [stamps[0], stamps[-1]])
    times = tuple(int(stamp - stamps[0]) * found.source.time_base for stamp in stamps)
    return Written(times, seen.shape[1], seen.shape[0], (seen.thumbs[first], seen.thumbs[last]))


def _row(source: Source, plan: _Plan, meant: Written, key: str, path: Path, content: bytes) -> CutClip:
    seconds = (plan.end - plan.start) * source.time_base
    return CutClip(
        id=key,
        source=source.id,
        start_pts=plan.start,
        end_pts=plan.end,
        start=float(plan.start * source.time_base),
        end=float(plan.end * source.time_base),
        opens=plan.span.opens,
        closes=plan.span.closes,
        confidence=plan.span.confidence,
        path=path.as_posix(),
        size=len(content),
        digest=hashlib.sha256(content).hexdigest(),
        width=meant.width,
        height=meant.height,
        num_frames=len(meant.stamps),
        fps=float(Fraction(len(meant.stamps)) / seconds),
        method=plan.method,
        crop=upright_crop(plan.crop, source),
    )


def _proxy(seen: Scan, source: Source, plan: _Plan, clip: CutClip, settings: Split) -> Proxy:
    course = seen.course(plan.start, plan.end, source.time_base)
    return clip_proxy(seen.samples, course, source, plan.start, plan.end, plan.crop, settings)
