"""Which of several clips of one picture is the best: it moves, it does not flicker, and it begins with the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from svdcli.data.motion import motion_score
from svdcli.evaluate.frames import first_frame_psnr, flicker


@dataclass(frozen=True)
class Score:
    """A clip's place in the order is that of the list; `index` is where it stood in the input."""

    index: int
    total: float
    motion: float
    flicker: float
    fidelity_db: float

    @property
    def figures(self) -> dict[str, float]:
        return {
            "score": self.total,
            "motion": self.motion,
            "flicker": self.flicker,
            "fidelity_db": self.fidelity_db,
        }

    @property
    def summary(self) -> str:
        return f"motion {self.motion:.3f}  flicker {self.flicker:.4f}  fidelity {self.fidelity_db:.1f} dB"


Candidate = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], float]


def rank_by_quality(candidates: Sequence[Candidate]) -> list[Score]:
    """Clips (T, H, W, 3) with their picture (H, W, 3) in [0, 1] and frame rate -> scores, best first.

    Each measure is turned into ranks among the candidates (motion up, flicker per motion down, fidelity up), and the mean rank,
    0 to 1, is the score: no measure outweighs another by its unit. A single frame has neither motion nor flicker.
    """
    rows = [_measure(*candidate) for candidate in candidates]
    motion, shake, fidelity = (np.array(column) for column in zip(*rows, strict=True))
    steadiness = -shake / np.maximum(motion, 1e-3)
    totals = np.mean([_ranks(motion), _ranks(steadiness), _ranks(fidelity)], axis=0)
    order = np.argsort(-totals, kind="stable")
    return [Score(int(i), float(totals[i]), *map(float, rows[i])) for i in order]


def _measure(
    frames: npt.NDArray[np.uint8], picture: npt.NDArray[np.float32], fps: float
) -> tuple[float, float, float]:
    return (
        motion_score(frames, fps) if len(frames) > 1 else 0.0,
        flicker(frames) if len(frames) > 2 else 0.0,
        first_frame_psnr(frames, picture),
    )


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Share of the other candidates that each one beats, ties counting half."""
    beats = (values[:, None] > values[None]).sum(1) + 0.5 * ((values[:, None] == values[None]).sum(1) - 1)
    return beats / max(1, len(values) - 1)
