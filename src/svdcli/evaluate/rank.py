"""Which of several clips of one picture is the best: it moves, does not flicker, and begins with the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from svdcli.data.motion import motion_score
from svdcli.evaluate.frames import first_frame_psnr, flicker


@dataclass(frozen=True)
class Measures:
    """What of a clip is compared with its rivals."""

    motion: float
    """mean flow, in shortest sides a second; 0 for a single frame"""
    flicker: float
    """see `frames.flicker`; 0 for fewer than three frames"""
    fidelity_db: float
    """PSNR of the first frame against the picture"""

    @classmethod
    def of(cls, frames: npt.NDArray[np.uint8], picture: npt.NDArray[np.float32], fps: float) -> Measures:
        """A clip (T, H, W, 3) and its picture (H, W, 3) in [0, 1]."""
        return cls(
            motion_score(frames, fps) if len(frames) > 1 else 0.0,
            flicker(frames) if len(frames) > 2 else 0.0,
            first_frame_psnr(frames, picture),
        )


@dataclass(frozen=True)
class Score:
    """A clip's place in the order is that of the list; `index` is where it stood in the input."""

    index: int
    total: float
    measures: Measures

    @property
    def figures(self) -> dict[str, float]:
        return {"score": self.total, **asdict(self.measures)}

    @property
    def summary(self) -> str:
        m = self.measures
        return f"motion {m.motion:.3f}  flicker {m.flicker:.4f}  fidelity {m.fidelity_db:.1f} dB"


def rank(clips: Sequence[Measures]) -> list[Score]:
    """The clips of one picture -> their scores, best first.

    Each measure is turned into ranks among the clips (motion up, flicker per motion down, fidelity up), and the
    mean rank, 0 to 1, is the score: no measure outweighs another by its unit. Equal clips keep their order.
    """
    motion, shake, fidelity = (
        np.array([getattr(clip, name) for clip in clips]) for name in ("motion", "flicker", "fidelity_db")
    )
    steadiness = -shake / np.maximum(motion, 1e-3)
    totals = np.mean([_ranks(motion), _ranks(steadiness), _ranks(fidelity)], axis=0)
    order = np.argsort(-totals, kind="stable")
    return [Score(int(i), float(totals[i]), clips[i]) for i in order]


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Share of the other clips that each one beats, ties counting half."""
    beats = (values[:, None] > values).sum(1) + 0.5 * ((values[:, None] == values).sum(1) - 1)
    return beats / max(1, len(values) - 1)
