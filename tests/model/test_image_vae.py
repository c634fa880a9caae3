"""The autoencoder of an image model, read as ours, against diffusers' `AutoencoderKL` on random weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from svdcli.engine.tasks.parts import load_vae
from svdcli.errors import InputError
from svdcli.model import layout_names
from svdcli.model.bundle import open_bundle
from svdcli.model.image_vae import FIRST_NAMES

WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def make(folder: Path, **changes: Any) -> nn.Module:
    """diffusers' own, saved as it saves it; nothing in it is zero or one but post_quant_conv's bias."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    shape = {"block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2} | changes
    types = {"up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 2}
    theirs = AutoencoderKL(**(types | shape)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        if theirs.post_quant_conv is not None:
            theirs.post_quant_conv.bias.zero_()
    theirs.save_pretrained(folder / "vae")
    return theirs


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def compare(folder: Path, theirs: nn.Module) -> tuple[float, float]:
    """Greatest differences of latents and of frames, relative to the greatest value."""
    ours = load_vae(folder)
    pixels, latents = torch.rand(2, 3, 3, 16, 24) * 2 - 1, torch.randn(2, 3, 4, 6, 5)
    encoded = theirs.encode(pixels.flatten(0, 1)).latent_dist.mode()
    decoded = theirs.decode(latents.flatten(0, 1)).sample
    return (
        difference(ours.encode(pixels).flatten(0, 1), encoded),
        difference(ours.decode(latents).flatten(0, 1), decoded),
    )


@pytest.mark.parametrize("old_names", [False, True])
def test_it_encodes_and_decodes_as_diffusers_does(old_names: bool, tmp_path: Path) -> None:
    theirs = make(tmp_path)
    if old_names:  # as the published file of SD 2.1 has them
        tensors = load_file(tmp_path / WEIGHTS)
        for new, old in FIRST_NAMES.items():
            tensors = {name.replace(f".{new}.", f".{old}."): t for name, t in tensors.items()}
        assert any(".query." in name for name in tensors)
        save_file(tensors, tmp_path / WEIGHTS)
    assert max(compare(tmp_path, theirs)) <= 1e-5


def in_one_file(theirs: nn.Module) -> dict[str, Tensor]:
    """Its tensors by the names of Stability's files, where the attention is of 1x1 convolutions."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels, single = len(theirs.config.block_out_channels), {}  # type: ignore[union-attr, arg-type]
    for name, tensor in theirs.state_dict().items():
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        new = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(
            r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", new
        )
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
        new = new.replace("conv_norm_out", "norm_out").replace("group_norm", "norm")
        for letter in "qkv":
            new = new.replace(f"to_{letter}", letter)
        new = new.replace("to_out.0", "proj_out")
        matrix = ".attn_1." in new and new.endswith("weight") and tensor.ndim == 2
        single["first_stage_model." + new] = (tensor[..., None, None] if matrix else tensor).contiguous()
    read = convert_ldm_vae_checkpoint(dict(single), dict(theirs.config))  # type: ignore[arg-type]
    assert set(read) == set(theirs.state_dict())
    assert all(torch.equal(read[name], tensor) for name, tensor in theirs.state_dict().items())
    return single


def test_one_file_of_stability_loads(tmp_path: Path) -> None:
    """SD 2.1 in one file, whose autoencoder has no temporal layers; its names are those that diffusers' converter reads."""
    from diffusers import UNet2DConditionModel

    theirs = make(tmp_path)
    kinds = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(
        block_out_channels=(64, 64),
        down_block_types=kinds[0],
        up_block_types=kinds[1],
        attention_head_dim=1,
        use_linear_projection=True,
    )
    names = layout_names.unet_names({**unet.config}, unet.state_dict())
    networks = {names[name]: tensor for name, tensor in unet.state_dict().items()}
    save_file(in_one_file(theirs) | networks, tmp_path / "v2-1.safetensors")
    assert open_bundle(tmp_path / "v2-1.safetensors").task == "image"
    assert max(compare(tmp_path / "v2-1.safetensors", theirs)) <= 1e-5


def test_its_scaling_factor_comes_along(tmp_path: Path) -> None:
    make(tmp_path, scaling_factor=0.13)
    assert load_vae(tmp_path).config.scaling_factor == 0.13


def test_its_temporal_layers_can_be_trained(tmp_path: Path) -> None:
    make(tmp_path)
    vae = load_vae(tmp_path)
    vae.decode(torch.randn(1, 3, 4, 4, 4)).square().sum().backward()
    silent = [
        n for n, p in vae.decoder.named_parameters() if "temporal" in n and "conv2" in n and not p.grad.any()
    ]
    assert not silent


def test_another_architecture_is_refused_by_the_key_that_shows_it(tmp_path: Path) -> None:
    make(tmp_path)
    file = tmp_path / "vae" / "config.json"
    config = json.loads(file.read_text())
    for changes, says in (
        ({"act_fn": "mish"}, "act_fn is 'mish', where Stable Diffusion 2.1 has 'silu'"),
        ({"layers_per_block": 1}, "layers_per_block is 1, where svd takes 2"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "made of AttnUpDecoderBlock2D"),
    ):
        file.write_text(json.dumps(config | changes))
        with pytest.raises(InputError, match=says):
            load_vae(tmp_path)


def test_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    make(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["odd"] = tensors.pop("encoder.conv_in.bias")
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match=r"missing \(encoder.conv_in.bias\); 1 not part of it \(odd\)"):
        load_vae(tmp_path)
