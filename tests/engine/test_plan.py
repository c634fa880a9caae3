"""Plans: arithmetic, the choice among them, and a prediction held against a measured peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svdcli.engine import plan as module
from svdcli.engine.generate import Sampling, chunk_starts
from svdcli.engine.memory import MODES
from svdcli.engine.plan import HEADROOM, Plan, Planner, choose, even_chunk, free_bytes
from svdcli.errors import MachineError
from svdcli.model.bundle import open_bundle
from svdcli.model.bundle_files import BundleFiles
from svdcli.model.settings import Settings

CPU, GPU, GIB = torch.device("cpu"), torch.device("cuda"), 1 << 30


@pytest.fixture(scope="module")
def files(tiny_bundle_path: Path) -> BundleFiles:
    return open_bundle(tiny_bundle_path)


@pytest.fixture(scope="module")
def xt() -> BundleFiles:
    """SVD-XT by its configuration alone."""
    vae = {
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "force_upcast": True,
    }  # fmt: skip
    cross = "CrossAttnDownBlockSpatioTemporal"
    unet = {
        "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "num_attention_heads": [5, 10, 20, 20],
        "down_block_types": [cross, cross, cross, "DownBlockSpatioTemporal"],
    }  # fmt: skip
    clip = {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 14, "projection_dim": 1024,
    }  # fmt: skip
    return BundleFiles(
        "xt", Path("xt"), "diffusers", Settings(), {"unet": unet, "vae": vae, "image_encoder": clip}
    )


def planner(
    files: BundleFiles, device: torch.device, dtype: torch.dtype, chunk: int | None = None
) -> Planner:
    return Planner(files, Sampling.of(files.settings), device, dtype, chunk, overlap=3)


def test_weights_are_counted_exactly(files: BundleFiles, xt: BundleFiles) -> None:
    half = planner(xt, GPU, torch.float16)
    assert half.unet == 2 * 1_524_623_082
    assert half._unet_and_largest_unit[1] < half.unet / 10
    encoder = sum(
        p.numel()
        for name, p in files.build("vae").named_parameters()
        if name.startswith(("encoder.", "quant_conv."))
    )
    single, tiny = (planner(files, CPU, dtype).vae for dtype in (torch.float32, torch.float16))
    assert single - tiny == single // 2 - 2 * encoder  # the encoder stays float32


def test_modes_need_less_and_less(xt: BundleFiles) -> None:
    plans = planner(xt, GPU, torch.float16).plans(80 * GIB)
    assert [p.mode for p in plans] == list(MODES)
    peaks = [p.peak for p in plans]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > 2 * peaks[3]
    assert plans[2].peak < 8 * GIB and plans[3].peak < 5 * GIB  # at 25 frames of 1024×576
    assert plans[3].chunk >= module.SMALL_CHUNK
    for p in plans:
        assert p.peak == max(p.stages.values()) and set(p.stages) == {"embed", "encode", "denoise", "decode"}


def test_guidance_of_one_needs_no_second_branch(xt: BundleFiles) -> None:
    guided = planner(xt, GPU, torch.float16)
    single = replace(guided, sampling=replace(guided.sampling, guidance="1.0"))
    saved = guided.plan("high", 80 * GIB).stages["denoise"] - single.plan("high", 80 * GIB).stages["denoise"]
    assert saved == guided.unet_live
    assert guided.plan("low", 80 * GIB).stages["denoise"] == single.plan("low", 80 * GIB).stages["denoise"]


@pytest.mark.parametrize("free", [6, 10, 16, 24, 80])
def test_the_chunk_is_as_large_as_the_memory_allows(xt: BundleFiles, free: int) -> None:
    plan = planner(xt, GPU, torch.float16).plan("normal", free * GIB)
    assert 1 <= plan.chunk <= 25
    assert plan.stages["decode"] <= HEADROOM * free * GIB
    assert free < 80 or plan.chunk == 25


def test_a_chunk_that_is_asked_for_is_taken(xt: BundleFiles) -> None:
    assert planner(xt, GPU, torch.float16, chunk=7).plan("normal", 80 * GIB).chunk == 7
    assert planner(xt, GPU, torch.float16, chunk=70).plan("normal", 80 * GIB).chunk == 25


@pytest.mark.parametrize("overlap", [0, 2, 3])
def test_an_even_chunk_makes_no_more_chunks_and_none_nearly_empty(overlap: int) -> None:
    for total in range(1, 40):
        for most in range(1, 45):
            chunk = even_chunk(total, most, overlap)
            count = len(chunk_starts(total, chunk, overlap))
            assert 1 <= chunk <= min(most, total)
            assert count == len(chunk_starts(total, min(most, total), overlap))
    assert even_chunk(25, 24, 0) == 13 and even_chunk(25, 16, 3) == 14 and even_chunk(25, -3, 3) == 1


def test_the_first_plan_that_fits_is_chosen() -> None:
    plans = [Plan("high", 4, {"denoise": 8 * GIB}), Plan("low", 4, {"denoise": 4 * GIB})]
    assert choose(plans, 10 * GIB).mode == "high"
    assert choose(plans, 8 * GIB).mode == "low"
    with pytest.raises(
        MachineError, match="about 4.0 GiB in its smallest mode, and 2.0 GiB are free"
    ) as caught:
        choose(plans, 2 * GIB)
    assert "--vram low" in caught.value.hint


def test_free_memory_knows_the_limit_of_a_container(tmp_path: Path) -> None:
    assert free_bytes(CPU) > 0
    assert module._container_free(tmp_path) == ()
    (tmp_path / "memory.max").write_text("max\n")
    assert module._container_free(tmp_path) == ()
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert module._container_free(tmp_path) == (450,)


MEASURE = """
import json, sys, torch
from dataclasses import replace
from svdcli.engine.generate import Sampling, condition, decode, denoise
from svdcli.engine.memory import Residence
from svdcli.engine.plan import Planner
from svdcli.model.bundle import open_bundle

def reset():
    open("/proc/self/clear_refs", "w").write("5")

def peak():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))

torch.set_num_threads(1)
files = open_bundle(sys.argv[1])
sampling = replace(Sampling.of(files.settings), num_steps=1, guidance="1.0")
residence = Residence(files, "high", torch.device("cpu"), torch.float32)
conditioning = condition(residence, torch.rand(1, 3, sampling.height, sampling.width) * 2 - 1, [1], sampling)
reset()
latents = denoise(residence, conditioning, [1], sampling)[0]
measured = {"denoise": peak()}
reset()
decode(residence, latents, 16, 0)
measured["decode"] = peak()
plan = Planner(files, sampling, residence.device, residence.dtype, 16).plan("high", 1 << 40)
print(json.dumps({name: [plan.stages[name] >> 20, measured[name] >> 20] for name in measured}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peaks are measured through Linux's /proc"
)
def test_the_prediction_holds_against_a_measured_peak(tmp_path: Path) -> None:
    bundle = medium_bundle(tmp_path / "medium")
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    words = [sys.executable, "-c", MEASURE, str(bundle)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, (predicted, measured) in json.loads(done.stdout).items():
        assert 1 / 1.35 < predicted / measured < 1.35, name


def medium_bundle(path: Path) -> Path:
    """Random weights of a size whose activations outweigh the libraries: 16 frames of 256×256."""
    from svdcli.model.image_encoder import ImageEncoder
    from svdcli.model.saving import part_of, save_bundle
    from svdcli.model.unet import UNet, UNetConfig
    from svdcli.model.vae import VAE, VAEConfig

    unet = UNetConfig(
        block_out_channels=(32, 64), num_attention_heads=(1, 2), cross_attention_dim=32, layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        addition_time_embed_dim=32, projection_class_embeddings_input_dim=96, num_frames=16,
    )  # fmt: skip
    vae = VAEConfig(
        block_out_channels=(32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 3, layers_per_block=1
    )
    clip = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 32, "projection_dim": 32,
    }  # fmt: skip
    modules = {"unet": UNet(unet), "vae": VAE(vae), "image_encoder": ImageEncoder(clip)}
    settings = Settings(num_frames=16, width=256, height=256)
    save_bundle({part: part_of(network) for part, network in modules.items()}, path, settings)
    return path
