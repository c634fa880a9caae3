"""Bundles written: a diffusers pipeline folder with our `svd.json`, or one single file, whole or not at all.

What it is: modules or weights on disk -> files, in memory for one tensor at a time. What it is not: it
converts no names (`layouts`) and no settings.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svdcli.errors import UsageError
from svdcli.io.files import atomic_folder, atomic_path
from svdcli.model import hub, image_config, layout_names, layouts, text_encoder
from svdcli.model.blocks import NUM_GROUPS
from svdcli.model.bundle import Bundle
from svdcli.model.bundle_files import METADATA, STEMS, BundleFiles, stored_network
from svdcli.model.hub import PARTS
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.settings import SETTINGS, Settings
from svdcli.model.weights import MappedWeights, ToWrite, some, write_weights

CLASSES = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
    "unet": ("diffusers", "UNetSpatioTemporalConditionModel"),
    "vae": ("diffusers", "AutoencoderKLTemporalDecoder"),
    "mask_latent": ("svdcli", "MaskLatent"),
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "v_prediction",
    "interpolation_type": "linear",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "steps_offset": 1,
}
FEATURE_EXTRACTOR = {
    "image_processor_type": "CLIPImageProcessor",
    "feature_extractor_type": "CLIPFeatureExtractor",
    "crop_size": {"height": 224, "width": 224},
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "rescale_factor": 0.00392156862745098,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

EIGHT_BITS = re.compile(
    r"\.ff(_in)?\.net\.|\.attn\d\.to_[qk]\.|^encoder\..*resnets\.\d+\.conv[12]\.|^vision_model\.|^visual_projection\."
)


# --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One part to be saved: its configuration, and its tensors as they are to be written."""

    config: dict[str, Any]
    tensors: dict[str, ToWrite]


def part_of(
    source: nn.Module | MappedWeights, dtype: torch.dtype | None = None, config: dict[str, Any] | None = None
) -> Part:
    """A module, or weights on disk with their configuration, as a part to be saved, floats cast."""
    tensors: dict[str, ToWrite] = {}
    if isinstance(source, MappedWeights):
        for name in source:
            kind = _cast(source.dtype(name), dtype)
            tensors[name] = ToWrite(source.shape(name), kind, lambda n=name, k=kind: source.tensor(n, k))  # type: ignore[misc]
        return Part(config or {}, tensors)
    state = stored_network(source).state_dict()
    if text_encoder.is_text_encoder(source):
        state = text_encoder.published(state)
    for name, tensor in state.items():
        tensors[name] = ToWrite(tuple(tensor.shape), _cast(tensor.dtype, dtype), lambda t=tensor: t)  # type: ignore[misc]
    return Part(config or config_of(source), tensors)


def compact(part: Part) -> Part:
    """The part with the weights that bear it best in 8 bits (float8 e4m3, errors of some 2 %), the others as they were.

    Those are the feed-forward layers, the queries and keys of attention, the image encoder, and the residual branches of the
    autoencoder's encoder.
    """
    kept = {
        name: replace(entry, dtype=torch.float8_e4m3fn)
        if len(entry.shape) > 1 and entry.dtype.is_floating_point and EIGHT_BITS.search(name)
        else entry
        for name, entry in part.tensors.items()
    }
    return Part(part.config, kept)


def config_of(module: nn.Module) -> dict[str, Any]:
    """A part's configuration as its `config.json` says it."""
    if isinstance(module, ImageEncoder):
        return {**module.config.to_diff_dict(), "architectures": [CLASSES["image_encoder"][1]]}
    if text_encoder.is_text_encoder(module):
        return {**module.config.to_diff_dict(), "architectures": [CLASSES["text_encoder"][1]]}  # type: ignore[union-attr, operator]
    return module.config.to_dict()  # type: ignore[union-attr, operator]


def _cast(stored: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and stored.is_floating_point else stored


def parts_of(source: Bundle | BundleFiles, dtype: torch.dtype | None = None) -> dict[str, Part]:
    """All parts of a bundle, to be saved. Raises InputError where weights do not fit their configuration."""
    if isinstance(source, BundleFiles):
        parts = {part: part_of(source.checked(part), dtype, source.configs[part]) for part in source.parts}
        if "text_encoder" in parts:
            text = parts["text_encoder"]
            parts["text_encoder"] = replace(text, tensors=text_encoder.published(text.tensors))
        return parts
    modules = {part: getattr(source, part) for part in PARTS}
    absent = [part for part, module in modules.items() if module is None]
    if absent:
        raise UsageError(
            f"{source.name} was loaded without its {some(absent)}, so it cannot be saved.", "Load all parts."
        )
    return {part: part_of(module, dtype, source.files.configs[part]) for part, module in modules.items()}


def is_standard(part: Part) -> bool:
    """Whether other tools can hold the part: their video networks know only norms of 32 groups, and would take others for
    those.
    """
    image = part.config.get("_class_name") == image_config.CLASS
    return image or part.config.get("norm_num_groups", NUM_GROUPS) == NUM_GROUPS


def require_standard(parts: Mapping[str, Part]) -> None:
    """Raise UsageError where converting would make a file that other tools load and run wrongly."""
    if narrow := [name for name, part in parts.items() if not is_standard(part)]:
        raise UsageError(
            f"The {some(narrow)} of this bundle has norms of fewer than {NUM_GROUPS} groups, which diffusers "
            "and ComfyUI cannot hold.",
            "Use it with svd; to train a model for other tools, keep norm_num_groups = 32 in its recipe.",
        )


def save_bundle(
    parts: Mapping[str, Part],
    folder: Path,
    settings: Settings,
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Write a diffusers pipeline folder with `svd.json`, whole or not at all, one tensor in memory at a time.

    `configs` may carry a "scheduler" and a "feature_extractor" to keep, `tokenizer` is a folder to copy. With an
    image encoder `StableVideoDiffusionPipeline.from_pretrained` loads it; of others, diffusers loads the parts.
    Raises UsageError or MachineError where the folder cannot be written.
    """
    configs = configs or {}
    small: dict[str, tuple[str, Mapping[str, Any]]] = {
        "scheduler": (
            "scheduler_config.json",
            SCHEDULER | {"sigma_min": settings.sigma_min, "sigma_max": settings.sigma_max},
        )
    }
    if "image_encoder" in parts:
        small["feature_extractor"] = ("preprocessor_config.json", FEATURE_EXTRACTOR)
    with atomic_folder(folder) as temporary:
        for part, content in parts.items():
            (temporary / part).mkdir()
            _write_json(temporary / part / "config.json", content.config)
            write_weights(temporary / part / f"{STEMS[part]}.safetensors", content.tensors)
        for part, (file, default) in small.items():
            (temporary / part).mkdir()
            _write_json(temporary / part / file, configs.get(part) or default)
        if tokenizer is not None:
            shutil.copytree(tokenizer, temporary / "tokenizer")
        _write_json(temporary / hub.INDEX, _index(parts, [*small] + ["tokenizer"] * (tokenizer is not None)))
        _write_json(temporary / SETTINGS, settings.to_dict())


def _index(parts: Mapping[str, Part], others: Sequence[str]) -> dict[str, Any]:
    """The content of `model_index.json`: the pipeline's class, and each part's."""
    pipeline = "StableVideoDiffusionPipeline" if "image_encoder" in parts else "DiffusionPipeline"
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.24.0"}
    for part, (library, name) in CLASSES.items():
        if part in others:
            index[part] = [library, name]
        elif part in parts:
            others_can = is_standard(parts[part])  # other tools refuse what they cannot hold
            index[part] = [library if others_can else "svdcli", parts[part].config.get("_class_name", name)]
    return index


def save_single(
    parts: Mapping[str, Part], path: Path, settings: Settings, tokenizer: Path | None = None
) -> None:
    """Write one safetensors file in the layout of Stability and ComfyUI, whole or not at all.

    Our configurations, settings and the tokenizer travel in its metadata, so that reading it back gives the same bundle bit
    for bit.
    """
    configs = {name: part.config for name, part in parts.items()}
    ours = {f"{part}.{name}": t for part, content in parts.items() for name, t in content.tensors.items()}
    tensors = {}
    names = {name: part.tensors for name, part in parts.items()}
    frame_encoder = layout_names.FRAME_ENCODERS.get(settings.task, layout_names.FRAME_ENCODER)
    for single, source in layouts.single_sources(configs, names, frame_encoder).items():
        inputs = [ours[key] for key in source.keys]
        shape = source.make(*(torch.empty(t.shape, device="meta") for t in inputs)).shape
        fetch = lambda s=source, i=inputs: s.make(*(t.fetch().to("cpu", t.dtype) for t in i))  # noqa: E731
        tensors[single] = ToWrite(tuple(shape), inputs[0].dtype, fetch)
    said: dict[str, Any] = {"configs": configs, "settings": settings.to_dict()}
    if tokenizer is not None:
        said["tokenizer"] = {
            file.name: file.read_text(encoding="utf-8") for file in sorted(tokenizer.iterdir())
        }
    with atomic_path(path) as temporary:
        write_weights(temporary, tensors, {METADATA: json.dumps(said, sort_keys=True)})


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
