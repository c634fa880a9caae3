import pytest
import torch

from svdcli.diffusion.noise import NoiseSource
from svdcli.errors import UsageError

SHAPE = (2, 4, 3, 3)


def test_a_sample_does_not_depend_on_its_batch():
    batch = NoiseSource([5, 6, 7], SHAPE)
    alone = NoiseSource([7], SHAPE)
    for _ in range(3):
        assert torch.equal(batch.draw()[2:], alone.draw())


def test_streams_are_independent_of_each_others_draws():
    untouched = NoiseSource([5], SHAPE).stream("augment").draw()
    source = NoiseSource([5], SHAPE)
    source.draw()
    step = source.stream("step")
    step.draw()
    assert torch.equal(source.stream("augment").draw(), untouched)


def test_streams_seeds_and_draws_all_differ():
    source = NoiseSource([0, 1], SHAPE)
    draws = [source.draw(), source.draw(), source.stream("augment").draw(), source.stream("step").draw()]
    flat = torch.cat(draws).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlation.abs().max() < 0.5


def test_a_stream_starts_at_its_first_draw_and_may_have_another_shape():
    source = NoiseSource([3], SHAPE)
    first = source.draw()
    assert torch.equal(source.stream("latent").draw(), first)
    assert source.stream("augment", (3, 8, 8)).draw().shape == (1, 3, 8, 8)


def test_the_latent_stream_is_the_plain_seed():
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(42))
    assert torch.equal(NoiseSource([42], SHAPE).draw()[0], expected)


def test_noise_is_unit_normal_float32_on_the_cpu():
    noise = NoiseSource([1], (100, 100)).stream("step").draw()
    assert noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert noise.mean().item() == pytest.approx(0, abs=0.03)
    assert noise.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(UsageError, match="seed"):
        NoiseSource([seed], SHAPE)


def test_an_unknown_stream_is_our_bug():
    with pytest.raises(ValueError, match="stream"):
        NoiseSource([1], SHAPE).stream("other")
