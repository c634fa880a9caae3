"""A LoRA in training: PEFT's layers in the place of a UNet's own, which they keep, frozen, and add to.

What it is: which layers may be adapted, and the way between PEFT's layers and the changes of a file (`lora`). What it
is not: files, and sampling, which merge a LoRA into weights and need no PEFT.

The UNet reads the weights of some layers without calling them, where these are nothing but their weights
(`blocks.is_plain`): an adapted layer is called.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from svdcli.errors import MachineError, RecipeError
from svdcli.model.lora import Change
from svdcli.model.unet import UNet
from svdcli.recipe.adapter import Lora

PROJECTIONS = r"transformer_blocks\.\d+\.attn[12]\.to_(q|k|v|out\.0)"
TARGETS = {
    "temporal": rf".*\.temporal_{PROJECTIONS}",
    "spatial": rf".*\.{PROJECTIONS}",
    "all": rf".*\.(temporal_)?{PROJECTIONS}",
}
IDLE = re.compile(r".*\.attn2\.to_[qk]")
"""Layers that do nothing beside a single context token, whose attention is 1 whatever is asked of it."""
NAME = "default"
"""PEFT's name of the one adapter that trains."""


def require_peft() -> Any:
    """PEFT. Raises MachineError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise MachineError(
            "Adapters need peft, which is not installed.", "pip install 'svdcli[lora]'"
        ) from error
    return peft


def target_modules(unet: nn.Module, targets: str, one_token: bool) -> list[str]:
    """Names of the linear layers and convolutions that a preset or a regular expression chooses.

    one_token: the context is a single token, so that `IDLE` layers are left out. Raises RecipeError where none is left.
    """
    pattern = re.compile(TARGETS.get(targets, targets))
    layers = [n for n, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)]
    chosen = [n for n in layers if pattern.fullmatch(n)]
    found = [n for n in chosen if not (one_token and IDLE.fullmatch(n))]
    if not found:
        idle = " but queries and keys of a single context token, which do nothing" if chosen else ""
        raise RecipeError(
            f"adapter.targets = {targets!r} matches no layer of the UNet{idle}.",
            f"Use {', '.join(TARGETS)}, or match full names such as {layers[len(layers) // 2]}.",
        )
    return found


def inject(unet: UNet, lora: Lora, one_token: bool) -> None:
    """Freeze a UNet and give it a LoRA that trains, and changes nothing at first. Raises RecipeError."""
    peft = require_peft()
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.rank if lora.alpha is None else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=target_modules(unet, lora.targets, one_token),
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
    )
    unet.requires_grad_(False)
    peft.inject_adapter_in_model(config, unet, NAME)


def is_adapter(parameter: str) -> bool:
    """Whether the parameter of that full name is of an adapter."""
    return any(part.startswith("lora_") for part in parameter.split("."))


def is_adapted(network: nn.Module) -> bool:
    """Whether a network has an adapter."""
    return any(is_adapter(name) for name, _ in network.named_parameters())


def unet_of(network: nn.Module) -> UNet:
    """The one UNet in a network."""
    return next(module for module in network.modules() if isinstance(module, UNet))


def changes_of(unet: nn.Module) -> dict[str, Change]:
    """What the adapter in a UNet does, by module, on the CPU."""
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            layer: Any = module
            magnitudes = layer.lora_magnitude_vector
            magnitude = magnitudes[NAME].weight if NAME in magnitudes else None
            found[name] = Change(
                _free(layer.lora_A[NAME].weight),
                _free(layer.lora_B[NAME].weight),
                float(layer.scaling[NAME]),
                None if magnitude is None else _free(magnitude),
            )
    return found


def peft_config(unet: nn.Module) -> dict[str, Any]:
    """PEFT's configuration of the adapter in a UNet, as JSON can hold it."""
    configs: Any = unet.peft_config
    config = configs[NAME].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _free(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu()
