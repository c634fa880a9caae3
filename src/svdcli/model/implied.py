"""What a single file is, read off the shapes of its tensors: its task and each part's configuration.

What it is not: it renames nothing (that is `layouts`). Heads leave no trace in shapes; they follow the
published models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from svdcli.errors import InputError
from svdcli.model import image_config
from svdcli.model.layout_names import FIRST_STAGE, IMAGE_TOWER, UNET

Shapes = Mapping[str, tuple[int, ...]]
Config = dict[str, Any]

HEAD_WIDTH = 64
"""Channels a head in the UNet of every published single file (`num_head_channels`)."""
ID_WIDTH = 256
"""Width of each vector id's embedding in the published video models."""
SV3D_P_WIDTHS = (256, 512, 512)
"""Of SV3D_p's ids: augmentation, polar angle, azimuth (configs/inference/sv3d_p.yaml). SV3D_u has the first alone."""


# -------------------------------------------------------------------------------------


def _count(shapes: Shapes, pattern: str) -> int:
    """How many numbers stand in the place of `#` in the keys."""
    regex = re.compile(re.escape(pattern).replace(r"\#", r"(\d+)"))
    return len({m.group(1) for key in shapes if (m := regex.match(key))})


def task_of(shapes: Shapes) -> str:
    """What the model of a single file is for: "i2v", "multiview" (SV3D), "t2v", "image", or "" where it is
    no such model.
    """
    first = shapes.get(UNET + "input_blocks.0.0.weight")
    if first is None or UNET + "middle_block.0.in_layers.0.weight" not in shapes:
        return ""
    if UNET + "middle_block.0.time_stack.in_layers.0.weight" not in shapes:
        return "image"
    ids = shapes.get(UNET + "label_emb.0.0.weight", (0, 0))[1]
    if ids in (ID_WIDTH, sum(SV3D_P_WIDTHS)):
        return "multiview"
    out = shapes[UNET + "out.2.weight"][0]
    return "i2v" if first[1] == 2 * out and IMAGE_TOWER + "conv1.weight" in shapes else "t2v"


def unet_config(shapes: Shapes) -> Config:
    """The UNet configuration that the shapes of a single file imply; heads are 64 channels wide, as in every
    published one from Stable Diffusion 2 on.

    Without temporal layers it is that of an image network. Raises InputError where tensors are missing.
    """
    shapes = {key.removeprefix(UNET): shape for key, shape in shapes.items() if key.startswith(UNET)}
    try:
        widths, layers, attends, depths = _levels(shapes)
        temporal = "middle_block.0.time_stack.in_layers.0.weight" in shapes
        suffix = "SpatioTemporal" if temporal else "2D"
        down = [f"{'CrossAttn' * attend}DownBlock{suffix}" for attend in attends]
        config = {
            "in_channels": shapes["input_blocks.0.0.weight"][1],
            "out_channels": shapes["out.2.weight"][0],
            "block_out_channels": widths,
            "down_block_types": down,
            "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
            "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
            "transformer_layers_per_block": depths[-1] if len(set(depths)) == 1 else depths,
            "cross_attention_dim": shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
            "num_attention_heads": [max(1, width // HEAD_WIDTH) for width in widths],
            "sample_size": 96,
        }
        if not temporal:
            linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
            return {"_class_name": image_config.CLASS, "use_linear_projection": linear, **config}
        ids = shapes["label_emb.0.0.weight"][1]
        widths_of_ids = {"id_widths": list(SV3D_P_WIDTHS)} if ids == sum(SV3D_P_WIDTHS) else {}
        return {
            "_class_name": "UNetSpatioTemporalConditionModel",
            **config,
            "projection_class_embeddings_input_dim": ids,
            "addition_time_embed_dim": ID_WIDTH if ids % ID_WIDTH == 0 else ids // 3,
            **widths_of_ids,
        }
    except (KeyError, IndexError) as error:
        raise InputError(
            f"The single file holds no complete UNet: {error} is missing.", "Fetch the file again."
        ) from error


def _levels(shapes: Shapes) -> tuple[list[int], list[int], list[bool], list[int]]:
    """Per level: width, layers, whether it attends, and transformer depth."""
    widths, layers, attends, depths = [0], [0], [False], [1]
    for block in range(1, _count(shapes, "input_blocks.#.")):
        if f"input_blocks.{block}.0.op.weight" in shapes:
            for values, start in ((widths, 0), (layers, 0), (attends, False), (depths, 1)):
                values.append(start)  # type: ignore[attr-defined, arg-type]
            continue
        widths[-1] = shapes[f"input_blocks.{block}.0.in_layers.2.weight"][0]
        layers[-1] += 1
        attends[-1] = f"input_blocks.{block}.1.norm.weight" in shapes
        depths[-1] = _count(shapes, f"input_blocks.{block}.1.transformer_blocks.#.") or depths[-1]
    middle = _count(shapes, "middle_block.1.transformer_blocks.#.")
    depths = [depth if attend else middle for depth, attend in zip(depths, attends, strict=True)]
    return widths, layers, attends, depths


def vae_config(shapes: Shapes) -> Config:
    """The autoencoder configuration that the shapes of a single file imply."""
    shapes = {
        key.removeprefix(FIRST_STAGE): shape for key, shape in shapes.items() if key.startswith(FIRST_STAGE)
    }
    try:
        levels = _count(shapes, "decoder.up.#.")
        return {
            "_class_name": "AutoencoderKLTemporalDecoder",
            "in_channels": 3,
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "block_out_channels": [shapes[f"decoder.up.{i}.block.0.conv1.weight"][0] for i in range(levels)],
            "layers_per_block": _count(shapes, "decoder.up.0.block.#.") - 1,
            "latent_channels": shapes["decoder.conv_in.weight"][1],
            "sample_size": 768,
            "scaling_factor": 0.18215,
            "force_upcast": True,
        }
    except KeyError as error:
        raise InputError(
            f"The single file holds no complete autoencoder: {FIRST_STAGE}{error.args[0]} is missing.",
            "Files with the UNet alone are not enough; take the full checkpoint.",
        ) from error


def tower_config(shapes: Shapes, prefix: str = IMAGE_TOWER) -> Config:
    """The image encoder configuration that the shapes of OpenCLIP's image tower imply (heads and GELU as in
    ViT-H and ViT-L).
    """
    try:
        width, _, patch, _ = shapes[prefix + "conv1.weight"]
        tokens = shapes[prefix + "positional_embedding"][0]
        return {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": shapes[prefix + "transformer.resblocks.0.mlp.c_fc.weight"][0],
            "num_hidden_layers": _count(shapes, prefix + "transformer.resblocks.#."),
            "num_attention_heads": max(1, width // (80 if width % 80 == 0 else HEAD_WIDTH)),
            "image_size": patch * round((tokens - 1) ** 0.5),
            "patch_size": patch,
            "projection_dim": shapes[prefix + "proj"][1],
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
        }
    except (KeyError, ValueError) as error:
        raise InputError(
            f"The single file holds no complete image encoder: {error} is missing.", "Fetch the file again."
        ) from error
