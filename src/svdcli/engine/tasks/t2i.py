"""Stage 1, the image model at continuous noise levels (SVD paper, app. D.2): denoise single frames.

The start is SD 2.1, whose network predicts v already. Here it sees ¼ ln σ where it saw one of a thousand numbered noise
levels; so the paper trains the time embedding alone first, and then everything.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from svdcli.data.examples import Batches
from svdcli.engine.latents import to_pixels
from svdcli.engine.tasks.parts import as_reference
from svdcli.engine.tasks.text import Painter, TextBatch, TextTask
from svdcli.model.bundle import open_bundle
from svdcli.model.settings import Settings
from svdcli.model.unet import UNet
from svdcli.recipe.recipe import Data
from svdcli.recipe.tasks import TextToImageTask


def freeze_but_trained(unet: UNet, task: TextToImageTask) -> None:
    """Take out of training what `task.train` does not name."""
    if task.train == "time_embedding":
        unet.requires_grad_(False).time_embedding.requires_grad_(True)


class TextToImage(TextTask):
    """See `Task`."""

    task: TextToImageTask

    def __init__(
        self, task: TextToImageTask, data: Data, batches: Batches, device: torch.device, cache: Path
    ) -> None:
        self.task = task
        super().__init__(task, data, batches, device, cache)
        unet = self.prepare_unet()
        freeze_but_trained(unet, task)
        self.network = Painter(unet)

    def batch(self, seed: list[int]) -> TextBatch:
        """Images and their captions, a pure function of the seed."""
        return self.draw_images(seed, np.random.default_rng(seed))

    def evaluated(self) -> list[tuple[int, npt.NDArray[np.uint8], float]]:
        """The middle frame of every other held-out video."""
        return [
            (index, self.held_out.take(video, [video.num_frames // 2]), video.fps)
            for index, video in enumerate(self.judged)
        ]

    def held_out_clip(self, index: int, frames: npt.NDArray[np.uint8], fps: float) -> TextBatch:
        pixels = to_pixels(frames)[None].to(self.device)
        return TextBatch(self.encoded(pixels), (self.held_out_text(index),))

    def notes(self) -> list[str]:
        start = self.task.start
        if start is None:
            return super().notes()
        scheduler = open_bundle(as_reference(start)).configs.get("scheduler", {})
        if scheduler.get("prediction_type", "v_prediction") == "v_prediction":
            return super().notes()
        told = f"{start} was trained to predict {scheduler['prediction_type']}, and has to learn to predict v"
        return [*super().notes(), told]

    def settings(self) -> Settings:
        return self.suggested("image", self.task, 1, 7.0)

    def export(self, network: Painter, folder: Path, recipe_text: str) -> None:
        """The image bundle, see `save`; diffusers loads its UNet as a `UNet2DConditionModel`."""
        self.save(network, folder, replace(self.settings(), recipe=recipe_text))
