"""The camera LoRA that ships: it moves the camera as its name says, and at strength 0 it is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from svdcli.data.camera_class import camera_class
from svdcli.data.footage import cover
from svdcli.engine.generate import Sampling, decode, generate
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.model.bundle import open_bundle
from svdcli.model.lora import open_lora
from svdcli.shipped import shipped_path

LORA = ("assets", "loras", "nano-pan-left.safetensors")


def sampled(picture: str, strength: float | None) -> tuple[Residence, torch.Tensor, float]:
    """Latents of 14 frames of 128x72 at that strength of the LoRA, None: without it; and their frames a second."""
    files = open_bundle("nano")
    if strength is not None:
        files = replace(files, loras=(open_lora(shipped_path(*LORA), strength, files),))  # type: ignore[arg-type]
    residence = Residence(files, "high", torch.device("cpu"), torch.float32)
    sampling = replace(Sampling.of(files.settings), num_frames=14, width=128, height=72)
    image = np.asarray(Image.open(shipped_path("assets", "examples", picture)).convert("RGB"))
    return (
        residence,
        generate(residence, to_pixels(cover(image, 128, 72)[None]), [0], sampling)[0],
        sampling.fps,
    )


@pytest.mark.parametrize("picture", ["hiker.jpg", "pig.jpg", "robot.jpg"])
def test_the_camera_pans_to_the_left(picture: str) -> None:
    residence, latents, fps = sampled(picture, 1.0)
    assert camera_class(decode(residence, latents, None, 0)[0], fps)[0] == "pan_left"


def test_at_strength_0_it_is_not_there() -> None:
    with_it, without = sampled("hiker.jpg", 0.0)[1], sampled("hiker.jpg", None)[1]
    assert torch.equal(with_it, without)
