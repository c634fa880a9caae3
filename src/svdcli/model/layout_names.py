"""The names of the single file of Stability and ComfyUI, in terms of ours, which are those of the diffusers folder.

From Stability-AI/generative-models (`VideoUNet`, `VideoDecoder`,
`FrozenOpenCLIPImageEmbedder`, configs/inference/svd.yaml); ComfyUI reads the same:

    model.diffusion_model.*                          the UNet
    first_stage_model.*                              the autoencoder; its encoder has no quant_conv of its own
    conditioner.embedders.3.encoder.*                the conditioning frame's own encoder, with quant_conv; 1 in SV3D, whose
                                                     conditioner has no ids before it (configs/inference/sv3d_*.yaml)
    conditioner.embedders.0.open_clip.model.visual.* OpenCLIP's image tower

`layouts` makes the tensors of one layout out of those of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
FRAME_ENCODER = "conditioner.embedders.3.encoder."
FRAME_ENCODERS = {"i2v": FRAME_ENCODER, "multiview": "conditioner.embedders.1.encoder."}
"""By the task."""
IMAGE_TOWER = "conditioner.embedders.0.open_clip.model.visual."
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
FRAME_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
}
FRAME_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
TOWER = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding": "conv1",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.pre_layrnorm": "ln_pre",
    "vision_model.post_layernorm": "ln_post",
}
TOWER_LAYER = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
QKV = ("q_proj", "k_proj", "v_proj")

Names = dict[str, str]


def per_level(value: Any, num_levels: int) -> list[Any]:
    """A setting that may be one for all levels, as one a level."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * num_levels


def _resnet(ours: str, single: str) -> Iterator[tuple[str, str]]:
    """Of a video network, and of an image network, whose names of ours lack `spatial_res_block`."""
    for a, b in RESNET.items():
        yield f"{ours}.{a}", f"{single}.{b}"
        yield f"{ours}.spatial_res_block.{a}", f"{single}.{b}"
        yield f"{ours}.temporal_res_block.{a}", f"{single}.time_stack.{b}"
    yield f"{ours}.time_mixer", f"{single}.time_mixer"


def _transformer(ours: str, single: str) -> Iterator[tuple[str, str]]:
    yield ours, single
    yield f"{ours}.temporal_transformer_blocks", f"{single}.time_stack"
    yield f"{ours}.time_pos_embed.linear_1", f"{single}.time_pos_embed.0"
    yield f"{ours}.time_pos_embed.linear_2", f"{single}.time_pos_embed.2"


def unet_pairs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    levels = len(config["block_out_channels"])
    layers = per_level(config["layers_per_block"], levels)
    for name, where in (("time_embedding", "time_embed"), ("add_embedding", "label_emb.0")):
        yield f"{name}.linear_1", f"{where}.0"
        yield f"{name}.linear_2", f"{where}.2"
    yield from (("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"))
    block = 1
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(layers[level]):
            yield from _resnet(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0")
            if kind.startswith("CrossAttn"):
                yield from _transformer(f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{block}.1")
            block += 1
        if level < levels - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{block}.0.op"
            block += 1
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield from _transformer("mid_block.attentions.0", "middle_block.1")
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    block = 0
    for level, kind in enumerate(config["up_block_types"]):
        attends = kind.startswith("CrossAttn")
        last = layers[levels - 1 - level]
        for layer in range(last + 1):
            yield from _resnet(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0")
            if attends:
                yield from _transformer(f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{block}.1")
            if layer == last and level < levels - 1:
                yield (
                    f"up_blocks.{level}.upsamplers.0.conv",
                    f"output_blocks.{block}.{2 if attends else 1}.conv",
                )
            block += 1


def _frame_resnet(ours: str, single: str, video: bool) -> Iterator[tuple[str, str]]:
    for a, b in FRAME_RESNET.items():
        yield f"{ours}.spatial_res_block.{a}" if video else f"{ours}.{a}", f"{single}.{b}"
    if video:
        for a, b in RESNET.items():
            yield f"{ours}.temporal_res_block.{a}", f"{single}.time_stack.{b}"
        yield f"{ours}.time_mixer.mix_factor", f"{single}.mix_factor"


def _frame_mid(half: str, num_resnets: int, video: bool) -> Iterator[tuple[str, str]]:
    for a, b in FRAME_ATTENTION.items():
        yield f"{half}.mid_block.attentions.0.{a}", f"{half}.mid.attn_1.{b}"
    for i in range(num_resnets):
        yield from _frame_resnet(f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}", video)


def vae_pairs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_norm_out", f"{half}.norm_out"
        yield from ((f"{half}.{name}", f"{half}.{name}") for name in ("conv_in", "conv_out"))
    yield "quant_conv", "quant_conv"
    yield "decoder.time_conv_out", "decoder.conv_out.time_mix_conv"
    yield from _frame_mid("encoder", 2, video=False)
    yield from _frame_mid("decoder", layers, video=True)
    for level in range(levels):
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        for layer in range(layers):
            yield from _frame_resnet(
                f"encoder.down_blocks.{level}.resnets.{layer}", f"{down}.block.{layer}", False
            )
        for layer in range(layers + 1):
            yield from _frame_resnet(
                f"decoder.up_blocks.{level}.resnets.{layer}", f"{up}.block.{layer}", True
            )
        if level < levels - 1:
            yield f"encoder.down_blocks.{level}.downsamplers.0.conv", f"{down}.downsample.conv"
            yield f"decoder.up_blocks.{level}.upsamplers.0.conv", f"{up}.upsample.conv"


def tower_pairs(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from TOWER.items()
    for i in range(config["num_hidden_layers"]):
        for a, b in TOWER_LAYER.items():
            yield f"vision_model.encoder.layers.{i}.{a}", f"transformer.resblocks.{i}.{b}"


def renamed(names: Iterable[str], pairs: Iterable[tuple[str, str]]) -> Names:
    """Each name with its longest known prefix replaced; a name with none is left out."""
    table = dict(pairs)
    out = {}
    for name in names:
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            prefix = ".".join(parts[:cut])
            if prefix in table:
                out[name] = ".".join([table[prefix], *parts[cut:]])
                break
    return out


def unet_names(config: Mapping[str, Any], names: Iterable[str]) -> Names:
    """Our names of UNet tensors -> those of the single file."""
    return {ours: UNET + single for ours, single in renamed(names, unet_pairs(config)).items()}
