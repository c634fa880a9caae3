"""Objects out of their pictures: by transparency, by the colour behind them, by a model; and placed as in training."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from svdcli.errors import InputError
from svdcli.io.images import read_picture
from svdcli.multiview.cameras import static_orbit
from svdcli.multiview.cutout import cut_out, place, radius_of


def disc(path: Path, behind: tuple[int, ...] = (30, 90, 160), hole: bool = False, mode: str = "RGB") -> Path:
    """An orange ellipse 60 by 30 pixels, off the middle of 120 by 100; with a hole of the background's colour."""
    large = np.zeros((400, 480, len(behind)), np.uint8)
    large[:] = behind
    colour = (240, 120, 20, 255)[: len(behind)]
    cv2.ellipse(large, (160, 280), (120, 60), 0, 0, 360, colour, -1)
    if hole:
        cv2.circle(large, (160, 280), 20, behind, -1)
    small = cv2.resize(large, (120, 100), interpolation=cv2.INTER_AREA)
    Image.fromarray(small, mode).save(path)
    return path


def box_of(square: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(np.abs(square - 1).max(axis=2) > 0.5)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("share", [0.9, 0.5])
@pytest.mark.parametrize("kind", ["key", "alpha"])
def test_the_object_fills_its_share_in_the_middle(tmp_path: Path, share: float, kind: str) -> None:
    behind = (30, 90, 160) if kind == "key" else (240, 120, 20, 0)
    file = disc(tmp_path / "a.png", behind, mode="RGB" if kind == "key" else "RGBA")
    found = cut_out(read_picture(file))
    square = place(found, 128, share)
    left, top, right, bottom = box_of(square)
    assert abs((right - left) - share * 128) <= 2 and abs((bottom - top) - share * 64) <= 2
    assert abs(left + right - 128) <= 2 and abs(top + bottom - 128) <= 2
    assert (square[0] > 0.99).all() and (square[-1] > 0.99).all()
    assert np.abs(square[64, 64] - np.array([240, 120, 20]) / 255).max() < 0.02
    blue = (square[..., 2] - square[..., 0]).max()  # none of the background shines through the edge
    assert blue < 0.05, kind


def test_holes_of_the_backgrounds_colour_stay(tmp_path: Path) -> None:
    found = cut_out(read_picture(disc(tmp_path / "a.png", hole=True)))
    assert found.alpha[70, 40] == 1 and found.alpha[0, 0] == 0
    assert np.abs(found.pixels[70, 40] - np.array([30, 90, 160]) / 255).max() < 0.02


def test_a_background_of_many_colours_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    with pytest.raises(InputError, match="not of one colour"):
        cut_out(read_picture(tmp_path / "noise.png"))
    Image.fromarray(np.full((64, 64, 4), (9, 9, 9, 0), np.uint8)).save(tmp_path / "empty.png")
    with pytest.raises(InputError, match="Nothing of the picture"):
        place(cut_out(read_picture(tmp_path / "empty.png")), 64, 0.9)


def test_the_radius_is_that_of_the_share() -> None:
    """A segment of length 1 across the axis, seen from there, fills the share of the frame."""
    cameras = static_orbit(0, 4).cameras(radius_of(0.8), side=200)
    ends, _ = cameras.project(np.array([[0.0, -0.5, 0.0], [0.0, 0.5, 0.0], [0, 0, 0.5]]), 3)
    assert abs(ends[1, 0] - ends[0, 0]) == pytest.approx(160, abs=1e-6)


# ---- by a model


def field(number: int, value: bytes | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = b""
    while True:
        value, low = value >> 7, value & 127
        out += bytes([low | (128 if value else 0)])
        if not value:
            return out


def tensor_type(channels: int, side: int) -> bytes:
    sizes = b"".join(field(1, field(1, n)) for n in (1, channels, side, side))
    return field(1, field(1, 1) + field(2, sizes))  # of float


def red_minus_blue(path: Path, side: int = 32) -> Path:
    """An ONNX model, written by hand: one 1×1 convolution, red minus blue of what it is given, times four."""
    weight = struct.pack("<3f", 4.0, 0.0, -4.0)
    shape = b"".join(field(1, n) for n in (1, 3, 1, 1))
    initial = shape + field(2, 1) + field(8, b"w") + field(9, weight)
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"Conv")
    graph = field(1, node) + field(2, b"g") + field(5, initial)
    graph += field(11, field(1, b"x") + field(2, tensor_type(3, side)))
    graph += field(12, field(1, b"y") + field(2, tensor_type(1, side)))
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13)))
    return path


def test_a_matting_model_cuts_out(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="matting models need onnxruntime")
    file = disc(tmp_path / "a.png")
    noisy = np.asarray(Image.open(file)).astype(int)
    noisy[:20] += np.random.default_rng(0).integers(-40, 40, (20, 120, 1))  # too uneven for the key
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file)
    found = cut_out(read_picture(file), red_minus_blue(tmp_path / "model.onnx"))
    assert found.how == "model.onnx" and found.alpha.shape == (100, 120)
    assert found.alpha[70, 40] > 0.95 and found.alpha[5, 100] < 0.05
    left, top, right, bottom = found.box
    assert abs(right - left - 60) <= 5 and abs(bottom - top - 30) <= 5


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="matting models need onnxruntime")
    picture = read_picture(disc(tmp_path / "a.png"))
    with pytest.raises(InputError, match="is not an ONNX file"):
        cut_out(picture, tmp_path / "absent.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"bad\.onnx does not run"):
        cut_out(picture, tmp_path / "bad.onnx")
