"""How far a clip's pixels travel: Farnebäck's flow at 2 frames a second on pictures of 16 pixels (SVD §3.1, app. C).

The unit is that of `svdcli.data.motion.motion_score`, shortest sides a second, and so is the flow; only frames and
size are the paper's. Between two frames it can follow a fifth of the shortest side, 0.4 sides a second at 2 frames a
second; beyond that it reports too little, which is flagged: there the flow there and the flow back disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate import View
from svdcli.curate.annotate.models import stamp
from svdcli.curate.proxy import Proxy
from svdcli.data.motion import dense_flow, grey_frames
from svdcli.errors import InputError

SIDE = 16
"""shortest side of the pictures that flow is computed on, pixels"""
ASTRAY = 0.03
"""flow there and back may miss its start by this many shortest sides"""
LOST = 0.12
"""share of pixels astray from which a pair of frames counts as saturated"""

Grey = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]


class MotionAnnotator:
    """Columns: `motion`, shortest sides a second; `motion_saturation`, the share of the clip's time in which flow lost
    track (0..1); `motion_saturated`, whether that is more than `limit`, so that `motion` is too low.
    """

    name = "motion"
    columns: Mapping[str, type] = {"motion": float, "motion_saturation": float, "motion_saturated": bool}
    needs: tuple[str, ...] = ()
    batch = 64

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.version = stamp(1, limit)

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises InputError for a clip of a single moment."""
        return [{"clip": view.clip.id} | self._measure(view) for view in views]

    def _measure(self, view: View) -> dict[str, Any]:
        check_moments(view)
        grey = grey_frames(view.proxy.small, SIDE)
        flows = [dense_flow(a, b) for a, b in pairwise(grey)]
        lost = [
            astray(flow, dense_flow(b, a)) > LOST for flow, (a, b) in zip(flows, pairwise(grey), strict=True)
        ]
        return motion_row(flows, lost, view.proxy, self.limit)


def motion_row(flows: Sequence[Flow], lost: Sequence[bool], proxy: Proxy, limit: float) -> dict[str, Any]:
    """Flows in pixels of pictures of their own size, and which of them are saturated -> the columns."""
    gaps = np.diff(proxy.times)
    distance = sum(mean_length(flow) / min(flow.shape[:2]) for flow in flows)
    saturation = float(np.average(np.asarray(lost, float), weights=gaps))
    return {
        "motion": float(distance / gaps.sum()),
        "motion_saturation": saturation,
        "motion_saturated": saturation > limit,
    }


def check_moments(view: View) -> None:
    """Raises InputError unless the proxy holds two small frames at rising times."""
    times, small = view.proxy.times, view.proxy.small
    if len(times) != len(small) or len(small) < 2 or not (np.diff(times) > 0).all():
        raise InputError(
            f"Motion cannot be measured in {view.clip.id}: it shows a single moment.",
            "Leave out clips of one frame, or run svd curate split again.",
        )


def mean_length(flow: Flow) -> float:
    """Mean length of the vectors of (H, W, 2), pixels."""
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean())


def astray(there: Flow, back: Flow) -> float:
    """Share of pixels whose way there and back ends elsewhere than it began."""
    height, width = there.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    seen = cv2.remap(
        back,
        columns + there[..., 0],
        rows + there[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    miss = np.hypot(there[..., 0] + seen[..., 0], there[..., 1] + seen[..., 1])
    return float((miss > ASTRAY * min(height, width)).mean())
