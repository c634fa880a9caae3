"""What the tasks on clips share: which frames make a clip, at which rate, and its motion bucket."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svdcli.data.examples import Batches, Example, Examples, Wish
from svdcli.data.motion import MotionCalibration, motion_score
from svdcli.engine.generate import Sampling
from svdcli.engine.tasks.latents import LatentTask
from svdcli.errors import InputError
from svdcli.recipe.recipe import Data
from svdcli.recipe.tasks import VideoTask

CALIBRATION_CLIPS = 400
EVALUATION_FPS = 7
LEAST_MOTION = 0.003
"""Motion score up to which a clip stands still: noise of cameras and codecs stays below it."""
MIXED = 1.5
"""Times the slowest frame rate from which rates are worth a word."""


@dataclass(frozen=True)
class Drawn:
    """Clips of one length, as many as a batch has, with what is known of each."""

    examples: tuple[Example, ...]
    latents: Tensor
    """(B, T, c, h, w), scaled"""
    fps: Tensor
    """the rates that they are labelled with, (B,)"""
    motion_bucket: Tensor
    """(B,)"""


class ClipTask(LatentTask):
    """See `LatentTask`."""

    task: VideoTask
    examples: Examples
    evaluation_fps: float = EVALUATION_FPS

    def __init__(
        self, task: VideoTask, data: Data, batches: Batches, device: torch.device, cache: Path
    ) -> None:
        self.task = task
        super().__init__(task, data, batches, device, cache)
        wish = Wish(task.num_frames, task.fps, task.max_speed, data.sampling, data.max_corrupt_share)
        self.examples = Examples(self.train_set, wish, batches)
        if not self.evaluated():
            raise InputError(
                f"No held-out video has the {min(task.num_frames)} frames of a clip.",
                "Hold out longer videos, see data.held_out.",
            )
        self.scores = self.examples.scores(CALIBRATION_CLIPS)
        self.calibration = MotionCalibration.fit(self.scores)

    def draw(self, seed: list[int], rng: np.random.Generator) -> Drawn:
        """Clips of one of the recipe's lengths, each with its own rate and motion bucket."""
        examples = self.examples.draw(seed, rng)
        return Drawn(
            tuple(examples),
            self.scaled(examples),
            torch.tensor([e.window.fps for e in examples], device=self.device),
            torch.tensor([self.calibration.bucket(e.motion) for e in examples], device=self.device),
        )

    def notes(self) -> list[str]:
        rates = [video.fps for video in self.train_set.videos]
        if max(rates) < MIXED * min(rates):
            return super().notes()
        told = f"the frame rates of the videos differ, {min(rates):.4g} to {max(rates):.4g} a second"
        return [*super().notes(), f"{told}: each clip is labelled with the rate that it is shown at"]

    def warnings(self) -> list[str]:
        """Sentences on what of the footage will be learned and hardly can be meant."""
        if np.quantile(self.scores, 0.9) >= LEAST_MOTION:
            return []
        return [
            "Nine of ten clips stand still, so that the model will learn not to move: add footage in which something does."
        ]

    def bucket(self, frames: npt.NDArray[np.uint8], fps: float) -> float:
        """Frames (T, H, W, 3) labelled with a rate -> their motion bucket."""
        return self.calibration.bucket(motion_score(frames, fps))

    def evaluated(self) -> list[tuple[int, npt.NDArray[np.uint8], float]]:
        """Every other held-out video that is long enough.

        -> its number, its first frames (T, H, W, 3) at about `evaluation_fps`, and their rate.
        """
        num_frames, clips = min(self.task.num_frames), []
        for index, video in enumerate(self.judged):
            stride = max(1, round(video.fps / self.evaluation_fps))
            if (num_frames - 1) * stride < video.num_frames:
                frames = self.held_out.take(video, range(0, num_frames * stride, stride))
                clips.append((index, frames, video.fps / stride))
        return clips

    def sampling(self, frames: npt.NDArray[np.uint8], fps: float) -> Sampling:
        """With the rate and the motion of the clip."""
        return replace(super().sampling(frames, fps), fps=fps, motion_bucket=self.bucket(frames, fps))

    def usual_fps(self) -> float:
        """The middle of the range of rates."""
        return round(sum(self.task.fps) / 2, 1)


def place_of(example: Example) -> str:
    """Where a clip comes from, for a person: its bucket and its frames."""
    (width, height), numbers = example.size, example.window.numbers
    return f"{width}x{height}x{len(numbers)}, frames {numbers[0]}..{numbers[-1]}"
