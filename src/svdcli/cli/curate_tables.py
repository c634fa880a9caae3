"""What `svd curate` counted, for a person: tables whose parts sum to what went in."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from svdcli.cli.console import human_size, table

if TYPE_CHECKING:
    from svdcli.curate.run.accounts import Accounts
    from svdcli.curate.run.plan import Plan
    from svdcli.curate.select.select import Selection
    from svdcli.curate.select.waterfall import Waterfall

_DAY, _YEAR = 24.0, 8766.0  # hours


def account_lines(found: Accounts, left_aside: int = 0) -> list[str]:
    """Inputs, seconds and scores."""
    inputs = [[name, f"{count:,}"] for name, count in found.inputs.items() if count]
    inputs.append(["all inputs", f"{sum(found.inputs.values()):,}"])
    seconds = [
        [name, span(value), _share(value, found.total_seconds)] for name, value in found.seconds.items()
    ]
    seconds.append(["all that could be read", span(found.total_seconds), ""])
    scores = [[name, *(f"{count:,}" for count in counts.values())] for name, counts in found.scores.items()]
    failures = [[f"{count:,}", reason] for reason, count in found.failures.items()]
    lines = [
        *table(inputs, ("inputs", "")),
        "",
        *table(seconds, ("footage", "", "")),
        "",
        f"{found.clips:,} clips",
    ]
    if scores:
        lines += ["", *table(scores, ("scores", "computed", "failed", "not computed"))]
    if failures:
        lines += ["", *table(failures, ("failed", "because"))]
    if left_aside:
        lines += ["", f"{left_aside:,} other files were left aside: no videos by name and first bytes"]
    return lines


def waterfall_lines(fall: Waterfall) -> list[str]:
    """From all clips to those that are kept, in clips and seconds."""
    rows = [["all clips", f"{fall.all.clips:,}", span(fall.all.seconds), ""]]
    for step in fall.steps:
        label = f"- {step.reason.name}: {step.reason.words}"
        rows.append([label, f"{step.dropped.clips:,}", span(step.dropped.seconds), f"{step.alone.clips:,}"])
    kept = fall.kept
    rows.append(["= kept", f"{kept.clips:,}", span(kept.seconds), _share(kept.seconds, fall.all.seconds)])
    return table(rows, ("filter", "clips", "footage", "alone it would drop"))


def overlap_lines(selection: Selection) -> list[str]:
    """What each filter drops that no other would, and each two: clips and seconds that both would, their correlation."""
    fall = selection.waterfall
    only = [
        [step.reason.name, f"{step.only.clips:,}", span(step.only.seconds)]
        for step in fall.steps
        if step.alone.clips
    ]
    both = [
        [
            f"{a} and {b}",
            f"{amount.clips:,}",
            span(amount.seconds),
            "" if (r := selection.correlations.get((a, b))) is None else f"{r:+.2f}",
        ]
        for (a, b), amount in fall.overlaps.items()
        if amount.clips or (a, b) in selection.correlations
    ]
    lines = table(only, ("no other filter drops", "clips", "footage")) if only else []
    return [*lines, "", *table(both, ("both drop", "clips", "footage", "correlation"))] if both else lines


def plan_lines(plan: Plan) -> list[str]:
    """What a corpus would take."""
    stages = [
        [
            stage.name,
            f"{stage.per_second:.4g}",
            hours(stage.per_second * plan.seconds / 3600),
            f"not timed: {stage.absent}"
            if stage.absent
            else "bottleneck"
            if stage.name == plan.bottleneck
            else "",
        ]
        for stage in plan.stages
    ]
    disk = [[name, human_size(size)] for name, size in plan.disk.items()]
    some = sorted({1, plan.workers, 16, 256, 4096})
    return [
        f"{plan.sampled} of {plan.inputs:,} sources worked on, {plan.failed} failed: {span(plan.sample_seconds)} of video",
        f"the corpus: {hours(plan.seconds / 3600)} of video, {plan.clips:,.0f} clips of {plan.clip_seconds:.2f} s",
        "",
        *table(stages, ("stage", "core-s a second of video", "core-time", "")),
        "",
        *table([[f"{n:,}", hours(plan.cpu_hours / n)] for n in some], ("workers", "time")),
        f"{plan.workers_for(30 * _DAY):,} workers end within 30 days",
        "",
        *table(disk, ("disk", "")),
        "CPU seconds of this machine, all workers busy to the end; the dataset as if every clip were kept",
    ]


def span(seconds: float) -> str:
    """A length of footage: 12.3 s, 4.1 min, 7.2 h, 3.1 years."""
    return f"{seconds:.1f} s" if seconds < 120 else hours(seconds / 3600)


def hours(value: float) -> str:
    """A number of hours as a person reads it."""
    if value < 1:
        return f"{value * 60:.1f} min"
    if value < 72:
        return f"{value:.1f} h"
    return f"{value / _DAY:,.1f} days" if value < 2 * _YEAR else f"{value / _YEAR:,.1f} years"


def shell_word(text: str | Path) -> str:
    """A word as a shell takes it; bytes that are no text, which no terminal shows, as \\xff."""
    return shlex.quote(str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else ""
