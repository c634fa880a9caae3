"""Subjects: what a picture and a prompt tell the network, and that the clips follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svdcli.engine.generate import Sampling, condition_on_prompts, denoise
from svdcli.engine.memory import Residence
from svdcli.engine.subjects import Prompt
from svdcli.errors import InputError
from svdcli.model.bundle import load_text_encoder, open_bundle


@pytest.fixture(scope="module")
def residence(text_bundle_path: Path) -> Residence:
    return Residence(open_bundle(text_bundle_path), "high", torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def sampling(residence: Residence) -> Sampling:
    return Sampling.of(residence.files.settings)


def test_a_prompt_tells_tokens_rate_and_motion(
    residence: Residence, sampling: Sampling, text_bundle_path: Path
) -> None:
    encoder = load_text_encoder(text_bundle_path, torch.float32)
    told = Prompt("a boat", "fog").tell(residence, 0, replace(sampling, fps=8.0, motion_bucket=100.0))
    assert torch.equal(told.conditioning.context.tokens, encoder(["a boat"]))
    assert torch.equal(told.conditioning.null().context.tokens, encoder(["fog"]))
    assert told.conditioning.vector_ids.tolist() == [[7.0, 100.0]]
    assert told.facts == {"prompt": "a boat", "negative": "fog"} and told.picture is None


def test_clips_of_prompts_do_not_depend_on_the_batch(residence: Residence, sampling: Sampling) -> None:
    sampling = replace(sampling, guidance="3.0")
    words, seeds = ["a boat", "two cats"], [3, 4]
    both = denoise(residence, condition_on_prompts(residence, words, "", sampling), seeds, sampling)
    assert both.shape == (2, 4, 4, 16, 24) and not torch.equal(both[0], both[1])
    for i in range(2):
        told = Prompt(words[i]).tell(residence, seeds[i], sampling)
        alone = denoise(residence, told.conditioning, [seeds[i]], sampling)
        assert torch.allclose(alone[0], both[i], atol=1e-4)


def test_the_words_matter_and_the_negative_ones_only_with_guidance(
    residence: Residence, sampling: Sampling
) -> None:
    def clip(words: str, negative: str, guidance: str) -> torch.Tensor:
        how = replace(sampling, guidance=guidance)
        return denoise(residence, Prompt(words, negative).tell(residence, 1, how).conditioning, [1], how)

    assert not torch.equal(clip("a boat", "", "1.0"), clip("a cat", "", "1.0"))
    assert torch.equal(clip("a boat", "", "1.0"), clip("a boat", "fog", "1.0"))
    assert not torch.equal(clip("a boat", "", "2.0"), clip("a boat", "fog", "2.0"))


def test_one_frame_is_a_picture_without_rate(residence: Residence, sampling: Sampling) -> None:
    told = Prompt("a boat").tell(residence, 0, replace(sampling, num_frames=1))
    assert told.conditioning.vector_ids.shape == (1, 0)


def test_a_bundle_without_text_says_so(tiny_bundle_path: Path, sampling: Sampling) -> None:
    deaf = Residence(open_bundle(tiny_bundle_path), "high", torch.device("cpu"), torch.float32)
    with pytest.raises(InputError, match="trained without text"):
        Prompt("a boat").tell(deaf, 0, sampling)
