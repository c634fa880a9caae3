"""The contact sheet: a row for each video, frames from first to last, so that many compare at a glance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK = (24, 24, 24), (235, 235, 235)
_GAP = 4
_FONT_SIZE = 14
_LABEL_HEIGHT = 22


def contact_sheet(
    frames_list: Sequence[np.ndarray], titles: Sequence[str], columns: int = 5, cell_width: int = 256
) -> np.ndarray:
    """Videos uint8 (T, H, W, 3), of any sizes and lengths -> one picture uint8 (H', W', 3).

    Each video is a row of `columns` frames spread evenly over its time, first and last included, under its
    title; a video with fewer frames shows each once. Cells are at most `cell_width` pixels wide, never
    enlarged, and all of the first video's shape.
    """
    if not frames_list or len(frames_list) != len(titles) or columns < 1:
        raise ValueError(
            "a contact sheet needs as many titles as videos, at least one, and at least one column"
        )
    height, width = frames_list[0].shape[1:3]
    cell = min(width, cell_width), max(1, round(height * min(width, cell_width) / width))
    columns = min(columns, max(len(frames) for frames in frames_list))
    row_height = _LABEL_HEIGHT + cell[1] + _GAP
    sheet_size = _GAP + columns * (cell[0] + _GAP), _GAP + len(frames_list) * row_height
    sheet = Image.new("RGB", sheet_size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for row, (frames, title) in enumerate(zip(frames_list, titles, strict=True)):
        top = _GAP + row * row_height
        draw.text((_GAP, top + 2), _shortened(title, font, sheet_size[0] - 2 * _GAP), fill=_INK, font=font)
        for column, index in enumerate(_spread(len(frames), columns)):
            place = _GAP + column * (cell[0] + _GAP), top + _LABEL_HEIGHT
            _paste(sheet, frames[index], place, cell)
    return np.asarray(sheet)


def labelled_row(frames_list: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Videos uint8 (T, H, W, 3) of one length and height -> one video, side by side, each under its label."""
    if not frames_list or len(frames_list) != len(labels):
        raise ValueError("a row needs as many labels as videos, and at least one")
    if len({frames.shape[:2] for frames in frames_list}) > 1:
        raise ValueError("the videos of a row must have one length and one height")
    font, parts = ImageFont.load_default(_FONT_SIZE), []
    for frames, label in zip(frames_list, labels, strict=True):
        width = frames.shape[2] + _GAP
        band = Image.new("RGB", (width, _LABEL_HEIGHT), _PAPER)
        text = _shortened(label, font, width - 2 * _GAP)
        ImageDraw.Draw(band).text((_GAP, 2), text, fill=_INK, font=font)
        title = np.broadcast_to(np.asarray(band), (len(frames), *np.asarray(band).shape))
        side = np.broadcast_to(np.array(_PAPER, np.uint8), (*frames.shape[:2], _GAP, 3))
        parts.append(np.concatenate([title, np.concatenate([frames, side], axis=2)], axis=1))
    return np.concatenate(parts, axis=2)


def _spread(num_frames: int, columns: int) -> list[int]:
    """Up to `columns` frame numbers, evenly from first to last; of one column, the middle one."""
    if columns == 1:
        return [num_frames // 2]
    return [int(index) for index in np.unique(np.linspace(0, num_frames - 1, columns).round())]


def _paste(sheet: Image.Image, frame: np.ndarray, place: tuple[int, int], cell: tuple[int, int]) -> None:
    """Scale the frame into the cell, in its own proportions, centred."""
    image = Image.fromarray(frame)
    scale = min(cell[0] / image.width, cell[1] / image.height, 1.0)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(image, (place[0] + (cell[0] - size[0]) // 2, place[1] + (cell[1] - size[1]) // 2))


def _shortened(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """One line that fits."""
    title = " ".join(title.split())
    if font.getlength(title) <= width:
        return title
    while title and font.getlength(title + "...") > width:
        title = title[:-1]
    return title.rstrip() + "..."
