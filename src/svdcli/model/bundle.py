"""A model on disk and in memory: a diffusers pipeline folder with our `svd.json`, or one single file.

What it is: the one place that opens and builds bundles. What it is not: it writes none (`saving`), finds none
(`hub`), and decides nothing about devices or memory (`engine`).

    files = open_bundle("svd-xt")                       # headers and configurations only
    files.weights("unet").tensors("down_blocks.0")      # one block, mapped: what a streaming executor fetches
    vae = files.part("vae", torch.float32)              # one part, built
    bundle = Bundle.load("svd-xt", torch.float16)       # all of it
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from svdcli.errors import InputError
from svdcli.model import hub, image_vae, implied, layouts, text_encoder
from svdcli.model.hub import PARTS
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.lora import Lora, with_loras
from svdcli.model.mask_latent import MaskLatent, MaskLatentConfig
from svdcli.model.settings import SETTINGS, Settings
from svdcli.model.text_encoder import TextEncoder
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
    "unet": (layouts.UNET,),
    "vae": (layouts.FIRST_STAGE,),
    "image_encoder": (layouts.IMAGE_TOWER,),
    **{part: (prefix,) for part, prefix in layouts.OWN.items()},
}
PARTS_OF = {"i2v": PARTS, "interp": (*PARTS, "mask_latent"), "multiview": PARTS}
"""What a bundle must hold, by its task."""
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
    "t2v": "Give one that was trained with captions; `svd train stage2` makes one of an image model.",
    "interp": "Give one that `svd finetune interp` made.",
    "multiview": "Give SV3D's file, or a bundle that `svd finetune multiview` made.",
}
"""Where a bundle of that task comes from, where it is none of Stability's videos."""


# ---- on disk
# -------------------------------------------------------------------------------------------------------


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

    @property
    def parts(self) -> tuple[str, ...]:
        """Those that have weights, in their usual order."""
        return tuple(part for part in STEMS if part in self.configs)

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
            paths = find_weights(self.path / part, STEMS[part], dtype)
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
        """Every file of the bundle."""
        return [self.path] if self.path.is_file() else sorted(p for p in self.path.rglob("*") if p.is_file())


def open_bundle(ref: str | Path | None = None) -> BundleFiles:
    """Open a bundle by known name, path or hub id; None is the best one on this machine. Reads headers only.

    Raises InputError: not here, a pickle, damaged, no pipeline.
    """
    found = hub.best() if ref is None else hub.find(ref)
    if found.path.is_dir():
        return _open_folder(found.name, found.path)
    if found.path.name == hub.INDEX:
        return _open_folder(found.path.resolve().parent.name, found.path.parent)
    return _open_single(found.name, found.path)


def open_part(folder: Path, part: str) -> BundleFiles:
    """A folder that holds one part of a bundle and need not be a whole one, as the run of an autoencoder leaves it.

    Raises InputError where the part's configuration cannot be read.
    """
    config = _read_json(folder / part / "config.json")
    return BundleFiles(str(folder), folder, "diffusers", Settings(), {part: config})


def _open_folder(name: str, path: Path) -> BundleFiles:
    if not (path / hub.INDEX).is_file():
        singles = sorted(path.glob("*.safetensors"))
        hint = f"its files, such as {singles[0]}" if singles else "the folder that holds it"
        raise InputError(f"{path} is not a bundle: it has no {hub.INDEX}.", f"Give {hint}.")
    index = _read_json(path / hub.INDEX)
    configs = {part: _read_json(file) for part in STEMS if (file := path / part / "config.json").is_file()}
    for part, config in (
        ("scheduler", "scheduler_config.json"),
        ("feature_extractor", "preprocessor_config.json"),
    ):
        if (path / part / config).is_file():
            configs[part] = _read_json(path / part / config)
    try:
        num_frames = int(configs.get("unet", {}).get("num_frames") or 25)
        scheduler = configs.get("scheduler", {})
        task = _task(index, configs)
        settings = replace(
            _suggested(task, configs.get("unet", {}), num_frames),
            task=task,
            sigma_min=float(scheduler.get("sigma_min") or Settings.sigma_min),
            sigma_max=float(scheduler.get("sigma_max") or Settings.sigma_max),
        )
    except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise InputError(
            f"The configuration of {name} is wrong: {error}.", "Fetch the bundle again."
        ) from error
    if (path / SETTINGS).is_file():
        settings = Settings.from_dict(_read_json(path / SETTINGS), settings)
    files = BundleFiles(name, path, "diffusers", settings, configs)
    for part in PARTS_OF.get(files.task, ()):
        if part not in configs:
            raise InputError(
                f"{name} has no {part}/config.json.", f"Fetch the whole pipeline again, with its {part}."
            )
    return files


def _task(index: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> str:
    unet = configs.get("unet", {})
    kind = str(unet.get("_class_name") or (index.get("unet") or ["", ""])[-1] or "")
    if kind != "UNetSpatioTemporalConditionModel":
        return "image" if "UNet2D" in kind else "t2v" if "UNet3D" in kind or "Motion" in kind else ""
    config = UNetConfig.from_dict(dict(unet))
    if config.num_vector_ids == 1 or config.id_widths:
        return "multiview"
    if "mask_latent" in index:
        return "interp"
    continues = config.in_channels == 2 * config.out_channels or config.takes_mask
    return "i2v" if "image_encoder" in index and continues else "t2v"


def _suggested(task: str, unet: Mapping[str, Any], num_frames: int) -> Settings:
    """How a bundle without `svd.json` is best sampled."""
    if task == "multiview":
        return Settings.sv3d("path" if unet.get("id_widths") else "none")
    return Settings.default(num_frames)


def _open_single(name: str, path: Path) -> BundleFiles:
    refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path.name} is no weights file: bundles are folders or .safetensors files.",
            "See `svd models list`.",
        )
    mapped = MappedWeights(path)
    shapes = {key: stored.shape for key, stored in mapped.stored.items()}
    if METADATA in mapped.metadata:
        return _open_own(name, path, mapped)
    task = implied.task_of(shapes)
    if task == "image":
        configs = {"unet": implied.unet_config(shapes)}
        if layouts.FIRST_STAGE + "decoder.conv_out.weight" in shapes:
            configs["vae"] = implied.vae_config(shapes)
        return BundleFiles(name, path, "single", Settings(task=task), configs, single=mapped)
    if task not in ("i2v", "multiview"):
        return BundleFiles(name, path, "single", Settings(task=task), {}, single=mapped)
    notes = _notes(shapes)
    num_frames = 14 if path.stem.lower() in ("svd", "svd_image_decoder") else 25
    unet = implied.unet_config(shapes)
    settings = _suggested(task, unet, num_frames)
    configs = {
        "unet": {**unet, "num_frames": settings.num_frames},
        "vae": implied.vae_config(shapes),
        "image_encoder": implied.tower_config(shapes),
    }
    return BundleFiles(name, path, "single", settings, configs, notes, mapped)


def _open_own(name: str, path: Path, mapped: MappedWeights) -> BundleFiles:
    """A single file that we wrote, which says in its metadata what it is."""
    saved = _parse(mapped.metadata[METADATA], path)
    settings = Settings.from_dict(saved.get("settings", {}), Settings())
    texts = saved.get("tokenizer", {})
    notes = _notes(mapped.stored)
    return BundleFiles(
        name, path, "single", settings, saved.get("configs", {}), notes, mapped, tokenizer_texts=texts
    )


def _notes(stored: Iterable[str]) -> tuple[str, ...]:
    if layouts.is_image_decoder(stored):
        return ("its decoder works frame by frame; the temporal layers that svd gives it change nothing",)
    return ()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read.", "Fetch the bundle again.") from error
    return _parse(text, path)


def _parse(text: str, path: Path) -> dict[str, Any]:
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
    names = set(map(str, _read_json(index).get("weight_map", {}).values()))
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


# ---- in memory
# -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory. A part that was not asked for is None."""

    files: BundleFiles
    unet: UNet | None = None
    vae: VAE | None = None
    image_encoder: ImageEncoder | None = None

    @classmethod
    def load(
        cls,
        ref: str | Path | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        parts: Iterable[str] = PARTS,
        task: str = "i2v",
    ) -> Bundle:
        """Open a bundle and build the parts asked for. Never downloads, never holds the weights twice.

        Raises InputError: not on this machine, of another task, weights that do not fit.
        """
        files = open_bundle(ref)
        files.require_task(task)
        return cls(files, **{part: files.part(part, dtype, device) for part in parts})  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def path(self) -> Path:
        return self.files.path

    @property
    def task(self) -> str:
        return self.files.task

    @property
    def settings(self) -> Settings:
        return self.files.settings


def default_bundle() -> str:
    """The name of the best bundle on this machine: svd-xt-1.1 > svd-xt > svd > nano. Downloads nothing."""
    return hub.best().name


def load_text_encoder(ref: str | Path, dtype: torch.dtype | None = None) -> TextEncoder:
    """The text encoder of a bundle, with its tokenizer, frozen.

    Raises InputError where the bundle is not here, has none, or its weights do not fit.
    """
    files = open_bundle(ref)
    if "text_encoder" not in files.configs:
        raise InputError(
            f"{files.name} has no text_encoder/config.json.", "Give a text-to-image bundle, such as SD 2.1."
        )
    clip = files.part("text_encoder", dtype).requires_grad_(False)
    return TextEncoder(clip, files.tokenizer() or files.path / "tokenizer")
