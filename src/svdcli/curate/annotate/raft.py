"""Motion by RAFT (Teed and Deng 2020, 2003.12039), which the paper's high-quality set was measured with, at 800×450.

The unit and the columns are those of `motion`. The network is torchvision's `raft_large`; its weights are a file that
the recipe names. 448 pixels stand for 450, because the network takes multiples of eight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate import View
from svdcli.curate.annotate.models import Once, load_tensors, stamp, torch_device
from svdcli.curate.annotate.moments import frames_at
from svdcli.curate.annotate.motion import LOST, MotionAnnotator, astray, check_moments, motion_row
from svdcli.errors import InputError, MachineError

SIDE = 448
"""shortest side of the pictures, pixels"""
_WHERE = (
    "Save torchvision.models.optical_flow.raft_large(weights='DEFAULT').state_dict() with safetensors, and name the "
    "file as annotate.motion.weights."
)


class RaftAnnotator:
    """The columns of `MotionAnnotator`."""

    name = "motion"
    columns: Mapping[str, type] = MotionAnnotator.columns
    needs: tuple[str, ...] = ()
    batch = 4

    def __init__(self, weights: Path | None, limit: float, device: str) -> None:
        self.weights, self.limit, self.device = weights, limit, device
        self.version = stamp(1, "raft", str(weights), limit)
        self._network = Once(self._load)

    def _load(self) -> Any:
        try:
            from torchvision.models.optical_flow import raft_large
        except ImportError as error:
            raise MachineError(
                "RAFT needs torchvision, which is not installed.",
                "Install it (pip install torchvision), or leave annotate.motion.method at farneback.",
            ) from error
        if self.weights is None:
            raise MachineError("No weights for RAFT are named.", _WHERE)
        network = raft_large(weights=None, progress=False)
        try:
            network.load_state_dict(load_tensors(self.weights, "RAFT's weights", _WHERE))
        except (RuntimeError, InputError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise MachineError(f"{self.weights} does not fit RAFT: {reason}", _WHERE) from error
        return network.to(torch_device(self.device)).eval()

    def annotate(self, views: Sequence[View]) -> list[dict[str, Any]]:
        """Raises MachineError where torchvision or the weights are absent, InputError for a clip of a single moment."""
        self._network()
        return [{"clip": view.clip.id} | self._measure(view) for view in views]

    def _measure(self, view: View) -> dict[str, Any]:
        check_moments(view)
        frames = [_sized(frame) for frame in frames_at(view.video, list(view.proxy.times), 2 * SIDE)]
        flows, lost = [], []
        for before, after in zip(frames, frames[1:], strict=False):
            there, back = self._flow(before, after), self._flow(after, before)
            flows.append(there)
            lost.append(astray(there, back) > LOST)
        return motion_row(flows, lost, view.proxy, self.limit)

    def _flow(self, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Two pictures (H, W, 3) -> flow (H, W, 2), pixels."""
        import torch

        network = self._network()
        device = next(network.parameters()).device
        pair = torch.from_numpy(np.stack([before, after])).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            flow = network(pair[:1], pair[1:])[-1][0]
        return np.ascontiguousarray(flow.permute(1, 2, 0).cpu().numpy(), np.float32)


def _sized(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Shortest side SIDE, both sides multiples of eight."""
    height, width = frame.shape[:2]
    scale = SIDE / min(height, width)
    size = (round(width * scale / 8) * 8, round(height * scale / 8) * 8)
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
