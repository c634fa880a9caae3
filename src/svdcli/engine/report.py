"""A run folder, finished or not, as one HTML page that needs nothing beside it.

Curves are inline SVG, sample videos are embedded as long as the page stays of a size to be mailed, and there is
no script. It reads what the run wrote (metrics.csv, recipe.json, run.json, samples/) and no checkpoint.
"""

from __future__ import annotations

import base64
import csv
import json
import math
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from svdcli.engine.observe import sessions
from svdcli.engine.samples import SAMPLES
from svdcli.errors import InputError
from svdcli.io.curves import Line, chart, smoothed
from svdcli.io.files import atomic_path

METRICS, RECIPE, REPORT = "metrics.csv", "recipe.json", "report.html"
MOST_SAMPLES = 8
MOST_EMBEDDED = 24 * 2**20
"""bytes of video within the page; further ones are linked where they lie"""
Curves = dict[str, list[tuple[float, float]]]

KNOWN = {
    "loss": "training loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "examples_per_second": "examples a second",
    "memory_gib": "memory, GiB",
}
HELD_OUT = "held_out_loss_"


def write_report(folder: Path) -> dict[str, Any]:
    """Write RUN/report.html -> its path, and what it says in short.

    Raises InputError where the folder holds no run, and what `atomic_path` raises.
    """
    curves = read_metrics(folder)
    recipe = _read_recipe(folder)
    step = int(max((points[-1][0] for points in curves.values()), default=0))
    num_steps = max(step, int(recipe.get("run", {}).get("num_steps", step)))
    videos = sorted((folder / SAMPLES).glob("step-*.mp4"))
    page = _PAGE.substitute(
        title=escape(str(recipe.get("task", {}).get("kind", "")) + " " + folder.resolve().name),
        state=_state(curves, step, num_steps),
        charts="\n".join(_figure(svg) for svg in charts(curves)),
        samples=_samples(_spread(videos, MOST_SAMPLES), folder),
        resume=_resume(folder, step, num_steps),
        sessions=_sessions(sessions(folder)),
        recipe=_recipe(recipe),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return {
        "report": folder / REPORT,
        "folder": folder,
        "step": step,
        "num_steps": num_steps,
        "done": step >= num_steps,
        "num_samples": len(videos),
        "figures": {name: points[-1][1] for name, points in curves.items()},
    }


def read_metrics(folder: Path) -> Curves:
    """metrics.csv as name -> [(step, value)], in the order of the file; torn lines of a killed run are left out.

    Raises InputError where there is none.
    """
    path, curves = folder / METRICS, Curves()
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.reader(file):
                try:
                    step, name, value = row
                    curves.setdefault(name, []).append((int(step), float(value)))
                except ValueError:
                    continue
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{path} cannot be read: {reason}.", "Give the folder of a run that has begun, or its recipe."
        ) from error
    return curves


def charts(curves: Curves) -> list[str]:
    """SVGs: training loss, held-out loss by σ, the known figures, and whatever else the task logged."""
    drawn = []
    if "loss" in curves:
        drawn.append(_smooth_chart(KNOWN["loss"], curves["loss"]))
    bins = {
        name.removeprefix(HELD_OUT): points for name, points in curves.items() if name.startswith(HELD_OUT)
    }
    if bins:
        ordered = sorted(bins.items(), key=lambda item: _number(item[0]))
        drawn.append(chart("held-out loss by σ", [Line(f"σ {sigma}", points) for sigma, points in ordered]))
    single = [name for name in curves if name.startswith("held_out") and not name.startswith(HELD_OUT)]
    drawn.extend(chart(name.replace("_", " "), [Line("", curves[name])]) for name in single)
    if "lr" in curves:
        drawn.append(chart(KNOWN["lr"], [Line("", curves["lr"])], log=False))
    drawn.extend(_smooth_chart(KNOWN[name], curves[name]) for name in list(KNOWN)[2:] if name in curves)
    shown = {*KNOWN, "seconds"} if "examples_per_second" in curves else {*KNOWN}  # the one is the other
    rest = [name for name in curves if name not in shown and not name.startswith("held_out")]
    drawn.extend(_smooth_chart(name.replace("_", " "), curves[name]) for name in rest)
    return [svg for svg in drawn if svg]


def _smooth_chart(title: str, points: list[tuple[float, float]]) -> str:
    return chart(title, [Line("", points, faint=True), Line("smoothed", smoothed(points))])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _spread(paths: list[Path], most: int) -> list[Path]:
    """At most `most` of them, evenly, the first and the last among them."""
    if len(paths) <= most:
        return paths
    return [paths[int(index)] for index in np.unique(np.linspace(0, len(paths) - 1, most).round())]


# ---- parts of the page ---------------------------------------------------------------------------------


def _state(curves: Curves, step: int, num_steps: int) -> str:
    share = step / num_steps if num_steps else 1.0
    words = f"step {step} of {num_steps}" + ("" if step < num_steps else ", done")
    seconds = [value for _, value in curves.get("seconds", [])]
    if seconds:
        words += f"; {_duration(sum(seconds))} of training"
        left = (num_steps - step) * float(np.mean(seconds[-200:]))
        words += f", about {_duration(left)} left" if left else ""
    return f"<p>{words}</p><progress value='{share:.4f}' max='1'>{share:.0%}</progress>"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _figure(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def _samples(videos: list[Path], folder: Path) -> str:
    if not videos:
        return "<p>None yet: <code>run.sample_every</code> in the recipe makes some while it trains.</p>"
    room, parts = MOST_EMBEDDED, []
    for path in reversed(videos):  # the newest first, and they are embedded first
        relative = path.relative_to(folder).as_posix()
        source = relative
        try:
            size = path.stat().st_size
            if size <= room:
                room -= size
                source = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
        except OSError:  # a run that goes on may replace it
            continue
        step = int(_number(path.stem.removeprefix("step-")))
        parts.append(
            f"<figure><figcaption>step {step} · <a href='{escape(relative)}'>{escape(relative)}</a></figcaption>"
            f"<video controls loop muted playsinline preload='metadata' src='{source}'></video></figure>"
        )
    return "\n".join(parts)


def _resume(folder: Path, step: int, num_steps: int) -> str:
    command = f"svd train {shlex.quote(str(folder))}"
    if step < num_steps:
        return f"<p>It goes on where it stopped with</p><pre>{escape(command)}</pre>"
    more = f"{command} --set run.num_steps={2 * num_steps}"
    return f"<p>It is done. More steps are made with</p><pre>{escape(more)}</pre>"


def _sessions(found: list[dict[str, Any]]) -> str:
    rows = []
    for session in found:
        versions = session.get("versions")
        told = ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, Mapping) else ""
        notes = session.get("notes")
        cells = [
            session.get("step", ""), session.get("time", ""), session.get("folder", ""),
            f"{session.get('devices', 1)} × {session.get('device', '')}", told,
            " ".join(map(str, notes)) if isinstance(notes, list) else "",
        ]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>")
    head = "<tr><th>from step<th>at<th>started in<th>on<th>with<th>dataset</tr>"
    return f"<table>{head}{''.join(rows)}</table>" if rows else "<p>Not recorded.</p>"


def _recipe(recipe: dict[str, Any]) -> str:
    rows = []
    for section, values in recipe.items():
        if not isinstance(values, Mapping):
            continue
        rows.append(f"<tr><th colspan=2>{escape(section)}</th></tr>")
        for key, value in values.items():
            if value is not None:
                text = escape(json.dumps(value, ensure_ascii=False))
                rows.append(f"<tr><td>{escape(key)}</td><td><code>{text}</code></td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else "<p>recipe.json is missing.</p>"


def _read_recipe(folder: Path) -> dict[str, Any]:
    """The resolved recipe; empty where it cannot be read, since the curves are worth a page by themselves."""
    try:
        found = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #666; --paper: #fff; --card: #f6f7f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #aaa; --paper: #16181a; --card: #202327; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
p { margin: .3rem 0 } progress { width: 100%; height: .6rem }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)) }
figure { margin: 0; padding: .6rem; background: var(--card); border-radius: 8px }
figcaption { color: var(--soft); font-size: .85rem; margin-bottom: .3rem }
svg { width: 100%; height: auto; display: block } video { width: 100%; border-radius: 4px }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft) }
svg .title { font-size: 13px; font-weight: 600; fill: var(--ink) }
table { border-collapse: collapse; font-size: .88rem } td, th { text-align: left; padding: .15rem .9rem .15rem 0;
       vertical-align: top } th { padding-top: .5rem } code, pre { font: .85rem ui-monospace, monospace;
       overflow-wrap: anywhere } pre { background: var(--card); padding: .6rem; border-radius: 8px; overflow-x: auto }
a { color: inherit } footer { color: var(--soft); font-size: .8rem; margin: 2.5rem 0 }
</style></head><body>
<h1>$title</h1>
$state
<h2>Curves</h2>
<div class="grid">
$charts
</div>
<h2>Samples</h2>
<p>Left to right: the held-out clip, what the averaged weights make, what the raw weights make.</p>
<div class="grid">
$samples
</div>
<h2>Going on</h2>
$resume
<h2>Recipe</h2>
$recipe
<h2>Sessions</h2>
$sessions
<footer>Written by svd train --report on $made.</footer>
</body></html>
""")
