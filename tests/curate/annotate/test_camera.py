"""The camera's class and rates against moves that are known: a room with a box, filmed."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from svdcli.curate.annotate.camera import CameraAnnotator

KINDS = (
    "static",
    "pan_left",
    "pan_right",
    "tilt_up",
    "tilt_down",
    "zoom_in",
    "zoom_out",
    "roll",
    "orbit",
    "handheld",
)
EACH = 7
FIRST_SEED = 100
"""the thresholds were set on seeds below 8"""


def test_classes_of_seventy_moves(
    make_view: Any, scenes: ModuleType, textures: list[npt.NDArray[np.uint8]], capsys: Any
) -> None:
    annotator = CameraAnnotator(still=0.01)
    confusion: Counter[tuple[str, str]] = Counter()
    for number, kind in enumerate(KINDS):
        for seed in range(FIRST_SEED, FIRST_SEED + EACH):
            rng = np.random.default_rng([seed, number])
            if seed % 2:
                walls = [textures[i] for i in rng.permutation(len(textures))]
            else:
                walls = [scenes.procedural(100 * seed + i) for i in range(6)]
            frames = scenes.film(scenes.moves(kind, rng), walls, seed)
            row = annotator.annotate([make_view(f"{kind}-{seed}", frames, scenes.FPS)])[0]
            confusion[kind, row["camera"]] += 1
    right = sum(count for (true, found), count in confusion.items() if true == found)
    table = confusion_table(confusion)
    with capsys.disabled():
        print(f"\n{table}\n{right} of {len(KINDS) * EACH} right")
    assert right >= 0.9 * len(KINDS) * EACH, table


def confusion_table(confusion: Counter[tuple[str, str]]) -> str:
    lines = [f"{'true, found:':>12} " + " ".join(f"{kind:>9}" for kind in KINDS)]
    for true in KINDS:
        lines.append(f"{true:>12} " + " ".join(f"{confusion[true, found] or '.':>9}" for found in KINDS))
    return "\n".join(lines)


def warped(texture: npt.NDArray[np.uint8], matrices: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.uint8]:
    """A flat picture under affine maps (2, 3) of centred coordinates, in heights of 90 pixels."""
    wide = cv2.resize(texture, (640, 480), interpolation=cv2.INTER_CUBIC)
    frames = []
    for matrix in matrices:
        linear, shift = matrix[:, :2], matrix[:, 2] * 90
        whole = np.column_stack([linear, np.array([80, 45]) + shift - linear @ np.array([320, 240])])
        frames.append(
            cv2.warpAffine(wide, whole.astype(np.float32), (160, 90), borderMode=cv2.BORDER_REFLECT)
        )
    return np.stack(frames).astype(np.uint8)


STEPS = np.arange(5) * 0.5 - 1  # seconds


@pytest.mark.parametrize(
    ("column", "rate", "matrix"),
    [
        ("camera_pan", 0.2, lambda t: [[1, 0, -0.2 * t], [0, 1, 0]]),  # the picture runs left
        ("camera_tilt", 0.15, lambda t: [[1, 0, 0], [0, 1, 0.15 * t]]),  # it runs down
        ("camera_zoom", 0.2, lambda t: [[np.exp(0.2 * t), 0, 0], [0, np.exp(0.2 * t), 0]]),  # it grows
        (
            "camera_roll",
            0.2,
            lambda t: [[np.cos(0.2 * t), np.sin(0.2 * t), 0], [-np.sin(0.2 * t), np.cos(0.2 * t), 0]],
        ),
        ("camera_shear", 0.2, lambda t: [[1, -0.4 * t, 0], [0, 1, 0]]),  # what is above runs right
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_rates_and_their_signs(
    make_view: Any, scenes: ModuleType, column: str, rate: float, matrix: Any, sign: int
) -> None:
    frames = warped(scenes.procedural(3), [np.array(matrix(sign * t), float) for t in STEPS])
    row = CameraAnnotator(0.01).annotate([make_view("a", frames, 2)])[0]
    assert row[column] == pytest.approx(sign * rate, rel=0.1)
    assert row["camera_share"] > 0.7
    others = {"camera_pan", "camera_tilt", "camera_zoom", "camera_roll"} - {column}
    if column != "camera_shear":  # half of a shear is a roll
        assert max(abs(row[other]) for other in others) < 0.15 * rate


def test_something_that_moves_by_itself_is_no_camera(make_view: Any, scenes: ModuleType) -> None:
    still = warped(scenes.procedural(4), [np.array([[1, 0, 0], [0, 1, 0]], float)] * 5)
    for index, frame in enumerate(still):
        left = 20 + 15 * index
        frame[20:70, left : left + 40] = scenes.procedural(5)[:50, :40]
    row = CameraAnnotator(0.01).annotate([make_view("a", still, 2)])[0]
    assert row["camera"] == "static"
    assert 0.5 < row["camera_share"] < 0.95


def test_a_picture_without_texture_is_static(make_view: Any) -> None:
    row = CameraAnnotator(0.01).annotate([make_view("a", np.full((5, 90, 160, 3), 90, np.uint8), 2)])[0]
    assert row["camera"] == "static"
