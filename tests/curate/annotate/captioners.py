"""Folders of tiny captioners of random weights, of the real classes of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TALK = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} ->{% endif %}"
)
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tokenizer(template: str | None = None) -> Any:
    """Words are spelt out of single bytes: any text goes through it and comes back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>", "<image>", "<start>", "<end>", "<video>"]
    raw = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate([*special, *alphabet])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": special[3:]})
    made.chat_template = template
    return made


def language(words: int) -> dict[str, Any]:
    shape = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    return shape | heads | ENDS | {"vocab_size": words, "max_position_embeddings": 1024}


def clip_images() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def save(model: Any, folder: Path, *parts: Any) -> None:
    """With weights that differ enough for captions to differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            drawn = torch.randn_like(tensor) * 0.2
            tensor.copy_(drawn if tensor.ndim > 1 else tensor + drawn)  # matrices anew, norms about one
    for part in (model, *parts):
        part.save_pretrained(folder)


def blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    words = tokenizer()
    text = {key: VISION[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")} | ENDS
    text |= {"vocab_size": len(words), "encoder_hidden_size": 32, "num_attention_heads": 2, "sep_token_id": 2}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=16)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[:7] = -50  # nothing but words
    save(model, folder, BlipProcessor(images, words))


def llava(folder: Path) -> None:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    words = tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**language(len(words))),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        clip_images(),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TALK.replace("IMAGE", "<image>"),
        num_additional_image_tokens=1,
    )
    save(LlavaForConditionalGeneration(config), folder, processor)


def git(folder: Path) -> None:
    """Of videos: four pictures a caption."""
    from transformers import GitConfig, GitForCausalLM, GitProcessor

    words = tokenizer()
    text = {key: value for key, value in language(len(words)).items() if key != "num_key_value_heads"}
    config = GitConfig(vision_config=VISION, num_image_with_embedding=4, **text)
    save(GitForCausalLM(config), folder, GitProcessor(clip_images(), words))


def qwen(folder: Path) -> None:
    """Without torchvision its processor cannot be made, so only the model is saved."""
    from importlib.util import find_spec

    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

    words = tokenizer()
    ids = words.convert_tokens_to_ids
    rope = {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "mrope"}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
    config = Qwen2_5_VLConfig(
        text_config=language(len(words)) | {"rope_scaling": rope},
        vision_config=vision | {"out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]},
        image_token_id=ids("<image>"),
        video_token_id=ids("<video>"),
        vision_start_token_id=ids("<start>"),
        vision_end_token_id=ids("<end>"),
    )
    images = Qwen2VLImageProcessor(patch_size=8, min_pixels=32 * 32, max_pixels=64 * 64)
    save(Qwen2_5_VLForConditionalGeneration(config), folder, words, images)
    if find_spec("torchvision"):
        from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

        words.image_token, words.video_token = "<image>", "<video>"
        talk = TALK.replace("IMAGE", "<start><image><end>")
        Qwen2_5_VLProcessor(images, words, Qwen2VLVideoProcessor(), chat_template=talk).save_pretrained(
            folder
        )


def llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    save(LlamaForCausalLM(LlamaConfig(**language(len(words)))), folder, words)


def chat_llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer("{% for m in messages %}<s>{{ m['content'] }} ->{% endfor %}")
    save(LlamaForCausalLM(LlamaConfig(**language(len(words)))), folder, words)


def t5(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    words = tokenizer()
    shape = {
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    config = T5Config(vocab_size=len(words), pad_token_id=0, eos_token_id=2, **shape)
    save(T5ForConditionalGeneration(config), folder, words)


KINDS: dict[str, Callable[[Path], None]] = {
    "blip": blip,
    "llava": llava,
    "git": git,
    "qwen": qwen,
    "llama": llama,
    "chat_llama": chat_llama,
    "t5": t5,
}
