"""The small text encoder of whole words: what it knows, what it tells apart, and that it is made alike every time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from svdcli.errors import UsageError
from svdcli.model.bundle import load_text_encoder

sys.path.insert(0, str(Path(__file__).parent))
from small_text import save_small_text_encoder  # noqa: E402

CAPTIONS = ["cars on a road, the camera pans left", "Cars on a road, the camera pans right", "a scar"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "small"
    save_small_text_encoder(path, CAPTIONS, width=32)
    return path


def test_every_known_word_is_one_token_and_others_are_letters(folder: Path) -> None:
    tokenizer = load_text_encoder(folder, torch.float32).tokenizer

    def pieces(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[1:-1]

    for caption in CAPTIONS:
        words = caption.lower().replace(",", " ,").split()
        assert pieces(caption) == [f"{word}</w>" for word in words]
    assert pieces("xyz") == ["x", "y", "z</w>"]


def test_captions_that_differ_in_one_word_have_other_tokens_from_there_on(folder: Path) -> None:
    encoder = load_text_encoder(folder, torch.float32)
    assert (encoder.num_tokens, encoder.width) == (16, 32)
    left, right = encoder(CAPTIONS[:2])
    differ = (left - right).abs().amax(-1) > 0.05
    assert differ.tolist() == [False] * 9 + [True] * 7
    assert not encoder([""]).isnan().any()


def test_it_is_the_same_each_time_and_leaves_the_generator_alone(folder: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    save_small_text_encoder(tmp_path / "again", CAPTIONS, width=32)
    assert torch.equal(torch.get_rng_state(), state)
    first, again = (load_text_encoder(path, torch.float32)(CAPTIONS) for path in (folder, tmp_path / "again"))
    assert torch.equal(first, again)


def test_no_words_are_an_error_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no words"):
        save_small_text_encoder(tmp_path / "none", ["", " "], width=32)
    assert not (tmp_path / "none").exists()
