"""The single-file layout: names against the published ones, configurations from shapes, exact both ways."""

from __future__ import annotations

import hashlib
from math import prod

import pytest
import torch
from torch.nn import functional as F

from svdcli.model import implied, layout_names, layouts
from svdcli.model.unet import UNet, UNetConfig
from svdcli.model.vae import VAE, VAEConfig

# ViT-H-14, the image tower of every published SVD.
TOWER = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1024,
}


def tower_state(config: dict) -> dict[str, torch.Tensor]:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**config)).state_dict()


def single_shapes(unet: UNetConfig, vae: VAEConfig, tower: dict) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        states = {
            "unet": UNet(unet).state_dict(),
            "vae": VAE(vae).state_dict(),
            "image_encoder": tower_state(tower),
        }
    configs = {"unet": unet.to_dict(), "vae": vae.to_dict(), "image_encoder": tower}
    flat = {f"{part}.{name}": tensor for part, state in states.items() for name, tensor in state.items()}
    sources = layouts.single_sources(configs, states)
    assert {key for source in sources.values() for key in source.keys} == set(flat)  # nothing is left behind
    return {
        single: tuple(source.make(*(flat[key] for key in source.keys)).shape)
        for single, source in sources.items()
    }


@pytest.fixture(scope="module")
def published() -> dict[str, tuple[int, ...]]:
    """Names and shapes that we would write for SVD-XT."""
    return single_shapes(UNetConfig(), VAEConfig(), TOWER)


def test_names_are_the_published_ones(published: dict) -> None:
    """The digest is that of the 2,194 names under which public code finds svd_xt.safetensors' tensors (all
    but the first stage's encoder, which is the frame encoder's under another prefix)."""
    names = sorted(name for name in published if not name.startswith("first_stage_model.encoder."))
    assert len(names) == 2194
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == (
        "c8814b942dcc89b25b2f2c9f0896304b1a74bdc75f676b25aa8eb0be1d60c0c6"
    )
    encoder = {
        n.removeprefix("first_stage_model.") for n in published if n.startswith("first_stage_model.encoder.")
    }
    second = {
        n.removeprefix(layout_names.FRAME_ENCODER)
        for n in published
        if n.startswith(layout_names.FRAME_ENCODER)
    }
    assert second - encoder == {"quant_conv.weight", "quant_conv.bias"} and encoder < second


def test_known_corners(published: dict) -> None:
    """Shapes of the released file where the two layouts differ, from Stability's module definitions."""
    unet, first, tower = layout_names.UNET, layout_names.FIRST_STAGE, layout_names.IMAGE_TOWER
    for name, shape in {
        unet + "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        unet + "input_blocks.10.0.time_stack.in_layers.2.weight": (1280, 1280, 3, 1, 1),
        unet + "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),  # no attention before it
        unet + "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),  # attention before it
        unet + "output_blocks.8.1.time_pos_embed.0.weight": (2560, 640),
        unet + "label_emb.0.0.weight": (1280, 768),
        unet + "middle_block.1.time_mixer.mix_factor": (1,),
        first + "decoder.up.3.block.0.time_stack.in_layers.2.weight": (512, 512, 3, 1, 1),
        first + "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        first + "decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        first + "decoder.mid.block_1.mix_factor": (1,),
        first + "decoder.conv_out.time_mix_conv.weight": (3, 3, 3, 1, 1),
        tower + "transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        tower + "proj": (1280, 1024),
        tower + "positional_embedding": (257, 1280),
    }.items():
        assert published[name] == shape, name
    assert sum(prod(shape) for name, shape in published.items() if name.startswith(unet)) == 1_524_623_082


def test_configuration_follows_from_shapes(published: dict) -> None:
    config = UNetConfig.from_dict({**implied.unet_config(published), "sample_size": None})
    assert config == UNetConfig()
    assert VAEConfig.from_dict(implied.vae_config(published)) == VAEConfig()
    tower = implied.tower_config(published)
    assert {key: tower[key] for key in TOWER} == TOWER
    assert implied.task_of(published) == "i2v"


@pytest.mark.parametrize(
    "unet",
    [
        UNetConfig(
            block_out_channels=(64, 128),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            num_attention_heads=(1, 2),
            layers_per_block=1,
            cross_attention_dim=32,
        ),
        UNetConfig(
            block_out_channels=(64, 64, 128),
            down_block_types=("DownBlockSpatioTemporal",) + ("CrossAttnDownBlockSpatioTemporal",) * 2,
            up_block_types=("CrossAttnUpBlockSpatioTemporal",) * 2 + ("UpBlockSpatioTemporal",),
            num_attention_heads=(1, 1, 2),
            layers_per_block=(1, 2, 3),
            transformer_layers_per_block=2,
            cross_attention_dim=32,
        ),
        UNetConfig(
            block_out_channels=(64,),
            down_block_types=("CrossAttnDownBlockSpatioTemporal",),
            up_block_types=("CrossAttnUpBlockSpatioTemporal",),
            num_attention_heads=(1,),
            layers_per_block=3,
            cross_attention_dim=16,
            in_channels=16,
            out_channels=8,
        ),
    ],
)
def test_the_map_is_derived_for_any_shape(unet: UNetConfig) -> None:
    vae = VAEConfig(
        block_out_channels=(32, 64, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=8,
    )
    tower = TOWER | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
    }
    shapes = single_shapes(unet, vae, tower)
    assert UNetConfig.from_dict({**implied.unet_config(shapes), "sample_size": None}) == unet
    assert VAEConfig.from_dict(implied.vae_config(shapes)) == vae
    got = implied.tower_config(shapes)
    assert {key: got[key] for key in TOWER} == tower


def test_tasks_are_told_apart(published: dict) -> None:
    ids, out = layout_names.UNET + "label_emb.0.0.weight", layout_names.UNET + "input_blocks.0.0.weight"
    assert implied.task_of(published | {ids: (1280, 256)}) == "multiview"  # sv3d_u
    assert implied.task_of(published | {ids: (1280, 1280)}) == "multiview"  # sv3d_p
    assert implied.task_of(published | {out: (320, 4, 3, 3)}) == "t2v"
    assert (
        implied.task_of({name: shape for name, shape in published.items() if "time_stack" not in name})
        == "image"
    )
    assert implied.task_of({"lora.up.weight": (1, 2)}) == ""


def test_folded_convolutions_equal_the_two_they_stand_for() -> None:
    x, conv, bias = torch.randn(1, 5, 9, 9), torch.randn(4, 5, 3, 3), torch.randn(4)
    quant, quant_bias = torch.randn(6, 4, 1, 1), torch.randn(6)
    two = F.conv2d(F.conv2d(x, conv, bias, padding=1), quant, quant_bias)
    one = F.conv2d(
        x, layouts._behind_weight(conv, quant), layouts._behind_bias(bias, quant, quant_bias), padding=1
    )
    assert torch.allclose(one, two, atol=1e-4)
    post, post_bias = torch.randn(5, 5, 1, 1), torch.randn(5)
    two = F.conv2d(F.conv2d(x, post, post_bias), conv, bias, padding=1)
    one = F.conv2d(
        x, layouts.before_weight(conv, post), layouts.before_bias(bias, conv, post_bias), padding=1
    )
    assert torch.allclose(one[..., 1:-1, 1:-1], two[..., 1:-1, 1:-1], atol=1e-4)


def test_leftovers_of_a_published_file_are_known(published: dict) -> None:
    known = [
        "conditioner.embedders.0.open_clip.model.token_embedding.weight",
        "conditioner.embedders.0.open_clip.model.logit_scale",
        "conditioner.embedders.3.encoder.decoder.conv_in.weight",
        "conditioner.embedders.3.encoder.post_quant_conv.bias",
    ]
    assert layouts.leftover([*known, "first_stage_model.decoder.odd"], []) == [
        "first_stage_model.decoder.odd"
    ]
