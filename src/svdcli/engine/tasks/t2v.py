"""Stages 2 and 3, the text-to-video model (SVD paper §3.2 and §4.1, app. D.2 and D.3): denoise clips, and images between.

An image model gets temporal layers first, which are silent until they have learned something.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from svdcli.data.examples import Batches
from svdcli.engine.latents import to_pixels
from svdcli.engine.tasks.clips import ClipTask
from svdcli.engine.tasks.text import Painter, TextBatch, TextTask
from svdcli.model.inflate import ID_WIDTH, inflate
from svdcli.model.settings import Settings
from svdcli.recipe.recipe import Data
from svdcli.recipe.tasks import TextToVideoTask

NUM_IDS = 2
"""Vector ids of a text-to-video model: fps and motion bucket (SVD paper, app. D.2)."""


def id_width(task: TextToVideoTask) -> int:
    """Numbers that each id is told by: SVD's, or fewer in a network that is narrower than that."""
    return min(ID_WIDTH, task.block_out_channels[0])


class TextToVideo(TextTask, ClipTask):
    """See `Task`."""

    task: TextToVideoTask

    def __init__(
        self, task: TextToVideoTask, data: Data, batches: Batches, device: torch.device, cache: Path
    ) -> None:
        super().__init__(task, data, batches, device, cache)
        unet = self.prepare_unet()
        if not unet.config.temporal:
            unet = inflate(unet, max(task.num_frames), NUM_IDS, id_width(task)).train()
        self.network = Painter(unet)

    def batch(self, seed: list[int]) -> TextBatch:
        """Clips with their captions, rates and motion buckets, or images, a pure function of the seed."""
        rng = np.random.default_rng(seed)
        if rng.random() < self.task.image_share:
            return self.draw_images(seed, rng)
        drawn = self.draw(seed, rng)
        texts = self.draw_texts(drawn.examples, rng)
        return TextBatch(drawn.latents, texts, drawn.fps, drawn.motion_bucket, drawn.examples)

    def held_out_clip(self, index: int, frames: npt.NDArray[np.uint8], fps: float) -> TextBatch:
        pixels = to_pixels(frames)[None].to(self.device)
        rate, bucket = (torch.tensor([v], device=self.device) for v in (fps, self.bucket(frames, fps)))
        return TextBatch(self.encoded(pixels), (self.held_out_text(index),), rate, bucket)

    def settings(self) -> Settings:
        return self.suggested("t2v", self.task, max(self.task.num_frames), self.usual_fps())

    def export(self, network: Painter, folder: Path, recipe_text: str) -> None:
        """The text-to-video bundle, see `save`, with the calibration that its motion buckets were trained by."""
        self.save(
            network,
            folder,
            replace(self.settings(), recipe=recipe_text, motion_calibration=self.calibration.knots),
        )
