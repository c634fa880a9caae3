"""The image embedding, from the same PIL picture, against diffusers' pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from svdcli.model.image_encoder import ImageEncoder, resize_antialiased

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 224,
    "patch_size": 32,
    "projection_dim": 24,
    "hidden_act": "gelu",
}


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    encoder = ImageEncoder(TINY | {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip"})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


@pytest.fixture(scope="module")
def pipeline(encoder: ImageEncoder) -> Any:
    from diffusers import StableVideoDiffusionPipeline
    from transformers import CLIPImageProcessor

    return StableVideoDiffusionPipeline(None, encoder.clip, None, None, CLIPImageProcessor())


def draw_picture(width: int, height: int) -> Image.Image:
    """Edges, ramps and noise, so that both blur and interpolation show."""
    rng = np.random.default_rng(width + 10_000 * height)
    pixels = rng.integers(0, 256, (height, width, 3))
    pixels[: height // 2] = np.linspace(0, 255, width)[None, :, None]
    pixels[:, : width // 3] = (255, 16, 90)
    return Image.fromarray(pixels.astype(np.uint8))


def to_pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1.0


@pytest.mark.parametrize(
    ("width", "height"),
    [(1024, 576), (288, 512), (500, 301), (224, 224), (225, 230), (300, 100), (64, 48), (2, 3), (1500, 32)],
)
def test_agrees_with_diffusers(encoder: ImageEncoder, pipeline: Any, width: int, height: int) -> None:
    picture = draw_picture(width, height)
    with torch.no_grad():
        ours = encoder(to_pixels(picture))
        theirs = pipeline._encode_image(picture, "cpu", 1, do_classifier_free_guidance=False)
    assert theirs.shape == (1, 1, 24) and ours.shape == (1, 24)
    assert (ours - theirs[:, 0]).abs().max() <= 1e-5 * theirs.abs().max()


def test_pictures_of_a_batch_do_not_meet(encoder: ImageEncoder) -> None:
    pixels = torch.cat([to_pixels(draw_picture(300, 200)), to_pixels(draw_picture(300, 200)).flip(-1)])
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels)[1:], encoder(pixels[1:]), rtol=1e-5, atol=1e-6)


def test_colours_keep_their_channels(encoder: ImageEncoder) -> None:
    """A flat colour survives the resize, and is then measured by CLIP's statistics of its own channel."""
    flat = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 400, 300)
    out = encoder.preprocess(flat, 224)
    assert out.shape == (1, 3, 224, 224)
    expected = [
        (0.0 - 0.48145466) / 0.26862954,
        (0.5 - 0.4578275) / 0.26130258,
        (1.0 - 0.40821073) / 0.27577711,
    ]
    torch.testing.assert_close(out[0, :, 111, 7], torch.tensor(expected))


def test_fine_detail_is_blurred_and_not_aliased() -> None:
    stripes = torch.ones(1, 1, 896, 896)
    stripes[..., ::2] = -1.0
    assert resize_antialiased(stripes, 224).abs().max() < 0.1


def test_what_does_not_shrink_stays_sharp() -> None:
    pixels = torch.rand(1, 3, 224, 224)
    assert torch.equal(resize_antialiased(pixels, 224), pixels)


def test_a_single_pixel_is_a_picture(encoder: ImageEncoder) -> None:
    """Diffusers' mirrored edge needs two."""
    for height, width in ((1, 1), (1, 300), (300, 1)):
        pixel = torch.full((1, 3, height, width), 0.25)
        torch.testing.assert_close(resize_antialiased(pixel, 224), torch.full((1, 3, 224, 224), 0.25))
        assert torch.isfinite(encoder(pixel)).all()


def test_preprocessing_is_float32_and_the_network_what_it_is(encoder: ImageEncoder) -> None:
    import copy

    half = copy.deepcopy(encoder).bfloat16()
    pixels = to_pixels(draw_picture(300, 200))
    assert torch.equal(half.preprocess(pixels, 224), encoder.preprocess(pixels, 224).bfloat16())
    with torch.no_grad():
        ours, exact = half(pixels), encoder(pixels)
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).norm() < 0.05 * exact.norm()


def test_gradients_reach_the_weights(encoder: ImageEncoder) -> None:
    encoder.zero_grad(set_to_none=True)
    encoder(to_pixels(draw_picture(64, 48))).square().sum().backward()
    assert torch.count_nonzero(encoder.clip.visual_projection.weight.grad) > 0
    encoder.zero_grad(set_to_none=True)


def test_the_width_is_that_of_the_embedding(encoder: ImageEncoder) -> None:
    assert encoder.width == 24


def test_the_full_size_is_vit_h() -> None:
    """OpenCLIP ViT-H/14 with its projection: the context width of the UNet."""
    vit_h = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
    }
    with torch.device("meta"):
        encoder = ImageEncoder(vit_h | {"patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu"})
    assert encoder.width == 1024
    assert sum(p.numel() for p in encoder.parameters()) == 632_076_800
