"""The cache of latents: exact, made once, and made anew whenever anything that changes it does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from svdcli.data.footage import Video
from svdcli.data.frames import FrameSet
from svdcli.engine import latents as latents_module
from svdcli.engine.generate import to_frames
from svdcli.engine.latents import Latents, encoder_key, to_pixels
from svdcli.model.vae import VAE, VAEConfig

CPU = torch.device("cpu")
KINDS = ("DownEncoderBlock2D",) * 2
CONFIG = VAEConfig(3, 3, KINDS, (8, 8), 1, 2, 64, 1.0, False, 4)


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(CONFIG).requires_grad_(False)


@pytest.fixture
def footage() -> FrameSet:
    frames = np.random.default_rng(0).integers(0, 255, (38, 16, 16, 3), dtype=np.uint8)
    return FrameSet(frames, (Video("a", 8.0, 0, 18), Video("b", 8.0, 18, 20)))


def expected(vae: VAE, frames: np.ndarray) -> np.ndarray:
    return vae.encode(to_pixels(frames)[None])[0].numpy()


def test_cached_or_not_they_are_the_same(vae: VAE, footage: FrameSet, tmp_path: Path) -> None:
    video, wanted = footage.videos[1], [0, 3, 17]
    kept, fresh = Latents(vae, footage, tmp_path, CPU), Latents(vae, footage, None, CPU)
    rows = kept.take(video, wanted)
    np.testing.assert_allclose(rows, expected(vae, footage.take(video, wanted)), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(rows, fresh.take(video, wanted), rtol=2e-3, atol=2e-3)
    assert rows.dtype == np.float16 and len(list(tmp_path.rglob("*.npy"))) == 1


def test_each_clip_is_encoded_once(
    vae: VAE, footage: FrameSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = latents_module.encode_frames, []
    monkeypatch.setattr(latents_module, "encode_frames", lambda *a: (calls.append(1), real(*a))[1])
    for _ in range(2):
        latents = Latents(vae, footage, tmp_path, CPU)
        for video in footage.videos * 2:
            latents.take(video, [1])
    assert len(calls) == 4  # two batches of each of two clips


def test_whatever_changes_them_makes_others(vae: VAE, footage: FrameSet, tmp_path: Path) -> None:
    video = footage.videos[0]

    def count(by: VAE = vae, frames: FrameSet = footage) -> int:
        Latents(by, frames, tmp_path, CPU).take(frames.videos[0], [0])
        return len(list(tmp_path.rglob("*.npy")))

    assert count() == 1 == count()
    vae.decoder.conv_in.weight.mul_(2)
    assert count() == 1  # what decodes changes nothing
    vae.quant_conv.weight.mul_(2)
    assert count() == 2
    for scaled in ({"scaling_factor": 0.5}, {"norm_num_groups": 2}):
        other = VAE(replace(CONFIG, **scaled))
        other.load_state_dict(vae.state_dict())
        assert encoder_key(other) != encoder_key(vae)
    assert encoder_key(VAE(CONFIG).bfloat16()) != encoder_key(VAE(CONFIG))
    one = footage.frames.copy()
    one[3, 5, 5, 0] ^= 1  # a single bit of a single frame
    assert count(frames=replace(footage, frames=one)) == 3
    assert count(frames=replace(footage, frames=footage.frames[:, :8])) == 4
    assert count(frames=replace(footage, videos=(replace(video, start=1),))) == 5
    assert count(frames=replace(footage, key="the same frames of another recipe")) == 6
    assert count() == 6


def test_pixels_come_back(footage: FrameSet) -> None:
    assert np.array_equal(to_frames(to_pixels(footage.frames)), footage.frames)
