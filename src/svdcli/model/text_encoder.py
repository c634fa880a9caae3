"""Captions -> context tokens: CLIP's text tower and its tokenizer, as a Stable Diffusion 2.1 bundle holds them.

The networks are transformers'. Stable Diffusion 2 conditions on the penultimate layer of OpenCLIP's 24, behind the final
norm; its bundle has that baked in, with a `text_encoder/` of 23 layers. The tower is frozen in every stage of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from svdcli.errors import InputError

PREFIX = "text_model."
"""Before the names of published weights; transformers from version 5 on builds the network without it."""
Value = TypeVar("Value")


def build(config: Mapping[str, Any]) -> nn.Module:
    """transformers' `CLIPTextModel` of a parsed `text_encoder/config.json`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    known = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    return cast(nn.Module, CLIPTextModel(CLIPTextConfig(**known)))


def is_text_encoder(module: object) -> bool:
    return type(module).__name__ == "CLIPTextModel"


def renamed(stored: Mapping[str, Value], expected: Mapping[str, Any]) -> dict[str, Value]:
    """Weights on disk under the names that this version of transformers has: with the prefix or without."""
    bare = {name.removeprefix(PREFIX): value for name, value in stored.items()}
    prefix = PREFIX if all(name.startswith(PREFIX) for name in expected) else ""
    return {prefix + name: value for name, value in bare.items()}


def published(state: Mapping[str, Value]) -> dict[str, Value]:
    """A text tower's tensors under the names of published weights, which every version of transformers reads."""
    return {PREFIX + name.removeprefix(PREFIX): value for name, value in state.items()}


class TextEncoder(nn.Module):
    """Captions -> tokens of the context; an empty caption is the null text of guidance and dropout."""

    def __init__(self, clip: nn.Module, tokenizer: Path) -> None:
        """`clip`: see `build`. `tokenizer`: the bundle's folder of that name. Raises InputError where it is incomplete."""
        super().__init__()
        self.clip, self.folder = clip, tokenizer
        self.tokenizer = _load_tokenizer(tokenizer)
        num_words = len(self.tokenizer)
        if num_words > cast(Any, clip.config).vocab_size:
            raise InputError(
                f"{tokenizer} has {num_words} words, and the text encoder beside it knows "
                f"{cast(Any, clip.config).vocab_size}.",
                "Take both from one bundle.",
            )

    @property
    def width(self) -> int:
        """Width of a token."""
        return int(cast(Any, self.clip.config).hidden_size)

    @property
    def num_tokens(self) -> int:
        """Tokens of every caption, 77: longer ones are cut, shorter ones filled up."""
        return int(cast(Any, self.clip.config).max_position_embeddings)

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> Tensor:
        """B captions -> (B, 77, D), behind the final norm."""
        words = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.num_tokens,
            return_tensors="pt",
        )
        device = next(self.clip.parameters()).device
        return cast(Tensor, self.clip(words.input_ids.to(device)).last_hidden_state)


def require_tokenizer(folder: Path) -> None:
    """Raise InputError unless a folder has the files of a tokenizer: of one that has none, transformers would make one
    without words.
    """
    names = ("vocab.json", "merges.txt")
    if not (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name in names):
        raise InputError(
            f"{folder} holds no tokenizer: vocab.json or merges.txt is missing.",
            "Fetch the bundle again, with its folder tokenizer.",
        )


def _load_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    require_tokenizer(folder)
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"The tokenizer in {folder} is damaged: {error}.", "Fetch it again.") from error
