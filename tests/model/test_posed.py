"""Cameras told to the network: each view's own embedding, held against diffusers' block, and starts that keep what they were."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.resnet import SpatioTemporalResBlock as Reference
from torch import Tensor

from svdcli.model.blocks import SpatioTemporalResBlock
from svdcli.model.inflate import posed
from svdcli.model.unet import UNet, UNetConfig

CONFIG = UNetConfig(
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    num_attention_heads=(2, 4),
    cross_attention_dim=32,
    layers_per_block=1,
    addition_time_embed_dim=16,
    projection_class_embeddings_input_dim=48,
)


def random_unet(config: UNetConfig = CONFIG) -> UNet:
    torch.manual_seed(0)
    unet = UNet(config).eval().requires_grad_(False)
    for tensor in unet.parameters():
        tensor.copy_(torch.randn_like(tensor) * 0.1)
    return unet


def run(unet: UNet, ids: Tensor) -> Tensor:
    noise = torch.Generator().manual_seed(1)
    x = torch.randn(len(ids), 3, 8, 8, 8, generator=noise)
    context = torch.randn(len(ids), 1, 32, generator=noise)
    return unet.requires_grad_(False)(x, torch.linspace(-1, 1, len(ids)), context, ids)


@pytest.mark.parametrize("grad", [True, False])
def test_an_embedding_of_each_frame_is_diffusers_own(grad: bool) -> None:
    """Two clips of three frames whose embeddings all differ, through one block with its temporal half."""
    torch.manual_seed(0)
    reference = Reference(
        32, 64, temb_channels=24, eps=1e-6, merge_strategy="learned", switch_spatial_to_temporal_mix=False
    )
    ours = SpatioTemporalResBlock(32, 64, 24, 32, eps=1e-6)
    with torch.no_grad():
        for tensor in reference.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(6, 32, 5, 7).contiguous(memory_format=torch.channels_last)
    emb = torch.randn(6, 24)
    with torch.set_grad_enabled(grad):
        expected = reference(x.clone(), emb.reshape(6, 24), torch.zeros(2, 3))
        found = ours(x.clone(), torch.nn.functional.silu(emb), 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_ids_that_are_the_same_for_all_views_are_one() -> None:
    unet, ids = random_unet(), torch.tensor([[1.0, 2.0, 0.5], [3.0, 0.1, 0.2]])
    torch.testing.assert_close(
        run(unet, ids[:, None].expand(-1, 3, -1)), run(unet, ids), rtol=1e-4, atol=1e-5
    )
    moved = ids[:, None].repeat(1, 3, 1)
    moved[:, 2, 0] += 1
    assert (run(unet, moved) - run(unet, ids)).abs().max() > 1e-3


@pytest.mark.parametrize("widths", [(16,), (16, 16), (16, 32, 32)])
def test_a_video_model_begins_as_it_was(widths: tuple[int, ...]) -> None:
    """At the settled rate and motion, whatever the angles; and their first wave is enough to hear them."""
    unet, told = random_unet(), torch.tensor([[6.0, 127.0, 0.02], [6.0, 127.0, 0.3]])
    expected = run(unet, told)
    angles = torch.rand(2, 3, len(widths) - 1)
    ids = torch.cat([told[:, None, 2:].expand(-1, 3, -1), angles], dim=-1)
    new = posed(unet, widths, (6.0, 127.0))
    assert new.config.widths_of_ids == widths and new.config.id_widths == (
        () if len({*widths}) == 1 else widths
    )
    torch.testing.assert_close(run(new, ids), expected, rtol=1e-4, atol=1e-4)
    if len(widths) > 1:
        with torch.no_grad():
            new.add_embedding.linear_1.weight[:, 16] = 1.0  # the cosine of the first angle
        assert (run(new, ids) - expected).abs().max() > 1e-3


def test_what_is_told_already_is_kept() -> None:
    unet = posed(random_unet(), (16, 32, 32), (6.0, 127.0))
    with torch.no_grad():
        unet.add_embedding.linear_1.weight.normal_()
    ids = torch.rand(2, 3, 3)
    expected = run(unet, ids)
    torch.testing.assert_close(run(posed(unet, (16, 32, 32)), ids), expected)
    less = posed(unet, (16, 16))
    assert torch.equal(less.add_embedding.linear_1.weight[:, :16], unet.add_embedding.linear_1.weight[:, :16])
    assert not less.add_embedding.linear_1.weight[:, 16:].any()
    with pytest.raises(ValueError, match="16 numbers, not 8"):
        posed(unet, (8, 8))
