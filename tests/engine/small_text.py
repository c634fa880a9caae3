"""A start for a small text-to-video model: a random text encoder, and a tokenizer that knows whole words.

It is frozen, as every text encoder is, and tells its words apart: enough for a model that is to follow a small vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from svdcli.errors import UsageError
from svdcli.io.files import atomic_folder
from svdcli.model.bundle_files import STEMS
from svdcli.model.saving import part_of
from svdcli.model.text_encoder import build
from svdcli.model.weights import write_weights

ENDS = ("<|startoftext|>", "<|endoftext|>")
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "gelu"}
Pair = tuple[str, str]


def save_small_text_encoder(
    folder: Path, captions: Sequence[str], width: int, num_tokens: int = 16, seed: int = 0
) -> None:
    """Write a bundle of nothing but a text encoder and its tokenizer, for the words of the captions, whole or not at all.

    `width` is that of a token, a multiple of four; `num_tokens` how many a caption has, its ends among them. Raises
    UsageError for captions without words.
    """
    words = sorted({word for text in captions for word in text.lower().replace(",", " ").split()})
    if not words:
        raise UsageError("The captions have no words.", "Put a text beside each video: a.txt for a.mp4.")
    vocabulary, merges = whole_words(words)
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "max_position_embeddings": num_tokens}
    ends = dict(zip(("bos_token_id", "eos_token_id"), (vocabulary.index(end) for end in ENDS), strict=True))
    with torch.random.fork_rng(), atomic_folder(folder) as path:
        torch.manual_seed(seed)
        clip = build(SHAPE | shape | ends | {"vocab_size": len(vocabulary)})
        embeddings = clip.get_input_embeddings()  # type: ignore[operator]
        torch.nn.init.normal_(
            embeddings.weight
        )  # so that what a token is outweighs what the layers mix into it
        part = part_of(clip)
        (path / "text_encoder").mkdir()
        write_weights(path / "text_encoder" / f"{STEMS['text_encoder']}.safetensors", part.tensors)
        _write(path / "text_encoder" / "config.json", json.dumps(part.config))
        _write(path / "model_index.json", json.dumps({"_class_name": "StableDiffusionPipeline"}))
        _save_tokenizer(path / "tokenizer", vocabulary, merges, num_tokens)


def whole_words(words: Sequence[str]) -> tuple[list[str], list[Pair]]:
    """-> vocabulary and merges of a byte-pair tokenizer that makes one token of each word, and as a rule several of others.

    What a word needs beyond the merges of those before it comes behind them, so that it leaves those words whole.
    """
    single = [chr(code) for code in range(33, 127)]
    merges: list[Pair] = []
    for word in words:
        while len(pieces := split(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    joined = dict.fromkeys(a + b for a, b in merges)
    return [*single, *(letter + "</w>" for letter in single), *joined, *ENDS], merges


def split(word: str, merges: Sequence[Pair]) -> list[str]:
    """The pieces of a word by byte-pair encoding: of the pairs in it, the first of the merges is joined, again and again."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while True:
        pairs = set(zip(pieces, pieces[1:], strict=False))
        pair = next((merge for merge in merges if merge in pairs), None)
        if pair is None:
            return pieces
        at = next(i for i in range(len(pieces)) if tuple(pieces[i : i + 2]) == pair)
        pieces[at : at + 2] = ["".join(pair)]


def _save_tokenizer(folder: Path, vocabulary: Sequence[str], merges: Sequence[Pair], num_tokens: int) -> None:
    """In the files of CLIP's."""
    folder.mkdir()
    special = {"bos_token": ENDS[0], "eos_token": ENDS[1], "unk_token": ENDS[1], "pad_token": "!"}
    config = {"model_max_length": num_tokens, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    _write(folder / "vocab.json", json.dumps({piece: number for number, piece in enumerate(vocabulary)}))
    _write(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, merges)]))
    _write(folder / "tokenizer_config.json", json.dumps(special | config))
    _write(folder / "special_tokens_map.json", json.dumps(special))


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")
