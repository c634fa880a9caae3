"""Activations computed again: the same gradients to the bit, from less memory."""

from __future__ import annotations

import copy
import json
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from svdcli.engine.recompute import blocks_of, recompute_blocks
from svdcli.model import attention, blocks
from svdcli.model.unet import UNet
from svdcli.recipe.recipe import Machine


def step(unet: UNet, toy: ModuleType) -> tuple[dict[str, Tensor], int]:
    """-> gradients, and numbers that autograd kept between forward and backward."""
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        held.append(tensor)  # so that no address is given twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss, _ = toy.Toy().loss(unet, toy.Toy().batch([1]), torch.Generator())
    loss.backward()
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    found = {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}
    return found, sum(size for address, size in kept.items() if address not in weights)


def test_gradients_are_the_same_and_memory_falls_with_the_share(toy: ModuleType) -> None:
    torch.manual_seed(0)
    sizes, expected = [], None
    for share in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        unet = UNet(toy.CONFIG)
        recompute_blocks(unet, share)
        found, size = step(unet, toy)
        sizes.append(size)
        expected = expected or found
        assert found.keys() == expected.keys() and all(torch.equal(found[n], expected[n]) for n in found)
    assert sizes[1] < 0.8 * sizes[0] and sizes[2] < 0.5 * sizes[0]


def test_a_copy_recomputes_itself(toy: ModuleType) -> None:
    unet = UNet(toy.CONFIG)
    recompute_blocks(unet, 1.0)
    twin = copy.deepcopy(unet)
    assert all(block.forward.__self__ is block for block in blocks_of(twin))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("value", "share"), [("none", 0.0), ("blocks", 1.0), (0.25, 0.25), (1, 1.0)])
def test_the_key(value: object, share: float, toy: ModuleType) -> None:
    assert Machine.model_validate_json(json.dumps({"checkpoint": value})).checkpoint_share == share
    unet = UNet(toy.CONFIG)
    recompute_blocks(unet, share)
    changed = sum("forward" in vars(block) for block in blocks_of(unet))
    assert changed == int(share * len(blocks_of(unet)))


def test_what_is_cheap_is_computed_again_to_the_bit_and_nothing_else(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out (`gradients`), by `lightly`, and kept: the same gradients and matrix products, from less memory."""
    results = []
    for way in ("written out", "lightly", "kept"):
        for module in (blocks, attention):
            if way != "written out":
                monkeypatch.setattr(module, "by_hand", lambda *tensors: False)
            if way == "kept":
                monkeypatch.setattr(module, "lightly", lambda function, *inputs: function(*inputs))
        torch.manual_seed(0)
        unet = UNet(toy.CONFIG)
        with FlopCounterMode(display=False) as counter:
            found, size = step(unet, toy)
        results.append((found, size, counter.get_total_flops()))
    (written, least, fewest), (light, less, flops), (plain, more, same_flops) = results
    assert light.keys() == plain.keys() and all(torch.equal(light[n], plain[n]) for n in plain)
    assert less < 0.7 * more and flops == same_flops
    for name, gradient in written.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)
    assert least < 1.05 * less and 0.95 * flops < fewest <= flops
