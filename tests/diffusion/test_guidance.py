import pytest
import torch

from svdcli.diffusion.guidance import constant, guide, linear, parse_guidance, triangular
from svdcli.errors import UsageError

X = torch.zeros(2, 5, 4, 3, 3)
SIGMA = torch.tensor([3.0, 0.5])


class Counted:
    """A denoiser that returns a constant plus x and sigma, and counts its calls."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self, x, sigma):
        self.calls += 1
        return x + self.value + sigma.view(-1, 1, 1, 1, 1)


def stacked(cond, uncond):
    """What the engine passes as `batched`: conditional first, unconditional last."""

    def both(x, sigma):
        n = len(x) // 2
        return torch.cat([cond(x[:n], sigma[:n]), uncond(x[n:], sigma[n:])])

    return both


def test_scales_over_frames():
    torch.testing.assert_close(constant(2.0, 3).scales, torch.full((3,), 2.0))
    torch.testing.assert_close(linear(1.0, 2.5, 14).scales, torch.linspace(1.0, 2.5, 14))
    up = [1.0 + 0.15 * i for i in range(11)]
    torch.testing.assert_close(triangular(1.0, 2.5, 21).scales, torch.tensor(up + up[-2::-1]))
    assert linear(1.5, 3.0, 25).scales[[0, -1]].tolist() == [1.5, 3.0]
    assert triangular(1.0, 2.5, 4).scales.tolist() == triangular(1.0, 2.5, 4).scales.flip(0).tolist()


def test_a_single_frame_takes_the_first_scale():
    assert linear(1.0, 2.5, 1).scales.tolist() == [1.0]
    assert triangular(1.0, 2.5, 1).scales.tolist() == [1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.0", constant(2.0, 7)),
        ("1.0:2.5", linear(1.0, 2.5, 7)),
        (" 3:1 ", linear(3.0, 1.0, 7)),
        ("triangle:1.0:2.5", triangular(1.0, 2.5, 7)),
    ],
)
def test_parse(text, expected):
    assert torch.equal(parse_guidance(text, 7).scales, expected.scales)


@pytest.mark.parametrize(
    "text", ["", "abc", "1:2:3", "1:", "triangle:2", "triangle:", "triangle:1:x", "xtriangle:1:2"]
    + ["nan", "inf", "-1", "1:nan", "triangle:1:-2"],
)  # fmt: skip
def test_parse_refuses(text):
    with pytest.raises(UsageError, match="guidance") as error:
        parse_guidance(text, 7)
    assert error.value.hint


def test_no_frames_is_refused():
    with pytest.raises(UsageError, match="frames"):
        parse_guidance("2.0", 0)


@pytest.mark.parametrize("in_one_pass", [False, True])
def test_guided_prediction_is_u_plus_w_times_difference(in_one_pass):
    cond, uncond = Counted(10.0), Counted(4.0)
    scales = linear(0.0, 4.0, 5).scales
    batched = stacked(cond, uncond) if in_one_pass else None
    out = guide(cond, None if in_one_pass else uncond, scales, batched=batched)(X, SIGMA)
    per_frame = 4.0 + torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]) * 6.0
    expected = per_frame.view(1, 5, 1, 1, 1) + SIGMA.view(2, 1, 1, 1, 1)
    torch.testing.assert_close(out, expected.expand_as(X))
    assert (cond.calls, uncond.calls) == (1, 1)


def test_both_ways_are_equal():
    cond, uncond, scales = Counted(0.3), Counted(-1.7), linear(1.0, 2.5, 5).scales
    two = guide(cond, uncond, scales)(X, SIGMA)
    one = guide(cond, None, scales, batched=stacked(cond, uncond))(X, SIGMA)
    assert torch.equal(one, two)


def test_where_all_scales_are_one_only_the_condition_is_evaluated():
    cond, uncond, pair = Counted(10.0), Counted(4.0), Counted(0.0)
    guidance = constant(1.0, 5)
    assert guidance.is_off and not linear(1.0, 1.1, 5).is_off
    out = guide(cond, uncond, guidance.scales, batched=pair)(X, SIGMA)
    assert (cond.calls, uncond.calls, pair.calls) == (1, 0, 0)
    assert torch.equal(out, Counted(10.0)(X, SIGMA))


def test_a_frame_of_scale_one_is_the_condition_bit_for_bit():
    def broken(x, sigma):
        return torch.full_like(x, torch.nan)

    x = torch.randn(X.shape, generator=torch.Generator().manual_seed(0))
    cond = Counted(0.1)
    out = guide(cond, broken, torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]))(x, SIGMA)
    assert torch.equal(out[:, ::2], cond(x, SIGMA)[:, ::2])
    assert out[:, 1::2].isnan().all()


def test_what_does_not_fit_is_our_bug():
    cond, uncond = Counted(1.0), Counted(0.0)
    for guidance in (constant(2.0, 4), constant(1.0, 4), constant(2.0, 1)):
        with pytest.raises(ValueError, match="5 frames"):
            guide(cond, uncond, guidance.scales)(X, SIGMA)
    with pytest.raises(ValueError, match="unconditional"):
        guide(cond, None, constant(2.0, 5).scales)
