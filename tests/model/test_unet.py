"""The UNet against diffusers on random weights, and the promises that diffusers does not make."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svdcli.model import attention
from svdcli.model.attention import Attention, Context, FeedForward
from svdcli.model.blocks import SpatioTemporalResBlock
from svdcli.model.unet import UNet, UNetConfig

SVD_NUM_PARAMETERS = 1_524_623_082

TINY = UNetConfig(
    block_out_channels=(32, 64, 64),
    down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
    up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
    num_attention_heads=(2, 4, 4),
    cross_attention_dim=24,
    layers_per_block=1,
    addition_time_embed_dim=16,
    projection_class_embeddings_input_dim=48,
    num_frames=14,
)
DEEPER = UNetConfig(
    in_channels=9,
    out_channels=5,
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2,
    up_block_types=("CrossAttnUpBlockSpatioTemporal",) * 2,
    num_attention_heads=2,
    cross_attention_dim=(16, 16),
    layers_per_block=(2, 1),
    transformer_layers_per_block=2,
    addition_time_embed_dim=16,
    projection_class_embeddings_input_dim=48,
)


def make_reference(config: UNetConfig) -> nn.Module:
    """The same network of diffusers, which knows no other number of groups than 32."""
    from diffusers import UNetSpatioTemporalConditionModel

    values = {k: v for k, v in config.to_dict().items() if k not in ("_class_name", "norm_num_groups")}
    return UNetSpatioTemporalConditionModel(**values).eval()


@torch.no_grad()
def redraw(module: nn.Module, seed: int = 0) -> None:
    """Random weights that keep the signal's scale: nothing is zero or one, mix factors included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            parameter.copy_(0.3 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))


@pytest.fixture(scope="module")
def pair() -> tuple[UNet, nn.Module]:
    """Ours and diffusers', of equal random weights."""
    unet, reference = UNet(TINY).eval(), make_reference(TINY)
    redraw(unet)
    reference.load_state_dict(unet.state_dict())
    return unet, reference


def draw_inputs(
    config: UNetConfig, batch: int, frames: int, h: int, w: int, tokens: int = 1
) -> dict[str, Tensor]:
    """Every clip with its own noise level, context and ids, of the sizes that SVD meets."""
    generator = torch.Generator().manual_seed(batch + 10 * frames + 100 * h + 1000 * w)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    (width, *_) = config.per_level("cross_attention_dim")
    ids = torch.tensor([[6.0, 127.0, 0.02], [11.0, 40.0, 0.3], [24.0, 254.0, 0.0]])[:batch]
    return {
        "x": randn(batch, frames, config.in_channels, h, w),
        "c_noise": torch.tensor([1.63, -0.8, 0.1])[:batch],
        "context": randn(batch, tokens, width),
        "vector_ids": ids,
    }


def run_reference(
    reference: nn.Module, x: Tensor, c_noise: Tensor, context: Tensor, vector_ids: Tensor
) -> Tensor:
    return reference(x, c_noise, context, vector_ids, return_dict=False)[0]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


# The published weights fit.


def test_the_full_size_has_the_published_parameters() -> None:
    with torch.device("meta"):
        unet, reference = UNet(UNetConfig()), make_reference(UNetConfig())
    assert sum(p.numel() for p in unet.parameters()) == SVD_NUM_PARAMETERS
    ours = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    assert ours == {name: tuple(value.shape) for name, value in reference.state_dict().items()}


def test_the_defaults_are_those_of_svd_xt() -> None:
    from diffusers import UNetSpatioTemporalConditionModel

    with torch.device("meta"):
        published = dict(UNetSpatioTemporalConditionModel().config)
    ours = UNetConfig().to_dict()
    assert {k: ours[k] for k in published if not k.startswith("_")} == {
        k: v for k, v in published.items() if not k.startswith("_")
    }


def test_config_survives_a_file() -> None:
    stored = json.loads(
        json.dumps(DEEPER.to_dict() | {"_diffusers_version": "0.24.0.dev0", "center_input": False})
    )
    assert UNetConfig.from_dict(stored) == DEEPER


# The same numbers as diffusers.


@pytest.mark.parametrize(
    ("batch", "frames", "h", "w", "tokens"),
    [
        pytest.param(1, 14, 8, 12, 1, id="14 frames"),
        pytest.param(1, 25, 4, 8, 1, id="25 frames"),
        pytest.param(2, 14, 12, 4, 1, id="two portrait clips"),
        pytest.param(2, 3, 9, 7, 1, id="two clips, odd latents"),
        pytest.param(1, 4, 5, 11, 2, id="odd latents, two tokens"),
        pytest.param(3, 2, 8, 8, 2, id="three clips, two tokens"),
        pytest.param(2, 1, 8, 8, 1, id="one frame"),
    ],
)
def test_agrees_with_diffusers(
    pair: tuple[UNet, nn.Module], batch: int, frames: int, h: int, w: int, tokens: int
) -> None:
    unet, reference = pair
    inputs = draw_inputs(TINY, batch, frames, h, w, tokens)
    with torch.no_grad():
        assert relative_error(unet(**inputs), run_reference(reference, **inputs)) <= 1e-5


def test_agrees_with_diffusers_at_another_shape() -> None:
    unet, reference = UNet(DEEPER).eval(), make_reference(DEEPER)
    redraw(unet)
    reference.load_state_dict(unet.state_dict())
    inputs = draw_inputs(DEEPER, 2, 3, 6, 5)
    with torch.no_grad():
        assert relative_error(unet(**inputs), run_reference(reference, **inputs)) <= 1e-5


def test_fewer_groups_agree_with_diffusers_given_fewer_groups() -> None:
    config = UNetConfig(
        **{k: v for k, v in TINY.to_dict().items() if k != "_class_name"} | {"norm_num_groups": 4}
    )
    unet, reference = UNet(config).eval(), make_reference(config)
    redraw(unet)
    reference.load_state_dict(unet.state_dict())
    inputs = draw_inputs(config, 1, 3, 8, 8)
    with torch.no_grad():
        ours = unet(**inputs)
        assert relative_error(ours, run_reference(reference, **inputs)) > 1e-2
        for module in reference.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = 4
        assert relative_error(ours, run_reference(reference, **inputs)) <= 1e-5


@pytest.mark.parametrize("batch", [1, 2])
def test_bfloat16_is_no_further_off_than_diffusers(batch: int) -> None:
    unet, reference = UNet(TINY).eval(), make_reference(TINY)
    redraw(unet)
    unet.bfloat16().float()  # weights and inputs that bfloat16 holds exactly: what is left is the arithmetic
    reference.load_state_dict(unet.state_dict())
    inputs = {k: v.bfloat16().float() for k, v in draw_inputs(TINY, batch, 3, 8, 4).items()}
    with torch.no_grad():
        exact = run_reference(reference, **inputs)
        halves = {k: v if k == "c_noise" else v.bfloat16() for k, v in inputs.items()}
        ours = unet.bfloat16()(**halves)
        theirs = run_reference(reference.bfloat16(), **halves)
    assert ours.dtype == torch.bfloat16
    ours_off, theirs_off = ((y.float() - exact).norm() / exact.norm() for y in (ours, theirs))
    assert ours_off <= 1.5 * theirs_off + 1e-3
    assert theirs_off < 0.1  # else the comparison says nothing


@pytest.mark.parametrize("tokens", [1, 2])
def test_gradients_agree_with_diffusers(pair: tuple[UNet, nn.Module], tokens: int) -> None:
    unet, reference = pair
    gradients = []
    for network, run in ((unet, unet), (reference, lambda **kwargs: run_reference(reference, **kwargs))):
        inputs = draw_inputs(TINY, 2, 3, 5, 6, tokens)
        inputs["x"].requires_grad_()
        inputs["context"].requires_grad_()
        out = run(**inputs)
        out.mul(torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        found = {name: p.grad for name, p in network.named_parameters()}
        gradients.append(found | {name: inputs[name].grad for name in ("x", "context")})
        network.zero_grad(set_to_none=True)
    ours, theirs = gradients
    scale = max(g.abs().max().item() for g in theirs.values())
    for name, expected in theirs.items():
        if ours[name] is None:  # one token: what shapes the query or the key has no influence
            assert tokens == 1 and any(part in name for part in ("attn2.to_q", "attn2.to_k", "norm2")), name
            assert expected.abs().max() <= 1e-5 * scale, name
        else:
            assert (ours[name] - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6 * scale, name


# Promises beyond diffusers.


def test_a_clip_of_a_batch_is_the_clip_alone(pair: tuple[UNet, nn.Module]) -> None:
    inputs = draw_inputs(TINY, 3, 3, 6, 6)
    with torch.no_grad():
        together = pair[0](**inputs)
        for index in range(3):
            alone = pair[0](**{k: v[index : index + 1] for k, v in inputs.items()})
            assert relative_error(together[index : index + 1], alone) <= 1e-5


@pytest.mark.parametrize("tokens", [1, 2])
def test_gradient_mode_changes_nothing(pair: tuple[UNet, nn.Module], tokens: int) -> None:
    """Without gradients much is done in place: to the same result, and never to the caller's tensors."""
    inputs = draw_inputs(TINY, 2, 3, 6, 6, tokens)
    before = {k: v.clone() for k, v in inputs.items()}
    with torch.no_grad():
        silent = pair[0](**inputs)
        again = pair[0](**inputs)
    assert relative_error(silent, pair[0](**inputs).detach()) <= 1e-5
    assert torch.equal(silent, again)
    assert all(torch.equal(before[k], v) for k, v in inputs.items())


def test_frames_are_in_order(pair: tuple[UNet, nn.Module]) -> None:
    inputs = draw_inputs(TINY, 1, 4, 6, 6)
    with torch.no_grad():
        forwards = pair[0](**inputs)
        backwards = pair[0](**inputs | {"x": inputs["x"].flip(1)}).flip(1)
    assert relative_error(backwards, forwards) > 1e-2


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_wrong_number_of_ids_is_refused(pair: tuple[UNet, nn.Module], count: int) -> None:
    inputs = draw_inputs(TINY, 1, 2, 4, 4) | {"vector_ids": torch.zeros(1, count)}
    with pytest.raises(ValueError, match=f"3 vector ids, not {count}"):
        pair[0](**inputs)


@pytest.mark.parametrize("grad", [True, False])
def test_runs_under_autocast(pair: tuple[UNet, nn.Module], grad: bool) -> None:
    inputs = draw_inputs(TINY, 2, 3, 5, 6)
    with torch.no_grad():
        exact = pair[0](**inputs)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
        mixed = pair[0](**inputs)
    assert relative_error(mixed.detach().float(), exact) < 0.1


def test_reset_starts_silent_and_can_learn() -> None:
    torch.manual_seed(0)
    unet = UNet(TINY)
    unet.reset()
    inputs = draw_inputs(TINY, 1, 2, 4, 4)
    out = unet(**inputs)
    assert torch.count_nonzero(out) == 0
    out.sum().backward()
    assert torch.count_nonzero(unet.conv_out.weight.grad) > 0


# The one-token shortcut.


def attend(layer: Attention, x: Tensor, tokens: Tensor) -> Tensor:
    """Cross-attention as the textbook has it: x (B T, N, D), tokens (B, M, D')."""
    tokens = tokens.repeat_interleave(x.shape[0] // tokens.shape[0], dim=0)
    q, k, v = (
        layer.heads(y).transpose(1, 2) for y in (layer.to_q(x), layer.to_k(tokens), layer.to_v(tokens))
    )
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
    return layer.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_cross_attention_is_the_textbooks(tokens: int) -> None:
    torch.manual_seed(0)
    layer = Attention(16, 2, context_width=12)
    x, context = 3 * torch.randn(6, 5, 16), 3 * torch.randn(2, tokens, 12)
    expected = attend(layer, x, context)
    torch.testing.assert_close(layer.cross(x, Context(context)).expand_as(x), expected, rtol=1e-5, atol=1e-5)


def test_one_token_is_two_equal_tokens(pair: tuple[UNet, nn.Module]) -> None:
    inputs = draw_inputs(TINY, 2, 3, 6, 6)
    with torch.no_grad():
        one = pair[0](**inputs)
        two = pair[0](**inputs | {"context": inputs["context"].repeat(1, 2, 1)})
    assert relative_error(one, two) <= 1e-5


def count_calls(unet: UNet, names: tuple[str, ...]) -> tuple[Counter[str], list[Any]]:
    """How often the cross-attentions' projections of these names run; the hooks to remove afterwards."""
    calls: Counter[str] = Counter()
    hooks = []
    for path, module in unet.named_modules():
        parent, _, name = path.rpartition(".")
        if parent.endswith("attn2") and name in names:
            hooks.append(module.register_forward_hook(lambda *_, name=name: calls.update([name])))
    return calls, hooks


def test_context_vectors_are_computed_once(pair: tuple[UNet, nn.Module]) -> None:
    inputs = draw_inputs(TINY, 2, 2, 4, 4)
    tokens = inputs.pop("context")
    context = Context(tokens)
    num_attentions = sum(name.endswith("attn2") for name, _ in pair[0].named_modules())
    calls, hooks = count_calls(pair[0], ("to_q", "to_k", "to_v"))
    with torch.no_grad():
        first = pair[0](context=context, **inputs)
        assert calls == {"to_v": num_attentions}
        second = pair[0](context=context, **inputs)
        assert calls == {"to_v": num_attentions}
        third = pair[0](context=tokens, **inputs)
        assert calls == {"to_v": 2 * num_attentions}
    for hook in hooks:
        hook.remove()
    assert torch.equal(first, second) and torch.equal(first, third)


def test_several_tokens_are_never_kept(pair: tuple[UNet, nn.Module]) -> None:
    inputs = draw_inputs(TINY, 1, 2, 4, 4, tokens=2)
    context = Context(inputs.pop("context"))
    with torch.no_grad():
        pair[0](context=context, **inputs)
    assert not context.vectors


def test_gradients_reach_the_tokens_through_a_context(pair: tuple[UNet, nn.Module]) -> None:
    inputs = draw_inputs(TINY, 2, 2, 4, 4)
    tokens = inputs.pop("context").requires_grad_()
    pair[0].zero_grad(set_to_none=True)
    pair[0](context=Context(tokens), **inputs)[0].square().sum().backward()
    assert torch.count_nonzero(tokens.grad[0]) == tokens[0].numel()
    assert torch.count_nonzero(tokens.grad[1]) == 0  # the other clip's
    for name, parameter in pair[0].named_parameters():
        if "attn2.to_v" in name:
            assert torch.count_nonzero(parameter.grad) > 0, name
    pair[0].zero_grad(set_to_none=True)


def test_context_takes_the_networks_precision() -> None:
    torch.manual_seed(0)
    layer = Attention(16, 2, context_width=12).bfloat16()
    for tokens in (1, 2):
        out = layer.cross(torch.randn(2, 5, 16).bfloat16(), Context(torch.randn(1, tokens, 12)))
        assert out.dtype == torch.bfloat16


# Blocks.


def test_a_sliced_feed_forward_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = FeedForward(8), torch.randn(7, 5, 8)
    rows: list[int] = []
    layer.net[2].register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    whole = layer(x)
    monkeypatch.setattr(attention, "FEED_FORWARD_ROWS", 8 * 8 * 10)
    with torch.no_grad():
        sliced = layer(x)
    assert rows == [7, 10, 10, 10, 5]  # frames, then tokens
    torch.testing.assert_close(sliced, whole.detach())
    rows.clear()
    monkeypatch.setitem(attention.FEED_FORWARD_CACHED, "cpu", 1)
    monkeypatch.setattr(attention, "FEWEST_TOKENS", 9)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), whole.detach())
    assert rows == [9, 9, 9, 8]
    monkeypatch.setattr(attention, "FEED_FORWARD_ROWS", 1)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), whole.detach())


@pytest.mark.parametrize("numbers", [1 << 21, 4 * 7 * 7, 1])
def test_short_attention_is_the_fused_one(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    torch.manual_seed(0)
    q, k, v = (3 * torch.randn(5, 7, 2, 4).transpose(1, 2) for _ in range(3))
    expected = nn.functional.scaled_dot_product_attention(q, k, v)
    monkeypatch.setitem(attention.SLICE, "cpu", numbers)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda *_: pytest.fail("not short"))
    with torch.no_grad():
        torch.testing.assert_close(attention.attend(q, k, v), expected)


# What stands in the place of a layer, as a LoRA does.


class Scaled(nn.Module):
    """Shows the weights of the layer that it wraps, as PEFT's layers do, but computes something else."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * self.base(x)


def scale_layers(network: nn.Module) -> nn.Module:
    """Wraps every linear and convolutional layer."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear | nn.Conv2d | nn.Conv3d):
                setattr(module, name, Scaled(child))
    return network


@torch.no_grad()
def scale_weights(network: nn.Module) -> nn.Module:
    """What the wrappers of `scale_layers` amount to."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            for parameter in module.parameters():
                parameter.mul_(1.5)
    return network


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("batch", [1, 2])
def test_no_layer_is_passed_by(grad: bool, batch: int) -> None:
    wrapped, scaled = UNet(DEEPER).eval(), UNet(DEEPER).eval()
    redraw(wrapped)
    redraw(scaled)
    inputs = draw_inputs(DEEPER, batch, 3, 6, 4)
    with torch.set_grad_enabled(grad):
        found, expected = scale_layers(wrapped)(**inputs), scale_weights(scaled)(**inputs)
    assert relative_error(found, expected) <= 1e-5


@pytest.mark.parametrize("alpha_is_temporal", [True, False])
def test_alpha_weighs_the_path_it_should(alpha_is_temporal: bool) -> None:
    """Mixed all the way to one side, a block is its spatial part alone; to the other, the temporal counts."""
    torch.manual_seed(0)
    block = SpatioTemporalResBlock(8, 8, None, 4, eps=1e-5, alpha_is_temporal=alpha_is_temporal).eval()
    x = torch.randn(6, 8, 3, 3)
    with torch.no_grad():
        spatial = block.spatial_res_block(x, None)
        block.time_mixer.mix_factor.fill_(-50.0 if alpha_is_temporal else 50.0)
        torch.testing.assert_close(block(x, None, 3), spatial)
        block.time_mixer.mix_factor.neg_()
        assert (block(x, None, 3) - spatial).abs().max() > 0.05


def test_images_pass_by_the_temporal_path() -> None:
    torch.manual_seed(0)
    block = SpatioTemporalResBlock(8, 16, 12, 4, eps=1e-5).eval()
    x, emb = torch.randn(4, 8, 3, 3), torch.randn(4, 12)
    block.temporal_res_block.register_forward_hook(lambda *_: pytest.fail("the temporal path ran"))
    with torch.no_grad():
        assert torch.equal(block(x, emb, None), block.spatial_res_block(x, emb))
