"""Sampling against diffusers from picture to frames, and what diffusers does not promise: seeds, chunks, memory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from svdcli.diffusion.noise import NoiseSource
from svdcli.engine import generate as module
from svdcli.engine.generate import (
    Preview,
    Sampling,
    chunk_starts,
    condition,
    decode,
    decode_pieces,
    denoise,
    generate,
    is_out_of_memory,
    to_frames,
)
from svdcli.engine.memory import Residence
from svdcli.errors import MachineError
from svdcli.model.bundle import open_bundle
from svdcli.model.vae import VAE

WIDTH, HEIGHT, SEED = 32, 16, 7
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def residence(tiny_bundle_path: Path) -> Residence:
    return Residence(open_bundle(tiny_bundle_path), "high", CPU, torch.float32)


@pytest.fixture(scope="module")
def sampling(residence: Residence) -> Sampling:
    native = Sampling.of(residence.files.settings)
    return replace(native, width=WIDTH, height=HEIGHT, num_frames=5, num_steps=3, guidance="1.0:3.0")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 5 + phase) * np.cos(y / 7 - phase) for phase in (0, 1, 2)]
    return Image.fromarray(((np.stack(waves, -1) + 1) * 127.5).astype(np.uint8))


@pytest.fixture(scope="module")
def pixels(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.asarray(picture) / np.float32(255)).movedim(-1, 0)[None] * 2 - 1


@pytest.fixture(scope="module")
def pipeline(tiny_bundle_path: Path) -> Any:
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(tiny_bundle_path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise_of(seed: int, num_frames: int) -> Tensor:
    """The initial latents that `generate` draws."""
    return NoiseSource([seed], (num_frames, 4, HEIGHT // 2, WIDTH // 2)).draw()


def run_diffusers(
    pipeline: Any, picture: Image.Image, sampling: Sampling, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor]:
    """Frames (T, 3, H, W) in [0, 1] of the same numbers, and the ids that its UNet was given.

    Its pipeline takes the initial latents as an argument, but draws the augmentation noise itself.
    """
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion as theirs

    noise = NoiseSource([SEED], (3, HEIGHT, WIDTH), "augment").draw()
    drawn = []
    monkeypatch.setattr(theirs, "randn_tensor", lambda shape, **_: drawn.append(shape) or noise.view(shape))
    ids: list[Tensor] = []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda *call: ids.append(call[2]["added_time_ids"]), with_kwargs=True
    )
    low, _, high = sampling.guidance.partition(":")
    frames = pipeline(
        picture, height=HEIGHT, width=WIDTH, num_frames=sampling.num_frames,
        num_inference_steps=sampling.num_steps, min_guidance_scale=float(low),
        max_guidance_scale=float(high or low), fps=sampling.fps, motion_bucket_id=sampling.motion_bucket,
        noise_aug_strength=sampling.augment, decode_chunk_size=chunk, output_type="pt",
        latents=noise_of(SEED, sampling.num_frames),
    ).frames[0]  # fmt: skip
    hook.remove()
    assert drawn == [(1, 3, HEIGHT, WIDTH)]
    return frames, ids[0][:1]


@pytest.mark.parametrize(
    ("num_frames", "augment", "fps", "chunk"), [(14, 0.0, 7.0, 14), (14, 0.3, 12.0, 5), (25, 0.02, 6.0, 8)]
)
def test_from_picture_to_frames_it_is_diffusers(
    residence: Residence, sampling: Sampling, picture: Image.Image, pixels: Tensor, pipeline: Any,
    monkeypatch: pytest.MonkeyPatch, num_frames: int, augment: float, fps: float, chunk: int,
) -> None:  # fmt: skip
    sampling = replace(sampling, num_frames=num_frames, augment=augment, fps=fps, motion_bucket=100.0)
    theirs, their_ids = run_diffusers(pipeline, picture, sampling, chunk, monkeypatch)

    latents = generate(residence, pixels, [SEED], sampling)
    ours = torch.cat(list(pieces(residence, latents[0], chunk, overlap=0))) / 2 + 0.5

    assert float((ours.clamp(0, 1) - theirs).abs().max()) <= 1e-4
    assert theirs.shape[0] == num_frames and float(theirs.std()) > 0.05
    assert float(((theirs > 0) & (theirs < 1)).float().mean()) > 0.5  # clamping hides nothing
    torch.testing.assert_close(sampling.sigmas(), pipeline.scheduler.sigmas.float().cpu(), rtol=1e-6, atol=0)
    conditioning = condition(residence, pixels, [SEED], sampling)
    torch.testing.assert_close(conditioning.vector_ids, their_ids.float(), rtol=0, atol=0)
    assert conditioning.vector_ids.tolist()[0] == pytest.approx([fps - 1, 100.0, augment])


def pieces(residence: Residence, latents: Tensor, chunk: int, overlap: int) -> list[Tensor]:
    """Decoded floats of scaled latents (T, c, h, w), before they become bytes."""
    with torch.inference_mode(), residence.use("vae") as vae:
        return list(decode_pieces(vae, latents / vae.config.scaling_factor, chunk, overlap))


# ---- seeds


def test_a_clip_is_the_same_alone_and_in_a_batch(
    residence: Residence, sampling: Sampling, pixels: Tensor
) -> None:
    sampling = replace(sampling, sampler="euler_ancestral", augment=0.5)
    together = generate(residence, torch.cat([pixels, pixels.flip(-1)]), [SEED, SEED + 1], sampling)
    alone = generate(residence, pixels.flip(-1), [SEED + 1], sampling)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    assert float((together[0] - together[1]).abs().mean()) > 0.1


def test_the_seed_pins_every_noise_and_augmentation_has_its_own(
    residence: Residence, sampling: Sampling, pixels: Tensor
) -> None:
    sampling = replace(sampling, sampler="heun", s_churn=1.0, augment=0.5)
    first, again = (generate(residence, pixels, [SEED], sampling) for _ in range(2))
    assert torch.equal(first, again)
    ours, other, longer = (
        condition(residence, pixels, [seed], replace(sampling, num_frames=n)).concat
        for seed, n in ((SEED, 5), (SEED + 1, 5), (SEED, 9))
    )
    assert torch.equal(ours, longer) and not torch.allclose(ours, other, atol=1e-2)


def test_without_any_noise_to_start_from_the_seed_is_of_no_account(
    residence: Residence, sampling: Sampling, pixels: Tensor
) -> None:
    told = condition(residence, pixels, [SEED], sampling)
    made = {
        temperature: [
            denoise(residence, told, [seed], replace(sampling, temperature=temperature)) for seed in (1, 2)
        ]
        for temperature in (0.0, 0.5)
    }
    assert torch.equal(*made[0.0]) and not torch.allclose(*made[0.5], atol=1e-2)


def test_the_embedding_is_of_the_clean_picture(
    residence: Residence, sampling: Sampling, pixels: Tensor
) -> None:
    clean, noisy = (
        condition(residence, pixels, [SEED], replace(sampling, augment=a)).context.tokens for a in (0, 0.5)
    )
    assert torch.equal(clean, noisy)


# ---- guidance


@pytest.mark.parametrize(
    ("guidance", "evaluations"), [("1.0", 3), ("1:1", 3), ("1.0:2.0", 6), ("triangle:1:2", 6)]
)
def test_guidance_of_one_never_runs_the_null_branch(
    residence: Residence, sampling: Sampling, pixels: Tensor, guidance: str, evaluations: int
) -> None:
    calls: list[int] = []
    with residence.use("unet") as unet:
        hook = unet.register_forward_pre_hook(lambda *_: calls.append(1))
    generate(residence, pixels, [SEED], replace(sampling, guidance=guidance))
    hook.remove()
    assert len(calls) == evaluations


def test_steps_are_told_and_previewed(residence: Residence, sampling: Sampling, pixels: Tensor) -> None:
    steps = []
    generate(residence, pixels, [SEED], sampling, steps.append)
    assert [(info.index, info.total) for info in steps] == [(0, 3), (1, 3), (2, 3)]
    assert steps[-1].x0.shape == (1, 5, 4, HEIGHT // 2, WIDTH // 2)


def test_a_preview_shows_the_picture_that_the_latents_hold() -> None:
    torch.manual_seed(0)
    colours = torch.rand(3, 8, 12) * 2 - 1
    latent = torch.einsum("cd,dhw->chw", torch.randn(4, 3), colours) + 0.5  # any linear code
    preview = Preview.fit(latent, colours.repeat_interleave(2, -2).repeat_interleave(2, -1), 0.18)
    shown = preview.frames(torch.stack([latent, -latent]) * 0.18)
    assert np.abs(shown[0].astype(int) - to_frames(colours[None])[0]).max() <= 1
    assert shown.shape == (2, 8, 12, 3)


# ---- decoding


@pytest.mark.parametrize("overlap", [0, 1, 3, 20])
def test_chunks_cover_every_frame_and_are_whole(overlap: int) -> None:
    for total, chunk in itertools.product(range(1, 27), (1, 2, 5, 8, 14, 30)):
        starts = chunk_starts(total, chunk, overlap)
        stops = [min(start + chunk, total) for start in starts]
        shared = min(overlap, chunk - 1)
        assert starts[0] == 0 and stops[-1] == total
        for start, stop in zip(starts[1:], stops, strict=False):
            assert stop - chunk < start <= stop - shared
        if shared:
            assert all(b - a == min(chunk, total) for a, b in zip(starts, stops, strict=True))


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """Scaled latents (12, 4, 8, 8) of a slow change with some grain."""
    generator = torch.Generator().manual_seed(3)
    first, last, grain = (torch.randn(n, 4, 8, 8, generator=generator) for n in (1, 1, 12))
    return (torch.lerp(first, last, torch.linspace(0, 1, 12)[:, None, None, None]) + 0.1 * grain) * 0.18


def test_without_overlap_the_chunks_are_those_of_diffusers(
    residence: Residence, pipeline: Any, latents: Tensor
) -> None:
    with torch.inference_mode():
        theirs = pipeline.decode_latents(latents[None], len(latents), 5)[0].movedim(0, 1)
    ours = torch.cat(pieces(residence, latents, 5, overlap=0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert float((theirs - torch.cat(pieces(residence, latents, 12, overlap=0))).abs().max()) > 0.01


def test_overlap_leaves_no_seam(residence: Residence, latents: Tensor) -> None:
    """The change from frame to frame is nowhere above 1.25 times that of the whole decode; plain chunks reach twice that.

    And the error that chunks make jumps less.
    """
    whole, plain, faded = (
        torch.cat(pieces(residence, latents, chunk, overlap)) for chunk, overlap in ((12, 0), (6, 0), (6, 3))
    )
    change_whole, change_plain, change_faded = (change(frames) for frames in (whole, plain, faded))
    assert float((change_faded / change_whole).max()) < 1.25
    assert float((change_plain / change_whole).max()) > 1.5
    assert float(change(faded - whole).max()) < 0.5 * float(change(plain - whole).max())
    assert float((faded - whole).square().mean()) < 0.25 * float((plain - whole).square().mean())


def change(frames: Tensor) -> Tensor:
    """Mean absolute difference of each frame to the next, (T - 1,)."""
    return frames.diff(dim=0).abs().mean((1, 2, 3))


def test_decode_tells_of_every_frame(residence: Residence, latents: Tensor) -> None:
    told: list[int] = []
    frames, chunk = decode(residence, latents, 5, 2, told.append)
    assert told[-1] == 12 and told == sorted(told) and len(told) > 2
    assert frames.shape == (12, 16, 16, 3) and frames.dtype == np.uint8 and chunk == 5
    assert decode(residence, latents, None, 2)[1] == 12


def test_short_memory_steps_the_chunk_down(
    residence: Residence, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = decode(residence, latents, 2, 1)
    limit_memory(monkeypatch, 2, torch.cuda.OutOfMemoryError("CUDA out of memory."))
    told: list[int] = []
    frames, chunk = decode(residence, latents, None, 1, on_smaller=told.append)
    assert (told, chunk) == ([6, 3, 2], 2)
    assert np.array_equal(frames, wanted)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("a memory of things past"), False),
    ],
)  # fmt: skip
def test_short_memory_is_known_by_its_words(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> None:
    """A decoder that takes at most that many frames."""
    real = VAE.decode

    def decode(self: VAE, latents: Tensor) -> Tensor:
        if latents.shape[1] > most:
            raise error
        return real(self, latents)

    monkeypatch.setattr(VAE, "decode", decode)


def test_memory_for_no_frame_at_all_is_a_sentence(
    residence: Residence, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 0, MemoryError())
    with pytest.raises(MachineError, match="even for decoding a single frame"):
        decode(residence, latents, None, 1)


def test_other_errors_of_a_decode_pass(
    residence: Residence, latents: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(monkeypatch, 2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        decode(residence, latents, None, 1)


def test_every_sampler_and_schedule_runs(residence: Residence, sampling: Sampling, pixels: Tensor) -> None:
    results = [
        generate(residence, pixels, [SEED], replace(sampling, num_frames=2, **options))
        for options in (
            *({"sampler": name} for name in module.SAMPLERS),
            {"schedule": "exponential"}, {"schedule": "uniform"}, {"schedule": "500,20,1"},
        )
    ]  # fmt: skip
    assert all(torch.isfinite(result).all() for result in results)
    assert len({result.numpy().tobytes() for result in results}) == len(results)


def test_portrait_sampling_of_a_bundle(residence: Residence) -> None:
    upright = Sampling.of(residence.files.settings, portrait=True)
    assert (upright.width, upright.height) == (576, 1024)


@pytest.mark.gpu
def test_half_precision_on_a_gpu_stays_near(
    tiny_bundle_path: Path, residence: Residence, sampling: Sampling, pixels: Tensor
) -> None:
    wanted = generate(residence, pixels, [SEED], sampling)
    gpu = torch.device("cuda")
    half = Residence(open_bundle(tiny_bundle_path), "high", gpu, torch.float16)
    found = generate(half, pixels, [SEED], sampling)
    assert float((found - wanted).abs().mean() / wanted.abs().mean()) < 0.02
