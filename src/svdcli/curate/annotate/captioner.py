"""Who writes captions: a model of transformers on this machine, or a server that speaks OpenAI's chat completions.

One small interface for pictures and for plain text. Each wish goes in with the id of its clip, and its caption comes
back under it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from svdcli.curate.annotate.models import Once, load_network, load_part, quiet_transformers
from svdcli.errors import InputError, MachineError
from svdcli.recipe.annotation import Server, Transformer


@dataclass(frozen=True)
class Wish:
    """A caption that is wanted."""

    clip: str
    """id"""
    prompt: str
    """empty: none"""
    pictures: tuple[npt.NDArray[np.uint8], ...] = ()
    """(H, W, 3) 0..255 each, in the order of time"""


class Writer(Protocol):
    """Writes captions."""

    identity: str
    """what wrote, for the record"""
    batch: int
    """wishes a call at best"""

    def write(self, wishes: Sequence[Wish]) -> dict[str, str]:
        """A caption a clip, by id. Raises MachineError where the model is absent, InputError where it refuses a clip."""
        ...

    def asked(self, prompt: str) -> str:
        """What the model is really given of a prompt, for the record; to be called after `write`."""
        ...


def writer(settings: Transformer | Server, device: str, sees: bool) -> Writer:
    """Of captions of pictures, or of plain text. Nothing is loaded yet."""
    from svdcli.curate.annotate.server import ServerWriter

    if isinstance(settings, Server):
        return ServerWriter(settings)
    return PictureModel(settings, device) if sees else TextModel(settings, device)


def captions(author: Writer, wishes: Sequence[Wish]) -> Mapping[str, str]:
    """What an author writes, each caption one line. Raises InputError where one is empty, and what `write` raises."""
    written = author.write(wishes)
    assert set(written) == {wish.clip for wish in wishes}, (
        "a caption must come back for each clip, and no other"
    )
    lines = {clip: " ".join(text.split()) for clip, text in written.items()}
    for clip, line in lines.items():
        if not line:
            raise InputError(f"{author.identity} wrote nothing about {clip}.", "Try another prompt or model.")
    return lines


def caption_rows(author: Writer, column: str, prompt: str, wishes: Sequence[Wish]) -> list[dict[str, Any]]:
    """The rows of an annotator of that name: the caption, who wrote it and what was asked. Raises as `captions` does."""
    written = captions(author, wishes)
    record = {f"{column}_model": author.identity, f"{column}_prompt": author.asked(prompt)}
    return [{"clip": clip, column: text} | record for clip, text in written.items()]


class _Model:
    """A model of transformers that is loaded when it is first asked."""

    def __init__(self, settings: Transformer, device: str) -> None:
        self.settings = settings
        self.batch = settings.batch
        self.identity = f"transformers {settings.model}"
        self._device = settings.device or device
        self._parts = Once(self._load)

    def _load(self) -> tuple[Any, Any]:
        """The network, and what makes its inputs."""
        raise NotImplementedError


class PictureModel(_Model):
    """A model of transformers that describes pictures: with a chat template (LLaVA, Qwen-VL, ...), or a plain captioner
    (BLIP, BLIP-2, and GIT, whose video models take several pictures). The latter know no instructions: they are given
    no words unless the recipe has a prompt, with which their captions then begin.
    """

    def _load(self) -> tuple[Any, Any]:
        quiet_transformers()
        from transformers import AutoModelForImageTextToText, AutoProcessor

        ref, what, precision = self.settings.model, "a captioner of pictures", self.settings.precision
        model = load_network(AutoModelForImageTextToText, ref, what, self._device, precision)
        processor = load_part(AutoProcessor, ref, what)
        if tokenizer := getattr(processor, "tokenizer", None):
            _pad_left(tokenizer)
        return model, processor

    def write(self, wishes: Sequence[Wish]) -> dict[str, str]:
        model, processor = self._parts()
        chats = getattr(processor, "chat_template", None)
        inputs = self._chat(processor, wishes) if chats else self._plain(model, processor, wishes)
        texts = _generate(model, inputs, processor, self.settings.max_tokens)
        assert len(texts) == len(wishes), "as many captions as clips must come back"
        return {wish.clip: text for wish, text in zip(wishes, texts, strict=True)}

    def asked(self, prompt: str) -> str:
        _, processor = self._parts()
        return prompt if getattr(processor, "chat_template", None) else self.settings.prompt or ""

    @staticmethod
    def _chat(processor: Any, wishes: Sequence[Wish]) -> Any:
        from PIL import Image

        talks = []
        for wish in wishes:
            seen = [{"type": "image", "image": Image.fromarray(picture)} for picture in wish.pictures]
            talks.append([{"role": "user", "content": [*seen, {"type": "text", "text": wish.prompt}]}])
        return processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )

    def _plain(self, model: Any, processor: Any, wishes: Sequence[Wish]) -> Any:
        from PIL import Image

        frames = getattr(model.config, "num_image_with_embedding", None) or 1  # GIT's video models
        given = {len(wish.pictures) for wish in wishes}
        if given != {frames}:
            raise MachineError(
                f"{self.settings.model} takes {frames} picture{'s' if frames > 1 else ''} a caption, not {max(given)}.",
                f"Set annotate.captions.video_frames to {frames}."
                if frames > 1
                else "A video captioner must take several: name a model with a chat template.",
            )
        pictures = [Image.fromarray(picture) for wish in wishes for picture in wish.pictures]
        begin = self.settings.prompt
        words = {"text": [begin] * len(wishes)} if begin else {}
        inputs = processor(images=pictures, return_tensors="pt", **words)
        if frames > 1:
            inputs["pixel_values"] = inputs["pixel_values"].unflatten(0, (len(wishes), frames))
        return inputs


class TextModel(_Model):
    """A language model of transformers: decoder only, or encoder and decoder as T5."""

    def _load(self) -> tuple[Any, Any]:
        quiet_transformers()
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        ref, what, precision = self.settings.model, "a language model", self.settings.precision
        config = load_part(AutoConfig, ref, what)
        part = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = load_network(part, ref, what, self._device, precision)
        tokenizer = load_part(AutoTokenizer, ref, what)
        _pad_left(tokenizer)
        return model, tokenizer

    def asked(self, prompt: str) -> str:
        return prompt

    def write(self, wishes: Sequence[Wish]) -> dict[str, str]:
        model, tokenizer = self._parts()
        if tokenizer.chat_template:
            talks = [[{"role": "user", "content": wish.prompt}] for wish in wishes]
            inputs = tokenizer.apply_chat_template(
                talks,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
            )
        else:
            inputs = tokenizer([wish.prompt for wish in wishes], return_tensors="pt", padding=True)
        texts = _generate(model, inputs, tokenizer, self.settings.max_tokens)
        assert len(texts) == len(wishes), "as many captions as clips must come back"
        return {wish.clip: text for wish, text in zip(wishes, texts, strict=True)}


def _pad_left(tokenizer: Any) -> None:
    """So that what a decoder writes goes on where the prompt ends."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


def _generate(model: Any, inputs: Any, processor: Any, max_tokens: int) -> list[str]:
    """The most likely words, without the prompt. Raises MachineError where memory does not suffice."""
    import torch

    moved = inputs.to(model.device)
    for name, value in moved.items():
        if torch.is_tensor(value) and value.is_floating_point():
            moved[name] = value.to(model.dtype)
    try:
        with torch.inference_mode():
            written = model.generate(**moved, max_new_tokens=max_tokens, do_sample=False)
    except torch.OutOfMemoryError as error:
        raise MachineError("The captioner's memory does not suffice.", "Set its batch to 1.") from error
    prompt = moved.get("input_ids")
    if prompt is not None and torch.equal(written[:, : prompt.shape[1]], prompt):
        written = written[:, prompt.shape[1] :]
    return [str(text) for text in processor.batch_decode(written, skip_special_tokens=True)]
