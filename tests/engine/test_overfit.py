"""One clip learned by heart: what training, exporting and sampling are for, all in one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdcli.data.camera import move
from svdcli.data.frames import cover
from svdcli.data.motion import MotionCalibration, motion_score
from svdcli.engine.generate import Sampling, decode, generate
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.engine.train import train
from svdcli.evaluate.frames import psnr
from svdcli.io.video import write_video
from svdcli.model.bundle import open_bundle
from svdcli.recipe.recipe import parse_recipe
from svdcli.shipped import shipped_path

NUM_FRAMES, WIDTH, HEIGHT, FPS = 6, 96, 64, 8.0


@pytest.mark.slow
def test_a_clip_is_learned_by_heart(tmp_path: Path) -> None:
    """300 steps of `svd train` on one clip that pans, and it is sampled back from its first frame with 25 dB and more."""
    picture = np.asarray(Image.open(shipped_path("assets", "examples", "hiker.jpg")).convert("RGB"))
    whole = move(cover(picture, WIDTH, HEIGHT), NUM_FRAMES + 1, "pan", 0.3, 0.4)
    clip = whole[:NUM_FRAMES]  # one frame more, so that there are two scores to calibrate motion by
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("train", "held-out"):
        write_video(folder / f"{name}.mp4", whole, FPS, {}, "mp4")
    task = {
        "kind": "i2v",
        "vae": str(shipped_path("assets", "nano")),
        "block_out_channels": [96, 96],
        "norm_num_groups": 8,
        "num_attention_heads": [3, 3],
        "attention_levels": [False, True],
        "context_dim": 32,
        "num_frames": [NUM_FRAMES],
        "fps": [FPS, FPS],
        "p_mean": 1.0,
        "p_std": 1.6,
        "drop_embedding": 0.0,
        "drop_latent": 0.0,
        "drop_both": 0.0,
        "guidance": "1.0",
        "num_steps": 12,
        "sigma_min": 0.05,
        "sigma_max": 80.0,
    }
    recipe = parse_recipe(
        {
            "task": task,
            "data": {"source": str(folder), "held_out": ["held-out*"], "width": WIDTH, "height": HEIGHT},
            "optim": {"lr": 2e-3, "warmup_steps": 20, "ema_decay": 0.98},
            "run": {
                "folder": str(tmp_path / "run"),
                "num_steps": 300,
                "batch_size": 3,
                "evaluate_every": 300,
            },
            "machine": {"accelerator": "cpu"},
        },
        "test_overfit",
    )
    train(recipe, lambda step, figures: None)

    files = open_bundle(str(tmp_path / "run" / "bundle"))
    residence = Residence(files, "high", torch.device("cpu"), torch.float32)
    bucket = MotionCalibration(*zip(*files.settings.motion_calibration, strict=True)).bucket(
        motion_score(clip, FPS)
    )
    sampling = replace(Sampling.of(files.settings), num_frames=NUM_FRAMES, fps=FPS, motion_bucket=bucket)
    made = decode(residence, generate(residence, to_pixels(clip[:1]), [0], sampling)[0], None, 0)[0]
    still = np.repeat(clip[:1], NUM_FRAMES, axis=0)
    assert psnr(still, clip) < 16  # it moves
    assert psnr(made, clip) >= 25
