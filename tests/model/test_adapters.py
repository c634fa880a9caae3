"""PEFT's layers in our UNet: each of them acts, whichever layer it stands for, and as the merged weights do."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from svdcli.errors import RecipeError
from svdcli.model import attention, blocks
from svdcli.model.adapters import IDLE, changes_of, inject, is_adapter, target_modules
from svdcli.model.lora import Change
from svdcli.model.unet import UNet, UNetConfig
from svdcli.recipe.adapter import Lora

CONFIG = UNetConfig(
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    block_out_channels=(8, 16),
    num_attention_heads=(1, 2),
    cross_attention_dim=8,
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=24,
    layers_per_block=1,
    norm_num_groups=4,
)


def new_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(CONFIG).eval()


def run(unet: UNet, num_tokens: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 3, 8, 8, 8, generator=generator).to(dtype)
    tokens = torch.randn(1, num_tokens, 8, generator=generator).to(dtype)
    return unet(x, torch.tensor([0.3]), tokens, torch.tensor([[6.0, 127.0, 0.02]]))


def awake(unet: UNet, module: str | None = None) -> UNet:
    """The adapter, or that of one layer alone, changes something: its second factor is not zero."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in unet.named_parameters():
        if ".lora_B." in name and (module is None or name.startswith(f"{module}.lora_B.")):
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        elif ".lora_B." in name:
            parameter.data.zero_()
    return unet


def merged(unet: UNet, changes: dict[str, Change]) -> UNet:
    """The plain network with the changes in its weights."""
    for module, change in changes.items():
        weight = unet.get_parameter(f"{module}.weight")
        weight.data = (weight.data.float() + change.of(weight.data)).to(weight.dtype)
    return unet


def kind_of(layer: str) -> str:
    """What a layer is, wherever it lies."""
    return re.sub(r"^((down|up)_blocks|mid_block)|\d+", "", layer)


LAYERS = {kind_of(name): name for name in target_modules(new_unet(), ".*", one_token=False)}
"""One of each kind."""


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_every_kind_of_layer_that_may_be_chosen_acts_as_merged_weights_do(
    gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on large inputs: whatever is sliced or split at inference is so here.
    monkeypatch.setattr(blocks, "SLICE", {"cpu": 2000})
    monkeypatch.setattr(blocks, "WEIGHTS_AT_ONCE", 300)
    monkeypatch.setattr(attention, "FEED_FORWARD_CACHED", {"cpu": 64})
    monkeypatch.setattr(attention, "FEWEST_TOKENS", 16)
    adapted, plain = new_unet(), new_unet()
    inject(adapted, Lora(kind="lora", rank=2, targets=".*"), one_token=False)
    assert {type(plain.get_submodule(layer)) for layer in LAYERS.values()} == {
        nn.Linear,
        nn.Conv2d,
        nn.Conv3d,
    }
    assert len(changes_of(adapted)) > 150 and len(LAYERS) > 40
    with torch.set_grad_enabled(gradients):
        base = run(plain).detach()
        for layer in LAYERS.values():
            found = run(awake(adapted, layer)).detach()
            weight = plain.get_parameter(f"{layer}.weight")
            before = weight.data
            merged(plain, {layer: changes_of(adapted)[layer]})
            expected = run(plain).detach()
            weight.data = before
            assert (found - base).abs().max() > 1e-5, f"{layer} is bypassed"
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=layer)


@pytest.mark.parametrize("gradients", [True, False], ids=["training", "inference"])
def test_in_half_precision_it_errs_as_merged_weights_do(gradients: bool) -> None:
    adapted = new_unet()
    inject(adapted, Lora(kind="lora", rank=2, targets=".*"), one_token=False)
    for name, parameter in awake(adapted).named_parameters():
        parameter.data /= 20 if ".lora_B." in name else 1
    weights = merged(new_unet(), changes_of(adapted))
    with torch.set_grad_enabled(gradients):
        true, base = run(weights).detach(), run(new_unet()).detach()
        found = run(adapted.bfloat16(), dtype=torch.bfloat16).detach().float()
        rounded = run(weights.bfloat16(), dtype=torch.bfloat16).detach().float()
    assert (found - true).norm() < 1.5 * (rounded - true).norm() < 0.5 * (true - base).norm()


@pytest.mark.parametrize("keys", [{"use_dora": True}, {"use_rslora": True}, {"alpha": 3.0}], ids=str)
def test_variants_act_as_merged_weights_do(keys: dict[str, bool]) -> None:
    adapted = new_unet()
    inject(adapted, Lora(kind="lora", rank=4, targets=".*", **keys), one_token=False)  # type: ignore[arg-type]
    torch.testing.assert_close(run(adapted), run(new_unet()), rtol=1e-4, atol=1e-5)  # nothing at first
    awake(adapted)
    for name, parameter in adapted.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 1.2
    changes = changes_of(adapted)
    assert {c.scale for c in changes.values()} == {Lora(kind="lora", rank=4, **keys).scale}  # type: ignore[arg-type]
    with torch.no_grad():
        expected = run(merged(new_unet(), changes))
        torch.testing.assert_close(run(adapted), expected, rtol=1e-3, atol=1e-4)
        assert (expected - run(new_unet())).abs().max() > 1e-2


# ---- what may be chosen --------------------------------------------------------------------------------


def test_presets_are_the_attention_over_time_and_within_frames() -> None:
    unet = new_unet()
    temporal, spatial, everything = (
        set(target_modules(unet, n, one_token=False)) for n in ("temporal", "spatial", "all")
    )
    assert temporal | spatial == everything and not temporal & spatial
    assert all(".temporal_transformer_blocks." in n for n in temporal)
    leaves = {n.rpartition(".attn")[2] for n in temporal}
    assert leaves == {f"{a}.{p}" for a in "12" for p in ("to_q", "to_k", "to_v", "to_out.0")}


def test_what_a_single_token_leaves_idle_is_left_out() -> None:
    unet = new_unet()
    assert any(map(IDLE.fullmatch, target_modules(unet, "all", one_token=False)))
    assert not any(map(IDLE.fullmatch, target_modules(unet, "all", one_token=True)))
    inject(unet, Lora(kind="lora", rank=2, targets=r".*\.attn2\.to_[qk]"), one_token=False)
    with torch.no_grad():
        assert torch.equal(
            run(awake(unet), num_tokens=1), run(new_unet(), num_tokens=1)
        )  # they are idle indeed
    with pytest.raises(
        RecipeError, match="matches no layer .* but queries and keys of a single context token"
    ):
        target_modules(new_unet(), r".*\.attn2\.to_[qk]", one_token=True)


def test_a_target_that_matches_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="matches no layer") as caught:
        target_modules(new_unet(), "temporall", one_token=False)
    assert "temporal, spatial, all" in caught.value.hint


def test_only_the_adapter_trains() -> None:
    unet = new_unet().train()
    inject(unet, Lora(kind="lora", rank=2), one_token=True)
    assert all(p.requires_grad == is_adapter(n) for n, p in unet.named_parameters())
    run(awake(unet), num_tokens=1).square().mean().backward()
    trained = {n: p.grad for n, p in unet.named_parameters() if p.requires_grad}
    assert trained and all(g is not None and g.abs().max() > 0 for g in trained.values())
    assert all(re.search(r"\.attn[12]\.to_(q|k|v|out\.0)\.lora_[AB]\.default\.weight$", n) for n in trained)
