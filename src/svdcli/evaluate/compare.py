"""Several models' videos of the same pictures and seeds: measured, subtracted pair by pair, and laid side by side as one page."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from svdcli.evaluate.measures import MEASURES, NOT_HERE, Row, measure_clips, summarise
from svdcli.evaluate.page import STYLE, figure
from svdcli.evaluate.videos import Manifested, different_shapes, pair_videos, with_manifests
from svdcli.io.files import atomic_path

KIND = "svd-eval-compare"
MOST_EMBEDDED = 32 * 2**20
"""bytes of video within the page; further ones are linked where they lie"""
MOST_ROWS = 40
FEWEST_PAIRS = 6
"""Of fewer, all could have one sign by chance once in 16 times or oftener: no gap is called better or worse."""
SHOWN = ("motion", "flicker", "first_frame_psnr")
"""measures under each video"""


def compare_models(
    folders: Mapping[str, Path],
    names: Sequence[str],
    pictures: Mapping[str, Path],
    cache: Path | None,
    on_video: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Folders by model, a video of one name being of one picture and seed -> measures, and each model's gaps to the first.

    Only names that every folder has are measured; the others are told. Raises InputError.
    """
    shared, tables, lacking = pair_videos(list(folders.values()))
    rows: dict[str, dict[str, Row]] = {}
    left_out: dict[str, str] = {}
    for (model, folder), table in zip(folders.items(), tables, strict=True):
        known = {clip.path: clip for clip in with_manifests(folder)}
        clips: list[Manifested] = [known[table[name]] for name in shared]
        measured, lost = measure_clips(clips, names, pictures, cache, on_video)
        rows[model] = {name: measured[str(table[name])] for name in shared if str(table[name]) in measured}
        left_out |= lost
    first = next(iter(folders))
    return {
        "kind": KIND,
        "models": {model: str(folder) for model, folder in folders.items()},
        "num_shared": len(shared),
        "lacking": lacking,
        "left_out": left_out,
        "cautions": _cautions(different_shapes(dict(zip(folders, tables, strict=True)), shared[0])),
        "measures": {model: summarise(table) for model, table in rows.items()},
        "deltas": {model: deltas(rows[first], rows[model]) for model in folders if model != first},
        "deltas_to": first,
        "videos": {name: {m: str(t[name]) for m, t in zip(folders, tables, strict=True)} for name in shared},
        "rows": rows,
        "not_computed": dict(NOT_HERE),
    }


def _cautions(told: str) -> list[str]:
    reason = "of which motion, flicker and warping error are not independent"
    return [f"the models' videos differ in size, length or rate, {reason}: {told}"] if told else []


def deltas(
    first: Mapping[str, Row], other: Mapping[str, Row], num_draws: int = 2000
) -> dict[str, dict[str, Any]]:
    """Mean of other - first over videos of one name, with its 95 % interval (bootstrap over the pairs).

    `better`: 1 or -1 where the interval leaves out 0, there are FEWEST_PAIRS, and the measure has a good direction, else 0.
    """
    rng, found = np.random.default_rng(0), {}
    for name, measure in MEASURES.items():
        both = [v for v in first if v in other and name in first[v] and name in other[v]]
        gaps = np.array([other[v][name] - first[v][name] for v in both])
        gaps = gaps[np.isfinite(gaps)]
        if len(gaps) < 2:
            continue
        draws = gaps[rng.integers(0, len(gaps), (num_draws, len(gaps)))].mean(1)
        low, high = np.percentile(draws, [2.5, 97.5])
        sure = int(np.sign(gaps.mean())) if len(gaps) >= FEWEST_PAIRS and (low > 0 or high < 0) else 0
        found[name] = {
            "mean": float(gaps.mean()),
            "low": float(low),
            "high": float(high),
            "num": len(gaps),
            "better": sure * measure.better,
        }
    return found


def figures(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """model -> measure -> mean, FVD included where it was measured: what thresholds are tested on."""
    found = {
        model: {name: row["mean"] for name, row in table.items()}
        for model, table in result["measures"].items()
    }
    for model, distance in result.get("fvd", {}).items():
        found[model] |= {"fvd": distance["fvd"], "kernel_distance": distance["kernel_distance"]["value"]}
    return found


# ---- the page


def write_page(file: Path, result: Mapping[str, Any]) -> None:
    """Write the comparison as one HTML page that needs nothing beside it, as long as its videos are not too many."""
    page = _PAGE.substitute(
        title=escape(" against ".join(result["models"])),
        style=STYLE,
        about=_about(result),
        measures=_measures(result),
        fvd=_fvd(result),
        videos=_videos(result, file),
        missing=escape("; ".join(f"{name} ({why})" for name, why in result["not_computed"].items())),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with atomic_path(file) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _about(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['num_shared']} videos of the same name in every folder; 95 % intervals, bootstrap over videos."
    ]
    lines += result["cautions"]
    if result["lacking"]:
        lines.append(f"Not in every folder, and not measured: {', '.join(result['lacking'][:12])}.")
    lines += [f"Left out: {Path(path).name}: {why}" for path, why in list(result["left_out"].items())[:12]]
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _measures(result: Mapping[str, Any]) -> str:
    models = list(result["models"])
    head = "".join(f"<th>{escape(m)}</th>" + ("" if i == 0 else "<th>gap</th>") for i, m in enumerate(models))
    rows = []
    for name, measure in MEASURES.items():
        if not any(name in result["measures"][m] for m in models):
            continue
        arrow = {1: "&uarr;", -1: "&darr;", 0: ""}[measure.better]
        cells = [f'<td title="{escape(measure.about)}">{name} {arrow}</td>']
        for index, model in enumerate(models):
            row = result["measures"][model].get(name)
            cells.append(f"<td>{figure(row)}</td>")
            if index:
                cells.append(_gap(result["deltas"][model].get(name)))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _gap(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "<td>&ndash;</td>"
    colour = {1: "good", -1: "bad", 0: "open"}[row["better"]]
    return (
        f'<td class="{colour}">{row["mean"]:+.3g} <small>{row["low"]:+.3g} to {row["high"]:+.3g}</small></td>'
    )


def _fvd(result: Mapping[str, Any]) -> str:
    if not result.get("fvd"):
        return "<p>Fréchet distance: not computed, no real videos were given (--real).</p>"
    rows = []
    for model, found in result["fvd"].items():
        kernel, floor = found["kernel_distance"], found["floor"]
        told = f"{floor['real_to_real']:.1f} at {floor['num']}" if floor else "&ndash;"
        rows.append(
            f"<tr><td>{escape(model)}</td><td>{found['fvd']:.1f}</td><td>{kernel['value']:.4g} <small>{kernel['low']:.4g} to "
            f"{kernel['high']:.4g}</small></td><td>{told}</td><td>{found['num_real']}, {found['num_generated']}</td>"
            f"<td>{escape(found['protocol']['name'])} {found['protocol_hash']}</td></tr>"
            + "".join(
                f'<tr><td></td><td colspan="5"><small>{escape(c)}</small></td></tr>'
                for c in found["cautions"]
            )
        )
    titles = ("", "FVD", "kernel distance", "floor, real to real", "real, generated", "protocol")
    head = f"<tr>{''.join(f'<th>{title}</th>' for title in titles)}</tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _videos(result: Mapping[str, Any], file: Path) -> str:
    rows, room = [], MOST_EMBEDDED
    names = list(result["videos"])
    chosen = [
        names[int(i)] for i in np.unique(np.linspace(0, len(names) - 1, min(len(names), MOST_ROWS)).round())
    ]
    for name in chosen:
        cells = []
        for model, path in result["videos"][name].items():
            shown, size = _video(Path(path), file, room)
            room -= size
            row = result["rows"][model].get(name, {})
            told = "  ".join(f"{key} {row[key]:.3g}" for key in SHOWN if key in row)
            cells.append(
                f"<figure><figcaption>{escape(model)}</figcaption>{shown}<small>{escape(told)}</small></figure>"
            )
        rows.append(f'<h3>{escape(name)}</h3><div class="row">{"".join(cells)}</div>')
    return "".join(rows)


def _video(path: Path, file: Path, room: int) -> tuple[str, int]:
    """The element, and how many bytes of it are in the page."""
    kind = {".mp4": "video/mp4", ".webm": "video/webm", ".gif": "image/gif", ".webp": "image/webp"}.get(
        path.suffix.lower()
    )
    if kind is None:
        return f"<p>{escape(path.name)}: no browser plays it</p>", 0
    size = path.stat().st_size
    inside = size <= room
    relative = Path(os.path.relpath(path, file.resolve().parent)).as_posix()
    source = (
        f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}" if inside else escape(relative)
    )
    if kind.startswith("image"):
        return f'<img src="{source}" alt="">', size if inside else 0
    return f'<video src="{source}" autoplay loop muted playsinline></video>', size if inside else 0


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
$style</style></head><body>
<h1>$title</h1>
$about
<h2>Measures</h2>
$measures
<h2>Against real videos</h2>
$fvd
<h2>Side by side</h2>
$videos
<footer>Not computed: $missing. Written by svd eval compare on $made.</footer>
</body></html>
""")
