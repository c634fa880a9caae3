"""Without gradients the blocks take shortcuts: the same numbers, in slices and with less arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svdcli.model import blocks
from svdcli.model.blocks import ResBlock, SpatioTemporalResBlock, TemporalResBlock, Upsample


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def slice_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices so small that even tiny clips are cut, and not into equal ones."""
    monkeypatch.setitem(blocks.SLICE, "cpu", 8 * 6 * 5 * 3)


@pytest.mark.parametrize("numbers", [1 << 22, 3 * 8 * 9])
@pytest.mark.parametrize("size", [(5, 6), (4, 4), (1, 3)])
def test_upsampling_by_phases_is_that_of_the_large_picture(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], numbers: int
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(blocks, "WEIGHTS_AT_ONCE", numbers)
    layer, x = Upsample(8), channels_last(3, 8, *size)
    expected = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    with torch.no_grad():
        assert_near(layer(x), expected)
    assert torch.equal(layer(x), expected)  # with gradients


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("numbers", [1, 7 * 4 * 9, 2 * 4 * 9])
def test_weights_in_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch, numbers: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 7, 3, padding=1, bias=bias), channels_last(2, 4, 5, 6)
    monkeypatch.setattr(blocks, "WEIGHTS_AT_ONCE", numbers)
    with torch.no_grad():
        found = blocks.conv_with_shift(layer, x, torch.ones(1, 7))
        assert_near(found, layer(x) + 1)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_upsampling_to_an_odd_size() -> None:
    layer, x = Upsample(8), channels_last(2, 8, 3, 4)
    with torch.no_grad():
        assert layer(x, (5, 7)).shape == (2, 8, 5, 7)


@pytest.mark.usefixtures("slice_numbers")
@pytest.mark.parametrize("clips", [1, 2])
def test_slices_of_frames_and_of_places_are_the_whole(clips: int) -> None:
    """Every number is looked at, with a shift for each clip, a change of width, and a tail that fills no slice."""
    torch.manual_seed(0)
    block = SpatioTemporalResBlock(8, 12, 16, 4, eps=1e-5)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, emb = channels_last(clips * 7, 8, 6, 5), torch.randn(clips, 16)
    before = x.clone()
    whole = block(x, emb, 7)  # gradients are on: no slices
    with torch.no_grad():
        assert blocks.slice_size(x, 0) == 3
        assert_near(block(x, emb, 7), whole)
    assert torch.equal(x, before)


@pytest.mark.usefixtures("slice_numbers")
@pytest.mark.parametrize("emb_width", [16, None])
def test_each_half_of_the_block_alone(emb_width: int | None) -> None:
    torch.manual_seed(0)
    emb = torch.randn(2, 16) if emb_width else None
    spatial, temporal = ResBlock(8, 8, emb_width, 1e-5, 4), TemporalResBlock(8, emb_width, 1e-5, 4)
    x, gain = channels_last(14, 8, 6, 5), torch.tensor([0.7])
    y = blocks.over_time(x, 7)
    whole = spatial(x, emb), temporal(y, emb, gain)
    with torch.no_grad():
        assert blocks.slice_size(y, 3) < 30
        assert_near(spatial(x, emb), whole[0])
        assert_near(temporal(y, emb, gain), whole[1])
