"""`svd sample --prompt --image-model`: text to image to video in one command, with a tiny random Stable Diffusion."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdcli.cli.app import main
from svdcli.io.manifest import read_manifest
from svdcli.io.video import read_video
from svdcli.model import hub

Svd = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def painter(text_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder of 32×32 pixels with random weights and a tokenizer of letters."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(text_bundle_path / "tokenizer")
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                       vocab_size=len(tokenizer), max_position_embeddings=77)
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 32), cross_attention_dim=16, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32), latent_channels=4, norm_num_groups=32,
    )  # fmt: skip
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, set_alpha_to_one=False)
    pipe = StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    path = tmp_path_factory.mktemp("painters") / "tiny-sd"
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def svd(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quick_bundle_path: Path,
) -> Svd:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))

    def run(*words: object) -> tuple[int, str, str]:
        code = main(["sample", *map(str, words), "--bundle", str(quick_bundle_path)])
        return code, *capsys.readouterr()

    return run


def test_words_become_a_picture_and_the_picture_a_video(svd: Svd, painter: Path) -> None:
    how = ("--image-model", painter, "--image-steps", 2, "--image-guidance", 3.0)
    code, out, err = svd(
        "--prompt", "a boat", *how, "--count", 2, "-o", "{name}-{seed}.mp4", "--negative", "fog"
    )
    assert code == 0, err
    clips = out.split()
    assert len(clips) == 2 and all(len(read_video(clip)[0]) == 4 for clip in clips)
    manifest = read_manifest(Path(clips[0]).with_suffix(".json"))
    assert (
        manifest["prompt"] == "a boat"
        and manifest["negative"] == "fog"
        and manifest["image_model"] == str(painter)
    )
    picture = Image.open(manifest["picture"])
    # the area of 32 x 32 at the clip's 48 x 32, in whole eights
    assert picture.size == (40, 24) and picture.info["prompt"] == "a boat"
    assert len(list(Path().glob("*.picture.png"))) == 1  # both clips move one picture
    code, out, err = svd(manifest["picture"], "-o", "plain.mp4", "--seed", 24)
    assert code == 0 and np.array_equal(read_video("plain.mp4")[0], read_video(clips[1])[0]), err


def test_the_picture_is_diffusers_own(svd: Svd, painter: Path) -> None:
    from diffusers import StableDiffusionPipeline

    code, out, err = svd(
        "-p", "a boat", "--image-model", painter, "--image-steps", 2, "-o", "a.mp4", "--seed", 5
    )
    assert code == 0, err
    pipe = StableDiffusionPipeline.from_pretrained(painter, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        "a boat", num_inference_steps=2, height=24, width=40, generator=torch.Generator().manual_seed(5)
    )
    assert np.array_equal(np.asarray(Image.open("a.picture.png")), np.asarray(made.images[0]))


def test_a_model_of_the_hubs_cache(svd: Svd, painter: Path, tmp_path: Path) -> None:
    folder = hub.cache_folder() / "models--some--painter" / "snapshots" / "0"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(painter)
    code, _, err = svd("-p", "a boat", "--image-model", "some/painter", "--image-steps", 1, "-o", "a.mp4")
    assert code == 0 and read_manifest("a.json")["image_model"] == "some/painter", err


def test_what_cannot_be(svd: Svd, painter: Path, quick_bundle_path: Path, tmp_path: Path) -> None:
    Image.new("RGB", (48, 32)).save("cat.png")
    (tmp_path / "one.safetensors").write_bytes(b"0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for words, code, said in (
        (("cat.png", "--image-model", painter), 2, "--image-model paints words"),
        (("-p", "a", "--image-steps", 4), 2, "--image-steps is of an image model"),
        (("-p", "a", "--image-model", "nobody/nothing"), 4, "nobody/nothing is not on this machine"),
        (("-p", "a", "--image-model", "one.safetensors"), 4, "is a single file"),
        (("-p", "a", "--image-model", "empty"), 4, "holds no model_index.json"),
        (("-p", "a", "--image-model", "broken"), 4, "diffusers cannot load broken"),
        (("-p", "a", "--image-model", quick_bundle_path), 4, "makes no picture of words alone"),
        (("-p", "a", "--image-model", painter, "--devices", 2), 2, "do not go together"),
    ):
        got, out, err = svd(*words)
        assert (got, out) == (code, "") and said in err and err.count("error: ") == 1, (words, err)
    assert not list(Path().glob("*.mp4"))


def test_without_diffusers_it_says_how_to_get_it(
    svd: Svd, painter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, out, err = svd("-p", "a boat", "--image-model", painter)
    assert (
        (code, out) == (5, "")
        and "--image-model needs diffusers" in err
        and "pip install 'svdcli[image]'" in err
    )
