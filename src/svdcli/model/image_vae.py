"""The autoencoder of an image model (Stable Diffusion 2.1), diffusers' `AutoencoderKL`, as ours.

The encoders are the same. The decoder lacks temporal layers, and gets such as change nothing until they are trained; its
post_quant_conv goes into the first convolution, which is exact but for the outermost latents, where padding is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from svdcli.model.layouts import Shapes, before_bias, before_weight, still_decoder
from svdcli.model.weights import Source

CLASS = "AutoencoderKL"
FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "shift_factor": None,
    "use_quant_conv": True,
}
"""What shapes diffusers' network and has no field in `VAEConfig`, with the values that Stable Diffusion gives it."""
BLOCKS = {"DownEncoderBlock2D", "UpDecoderBlock2D"}
FIRST_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Of the attention, as files before diffusers 0.12 have them, SD 2.1's own among these."""
MID_RESNETS = 2
"""in the decoder of an image model, however many layers its levels have; the temporal decoder has as many as those"""


def require_known(config: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the key, where a parsed `config.json` of the class is of another architecture."""
    for name, wanted in FIXED.items():
        if config.get(name, wanted) != wanted:
            raise ValueError(f"{name} is {config[name]!r}, where Stable Diffusion 2.1 has {wanted!r}")
    blocks = {*config.get("down_block_types", ()), *config.get("up_block_types", ())}
    if blocks - BLOCKS:
        raise ValueError(f"it is made of {', '.join(sorted(blocks - BLOCKS))}, which svd does not know")
    if config.get("layers_per_block", 1) != MID_RESNETS:
        raise ValueError(f"layers_per_block is {config.get('layers_per_block', 1)}, where svd takes 2")


def sources(expected: Shapes, stored: Iterable[str]) -> dict[str, Source]:
    """What each tensor of ours is in the folder that holds the `stored` keys. What is stored and unknown names itself."""
    stored = set(stored)
    out, read = still_decoder(expected), set[str]()
    for name in expected:
        if name not in out:
            key = _key(name.replace(".spatial_res_block.", "."), stored)
            out[name] = Source(
                (key,), _matrix if ".attentions." in name and name.endswith("weight") else None
            )
            read.add(key)
    if "post_quant_conv.weight" in stored:
        conv, post = "decoder.conv_in.", "post_quant_conv."
        out[conv + "weight"] = Source((conv + "weight", post + "weight"), before_weight)
        out[conv + "bias"] = Source((conv + "bias", conv + "weight", post + "bias"), before_bias)
        read |= {post + "weight", post + "bias"}
    return out | {key: Source((key,)) for key in stored - read}


def _key(name: str, stored: set[str]) -> str:
    """The stored name, of which the attention has an old and a new one."""
    for new, old in FIRST_NAMES.items():
        if (older := name.replace(f".{new}.", f".{old}.")) in stored:
            return older
    return name


def _matrix(weight: Any) -> Any:
    """Projections that some files hold as 1x1 convolutions; the norm's weight stays as it is."""
    return weight.flatten(1) if weight.ndim == 4 else weight
