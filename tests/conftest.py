"""What every test shares: few threads, none of the developer's settings, the GPU mark, the shared footage."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

WORDS = ["<|startoftext|>", "<|endoftext|>"]
ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Set before torch or the hub are imported, as both read these only then; subprocesses inherit them."""
    parallel = config.getoption(
        "numprocesses", default=None
    )  # -n of pytest-xdist, whose workers inherit this
    os.environ.setdefault("OMP_NUM_THREADS", "1" if parallel else "2")
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="svd-test-hub-")
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "NO_COLOR", "FORCE_COLOR"):
        os.environ.pop(name, None)


def pytest_unconfigure(config: pytest.Config) -> None:
    import shutil

    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="this machine has no CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real footage and small weights that lies beside the repository, or a skip."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data (real clips and small weights) is absent beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableVideoDiffusionPipeline folder: UNet (32, 64), VAE (32, 64) with 4 latent channels, CLIP of 2
    layers; 14 frames.

    All weights are random, the zero-initialised ones and the norms too, so that a mix-up of two tensors
    shows.
    """
    import torch
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(2, 4),
        cross_attention_dim=32,
        layers_per_block=2,
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
        num_frames=14,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=2,
        latent_channels=4,
    )
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=32,
            projection_dim=32,
            hidden_act="gelu",
        )
    )
    with torch.no_grad():
        for module in (unet, vae, image_encoder):
            for tensor in module.parameters():
                tensor.add_(torch.randn_like(tensor) * 0.05)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_type="continuous",
        timestep_spacing="leading",
        steps_offset=1,
    )
    pipeline = StableVideoDiffusionPipeline(vae, image_encoder, unet, scheduler, CLIPImageProcessor())
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def quick_bundle_path(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with settings that make a clip in a moment: 4 frames of 48×32, 2 steps, no guidance."""
    path = tmp_path_factory.mktemp("bundles") / "quick"
    path.mkdir()
    for part in tiny_bundle_path.iterdir():
        (path / part.name).symlink_to(part)
    settings = {"num_frames": 4, "width": 48, "height": 32, "num_steps": 2, "guidance": "1.0"}
    (path / "svd.json").write_text(json.dumps(settings))
    return path


# ---- text ----------------------------------------------------------------------------------------------


def letters() -> tuple[list[str], list[str]]:
    """Words and merges of a tokenizer that knows single letters only."""
    single = [chr(code) for code in range(33, 127)]
    return [*single, *(letter + "</w>" for letter in single), *WORDS], []


def save_text_encoder(path: Path, vocabulary: tuple[list[str], list[str]]) -> None:
    """A text encoder of 2 layers, random, and its tokenizer."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    words, merges = vocabulary
    (path / "tokenizer").mkdir(parents=True)
    (path / "tokenizer" / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (path / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = dict(zip(("bos_token", "eos_token"), WORDS, strict=True)) | {
        "unk_token": WORDS[1],
        "pad_token": "!",
    }
    config = special | {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special))
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "hidden_act": "gelu"}
    CLIPTextModel(CLIPTextConfig(**shape, **ends, vocab_size=len(words))).save_pretrained(
        path / "text_encoder"
    )


@pytest.fixture(scope="session")
def text_bundle_path(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-video bundle with the tiny one's autoencoder, a tokenizer of letters, and random weights throughout."""
    import torch

    from svdcli.engine.tasks.parts import load_vae, save_text_bundle
    from svdcli.model.bundle import load_text_encoder
    from svdcli.model.inflate import video_config
    from svdcli.model.settings import Settings
    from svdcli.model.unet import UNet, UNetConfig

    path = tmp_path_factory.mktemp("bundles") / "words"
    save_text_encoder(path / "source", letters())
    index = {"_class_name": "StableDiffusionPipeline"}
    (path / "source" / "model_index.json").write_text(json.dumps(index))
    torch.manual_seed(0)
    image = UNetConfig(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        num_attention_heads=(2, 4),
        cross_attention_dim=32,
        layers_per_block=1,
        projection_class_embeddings_input_dim=0,
        norm_eps=1e-5,
        num_frames=1,
        temporal=False,
    )
    unet = UNet(video_config(image, 4, 2, 32))
    with torch.no_grad():
        for tensor in unet.parameters():
            tensor.copy_(torch.randn_like(tensor) * 0.05)
    settings = Settings(task="t2v", num_frames=4, width=48, height=32, num_steps=2, guidance="1.0", fps=8.0)
    text = load_text_encoder(path / "source", torch.float32)
    save_text_bundle(unet, load_vae(tiny_bundle_path), text, settings, path / "bundle")
    return path / "bundle"
