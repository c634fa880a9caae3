"""One clip explained in a picture: its key frames with the text that was found, its flow, and what each filter says of it."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from svdcli.curate.annotate.motion import SIDE
from svdcli.curate.pages.pictures import proxy_path
from svdcli.curate.proxy import Proxy
from svdcli.curate.select.catalogue import Catalogue, Column, quoted
from svdcli.curate.select.lock import WHOLE, FrozenAxis, Lock, Threshold, read_lock
from svdcli.data.motion import dense_flow, grey_frames
from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.recipe.filter import parse_bounds

WIDTH, GAP = 1200, 12
MOST_FLOWS = 8
ARROWS = 12
"""arrows across the shorter side of a picture of flow"""
_PAPER, _INK, _SOFT, _BOX, _BAD = (255, 255, 255), (29, 31, 33), (99, 104, 110), (230, 30, 90), (179, 38, 30)
_SHOWN = 110  # characters of a line


@dataclass(frozen=True)
class Line:
    """Of the text below the pictures."""

    words: str
    bad: bool = False
    """it is why the clip is dropped"""


def explain(folder: Path, clip_id: str, out_png: Path) -> list[Line]:
    """Draw what is known of a clip into a PNG; -> the lines of its text.

    Raises InputError where there is no such clip, or its proxy is gone.
    """
    with Catalogue(folder) as catalogue:
        found = catalogue.records("SELECT * FROM clips WHERE id = ?", [clip_id])
        if not found:
            near = catalogue.rows("SELECT id FROM clips ORDER BY levenshtein(id, ?), id LIMIT 1", [clip_id])
            raise InputError(
                f"{folder} has no clip {clip_id}.", f"Did you mean {near[0][0]}?" if near else "Split first."
            )
        scores = {
            table: rows[0]
            for table in catalogue.scores
            if (
                rows := catalogue.records(
                    f"SELECT * FROM {quoted(f'scores_{table}')} WHERE clip = ?", [clip_id]
                )
            )
        }
        lines = _lines(catalogue, found[0], scores)
    proxy = Proxy.load(proxy_path(folder, clip_id))
    boxes = scores.get("text", {}).get("text_boxes") or []
    picture = _compose(proxy, np.reshape(np.asarray(boxes, float), (-1, 9)), clip_id, lines)
    with atomic_path(out_png) as temporary:
        picture.save(temporary, "PNG")
    return lines


# ---- words ---------------------------------------------------------------------------------------------


def _lines(catalogue: Catalogue, clip: dict[str, Any], scores: dict[str, dict[str, Any]]) -> list[Line]:
    path = catalogue.row("SELECT path FROM sources WHERE id = ?", [clip["source"]])[0]
    lines = [
        Line(
            f"{path}: {clip['start']:.3f} to {clip['end']:.3f} s, {clip['num_frames']} frames at {clip['fps']:.4g} a "
            f"second, {clip['width']} x {clip['height']}, {clip['method']}"
        ),
        Line(f"begins at {clip['opens']}, ends at {clip['closes']}, certain to {clip['confidence']:.2f}"),
    ]
    if catalogue.has("selection"):
        decided = catalogue.records("SELECT * FROM selection WHERE clip = ?", [clip["id"]])
        lines += [_verdict(row) for row in decided] or [Line("not filtered yet")]
    lock = read_lock(catalogue.folder)
    for name, axis in (lock.axes if lock else {}).items():
        lines.append(_axis_line(catalogue, name, axis, clip["id"]))
    lines += _rest(catalogue, scores, lock)
    return lines


def _verdict(row: dict[str, Any]) -> Line:
    if row["kept"]:
        return Line("kept")
    stands = f", for which {row['keeper']} stands" if row["keeper"] else ""
    return Line(f"dropped by {row['dropped_by']}{stands}", bad=True)


def _axis_line(catalogue: Catalogue, name: str, axis: FrozenAxis, clip: str) -> Line:
    """`motion 0.012: (8% of clips have less); drops lowest 25%, below 0.043: dropped`."""
    column = catalogue.column(f"{axis.table}.{axis.column}" if axis.table else axis.column)
    value = _value(catalogue, column, clip)
    if value is None:
        return Line(f"{name}: no score")
    strata = [_value(catalogue, catalogue.column(by), clip) for by in axis.by]
    key = WHOLE if not axis.by or None in strata else "/".join(map(str, strata))
    threshold = axis.strata.get(key, axis.strata.get(WHOLE, Threshold()))
    told, dropped = [], False
    for bound in parse_bounds(axis.drop):
        if bound.kind == "is":
            told.append(bound.word)
            dropped |= value == bound.word
            continue
        limit = bound.number if bound.kind in ("below", "above") else getattr(threshold, bound.kind)
        low = bound.kind in ("lowest", "below")
        share = f"{bound.kind} {100 * bound.number:.4g}%, " if bound.kind in ("lowest", "highest") else ""
        told.append(f"{share}{'below' if low else 'above'} {limit:.4g}")
        dropped |= value < limit if low else value > limit
    where = f" of {key}" if key else ""
    rank = _rank(catalogue, column, value) if column.kind == "number" else ""
    shown = f"{value:.4g}" if column.kind == "number" else value
    return Line(
        f"{name} {shown}{rank}; drops {', '.join(told)}{where}: {'dropped' if dropped else 'passes'}",
        dropped,
    )


def _place(column: Column) -> str:
    return quoted(f"scores_{column.table}") if column.table else "clips"


def _value(catalogue: Catalogue, column: Column, clip: str) -> Any:
    key = "clip" if column.table else "id"
    rows = catalogue.rows(f"SELECT {column.sql} FROM {_place(column)} WHERE {key} = ?", [clip])
    return rows[0][0] if rows else None


def _rank(catalogue: Catalogue, column: Column, value: float) -> str:
    share = catalogue.row(f"SELECT avg(CAST({column.sql} < ? AS INT)) FROM {_place(column)}", [value])[0]
    return f" ({share:.0%} of clips have less)"


def _rest(catalogue: Catalogue, scores: dict[str, dict[str, Any]], lock: Lock | None) -> list[Line]:
    """What no filter looks at: other numbers and captions, a line a table; lists are left out."""
    judged = {(axis.table, axis.column) for axis in (lock.axes.values() if lock else ())}
    lines = []
    for table, row in scores.items():
        if row["not_computed"]:
            lines.append(Line(f"{table}: not computed: {row['not_computed']}"))
            continue
        parts = [
            f"{name} {content:.4g}" if isinstance(content, float) else f"{name} {content}"
            for name in catalogue.scores[table]
            if (content := row[name]) is not None
            and not isinstance(content, list)
            and (table, name) not in judged
        ]
        if parts and table not in ("duplicates", "clip_embedding"):
            lines.append(Line(", ".join(parts)))
    return lines


# ---- picture -------------------------------------------------------------------------------------------


def _compose(proxy: Proxy, boxes: npt.NDArray[np.float64], title: str, lines: Sequence[Line]) -> Image.Image:
    keys = [_with_boxes(frame, boxes[boxes[:, 0] == number, 1:]) for number, frame in enumerate(proxy.keys)]
    flows = _flows(proxy)
    cell = (WIDTH - 4 * GAP) // 3
    first = _row([_fit(key, cell) for key in keys], ["first frame, text boxes", "middle frame", "last frame"])
    columns = min(MOST_FLOWS // 2, max(1, len(flows)))
    cell = (WIDTH - (columns + 1) * GAP) // columns
    rows = [
        _row(
            [_fit(image, cell) for image, _ in flows[at : at + columns]],
            [told for _, told in flows[at : at + columns]],
        )
        for at in range(0, len(flows), columns)
    ]
    parts = [_text_block([Line(title)], 18), first, *rows, _text_block(lines, 15)]
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts) + GAP), _PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _fit(image: Image.Image, width: int) -> Image.Image:
    scale = min(width / image.width, 300 / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def _row(images: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    font = ImageFont.load_default(13)
    row = Image.new("RGB", (WIDTH, max(image.height for image in images) + GAP + 22), _PAPER)
    draw, left = ImageDraw.Draw(row), GAP
    for image, label in zip(images, labels, strict=True):
        row.paste(image, (left, 20))
        draw.text((left, 1), label, fill=_SOFT, font=font)
        left += max(image.width, round(font.getlength(label))) + GAP
    return row


def _with_boxes(frame: npt.NDArray[np.uint8], boxes: npt.NDArray[np.float64]) -> Image.Image:
    """Frame (H, W, 3) with quadrilaterals (N, 8), x y as shares of its sides."""
    image = Image.fromarray(np.ascontiguousarray(frame))
    draw = ImageDraw.Draw(image)
    for box in boxes:
        corners = [(x * image.width, y * image.height) for x, y in box.reshape(4, 2)]
        draw.line([*corners, corners[0]], fill=_BOX, width=max(2, image.width // 160))
    return image


def _flows(proxy: Proxy) -> list[tuple[Image.Image, str]]:
    """Between small frames, evenly over the clip: the first frame of each pair, its flow as arrows, and how fast it is."""
    num_pairs = len(proxy.small) - 1
    even = np.linspace(0, max(0, num_pairs - 1), min(MOST_FLOWS, num_pairs)).round()
    chosen = [int(index) for index in np.unique(even)]
    found = []
    for index in chosen:
        grey = grey_frames(proxy.small[index : index + 2], SIDE)
        flow = dense_flow(grey[0], grey[1])
        seconds = float(proxy.times[index + 1] - proxy.times[index])
        speed = float(np.hypot(flow[..., 0], flow[..., 1]).mean()) / SIDE / seconds
        label = f"{proxy.times[index]:.1f} s: flow {speed:.3f} sides/s"
        found.append((_arrows(proxy.small[index], flow / np.float32(SIDE)), label))
    return found


def _arrows(frame: npt.NDArray[np.uint8], flow: npt.NDArray[np.float32]) -> Image.Image:
    """Frame (h, w, 3) and flow (h', w', 2) in shortest sides -> a picture; colour says direction, length distance."""
    image = Image.fromarray(np.ascontiguousarray(frame)).convert("L").convert("RGB")
    scale = 288 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    image = Image.blend(image, Image.new("RGB", image.size, _PAPER), 0.35)
    draw, side = ImageDraw.Draw(image), min(image.size)
    step = side / ARROWS
    for y in np.arange(step / 2, image.height, step):
        for x in np.arange(step / 2, image.width, step):
            row, column = int(y / image.height * flow.shape[0]), int(x / image.width * flow.shape[1])
            dx, dy = (float(v) * side for v in flow[row, column])
            if dx * dx + dy * dy < 1:
                draw.point((x, y), fill=_SOFT)
                continue
            hue = (np.arctan2(dy, dx) / (2 * np.pi)) % 1
            colour = tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 1.0, 0.8))
            draw.line([(x, y), (x + dx, y + dy)], fill=colour, width=2)
            draw.ellipse([x + dx - 2, y + dy - 2, x + dx + 2, y + dy + 2], fill=colour)
    return image


def _text_block(lines: Sequence[Line], size: int) -> Image.Image:
    font = ImageFont.load_default(size)
    wrapped = [(part, line.bad) for line in lines for part in _wrapped(line.words)]
    block = Image.new("RGB", (WIDTH, round(len(wrapped) * size * 1.5) + GAP), _PAPER)
    draw = ImageDraw.Draw(block)
    for number, (words, bad) in enumerate(wrapped):
        draw.text((GAP, GAP // 2 + number * size * 1.5), words, fill=_BAD if bad else _INK, font=font)
    return block


def _wrapped(words: str) -> list[str]:
    import textwrap

    return textwrap.wrap(" ".join(words.split()), _SHOWN + 40, subsequent_indent="    ") or [""]
