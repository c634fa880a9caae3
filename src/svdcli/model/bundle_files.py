"""A bundle on disk, opened: its configurations and settings, and its weights part by part, mapped and not in memory.

What it is: `BundleFiles` and how its parts are found, checked and built. What it is not: it does not find out what a folder or a
file holds (`bundle`), writes none (`saving`), and decides nothing about devices or memory (`engine`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svdcli.errors import InputError
from svdcli.model import image_vae, layout_names, layouts, text_encoder
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.lora import Lora, with_loras
from svdcli.model.mask_latent import MaskLatent, MaskLatentConfig
from svdcli.model.settings import Settings
from svdcli.model.unet import UNet, UNetConfig
from svdcli.model.vae import VAE, VAEConfig
from svdcli.model.weights import MappedWeights, Source, check_weights, load_module, refuse_pickle, some

METADATA = "svdcli"
"""Key of a single file's metadata under which our configurations and settings travel; other tools ignore
it.
"""
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": "model",
    "text_encoder": "model",
    "mask_latent": "diffusion_pytorch_model",
}
PREFIXES = {
    "unet": (layout_names.UNET,),
    "vae": (layout_names.FIRST_STAGE,),
    "image_encoder": (layout_names.IMAGE_TOWER,),
    **{part: (prefix,) for part, prefix in layouts.OWN.items()},
}
_TOKENIZERS: dict[Path, tempfile.TemporaryDirectory[str]] = {}
TASKS = {
    "i2v": "an image-to-video model",
    "t2v": "a text-to-video model",
    "image": "an image model",
    "multiview": "a multi-view model",
    "interp": "an interpolation model",
    "": "no diffusion model that svd knows",
}
WANTED = {
    "t2v": "Give one that was trained with captions, as `svd train stage2` makes of an image model; "
    "or sample with --image-model, which has the words painted first.",
    "interp": "Give one that `svd finetune interp` made.",
    "multiview": "Give SV3D's file, or a bundle that `svd finetune multiview` made.",
}
"""Where a bundle of that task comes from, where it is none of Stability's videos."""


@dataclass(frozen=True)
class BundleFiles:
    """A bundle on disk, opened: what it is and where its weights lie. Nothing of it is in memory."""

    name: str
    path: Path
    layout: str
    """"diffusers" (a folder) or "single" (one file)."""
    settings: Settings
    configs: dict[str, dict[str, Any]]
    """Parsed configuration by part; "scheduler" and "feature_extractor" too, where they are there."""
    notes: tuple[str, ...] = ()
    single: MappedWeights | None = field(default=None, repr=False)
    loras: tuple[Lora, ...] = ()
    """added to the UNet's weights as they are read"""
    tokenizer_texts: Mapping[str, str] = field(default_factory=dict, repr=False)
    """of a single file: what its tokenizer's folder would hold"""
    borrowed: Mapping[str, Path] = field(default_factory=dict)
    """of a folder: parts that lie elsewhere, as those of another bundle do that both share"""

    @property
    def parts(self) -> tuple[str, ...]:
        """Those that have weights, in their usual order."""
        return tuple(part for part in STEMS if part in self.configs)

    def folder(self, part: str) -> Path:
        """Where a part of a folder lies."""
        return self.borrowed.get(part, self.path / part)

    def tokenizer(self) -> Path | None:
        """The folder of the tokenizer: of a single file a temporary one, which is there as long as the process."""
        if self.single is None:
            folder = self.path / "tokenizer"
            return folder if folder.is_dir() else None
        if not self.tokenizer_texts:
            return None
        if self.path not in _TOKENIZERS:
            _TOKENIZERS[self.path] = tempfile.TemporaryDirectory(prefix="svd-tokenizer-")
            for name, text in self.tokenizer_texts.items():
                (Path(_TOKENIZERS[self.path].name) / Path(name).name).write_text(text, encoding="utf-8")
        return Path(_TOKENIZERS[self.path].name)

    @property
    def task(self) -> str:
        return self.settings.task

    @property
    def downscale(self) -> int:
        """Pixels a latent, per side."""
        return int(2 ** (len(self.configs["vae"]["block_out_channels"]) - 1))

    def require_task(self, *tasks: str) -> None:
        """Raise InputError, in one sentence, unless the bundle is of one of these tasks."""
        if self.task in tasks:
            return
        task = tasks[0]
        what = TASKS.get(self.task, f"a model of the task {self.task}")
        hint = WANTED.get(task, "Give an SVD bundle; `svd models list` shows those on this machine.")
        if self.task == "multiview":
            hint = "It turns an object round: `svd sample --orbit`. For videos use svd or svd-xt."
        raise InputError(f"{self.name} is {what}, not {TASKS.get(task, task)}.", hint)

    def build(self, part: str) -> nn.Module:
        """The part's module on the meta device: names and shapes, no memory."""
        try:
            with torch.device("meta"):
                return _module(part, self.configs[part])
        except KeyError as error:
            raise InputError(f"{self.name} has no {part}.", "Fetch the whole pipeline again.") from error
        except (TypeError, ValueError, RuntimeError, IndexError, AssertionError) as error:
            raise InputError(
                f"The {part} configuration of {self.name} is wrong: {error}.", "Fetch it again."
            ) from error

    def shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the part's tensors, as its configuration has them."""
        state = stored_network(self.build(part)).state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items()}

    def weights(self, part: str, dtype: torch.dtype | None = None) -> MappedWeights:
        """The part's tensors under our names, read lazily. Of several precisions on disk, the one nearest to
        `dtype`.
        """
        weights = self._stored(part, dtype)
        return with_loras(weights, self.loras) if part == "unet" and self.loras else weights

    def _stored(self, part: str, dtype: torch.dtype | None) -> MappedWeights:
        if self.single is None:
            paths = find_weights(self.folder(part), STEMS[part], dtype)
            found = MappedWeights(paths)
            named = {n: s for n, s in found.layout.items() if not n.endswith("position_ids")}
            if part == "text_encoder":
                named = text_encoder.renamed(named, self.shapes(part))
            elif part == "vae" and self.configs[part].get("_class_name") == image_vae.CLASS:
                named = image_vae.sources(self.shapes(part), found.stored)
            return found.arranged(named)
        shapes = self.shapes(part)
        stored = self.single.stored
        if part == "unet":
            layout = layouts.unet_sources(self.configs[part], shapes)
        elif part == "vae":
            layout = layouts.vae_sources(self.configs[part], shapes, stored)
        elif part in layouts.OWN:
            names = list(shapes)
            single = text_encoder.published(dict.fromkeys(names)) if part == "text_encoder" else shapes
            layout = {a: Source((layouts.OWN[part] + b,)) for a, b in zip(names, single, strict=True)}
        else:
            layout = layouts.tower_sources(self.configs[part], shapes)
        return self.single.arranged(layout)

    def checked(self, part: str, dtype: torch.dtype | None = None) -> MappedWeights:
        """The part's `weights`, or InputError that names missing, extra or mis-shaped keys."""
        weights = self.weights(part, dtype)
        if self.single is not None:
            self._refuse_extra(part, weights)
        check_weights(weights, self.shapes(part), f"the {part} of {self.name}")
        return weights

    def part(
        self, part: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> nn.Module:
        """Build one part with its weights, in eval mode. `dtype` None keeps the stored one.

        Raises InputError that names missing, extra or mis-shaped keys.
        """
        weights = self.checked(part, dtype)
        module = self.build(part)
        load_module(stored_network(module), weights, dtype, device)
        return _finish(part, module, device).eval()

    def _refuse_extra(self, part: str, weights: MappedWeights) -> None:
        here = [key for key in weights.stored if key.startswith(PREFIXES[part])]
        extra = layouts.leftover(here, [weights.layout])
        if extra:
            raise InputError(
                f"{self.path.name} holds {len(extra)} tensors of the {part} that its shape does not explain: "
                f"{some(extra)}.",
                "It is of another architecture, or was changed by a tool that svd does not know.",
            )

    def paths(self) -> list[Path]:
        """Every file of the bundle, those of borrowed parts among them."""
        if self.path.is_file():
            return [self.path]
        return sorted(
            p for home in (self.path, *self.borrowed.values()) for p in home.rglob("*") if p.is_file()
        )


# ---- its files


def read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read.", "Fetch the bundle again.") from error
    return parse_json(text, path)


def parse_json(text: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: its JSON does not parse ({error}).", "Fetch the bundle again."
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it is not a JSON object.", "Fetch the bundle again.")
    return value


def find_weights(folder: Path, stem: str, dtype: torch.dtype | None = None) -> list[Path]:
    """The weight files of one part: whole or in shards, and of several precisions the one nearest to `dtype`.

    Raises InputError where there is none, only a pickle, or a shard is missing.
    """
    half = ["fp16"] if dtype == torch.float16 else ["bf16"] if dtype == torch.bfloat16 else []
    for variant in [*half, "", "fp16", "bf16"]:
        dot = f".{variant}" if variant else ""
        if (file := folder / f"{stem}{dot}.safetensors").is_file():
            return [file]
        for index in (
            folder / f"{stem}.safetensors.index{dot}.json",
            folder / f"{stem}{dot}.safetensors.index.json",
        ):
            if index.is_file():
                return _shards(index)
    if pickles := sorted(folder.glob("*.bin")):
        refuse_pickle(pickles[0])
    raise InputError(
        f"{folder} holds no weights ({stem}.safetensors).", "Fetch the bundle again with `svd models pull`."
    )


def _shards(index: Path) -> list[Path]:
    names = set(map(str, read_json(index).get("weight_map", {}).values()))
    shards = [index.parent / Path(name).name for name in sorted(names)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise InputError(
            f"{index.parent} lacks {len(missing)} of its shards: {some(missing)}.", "Fetch the bundle again."
        )
    return shards


def _module(part: str, config: Mapping[str, Any]) -> nn.Module:
    if part == "unet":
        return UNet(UNetConfig.from_dict(dict(config)))
    if part == "vae":
        return VAE(VAEConfig.from_dict(dict(config)))
    if part == "mask_latent":
        return MaskLatent(MaskLatentConfig.from_dict(config))
    return text_encoder.build(config) if part == "text_encoder" else ImageEncoder(dict(config))


def stored_network(module: nn.Module) -> nn.Module:
    """The module whose tensors have the names on disk: in an image encoder it is transformers' own."""
    return module.clip if isinstance(module, ImageEncoder) else module


def _finish(part: str, module: nn.Module, device: torch.device | str) -> nn.Module:
    """Fill buffers that are not saved and so are still without memory: the position numbers of CLIP."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_meta:
                assert name == "position_ids", f"{part}: buffer {name} has no value"
                owner._buffers[name] = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
    return module
