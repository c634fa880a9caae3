"""A LoRA on disk, and merged into weights: files of diffusers and PEFT, and of ComfyUI.

What it is: the change that a file makes to each weight of a UNet, at any strength, in whichever file the weights lie.
What it is not: training, see `adapters`, nor writing, see `lora_saving`. Sampling needs no PEFT: a LoRA is added to weights as
they are read.

    diffusers, PEFT   unet.down_blocks.0.(...).attn1.to_q.lora_A.weight, .lora_B.weight, .lora_magnitude_vector
    ComfyUI           lora_unet_input_blocks_1_1_(...)_attn1_to_q.lora_down.weight, .lora_up.weight, .alpha
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from svdcli.errors import InputError
from svdcli.model import layout_names
from svdcli.model.weights import MappedWeights, Source, read_header, some

if TYPE_CHECKING:
    from svdcli.model.bundle_files import BundleFiles

METADATA = "svdcli_lora"
"""Key of the file's metadata with what we know of it; other tools ignore it."""
PEFT_METADATA = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's configuration."""
PEFT_WEIGHTS = "adapter_model.safetensors"
COMFY = "lora_unet_"
LEAVES = {
    "lora_A.weight": "down",
    "lora_down.weight": "down",
    "lora.down.weight": "down",
    "lora_B.weight": "up",
    "lora_up.weight": "up",
    "lora.up.weight": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
    "alpha": "alpha",
}
PREFIXES = ("unet.", "base_model.model.unet.", "base_model.model.", "diffusion_model.", COMFY, "")
_AGAIN = "Fetch or export it again, or leave it out."


# ---- what one weight gets ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What a LoRA does to one weight: weight + scale · up · down, with DoRA at a magnitude an output."""

    down: Tensor
    """(r, in), of a convolution (r, in, ...)"""
    up: Tensor
    """(out, r), of a convolution with ones behind"""
    scale: float = 1.0
    magnitude: Tensor | None = None
    """(out,) as PEFT has it"""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it fits."""
        return (self.up.shape[0], *self.down.shape[1:])

    def of(self, weight: Tensor) -> Tensor:
        """What is to be added to a weight, in float32: (scale · up · down), or what DoRA makes of it."""
        up, down = (t.to(weight.device, torch.float32).flatten(1) for t in (self.up, self.down))
        product = (up @ down).mul_(self.scale).view(self.shape)
        if self.magnitude is None:
            return product
        turned = weight.float() + product
        norm = turned.flatten(1).norm(dim=1)
        gain = self.magnitude.to(weight.device, torch.float32).flatten() / norm
        return turned * gain.view(-1, *[1] * (weight.ndim - 1)) - weight.float()


# ---- a file --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraInfo:
    """What a LoRA says of itself."""

    base: str = ""
    """the bundle that it was trained on"""
    task: str = ""
    targets: str = ""
    trigger: str = ""
    """the motion that it teaches"""
    recipe: str = ""
    """the recipe that made it, JSON"""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA in a file, read whole; a few megabytes."""

    path: Path
    changes: dict[str, Change]
    """by the stem of its keys, less the prefix"""
    layout: str
    """"diffusers" or "comfyui", by the names of its keys"""
    info: LoraInfo = LoraInfo()

    @property
    def ranks(self) -> list[int]:
        return sorted({change.rank for change in self.changes.values()})

    @property
    def scales(self) -> list[float]:
        return sorted({round(change.scale, 6) for change in self.changes.values()})

    @property
    def kind(self) -> str:
        return "DoRA" if any(c.magnitude is not None for c in self.changes.values()) else "LoRA"

    @property
    def num_parameters(self) -> int:
        parts = ((c.down, c.up, c.magnitude) for c in self.changes.values())
        return sum(t.numel() for three in parts for t in three if t is not None)

    def fitted(self, files: BundleFiles) -> dict[str, Change]:
        """Its changes by the names of the weights of a bundle's UNet.

        Raises InputError where the bundle has no such layers, or of another shape.
        """
        shapes = files.shapes("unet")
        known = _stems(files.configs["unet"], shapes)
        unknown = [stem for stem in self.changes if stem not in known]
        if unknown:
            raise InputError(
                f"{self.path.name} changes {len(unknown)} of {len(self.changes)} layers that {files.name} has not: "
                f"{some(unknown)}.",
                self._made_for(),
            )
        fitted = {known[stem]: change for stem, change in self.changes.items()}
        wrong = [
            f"{name} is {list(shapes[name])}, not {list(change.shape)}"
            for name, change in fitted.items()
            if change.shape != shapes[name]
        ]
        if wrong:
            raise InputError(
                f"{self.path.name} is a LoRA of another model than {files.name}: {some(wrong)}.",
                self._made_for(),
            )
        return fitted

    def _made_for(self) -> str:
        return (
            f"It was trained on {self.info.base}."
            if self.info.base
            else "Take the bundle that it was trained on."
        )


def read_lora(path: Path) -> LoraFile:
    """A LoRA file of svd, diffusers or ComfyUI, or the folder of an adapter of PEFT's.

    Raises InputError where it is missing, a pickle, cut short or damaged, or holds what is no LoRA of a UNet.
    """
    path = path / PEFT_WEIGHTS if (path / PEFT_WEIGHTS).is_file() else path
    stored = MappedWeights(path)
    parts: dict[str, dict[str, Tensor]] = {}
    strange, layout = [], "diffusers"
    for key in stored:
        leaf = next((leaf for leaf in LEAVES if key.endswith(f".{leaf}")), None)
        prefix = next(prefix for prefix in PREFIXES if key.startswith(prefix))
        if leaf is None:
            strange.append(key)
            continue
        layout = "comfyui" if prefix in (COMFY, "diffusion_model.") else layout
        stem = key.removeprefix(prefix).removesuffix(f".{leaf}")
        parts.setdefault(stem, {})[LEAVES[leaf]] = stored.tensor(key).clone()
    if strange or not parts:
        what = (
            f"holds {len(strange)} tensors that are no part of a LoRA: {some(strange)}"
            if strange
            else "is empty"
        )
        raise InputError(f"{path.name} {what}.", f"{_AGAIN} svd reads LoRA and DoRA.")
    saved = _json(stored.metadata.get(METADATA, ""))
    known = {name: str(saved[name]) for name in LoraInfo.__dataclass_fields__ if name in saved}
    config = _peft_config(path, stored.metadata)
    changes = {stem: _change(path, stem, part, config) for stem, part in parts.items()}
    return LoraFile(path, changes, layout, LoraInfo(**known))


def is_lora(path: Path) -> bool:
    """Whether a LoRA lies there, by its first key alone. Raises InputError where the file is no sound safetensors file."""
    if (path / PEFT_WEIGHTS).is_file():
        return True
    if not path.is_file() or path.suffix != ".safetensors":
        return False
    keys, _ = read_header(path)
    return any(key.endswith(f".{leaf}") for key in list(keys)[:1] for leaf in LEAVES)


def _change(path: Path, stem: str, part: Mapping[str, Tensor], config: Mapping[str, Any]) -> Change:
    """Of one layer, from its tensors and PEFT's configuration; without either alpha is the rank, as for diffusers."""
    if "down" not in part or "up" not in part or part["up"].flatten(1).shape[1] != part["down"].shape[0]:
        raise InputError(f"{path.name} is damaged: the two factors of {stem} do not fit together.", _AGAIN)
    rank = part["down"].shape[0]
    alpha = float(part["alpha"]) if "alpha" in part else float(config.get("lora_alpha", rank))
    root = bool(config.get("use_rslora")) and "alpha" not in part
    return Change(
        part["down"], part["up"], alpha / (math.sqrt(rank) if root else rank), part.get("magnitude")
    )


def _peft_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's configuration, from the file's metadata or the adapter_config.json beside it."""
    config = _json(metadata.get(PEFT_METADATA, ""))
    if (
        not config
        and path.name == PEFT_WEIGHTS
        and (beside := path.with_name("adapter_config.json")).is_file()
    ):
        config = _json(beside.read_text(encoding="utf-8", errors="replace"))
    return {key.removeprefix("unet."): value for key, value in config.items()}


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _stems(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """All ways to name a layer -> the name of its weight: ours, that of the single file, and both with underscores."""
    known: dict[str, str] = {}
    ours = [name for name in names if name.endswith(".weight")]
    single = layout_names.unet_names(config, ours)
    for name in ours:
        stems = [name.removesuffix(".weight")]
        if name in single:
            stems.append(single[name].removeprefix(layout_names.UNET).removesuffix(".weight"))
        for stem in stems:
            known.setdefault(stem, name)
            known.setdefault(stem.replace(".", "_"), name)
    return known


# ---- merging -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lora:
    """A LoRA file as it is applied: fitted to a bundle, at a strength."""

    file: LoraFile
    strength: float
    changes: Mapping[str, Change] = field(repr=False)
    """by the names of the UNet's weights"""

    def describe(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "path": str(self.file.path),
            "strength": self.strength,
            "kind": self.file.kind,
            "ranks": self.file.ranks,
        }


def open_lora(path: Path, strength: float, files: BundleFiles) -> Lora:
    """A LoRA for a bundle. Raises InputError as `read_lora` and `LoraFile.fitted` do."""
    file = read_lora(path)
    return Lora(file, strength, file.fitted(files))


def added(weight: Tensor, changes: Sequence[tuple[float, Change]]) -> Tensor:
    """A weight with the changes in it, each at its strength and made of the weight as it was; float32.

    At no strength it is the weight itself.
    """
    total = None
    for strength, change in changes:
        if strength and not weight.is_meta:
            part = change.of(weight) * strength
            total = part if total is None else total + part
    return weight if total is None else weight.float() + total


def with_loras(weights: MappedWeights, loras: Sequence[Lora]) -> MappedWeights:
    """The weights of a UNet on disk, LoRAs added to each as it is read, before it is cast."""
    layout = dict(weights.layout)
    for name, changes in _by_name(loras).items():
        source = layout[name]
        layout[name] = Source(source.keys, partial(_made_with, source, changes))
    return weights.arranged(layout)


def _made_with(source: Source, changes: Sequence[tuple[float, Change]], *stored: Tensor) -> Tensor:
    return added(source.make(*stored), changes)


def _by_name(loras: Sequence[Lora]) -> dict[str, list[tuple[float, Change]]]:
    found: dict[str, list[tuple[float, Change]]] = {}
    for lora in loras:
        for name, change in lora.changes.items():
            found.setdefault(name, []).append((lora.strength, change))
    return found


@torch.no_grad()
def merge(unet: nn.Module, loras: Sequence[Lora]) -> Callable[[], None]:
    """Put LoRAs into the weights of a UNet in memory; -> what takes them out again, to the last bit.

    It holds the weights that were there before, of the changed layers, until then.
    """
    before = {name: unet.get_parameter(name).data for name in _by_name(loras)}
    for name, changes in _by_name(loras).items():
        unet.get_parameter(name).data = added(before[name], changes).to(before[name].dtype)

    def unmerge() -> None:
        for name, data in before.items():
            unet.get_parameter(name).data = data

    return unmerge
