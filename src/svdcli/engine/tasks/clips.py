"""What the tasks on clips share: which frames make a clip, at which rate, and its motion bucket."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svdcli.data.frames import FrameSet, Video
from svdcli.data.motion import MotionCalibration, motion_score
from svdcli.engine.tasks.latents import LatentTask
from svdcli.errors import InputError
from svdcli.recipe.recipe import Data, VideoTask

CALIBRATION_CLIPS = 400
STRIDES = range(1, 9)
EVALUATION_FPS = 7


@dataclass(frozen=True)
class Drawn:
    """Clips of one length, as many as a batch has, with what is known of each."""

    videos: tuple[Video, ...]
    pixels: tuple[npt.NDArray[np.uint8], ...]
    """(T, H, W, 3) each"""
    latents: Tensor
    """(B, T, c, h, w), scaled"""
    fps: Tensor
    """the rates that they are labelled with, (B,)"""
    motion_bucket: Tensor
    """(B,)"""


class ClipTask(LatentTask):
    """See `LatentTask`."""

    task: VideoTask

    def __init__(
        self, task: VideoTask, data: Data, batch_size: int, device: torch.device, cache: Path
    ) -> None:
        self.task = task
        super().__init__(task, data, batch_size, device, cache)
        self.calibration = self._calibrate()

    def require_clips(self, task: VideoTask, train_set: FrameSet) -> None:
        """Raise InputError where a clip length finds no footage, for training or to judge by."""
        lowest, highest = task.fps
        for num_frames in task.num_frames:
            # The rates that a clip may be labelled with must meet those that training draws.
            fits = [
                self.strides(video, num_frames, min(max(video.fps / stride, lowest), highest))
                for video in train_set.videos
                for stride in STRIDES
            ]
            if not any(fits):
                raise InputError(
                    f"No video gives clips of {num_frames} frames at {lowest:g} to {highest:g} a second.",
                    "Ask for fewer in task.num_frames, for other task.fps, or add footage.",
                )
        if not self.evaluated():
            raise InputError(
                f"No held-out video has the {min(task.num_frames)} frames of a clip.",
                "Hold out longer videos, see data.held_out.",
            )

    def _calibrate(self) -> MotionCalibration:
        """The motion buckets of this training set: clips drawn as in training, ranked by measured motion."""
        rng = np.random.default_rng(0)
        scores = []
        for _ in range(CALIBRATION_CLIPS):
            video, first, stride, fps = self.draw_clip(self.train_set, rng, min(self.task.num_frames))
            scores.append(
                motion_score(self.train_set.clip(video, first, min(self.task.num_frames), stride), fps)
            )
        return MotionCalibration.fit(scores)

    def draw_clip(
        self, frames: FrameSet, rng: np.random.Generator, num_frames: int
    ) -> tuple[Video, int, int, float]:
        """-> a video, its first frame, the stride, and the rate it is labelled with."""
        while True:
            video = frames.videos[rng.integers(len(frames.videos))]
            fps = float(rng.uniform(*self.task.fps))
            strides = self.strides(video, num_frames, fps)
            if strides:
                stride = int(rng.choice(strides))
                return video, int(rng.integers(video.num_frames - (num_frames - 1) * stride)), stride, fps

    def strides(self, video: Video, num_frames: int, fps: float) -> list[int]:
        """The strides at which a video holds a clip that, labelled with `fps`, is near enough to life."""
        fastest = self.task.max_speed
        return [
            stride
            for stride in STRIDES
            if 1 / fastest <= video.fps / stride / fps <= fastest
            and (num_frames - 1) * stride < video.num_frames
        ]

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Clips of one of the recipe's lengths, each with its own rate and motion bucket."""
        num_frames = int(rng.choice(self.task.num_frames))
        drawn = [self.draw_clip(self.train_set, rng, num_frames) for _ in range(self.batch_size)]
        rows = [
            slice(v.start + first, v.start + first + (num_frames - 1) * s + 1, s) for v, first, s, _ in drawn
        ]
        pixels = tuple(self.train_set.frames[r] for r in rows)
        buckets = [self.bucket(p, fps) for p, (*_, fps) in zip(pixels, drawn, strict=True)]
        return Drawn(
            tuple(video for video, *_ in drawn),
            pixels,
            self.scaled(rows),
            torch.tensor([fps for *_, fps in drawn], device=self.device),
            torch.tensor(buckets, device=self.device),
        )

    def bucket(self, frames: npt.NDArray[np.uint8], fps: float) -> float:
        """Frames (T, H, W, 3) labelled with a rate -> their motion bucket."""
        return self.calibration.bucket(motion_score(frames, fps))

    def evaluated(self) -> list[tuple[int, npt.NDArray[np.uint8], float]]:
        """Every other held-out video that is long enough.

        -> its number, its first frames (T, H, W, 3) at about EVALUATION_FPS, and their rate.
        """
        num_frames, clips = min(self.task.num_frames), []
        for index, video in enumerate(self.held_out.videos[::2]):
            stride = max(1, round(video.fps / EVALUATION_FPS))
            frames = self.held_out.clip(video, 0, num_frames, stride)
            if len(frames) == num_frames:
                clips.append((index, frames, video.fps / stride))
        return clips

    def usual_fps(self) -> float:
        """The middle of the range of rates."""
        return round(sum(self.task.fps) / 2, 1)
