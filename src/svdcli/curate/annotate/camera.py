"""What the camera does in each clip, from its small frames; see `svdcli.data.camera_class`, which evaluation shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from svdcli.curate.annotate import View
from svdcli.curate.annotate.models import stamp
from svdcli.curate.annotate.motion import check_moments
from svdcli.data.camera_class import camera_moves, classify, mean_move, shake_of


class CameraAnnotator:
    """Columns: `camera`, the class; `camera_pan`, `camera_tilt` (shortest sides a second), `camera_zoom` (log scale a
    second), `camera_roll` (radians a second), `camera_shear` (1 / s), means over the clip; `camera_shake`, the part of
    pan and tilt that goes to and fro, shortest sides a second; `camera_share`, the share of the picture that follows.
    """

    name = "camera"
    columns: Mapping[str, type] = {
        "camera": str,
        "camera_pan": float,
        "camera_tilt": float,
        "camera_zoom": float,
        "camera_roll": float,
        "camera_shear": float,
        "camera_shake": float,
        "camera_share": float,
    }
    needs: tuple[str, ...] = ()
    batch = 16

    def __init__(self, still: float) -> None:
        self.still = still
        self.version = stamp(1, still)

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises InputError for a clip of a single moment."""
        rows = []
        for view in views:
            check_moments(view)
            moves = camera_moves(view.proxy.small, view.proxy.times)
            gaps = np.diff(view.proxy.times)
            mean, shake = mean_move(moves, gaps), shake_of(moves, gaps)
            rows.append(
                {
                    "clip": view.clip.id,
                    "camera": classify(mean, shake, self.still),
                    "camera_pan": mean.pan,
                    "camera_tilt": mean.tilt,
                    "camera_zoom": mean.zoom,
                    "camera_roll": mean.roll,
                    "camera_shear": mean.shear,
                    "camera_shake": shake,
                    "camera_share": mean.follows,
                }
            )
        return rows
