"""Image-to-video training: `svd train` beside the plain script that people write with diffusers and accelerate.

    python tests/benchmarks/bench_training.py [--steps N] [--rounds N] [--threads N]

What it is: the same shape of network, clips, batch, precision, AdamW, clipping and averaged weights on both sides, each side in
processes of its own, in turn (A B A B ...). The plain script does per step what such scripts do: the autoencoder encodes the
clip, the image encoder the frame, then noise, UNet, v-target, update. `svd train` encodes once and keeps the latents; its first
round pays for that before its steps, and the figure is printed. `time` is how many times faster a step of svdcli is; `memory`
its peak as a share of the script's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import peak_mib, run_job

SIDES = ("svdcli", "script")
WIDTHS, HEADS, ATTENDS, CONTEXT = (96, 192, 192), (3, 6, 6), (True, True, False), 128
VAE_WIDTHS, LATENT_CHANNELS = (32, 64, 128, 128), 4
NUM_FRAMES, WIDTH, HEIGHT, FPS = 14, 256, 160, 8.0
VIDEOS, VIDEO_FRAMES = 3, 24
WARM_UP = 2


def make_footage(folder: Path) -> None:
    """Drifting tiles, as many videos as the recipe wants."""
    import numpy as np

    from svdcli.io.video import write_video

    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(VIDEOS):
        tiles = np.kron(rng.integers(0, 255, (HEIGHT // 16, WIDTH // 16, 3)), np.ones((16, 16, 1))).astype(
            np.uint8
        )
        frames = np.stack([np.roll(tiles, t * (number + 1), axis=1) for t in range(VIDEO_FRAMES)])
        write_video(folder / f"v{number}.mp4", frames, FPS, {}, "mp4")


def make_vae(folder: Path) -> None:
    """Random weights of the shape."""
    from svdcli.engine.tasks.parts import save_vae
    from svdcli.engine.tasks.vae import start_at_random
    from svdcli.model.vae import VAE, VAEConfig

    vae = VAE(
        VAEConfig(
            block_out_channels=VAE_WIDTHS,
            down_block_types=("DownEncoderBlock2D",) * len(VAE_WIDTHS),
            latent_channels=LATENT_CHANNELS,
            layers_per_block=1,
            force_upcast=False,
        )
    )
    start_at_random(vae)
    save_vae(vae, folder, scaling_factor=1.0)


# ---- the two sides, each in a child -------------------------------------------------------------------------


def run_svdcli(folder: Path, steps: int, threads: int) -> list[float]:
    """Seconds a step."""
    from svdcli.engine.train import train
    from svdcli.recipe.recipe import parse_recipe

    seconds: list[float] = []
    tree = {
        "task": {
            "kind": "i2v",
            "vae": str(folder),
            "block_out_channels": list(WIDTHS),
            "num_attention_heads": list(HEADS),
            "attention_levels": list(ATTENDS),
            "context_dim": CONTEXT,
            "num_frames": [NUM_FRAMES],
            "fps": [FPS, FPS],
        },
        "data": {"source": str(folder / "footage"), "held_out": ["v0*"], "width": WIDTH, "height": HEIGHT},
        "optim": {"lr": 1e-4},
        "run": {
            "folder": str(folder / f"run-{os.getpid()}" / "a"),
            "num_steps": steps,
            "batch_size": 1,
            "checkpoint_every": 10**6,
            "evaluate_every": 10**6,
        },
        "machine": {"accelerator": "cpu"} | ({"num_threads": threads} if threads else {}),
    }
    train(parse_recipe(tree, "bench"), lambda step, figures: seconds.append(figures["seconds"]))
    return seconds


def run_script(folder: Path, steps: int, threads: int) -> list[float]:
    """Seconds a step, of a plain loop on diffusers and accelerate with the known defects of such loops mended."""
    import torch
    from accelerate import Accelerator
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from diffusers.training_utils import EMAModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from svdcli.io.video import read_video

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    names = [f"{'CrossAttn' * attends}{{}}BlockSpatioTemporal" for attends in ATTENDS]
    unet = UNetSpatioTemporalConditionModel(
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=WIDTHS,
        down_block_types=tuple(name.format("Down") for name in names),
        up_block_types=tuple(name.format("Up") for name in reversed(names)),
        num_attention_heads=HEADS,
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        addition_time_embed_dim=WIDTHS[0],
        projection_class_embeddings_input_dim=3 * WIDTHS[0],
        num_frames=NUM_FRAMES,
    )
    vae = AutoencoderKLTemporalDecoder.from_pretrained(folder / "vae").requires_grad_(False)
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**tower, image_size=224, patch_size=32, projection_dim=CONTEXT)
    ).requires_grad_(False)
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    average = EMAModel(unet.parameters(), decay=0.999)
    videos = [torch.from_numpy(read_video(folder / "footage" / f"v{i}.mp4")[0]) for i in range(1, VIDEOS)]
    seconds = []
    for step in range(steps):
        started = time.perf_counter()
        frames = videos[step % len(videos)][step % (VIDEO_FRAMES - NUM_FRAMES) :][:NUM_FRAMES]
        pixels = frames.movedim(-1, -3).float() / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.mode()[None] * vae.config.scaling_factor
            augment = torch.exp(torch.randn(1) * 0.5 - 3.0)
            noisy_frame = pixels[:1] + augment * torch.randn_like(pixels[:1])
            picture = vae.encode(noisy_frame).latent_dist.mode()[:, None].expand(-1, NUM_FRAMES, -1, -1, -1)
            resized = torch.nn.functional.interpolate(pixels[:1], (224, 224), mode="bicubic", antialias=True)
            embedding = clip((resized + 1) / 2).image_embeds[:, None]
        sigma = torch.exp(torch.randn(1) * 1.6 + 1.0)
        noisy = latents + sigma * torch.randn_like(latents)
        x = torch.cat([noisy / (sigma**2 + 1).sqrt(), picture], dim=2)
        ids = torch.tensor([[FPS - 1, 127.0, augment.item()]])
        output = unet(x, 0.25 * sigma.log(), embedding, added_time_ids=ids).sample
        denoised = noisy / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
        loss = ((denoised - latents) ** 2 * (1 + sigma**2) / sigma**2).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        seconds.append(time.perf_counter() - started)
    return seconds


def work(job: dict[str, Any]) -> None:
    """What a child does."""
    folder = Path(job["folder"])
    if job["side"] == "make":
        make_footage(folder / "footage")
        make_vae(folder)
        return
    side = run_svdcli if job["side"] == "svdcli" else run_script
    started = time.perf_counter()
    seconds = side(folder, job["steps"], job["threads"])
    answer = {
        "side": job["side"],
        "step_seconds": round(statistics.median(seconds[WARM_UP:]), 4),
        "all_seconds": round(time.perf_counter() - started, 1),
        "peak_mib": round(peak_mib()),
    }
    print(json.dumps(answer))


# ---- the parent ----------------------------------------------------------------------------------------


def child(options: argparse.Namespace, folder: Path, side: str) -> dict[str, Any]:
    job = {"side": side, "folder": str(folder), "steps": options.steps + WARM_UP, "threads": options.threads}
    answers = run_job(__file__, job)
    return answers[0] if answers else {}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help=f"steps a round, besides {WARM_UP} to warm up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.job:
        work(json.loads(options.job))
        return 0
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        child(options, Path(name), "make")
        for _ in range(options.rounds):
            for side in SIDES:
                rows[side].append(child(options, Path(name), side))
    step = {side: statistics.median(row["step_seconds"] for row in found) for side, found in rows.items()}
    peak = {side: max(row["peak_mib"] for row in found) for side, found in rows.items()}
    for side in SIDES:
        print(f"{side:8} {step[side]:8.3f} s a step {peak[side]:8d} MiB at the peak")
    time_ratio, memory_ratio = step["script"] / step["svdcli"], peak["svdcli"] / peak["script"]
    print(f"svdcli is {time_ratio:.2f}x as fast and takes {memory_ratio:.2f}x the memory")
    print(json.dumps({"step_seconds": step, "peak_mib": peak, "time": time_ratio, "memory": memory_ratio}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
