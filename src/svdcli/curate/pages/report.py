"""A curation folder as one HTML page that needs nothing beside it: where the footage went, and what that looks like.

Pictures are embedded, there is no script, and whatever a file is called, its name is only a name. It reads the tables,
the journal, the lock and the proxies, and decodes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from svdcli.curate.packing.statistics import Statistics, statistics
from svdcli.curate.pages.charts import histogram
from svdcli.curate.pages.edges import Edge, Scores, Shown, look
from svdcli.curate.pages.failures import Failures, find_failures
from svdcli.curate.pages.page import PAGE
from svdcli.curate.pages.pictures import thumbnails
from svdcli.curate.select.catalogue import Catalogue
from svdcli.curate.select.select import Selection, last_settings, select
from svdcli.curate.select.waterfall import Amount
from svdcli.curate.tables import readable
from svdcli.errors import InputError
from svdcli.io.files import atomic_path

REPORT = "report.html"
PAIRS = 12
"""duplicates shown"""
STRIPS, STRIP_CLIPS = 4, 16
"""sources whose cuts are shown, and clips of each"""


def write_report(folder: Path) -> Path:
    """Write OUT/report.html -> its path.

    Raises InputError where the folder holds no clips. A selection that no longer fits its tables, or none yet, is said on
    the page, and the rest is shown.
    """
    figures, failures = statistics(folder), find_failures(folder)
    settings, found, reason, scores = last_settings(folder), None, "", list[Scores]()
    if settings is None:
        reason = "Nothing is filtered yet: run svd curate filter."
    else:
        try:
            found = select(folder, settings, write=False)
            scores = look(folder, settings, found.lock)
        except InputError as error:
            reason = f"The selection no longer fits what is in the folder. {error.message} {error.hint}"
    page = PAGE.substitute(
        title=_text(folder.resolve().name),
        summary=_summary(figures, failures),
        funnel=_funnel(folder, figures["all"], found, failures),
        filters=_filters(folder, scores, found) if found else f"<p>{_text(reason)}</p>",
        overlaps=_overlaps(found) if found else "<p>See above.</p>",
        cuts=_cuts(folder),
        statistics=_statistics(figures),
        failures=_failures(failures),
        lock=_lock(found),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / REPORT


def _text(value: object) -> str:
    """A text as HTML holds it; bytes of a name that are no UTF-8 are shown as such."""
    return escape(readable(str(value)))


def duration(seconds: float) -> str:
    """`2.5 hours`."""
    for size, unit in ((365.25 * 86_400, "years"), (86_400, "days"), (3600, "hours"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def counted(count: int, what: str = "clip") -> str:
    """`1 clip`, `1,200 clips`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# ---- funnel --------------------------------------------------------------------------------------------


def _summary(figures: dict[str, Statistics], failures: Failures) -> str:
    every, kept = figures["all"], figures.get("kept")
    cells = [
        (f"{every.num_sources:,}", "sources with clips"),
        (f"{every.num_clips:,}", f"clips, {duration(every.total_seconds)}"),
    ]
    if kept:
        share = _share(kept.num_clips, every.num_clips)
        cells.append((f"{kept.num_clips:,}", f"kept, {duration(kept.total_seconds)} ({share:.0%})"))
    cells.append((f"{failures.count:,}", "failed"))
    return "".join(f"<div><b>{value}</b><span>{words}</span></div>" for value, words in cells)


def _funnel(folder: Path, every: Statistics, found: Selection | None, failures: Failures) -> str:
    with Catalogue(folder) as catalogue:
        count, seconds = catalogue.row(
            "SELECT count(*), sum((end_pts - start_pts) * time_base_num / time_base_den) FROM sources"
        )
    whole = max(float(seconds), every.total_seconds)
    rows = [_bar("footage", counted(count, "source"), float(seconds), whole, "")]
    lost = "; ".join(f"{_text(reason)} {duration(s)}" for reason, s in failures.lost.items())
    rows.append(
        _bar(
            "cut into clips",
            counted(every.num_clips),
            every.total_seconds,
            whole,
            lost and f"lost: {lost}",
        )
    )
    for step in found.waterfall.steps if found else ():
        if step.dropped.clips or not step.reason.name.endswith(" missing"):
            taken = f"−{counted(step.dropped.clips)}, −{duration(step.dropped.seconds)}"
            words = f"{_text(step.reason.words)}: {taken if step.dropped.clips else 'none'}"
            left = step.left
            rows.append(_bar(_text(step.reason.name), counted(left.clips), left.seconds, whole, words))
    notes = "".join(f"<p class='note'>{_text(note)}</p>" for note in (found.notes if found else ()))
    return f"<div class='funnel'>{''.join(rows)}</div>{notes}"


def _bar(name: str, amount: str, seconds: float, whole: float, words: str) -> str:
    return (
        f"<div class='row'><span class='name'>{name}</span><span class='track'>"
        f"<i style='width:{100 * _share(seconds, whole):.2f}%'></i></span>"
        f"<span class='amount'>{amount} · {duration(seconds)}</span><span class='words'>{words}</span></div>"
    )


# ---- filters -------------------------------------------------------------------------------------------


def _filters(folder: Path, scores: Sequence[Scores], found: Selection) -> str:
    return _twins(folder) + "".join(_axis(folder, axis, found) for axis in scores)


def _twins(folder: Path) -> str:
    """Duplicates beside the clips that stand for them."""
    with Catalogue(folder) as catalogue:
        count = catalogue.row("SELECT count(*) FROM selection WHERE keeper != ''")[0]
        pairs = catalogue.rows(
            f"SELECT keeper, clip FROM selection WHERE keeper != '' ORDER BY keeper, clip LIMIT {PAIRS}"
        )
    if not pairs:
        return ""
    shown = "".join(
        f"<figure title='{_text(keeper)} stands for {_text(clip)}'>"
        f"<span>{_picture(folder, keeper)}{_picture(folder, clip)}</span><figcaption>kept | dropped</figcaption></figure>"
        for keeper, clip in pairs
    )
    return (
        f"<section class='axis' id='axis-duplicates'><h3>duplicates</h3><p class='note'>{counted(count)} stood for by "
        f"another</p><div class='thumbs pairs' style='grid-column: 1 / -1'>{shown}</div></section>"
    )


def _axis(folder: Path, axis: Scores, found: Selection) -> str:
    step = next(s for s in found.waterfall.steps if s.reason.name == axis.name)
    share = _share(step.alone.clips, found.waterfall.all.clips)
    told = (
        f"{_text(step.reason.words)} · alone it drops {counted(step.alone.clips)} ({share:.1%}), "
        f"{step.only.clips:,} that no other filter drops"
    )
    if axis.counts:
        drawn = histogram(axis.name, axis.counts, axis.scale, axis.marks)
    else:
        drawn = "<ul>" + "".join(f"<li>{_text(k)} {n:,}</li>" for k, n in axis.classes.items()) + "</ul>"
    scale = " (logarithmic)" if axis.counts and axis.scale.log else ""
    sheets = "".join(_sheet(folder, edge) for edge in axis.edges)
    return (
        f"<section class='axis' id='axis-{_text(axis.name)}'><h3>{_text(axis.name)}{scale}</h3><p class='note'>{told}</p>"
        f"<figure>{drawn}</figure>{sheets}</section>"
    )


def _sheet(folder: Path, edge: Edge) -> str:
    """Dropped and kept on either side of a threshold, the nearest to it innermost."""
    sides = (("dropped", edge.dropped, f"just dropped by {edge.title}"), ("kept", edge.kept, "just kept"))
    return "".join(
        f"<div class='sheet {kind}'><h4>{_text(title)}</h4><div class='thumbs'>"
        + ("".join(_thumb(folder, shown) for shown in clips) or "<p class='note'>none</p>")
        + "</div></div>"
        for kind, clips, title in sides
    )


def _thumb(folder: Path, shown: Shown) -> str:
    other = f" · {_text(shown.dropped_by)}" if shown.dropped_by else ""
    return (
        f"<figure title='{_text(shown.clip)}'>{_picture(folder, shown.clip)}"
        f"<figcaption>{_text(shown.value)}{other}</figcaption></figure>"
    )


def _picture(folder: Path, clip: str, which: Sequence[int] = (1,)) -> str:
    urls = thumbnails(folder, clip, which)
    if not urls:
        return "<span class='gone'>no proxy</span>"
    return "".join(f"<img alt='{_text(clip)}' src='{url}'>" for url in urls)


def _overlaps(found: Selection) -> str:
    """A square of reasons: below the diagonal clips that both drop, above it the correlation of their scores."""
    steps = [step for step in found.waterfall.steps if step.alone.clips]
    if not steps:
        return "<p>No filter drops a clip.</p>"
    names = [step.reason.name for step in steps]
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, other in enumerate(names):
            pair = (names[min(i, j)], names[max(i, j)])
            if i == j:
                cells.append(f"<td class='self'>{steps[i].alone.clips:,}</td>")
            elif i > j:
                both = found.waterfall.overlaps.get(pair) or found.waterfall.overlaps.get(
                    pair[::-1], Amount()
                )
                cells.append(f"<td>{both.clips:,}</td>")
            else:
                value = found.correlations.get((name, other), found.correlations.get((other, name)))
                cells.append(f"<td class='r'>{'' if value is None else f'r = {value:+.2f}'}</td>")
        rows.append(f"<tr><th>{_text(name)}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    return f"<div class='wide'><table class='square'><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"


# ---- cuts, figures, failures ---------------------------------------------------------------------------


def _cuts(folder: Path) -> str:
    with Catalogue(folder) as catalogue:
        sources = catalogue.rows(
            "SELECT c.source, any_value(s.path), count(*) AS n FROM clips c JOIN sources s ON s.id = c.source "
            f"GROUP BY c.source ORDER BY n DESC, c.source LIMIT {STRIPS}"
        )
        strips = []
        for source, path, count in sources:
            clips = catalogue.records(
                'SELECT id, start, "end" AS finish, opens, closes, confidence FROM clips WHERE source = ? '
                f"ORDER BY start_pts LIMIT {STRIP_CLIPS}",
                [source],
            )
            more = (
                f", the first {len(clips)} of {counted(count)}"
                if count > len(clips)
                else f", {counted(count)}"
            )
            shown = "".join(_strip_clip(folder, clip) for clip in clips)
            strips.append(
                f"<h4>{_text(path)}<span class='note'>{more}</span></h4><div class='strip'>{shown}</div>"
            )
    return "".join(strips)


def _strip_clip(folder: Path, clip: dict[str, object]) -> str:
    pictures = _picture(folder, str(clip["id"]), (0, 2))
    return (
        f"<figure title='{_text(clip['id'])}'><span class='cut'>{_text(clip['opens'])}</span><span>{pictures}</span>"
        f"<span class='cut'>{_text(clip['closes'])}</span><figcaption>{clip['start']:.2f}–{clip['finish']:.2f} s · "
        f"certain to {clip['confidence']:.2f}</figcaption></figure>"
    )


def _statistics(figures: dict[str, Statistics]) -> str:
    """As in the paper's table 1, and its own lines beside ours."""
    lines = [
        ("clips", lambda s: f"{s.num_clips:,}"),
        ("clip duration, mean ± std", lambda s: f"{s.mean_seconds:.2f} ± {s.std_seconds:.2f} s"),
        ("total", lambda s: duration(s.total_seconds)),
        ("total, years", lambda s: f"{s.total_years:.4g}"),
        ("frames a clip, mean", lambda s: f"{s.mean_frames:,.0f}"),
        ("sources", lambda s: f"{s.num_sources:,}"),
        ("clips a source", lambda s: f"{s.clips_per_source:.2f}"),
        ("cuts a source", lambda s: f"{s.cuts_per_source:.2f}"),
    ]
    paper = {
        "LVD": ("577M", "11.58 s", "212.09 years", "212.1", "325", "", "11.09", ""),
        "LVD-F": ("152M", "10.53 s", "50.64 years", "50.64", "301", "", "4.76", ""),
    }
    head = "".join(f"<th>{_text(name)}</th>" for name in [*figures, *(f"{name} (paper)" for name in paper)])
    rows = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{told(s)}</td>' for s in figures.values())}"
        f"{''.join(f'<td class=r>{values[i]}</td>' for values in paper.values())}</tr>"
        for i, (name, told) in enumerate(lines)
    )
    scored = ", ".join(f"{_text(name)} {count:,}" for name, count in figures["all"].scored.items())
    note = f"<p class='note'>Scored clips: {scored or 'none'}.</p>"
    return f"<div class='wide'><table><tr><th></th>{head}</tr>{rows}</table></div>{note}"


def _failures(failures: Failures) -> str:
    if not failures.reasons:
        return "<p>None.</p>"
    parts = []
    for (stage, status, reason), entries in failures.reasons.items():
        rows = "".join(
            f"<tr><td>{_text(e.path)}</td><td><code>{_text(e.command)}</code></td></tr>"
            for e in entries.first
        )
        more = (
            f"<p class='note'>and {entries.count - len(entries.first):,} more</p>"
            if entries.count > len(entries.first)
            else ""
        )
        parts.append(
            f"<details><summary><b>{entries.count:,}</b> {_text(status)} at {_text(stage)}: {_text(reason or 'no reason told')}"
            f"</summary><table>{rows}</table>{more}</details>"
        )
    return "".join(parts)


def _lock(found: Selection | None) -> str:
    if not found:
        return "<p>Nothing is frozen yet.</p>"
    return f"<pre>{_text(json.dumps(asdict(found.lock), indent=1, ensure_ascii=False))}</pre>"
