"""Two layouts of the same weights: the diffusers folder, which is ours, and the single file of Stability and
ComfyUI.

What it is: the tensors of one in terms of the other, derived from a configuration, both ways, bit for bit; `layout_names` has
their names. What it is not: it opens and writes no files; what shapes imply is in `implied`.

Where the file holds the second encoder, it is the one that is read: Stability's sampler encodes the
conditioning frame with it. `first_stage_model` gets an encoder whose last convolution has taken quant_conv
in, since whoever reads it applies none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from svdcli.model.layout_names import (
    FIRST_STAGE,
    FRAME_ENCODER,
    IMAGE_TOWER,
    QKV,
    renamed,
    tower_pairs,
    unet_names,
    vae_pairs,
)
from svdcli.model.weights import MappedWeights, Source

OWN = {"text_encoder": "svdcli.text_encoder.", "mask_latent": "svdcli.mask_latent."}
"""Parts of which no other tool has a single file: text-to-video and interpolation models. They lie there under their names."""
# Parts of a published single file that sampling never uses: OpenCLIP's text embeddings and the frame
# encoder's own decoder.
UNUSED = re.compile(
    r"conditioner\.embedders\.\d+\.(open_clip\.model\.(?!visual\.)|encoder\.(decoder|post_quant_conv|loss)\.)"
    r"|model_ema\.|first_stage_model\.loss\.|denoiser\.|(conditioner\.embedders\.\d+\.open_clip\.)(mean|std)$"
)
Shapes = Mapping[str, tuple[int, ...]]


# ---- reading: what our tensors are made of
# -------------------------------------------------------------------------


def _flat(t: Tensor) -> Tensor:
    return t.flatten(1)


def _pointwise(t: Tensor) -> Tensor:
    return t[:, :, None, None]


def _third(index: int, t: Tensor) -> Tensor:
    return t.chunk(3)[index]


def _transposed(t: Tensor) -> Tensor:
    return t.t()


def _stacked(*t: Tensor) -> Tensor:
    return torch.cat(t)


def _made(shape: tuple[int, ...], kind: str) -> Tensor:
    """A tensor that the file does not hold: zeros, ones, or a convolution that changes nothing."""
    if kind != "same":
        return torch.full(shape, float(kind == "ones"))
    out = torch.zeros(shape)
    middle = tuple(n // 2 for n in shape[2:])
    for i in range(shape[0]):
        out[(i, i, *middle)] = 1.0
    return out


def _behind_weight(conv: Tensor, quant: Tensor) -> Tensor:
    """The weight of `conv` followed by the pointwise `quant`, as one convolution."""
    return torch.einsum("pq,qikl->pikl", quant.flatten(1).double(), conv.double()).to(conv.dtype)


def _behind_bias(bias: Tensor, quant: Tensor, quant_bias: Tensor) -> Tensor:
    return (quant.flatten(1).double() @ bias.double() + quant_bias.double()).to(bias.dtype)


def before_weight(conv: Tensor, quant: Tensor) -> Tensor:
    """The weight of the pointwise `quant` followed by `conv`, as one convolution."""
    return torch.einsum("oqkl,qi->oikl", conv.double(), quant.flatten(1).double()).to(conv.dtype)


def before_bias(bias: Tensor, conv: Tensor, quant_bias: Tensor) -> Tensor:
    return (bias.double() + conv.double().sum((2, 3)) @ quant_bias.double()).to(bias.dtype)


def unet_sources(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Source]:
    """What each UNet tensor of ours is in the single file."""
    return {ours: Source((single,)) for ours, single in unet_names(config, names).items()}


def frame_encoder(keys: Iterable[str]) -> str:
    """The prefix under which the file holds its second encoder; empty where it holds none."""
    for key in keys:
        if key.startswith("conditioner.") and key.endswith(".encoder.encoder.conv_in.weight"):
            return key.removesuffix("encoder.conv_in.weight")
    return ""


def _vae_renamed(config: Mapping[str, Any], names: Iterable[str], encoder_prefix: str) -> dict[str, Source]:
    """VAE tensors as the single file holds them, the encoder under the given prefix; attention as 1×1
    convolutions.
    """
    out = {}
    for ours, single in renamed(names, vae_pairs(config)).items():
        prefix = encoder_prefix if ours.startswith(("encoder.", "quant_conv.")) else FIRST_STAGE
        attention = ".attentions." in ours and ours.endswith(".weight") and "group_norm" not in ours
        out[ours] = Source((prefix + single,), _flat if attention else None)
    return out


def vae_sources(config: Mapping[str, Any], expected: Shapes, stored: Iterable[str]) -> dict[str, Source]:
    """What each VAE tensor of ours is in the single file that holds the `stored` keys.

    An image decoder (`svd_image_decoder.safetensors`) becomes a temporal one whose temporal layers change
    nothing; its post_quant_conv goes into the first convolution, which is exact but for the outermost
    latent, where padding is zero.
    """
    stored = set(stored)
    second = frame_encoder(stored)
    out = _vae_renamed(config, expected, second or FIRST_STAGE)
    if FIRST_STAGE + "quant_conv.weight" not in stored and second + "quant_conv.weight" not in stored:
        out["quant_conv.weight"] = Source((), partial(_made, expected["quant_conv.weight"], "same"))
        out["quant_conv.bias"] = Source((), partial(_made, expected["quant_conv.bias"], "zeros"))
    if is_image_decoder(stored):
        out |= still_decoder(expected)
        if FIRST_STAGE + "post_quant_conv.weight" in stored:
            conv, post = FIRST_STAGE + "decoder.conv_in.", FIRST_STAGE + "post_quant_conv."
            out["decoder.conv_in.weight"] = Source((conv + "weight", post + "weight"), before_weight)
            out["decoder.conv_in.bias"] = Source((conv + "bias", conv + "weight", post + "bias"), before_bias)
    return out


def is_image_decoder(stored: Iterable[str]) -> bool:
    """Whether the autoencoder of a single file decodes frame by frame, without temporal layers."""
    return not any(key.startswith(FIRST_STAGE) and ".time_stack." in key for key in stored)


def still_decoder(expected: Shapes) -> dict[str, Source]:
    """The temporal layers of a decoder that has none: they change nothing, as the last convolution of each is zero, and
    can be trained, as what comes before it passes on what it is given.
    """
    out = {}
    for name, shape in expected.items():
        if name.startswith("decoder.time_conv_out") or ".temporal_res_block." in name:
            kind = "zeros"
            if name.endswith(".weight") and "conv2" not in name:
                kind = "ones" if ".norm" in name else "same"
            out[name] = Source((), partial(_made, shape, kind))
        elif name.endswith(".mix_factor"):
            out[name] = Source((), partial(_made, shape, "zeros"))
    return out


def tower_sources(
    config: Mapping[str, Any], names: Iterable[str], prefix: str = IMAGE_TOWER
) -> dict[str, Source]:
    """What each tensor of ours (transformers' names) is in OpenCLIP's image tower."""
    names = list(names)
    out = {ours: Source((prefix + single,)) for ours, single in renamed(names, tower_pairs(config)).items()}
    for ours in names:
        match = re.fullmatch(
            r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv]_proj)\.(weight|bias)", ours
        )
        if match:
            layer, which, leaf = match.groups()
            key = f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{leaf}"
            out[ours] = Source((key,), partial(_third, QKV.index(which)))
    if "visual_projection.weight" in names:
        out["visual_projection.weight"] = Source((prefix + "proj",), _transposed)
    return out


# ---- writing: what the single file's tensors are made of
# -----------------------------------------------------------


def single_sources(
    configs: Mapping[str, Mapping[str, Any]], names: Mapping[str, Iterable[str]],
    frame_encoder: str = FRAME_ENCODER,
) -> dict[str, Source]:  # fmt: skip
    """What each tensor of a single file is made of; the keys of the sources are ours, with `unet.` and so on
    before.

    `configs` and `names` are those of its parts, "unet" and "vae" among them; `frame_encoder` is the prefix of the second
    encoder.
    """
    out = {
        single: Source((f"unet.{ours}",))
        for ours, single in unet_names(configs["unet"], names["unet"]).items()
    }
    for prefix in (FIRST_STAGE, frame_encoder):
        for ours, source in _vae_renamed(configs["vae"], names["vae"], prefix).items():
            if prefix == frame_encoder or not ours.startswith("quant_conv."):
                out[source.keys[0]] = Source((f"vae.{ours}",), _pointwise if source.take is _flat else None)
    conv, quant = "vae.encoder.conv_out.", "vae.quant_conv."
    out[FIRST_STAGE + "encoder.conv_out.weight"] = Source((conv + "weight", quant + "weight"), _behind_weight)
    out[FIRST_STAGE + "encoder.conv_out.bias"] = Source(
        (conv + "bias", quant + "weight", quant + "bias"), _behind_bias
    )
    for part in OWN.keys() & names.keys():
        out |= {OWN[part] + ours: Source((f"{part}.{ours}",)) for ours in names[part]}
    stacks: dict[str, list[str]] = {}
    tower = (
        tower_sources(configs["image_encoder"], names["image_encoder"]) if "image_encoder" in names else {}
    )
    for ours, source in tower.items():
        stacks.setdefault(source.keys[0], []).append(f"image_encoder.{ours}")
    for single, ours_names in stacks.items():
        if single.endswith("visual.proj"):
            out[single] = Source(tuple(ours_names), _transposed)
        elif len(ours_names) == 3:
            out[single] = Source(
                tuple(sorted(ours_names, key=lambda n: QKV.index(n.split(".")[-2]))), _stacked
            )
        else:
            out[single] = Source(tuple(ours_names))
    return out


def folds_exactly(quant_weight: Tensor, quant_bias: Tensor) -> bool:
    """Whether quant_conv changes nothing, so that both encoders of a single file are the same to the bit."""
    return (
        torch.equal(_made(tuple(quant_weight.shape), "same").to(quant_weight), quant_weight)
        and not quant_bias.any()
    )


def leftover(stored: Iterable[str], sources: Iterable[Mapping[str, Source]]) -> list[str]:
    """Keys of a single file that no source reads, and that are not known to be unused."""
    used = {key for part in sources for source in part.values() for key in source.keys}
    second = FIRST_STAGE + "encoder."
    return [key for key in stored if key not in used and not UNUSED.match(key) and not key.startswith(second)]


def encoder_differences(weights: MappedWeights) -> list[str]:
    """Where the two encoders of a single file differ, by name; empty where it holds one, or both say the
    same.

    The first stage's last convolution may have taken the frame encoder's quant_conv in; up to rounding that
    is the same.
    """
    second = frame_encoder(weights.stored)
    if not second or FIRST_STAGE + "encoder.conv_out.weight" not in weights.stored:
        return []
    get = weights.arranged({key: Source((key,)) for key in weights.stored}).tensor
    pairs = [
        (key, second + key.removeprefix(FIRST_STAGE)) for key in weights.stored if key.startswith(FIRST_STAGE)
    ]
    pairs = [
        (one, two) for one, two in pairs if two in weights.stored and one.startswith(FIRST_STAGE + "encoder.")
    ]
    differ = [one for one, two in pairs if not torch.equal(get(one), get(two))]
    conv, quant = "encoder.conv_out.", "quant_conv."
    if second + quant + "weight" not in weights.stored:
        return differ
    folded = {
        "weight": _behind_weight(get(second + conv + "weight"), get(second + quant + "weight")),
        "bias": _behind_bias(
            *(get(second + key) for key in (conv + "bias", quant + "weight", quant + "bias"))
        ),
    }
    close = all(
        torch.allclose(get(f"{FIRST_STAGE}{conv}{leaf}").float(), tensor.float(), rtol=1e-2, atol=1e-3)
        for leaf, tensor in folded.items()
    )
    return [name for name in differ if not (close and name.startswith(FIRST_STAGE + conv))]
