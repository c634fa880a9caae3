"""Embeddings of scalars: closed form, and diffusers'."""

from __future__ import annotations

import math

import torch

from svdcli.model.embedding import EmbeddingMLP, sinusoid

SCALARS = torch.tensor([6.0, 127.0, 0.02, 0.0, -1.55, 1.6377])


def test_cosines_come_first_from_the_highest_frequency_down() -> None:
    out = sinusoid(torch.tensor([2.0]), 6)
    angles = [2.0, 2.0 * 10_000 ** (-1 / 3), 2.0 * 10_000 ** (-2 / 3)]
    expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    torch.testing.assert_close(out, torch.tensor([expected]))


def test_agrees_with_diffusers() -> None:
    from diffusers.models.embeddings import Timesteps

    for width in (256, 320):
        expected = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)(SCALARS)
        torch.testing.assert_close(sinusoid(SCALARS, width), expected, rtol=0, atol=1e-5)


def test_any_shape_of_scalars_and_float32_out() -> None:
    ids = SCALARS.view(2, 3)
    out = sinusoid(ids.double(), 8)
    assert out.shape == (2, 3, 8) and out.dtype == torch.float32
    assert torch.equal(out[1, 2], sinusoid(ids[1, 2], 8))


def test_half_precision_scalars_lose_no_more_than_their_rounding() -> None:
    assert torch.equal(sinusoid(torch.tensor([127.0]).bfloat16(), 64), sinusoid(torch.tensor([127.0]), 64))


def test_the_mlp_is_diffusers() -> None:
    from diffusers.models.embeddings import TimestepEmbedding

    torch.manual_seed(0)
    ours, theirs = EmbeddingMLP(8, 16, 12), TimestepEmbedding(8, 16, out_dim=12)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    assert EmbeddingMLP(8, 16)(x).shape == (2, 3, 16)
