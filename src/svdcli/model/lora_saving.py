"""LoRA files written: in the names of diffusers and PEFT, or of ComfyUI. `lora` reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdcli.errors import UsageError
from svdcli.io.files import atomic_path
from svdcli.model.layout_names import UNET, unet_names
from svdcli.model.lora import COMFY, METADATA, PEFT_METADATA, Change, LoraInfo
from svdcli.model.weights import ToWrite, write_weights


def peft_tensors(changes: Mapping[str, Change], prefix: str) -> dict[str, Tensor]:
    """Changes by module -> tensors in PEFT's names, behind the prefix."""
    tensors: dict[str, Tensor] = {}
    for module, change in changes.items():
        tensors[f"{prefix}{module}.lora_A.weight"] = change.down
        tensors[f"{prefix}{module}.lora_B.weight"] = change.up
        if change.magnitude is not None:
            tensors[f"{prefix}{module}.lora_magnitude_vector"] = change.magnitude
    return tensors


def save_diffusers(
    path: Path,
    changes: Mapping[str, Change],
    config: Mapping[str, Any],
    info: LoraInfo,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a LoRA in the names of diffusers and PEFT, whole or not at all.

    changes: by module of the UNet. config: PEFT's, which diffusers reads from the metadata.
    """
    tensors = peft_tensors(changes, "unet.")
    saved = {f"unet.{key}": value for key, value in config.items()}
    _write(
        path, tensors, dtype, {PEFT_METADATA: json.dumps(saved, sort_keys=True), METADATA: _info_text(info)}
    )


def save_comfyui(
    path: Path,
    changes: Mapping[str, Change],
    config: Mapping[str, Any],
    info: LoraInfo,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a LoRA in ComfyUI's names (its `model_lora_keys_unet`): those of the single file, with underscores.

    changes: by module of the UNet. config: the UNet's, of which the names follow. Raises UsageError for a DoRA.
    """
    if any(change.magnitude is not None for change in changes.values()):
        raise UsageError(
            "ComfyUI's versions compute DoRA in ways of their own, none as it was trained, so it is not written for it.",
            "Merge it into the bundle instead, or train without use_dora.",
        )
    single = unet_names(config, (f"{module}.weight" for module in changes))
    tensors: dict[str, Tensor] = {}
    for module, change in changes.items():
        name = single[f"{module}.weight"].removeprefix(UNET).removesuffix(".weight")
        stem = COMFY + name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"] = change.down
        tensors[f"{stem}.lora_up.weight"] = change.up
        tensors[f"{stem}.alpha"] = torch.tensor(change.scale * change.rank)
    _write(path, tensors, dtype, {METADATA: _info_text(info)})


def _info_text(info: LoraInfo) -> str:
    return json.dumps({key: value for key, value in vars(info).items() if value}, sort_keys=True)


def _write(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, metadata: Mapping[str, str]
) -> None:
    entries = {n: ToWrite(tuple(t.shape), dtype or t.dtype, partial(_same, t)) for n, t in tensors.items()}
    with atomic_path(path) as temporary:
        write_weights(temporary, entries, metadata)


def _same(tensor: Tensor) -> Tensor:
    return tensor
