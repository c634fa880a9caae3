"""The report of `svd eval model` as one HTML page that needs nothing beside it: figures, the curve of motion, frames."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from svdcli.evaluate.cases import Case
from svdcli.evaluate.measures import MEASURES
from svdcli.evaluate.model_report import SETS, Sets, figures
from svdcli.evaluate.page import STYLE, figure
from svdcli.evaluate.videos import read_whole
from svdcli.io.curves import Line, chart
from svdcli.io.files import atomic_path
from svdcli.io.sheet import contact_sheet

PAIRED = (
    "all sets are of the same pictures: the kernel distance compares no clip with its own counterpart; "
    "the floor is of other pictures, and a set can lie below it",
)
COLUMNS, CELL = 7, 168
"""frames of a clip that are drawn, and their width, pixels"""
HEAD = {
    "fvd": "FVD, {protocol}",
    "kernel_distance": "kernel distance",
    "reconstruction_psnr": "autoencoder, dB PSNR",
    "first_frame_psnr": "first frame, dB PSNR",
    "motion_spearman": "motion follows its bucket, Spearman",
    "flicker": "flicker",
}
"""figures at the top of a model"""


def write_model_page(
    file: Path, result: Mapping[str, Any], drawn: Mapping[str, Sequence[tuple[Sets, Case]]], note: str = ""
) -> None:
    """Write the result of `svd eval model`; `drawn` are the cases whose frames are shown, by model."""
    models = result["models"]
    page = _PAGE.substitute(
        style=STYLE,
        title=escape(" and ".join(models)),
        about="".join(f"<p>{escape(line)}</p>" for line in about(result)),
        head=_head(models),
        models="".join(_model(name, model, drawn.get(name, ())) for name, model in models.items()),
        note=f"<p>{escape(note)}</p>" if note else "",
        command=escape(shlex.join(["svd", *result["command"]])),
        missing=escape("; ".join(f"{k} ({v})" for k, v in _not_computed(models).items())),
        made=datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    with atomic_path(file) as temporary:
        temporary.write_text(page, encoding="utf-8")


def about(result: Mapping[str, Any]) -> list[str]:
    """What was looked at, a sentence each."""
    lines = []
    for name, model in result["models"].items():
        clips, view = model["clips"], model["sampling"]
        lines.append(
            f"{name}: {model['num_cases']} pictures, {model['num_clips']} real clips, of {len(clips['videos'])} videos "
            f"{clips['chosen_by']}; {view['num_frames']} frames of {view['width']}x{view['height']} at {view['fps']:g} a second, "
            f"seed {model['seed']}, {view['num_steps']} steps, guidance {view['guidance']}."
        )
        lines += [f"Left out: {video}: {why}" for video, why in clips["left_out"].items()]
    return [*lines, "Intervals are of 95 %: bootstrap over clips; jackknife for the kernel distance."]


# ---- parts of the page


def _head(models: Mapping[str, Any]) -> str:
    """One row a model."""
    names = [name for name in HEAD if any(name in figures(model) for model in models.values())]
    protocol = next((d["protocol"] for m in models.values() if (d := m["fvd"])), "")
    titles = "".join(f"<th>{escape(HEAD[name].format(protocol=protocol))}</th>" for name in names)
    rows = []
    for model, told in models.items():
        found = figures(told)
        cells = "".join(f"<td>{found[n]:.4g}</td>" if n in found else "<td>&ndash;</td>" for n in names)
        rows.append(f"<tr><td>{escape(model)}</td>{cells}</tr>")
    return f"<table><tr><th></th>{titles}</tr>{''.join(rows)}</table>"


def _model(name: str, model: Mapping[str, Any], drawn: Sequence[tuple[Sets, Case]]) -> str:
    parts = [
        f"<h2>{escape(name)}: distance to real clips</h2>{_distances(model)}",
        f"<h2>{escape(name)}: clip by clip</h2>{_measures(model)}",
        f"<h2>{escape(name)}: motion asked for and measured</h2>{_motion(model)}",
    ]
    if drawn:
        parts.append(f"<h2>{escape(name)}: frames</h2>{''.join(_frames(*each) for each in drawn)}")
    return "".join(parts)


def _distances(model: Mapping[str, Any]) -> str:
    found = model["distances"]
    if not found:
        return f"<p>Not computed: {escape(model['not_computed']['fvd'])}.</p>"
    rows = []
    for kind, row in found.items():
        kernel, floor = row["kernel_distance"], row["floor"]
        halves = f"{floor['real_to_generated']:.0f}" if floor else "&ndash;"
        fvd = "&ndash;" if row["fvd"] is None else f"{row['fvd']:.0f}"
        rows.append(
            f"<tr><td>{escape(SETS[kind])}</td><td>{fvd}</td><td>{halves}</td><td>{kernel['value']:.4g} "
            f"<small>{kernel['low']:.4g} to {kernel['high']:.4g}</small></td></tr>"
        )
    first = next(iter(found.values()))
    floor, num = first["floor"], first["num_real"]
    half = floor["num"] if floor else 0
    if floor:
        told = f"{floor['real_to_real']:.0f} <small>sd {floor['real_to_real_sd']:.0f}</small>"
        rows.append(
            f"<tr><td>the floor: real clips to other real clips</td><td></td><td>{told}</td><td></td></tr>"
        )
    titles = ("", f"FVD, n {num}", f"FVD, n {half}", "kernel distance")
    head = "".join(f"<th>{title}</th>" for title in titles)
    cautions = "".join(f"<p><small>{escape(text)}</small></p>" for text in (*first["cautions"], *PAIRED))
    told = f"protocol {model['fvd']['protocol']}, {first['protocol_hash']}, network {model['fvd']['network']}"
    return f"<table><tr>{head}</tr>{''.join(rows)}</table><p><small>{escape(told)}</small></p>{cautions}"


def _measures(model: Mapping[str, Any]) -> str:
    kinds = [kind for kind in SETS if kind in model["measures"]]
    head = "".join(f"<th>{escape(kind.replace('_', ', '))}</th>" for kind in kinds)
    rows = []
    for name, measure in MEASURES.items():
        if not any(name in model["measures"][kind] for kind in kinds):
            continue
        arrow = {1: "&uarr;", -1: "&darr;", 0: ""}[measure.better]
        cells = "".join(f"<td>{figure(model['measures'][kind].get(name))}</td>" for kind in kinds)
        rows.append(f'<tr><td title="{escape(measure.about)}">{name} {arrow}</td>{cells}</tr>')
    for name, row in model["reconstruction"].items():
        cells = "".join(f"<td>{figure(row) if kind == 'coded' else '&ndash;'}</td>" for kind in kinds)
        rows.append(f"<tr><td>against the real clip, {name} &uarr;</td>{cells}</tr>")
    legend = "; ".join(f"{kind.replace('_', ', ')}: {SETS[kind]}" for kind in kinds)
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table><p><small>{escape(legend)}.</small></p>"


def _motion(model: Mapping[str, Any]) -> str:
    motion = model["motion"]
    curve = motion["curve"]
    lines = [
        Line("", list(zip(*_own(row), strict=True)), faint=True) for row in motion["by_picture"].values()
    ]
    lines.append(Line("measured, median", [(p["bucket"], p["median_score"]) for p in curve]))
    if "asked_score" in curve[0]:
        lines.append(Line("asked for", [(p["bucket"], p["asked_score"]) for p in curve]))
    svg = chart("motion, shortest sides a second, by motion bucket", lines)
    titles = ["bucket", "clips", "mean motion", "median"]
    columns = ["bucket", "num_clips", "mean_score", "median_score"]
    if "asked_score" in curve[0]:
        titles += ["asked for", "mean measured bucket"]
        columns += ["asked_score", "mean_measured_bucket"]
    head = "".join(f"<th>{title}</th>" for title in titles)
    rows = "".join(f"<tr>{''.join(f'<td>{p[c]:.4g}</td>' for c in columns)}</tr>" for p in curve)
    each = motion["mean_of_spearman"]
    told = (
        f"Spearman {each:.2f} within a picture (mean of {motion['num_groups']}), " if each is not None else ""
    )
    told += f"{motion['spearman_of_mean']:.2f} of the means, {motion['pooled']:.2f} over all clips at once"
    if "bucket_error" in motion:
        told += f"; asked and measured bucket are {motion['bucket_error']:.0f} apart on average"
    camera = ""
    if found := model.get("camera"):
        camera = f"<p>Camera moves right ({escape(found['asked'])}): {found['accuracy']:.0%} of {found['num']}.</p>"
    return f'<figure class="half">{svg}</figure><p>{told}.</p>{camera}<table><tr>{head}</tr>{rows}</table>'


def _own(row: Mapping[Any, float]) -> tuple[list[float], list[float]]:
    return [float(bucket) for bucket in row], list(row.values())


def _frames(sets: Sets, case: Case) -> str:
    """Real, and made at each bucket that it was asked for: a row of frames each."""
    rows = [("real", case.real)] if case.real is not None else []
    asked = sets.buckets if case in sets.moved else (sets.usual,)
    rows += [(f"made, motion {b}", sets.made(case, b)) for b in asked]
    sheet = contact_sheet(
        [read_whole(path)[0] for _, path in rows if path], [t for t, _ in rows], COLUMNS, CELL
    )
    return f'<h3>{escape(case.video)}</h3><img src="{_jpeg(sheet)}" alt="frames of {escape(case.name)}">'


def _jpeg(pixels: np.ndarray) -> str:
    """A picture (H, W, 3) as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=72, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _not_computed(models: Mapping[str, Any]) -> dict[str, str]:
    return {name: why for model in models.values() for name, why in model["not_computed"].items()}


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
$style.half { max-width: 640px } td small { display: block }
</style></head><body>
<h1>$title</h1>
$about
$head
$models
$note
<footer>Made again by <code>$command</code>. Not computed: $missing. Written on $made.</footer>
</body></html>
""")
