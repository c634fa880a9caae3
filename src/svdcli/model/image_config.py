"""The configuration of an image UNet (Stable Diffusion 2.1) in diffusers' words, `UNet2DConditionModel`, and in ours.

Ours are the fields of `UNetConfig`. What shapes diffusers' network and has no field must have the value that
Stable Diffusion 2 gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLASS = "UNet2DConditionModel"
FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "use_linear_projection": True,
}
"""What every network that we build has; these are diffusers' defaults but for the last."""
BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
LIKE: tuple[str, ...] = (
    "in_channels",
    "out_channels",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "sample_size",
    "norm_num_groups",
    "norm_eps",
)
"""Keys of one name in both."""


def read(values: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed `config.json` of diffusers -> fields of `UNetConfig`. Raises ValueError, naming the key, for another kind.

    diffusers calls the number of heads `attention_head_dim` in these networks (its issue 2011).
    """
    for name, wanted in FIXED.items():
        default = False if name == "use_linear_projection" else wanted
        value = values.get(name, default)
        if value != wanted:
            raise ValueError(f"{name} is {value!r}, where Stable Diffusion 2.1 has {wanted!r}")
    blocks = {*values.get("down_block_types", ()), *values.get("up_block_types", ())}
    if blocks - BLOCKS:
        raise ValueError(f"it is made of {', '.join(sorted(blocks - BLOCKS))}, which svd does not know")
    heads = values.get("num_attention_heads") or values.get("attention_head_dim", 8)
    ours = {"norm_eps": 1e-5} | {name: values[name] for name in LIKE if values.get(name) is not None}
    ours |= {"num_attention_heads": heads, "temporal": False, "num_frames": 1}
    return ours | {"projection_class_embeddings_input_dim": 0}


def written(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an image network's `UNetConfig` -> the `config.json` that diffusers and `read` take."""
    theirs = {name: fields[name] for name in LIKE}
    theirs["attention_head_dim"] = fields["num_attention_heads"]
    theirs["norm_eps"] = fields["norm_eps"] or 1e-5
    return {"_class_name": CLASS, **FIXED, **theirs}
