"""How much of the picture text covers: boxes of a detector on the first, middle and last frame (SVD app. C).

The paper's detector is CRAFT; this is PP-OCR's, whose weights the package `rapidocr` carries. The area is that of the
union of the boxes: boxes that overlap, as those of a word and its line, count once. The boxes hug the ink: the margin
that PP-OCR leaves round them for reading (its unclip ratio 1.6, and a dilation) would make the area a third to a half
larger than what is written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate import View
from svdcli.curate.annotate.models import stamp
from svdcli.errors import MachineError

DETECTOR, READER = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
GROWTH = 1.1
"""how far boxes grow from the core of the text that the network marks: its area by its length, times this"""
BULKY = 0.25
"""of the picture's shortest side: a box that is higher must be read to count, for the detector takes a dog or a cup that
fills the picture for a letter"""
READ_CHARACTERS, READ_CONFIDENCE = 2, 0.5
"""what makes a bulky box text: so many characters, read with that confidence"""


class TextAnnotator:
    """Columns: `text_area`, share of the picture (0..1), mean of the three frames; `text_area_most`, that of the frame
    with most; `text_boxes`, the boxes of the three frames as quadrilaterals: frame (0, 1, 2) and then x, y of four
    corners as shares of width and height, nine numbers a box.
    """

    name = "text"
    columns: Mapping[str, type] = {"text_area": float, "text_area_most": float, "text_boxes": list}
    needs: tuple[str, ...] = ()
    batch = 8

    def __init__(self, side: int, confidence: float) -> None:
        self.side, self.confidence = side, confidence
        self.version = stamp(2, side, confidence)

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises MachineError where rapidocr or its weights are absent."""
        rows = []
        for view in views:
            found = [self.boxes(frame) for frame in view.proxy.keys]
            areas = [union_area(boxes, view.proxy.keys.shape[1:3]) for boxes in found]
            size = np.array(view.proxy.keys.shape[2:0:-1], float)
            flat = [
                [float(number), *(float(v) for v in (box / size).ravel())]
                for number, boxes in enumerate(found)
                for box in boxes
            ]
            rows.append(
                {
                    "clip": view.clip.id,
                    "text_area": float(np.mean(areas)),
                    "text_area_most": max(areas),
                    "text_boxes": [value for box in flat for value in box],
                }
            )
        return rows

    def boxes(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """(H, W, 3) 0..255 -> quadrilaterals (N, 4, 2), x y in its pixels."""
        height, width = picture.shape[:2]
        scale = self.side / min(height, width)
        size = (round(width * scale), round(height * scale))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        small = cv2.resize(np.ascontiguousarray(picture[..., ::-1]), size, interpolation=how)
        found = self._ocr(small, use_det=True, use_cls=False, use_rec=False)
        if not len(found):
            return np.zeros((0, 4, 2))
        sure = np.asarray(found.scores) >= self.confidence
        boxes = np.asarray(found.boxes, float)[sure] * (np.array([width, height]) / size)
        limit = BULKY * min(height, width)
        text = [min(_sides(box)) <= limit or self._reads(picture, box) for box in boxes]
        return np.asarray(boxes[np.array(text, bool)])

    def _reads(self, picture: npt.NDArray[np.uint8], box: npt.NDArray[np.float64]) -> bool:
        """Whether letters can be read in a box."""
        width, height = (max(4, round(side)) for side in _sides(box))
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        turn = cv2.getPerspectiveTransform(box.astype(np.float32), corners)
        cut = cv2.warpPerspective(
            np.ascontiguousarray(picture[..., ::-1]), turn, (width, height), borderMode=cv2.BORDER_REPLICATE
        )
        found = self._ocr(np.ascontiguousarray(cut), use_det=False, use_cls=False, use_rec=True)
        words = zip(found.txts or (), found.scores or (), strict=True)
        return any(len(t.strip()) >= READ_CHARACTERS and s >= READ_CONFIDENCE for t, s in words)

    @cached_property
    def _ocr(self) -> Any:
        try:
            import rapidocr
        except ImportError as error:
            raise MachineError(
                "Text is looked for with rapidocr, which is not installed.",
                "Install it: pip install 'svdcli[curate]'.",
            ) from error
        folder = Path(rapidocr.__file__).parent / "models"
        for name in (DETECTOR, READER):
            if not (folder / name).is_file():  # else it would fetch them
                raise MachineError(
                    f"This rapidocr does not carry the weights {name}.",
                    "Install one that does: pip install 'rapidocr>=3.9'.",
                )
        threads = "EngineConfig.onnxruntime.{}_op_num_threads"
        params = {
            "Global.log_level": "error",
            "Det.model_path": str(folder / DETECTOR),
            "Rec.model_path": str(folder / READER),
            "Det.limit_side_len": self.side,
            "Det.unclip_ratio": GROWTH,
            "Det.use_dilation": False,
            threads.format("intra"): 1,
            threads.format("inter"): 1,
        }
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        return rapidocr.RapidOCR(params=params)


def _sides(box: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Width and height of a quadrilateral (4, 2) from its top left corner on, pixels."""
    top, right, bottom, left = (float(np.linalg.norm(box[i] - box[(i + 1) % 4])) for i in range(4))
    return max(top, bottom), max(right, left)


def union_area(boxes: npt.NDArray[np.float64], size: tuple[int, ...]) -> float:
    """Quadrilaterals (N, 4, 2) in pixels of a picture (height, width) -> the share of it that they cover, 0..1."""
    mask = np.zeros(size, np.uint8)
    for box in boxes:
        cv2.fillConvexPoly(mask, np.rint(box).astype(np.int32), 1)
    return float(mask.mean())
