"""A model on disk and in memory: a diffusers pipeline folder with our `svd.json`, or one single file.

What it is: the one place that opens and builds bundles. What it is not: it writes none (`saving`), finds none
(`hub`), and decides nothing about devices or memory (`engine`).

    files = open_bundle("svd-xt")                       # headers and configurations only
    files.weights("unet").tensors("down_blocks.0")      # one block, mapped: what a streaming executor fetches
    vae = files.part("vae", torch.float32)              # one part, built
    bundle = Bundle.load("svd-xt", torch.float16)       # all of it
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from svdcli.errors import InputError
from svdcli.model import hub, implied, layout_names, layouts
from svdcli.model.bundle_files import METADATA, STEMS, BundleFiles, parse_json, read_json
from svdcli.model.hub import PARTS
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.settings import SETTINGS, Settings
from svdcli.model.text_encoder import TextEncoder
from svdcli.model.unet import UNet, UNetConfig
from svdcli.model.vae import VAE
from svdcli.model.weights import MappedWeights, refuse_pickle

PARTS_OF = {"i2v": PARTS, "interp": (*PARTS, "mask_latent"), "multiview": PARTS}
"""What a bundle must hold, by its task."""
BORROWED = "borrowed"
"""Key of svd.json: parts that lie in another bundle, and where."""


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
    config = read_json(folder / part / "config.json")
    return BundleFiles(str(folder), folder, "diffusers", Settings(), {part: config})


def _open_folder(name: str, path: Path) -> BundleFiles:
    if not (path / hub.INDEX).is_file():
        singles = sorted(path.glob("*.safetensors"))
        hint = f"its files, such as {singles[0]}" if singles else "the folder that holds it"
        raise InputError(f"{path} is not a bundle: it has no {hub.INDEX}.", f"Give {hint}.")
    index = read_json(path / hub.INDEX)
    told = read_json(path / SETTINGS) if (path / SETTINGS).is_file() else {}
    borrowed = _borrowed(name, path, told)
    homes = {part: borrowed.get(part, path / part) for part in STEMS}
    configs = {part: read_json(file) for part in STEMS if (file := homes[part] / "config.json").is_file()}
    for part, config in (
        ("scheduler", "scheduler_config.json"),
        ("feature_extractor", "preprocessor_config.json"),
    ):
        if (path / part / config).is_file():
            configs[part] = read_json(path / part / config)
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
    settings = Settings.from_dict(told, settings)
    files = BundleFiles(name, path, "diffusers", settings, configs, borrowed=borrowed)
    for part in PARTS_OF.get(files.task, ()):
        if part not in configs:
            raise InputError(
                f"{name} has no {part}/config.json.", f"Fetch the whole pipeline again, with its {part}."
            )
    return files


def _borrowed(name: str, path: Path, told: Mapping[str, Any]) -> dict[str, Path]:
    """The parts that svd.json says lie elsewhere, each by its folder, seen from the bundle's. Raises InputError."""
    said = told.get(BORROWED, {})
    if not isinstance(said, dict) or not all(isinstance(v, str) and k in STEMS for k, v in said.items()):
        raise InputError(
            f"{SETTINGS} of {name} is wrong: {BORROWED} cannot be {said!r}.", "Fetch the bundle again."
        )
    found = {part: (path / folder).resolve() for part, folder in said.items()}
    for part, folder in found.items():
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{name} borrows its {part} from {folder}, and it is not there.",
                "Keep both bundles side by side.",
            )
    return found


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
    return replace(Settings.default(num_frames), carry_detail=task == "interp")


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
        if layout_names.FIRST_STAGE + "decoder.conv_out.weight" in shapes:
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
    saved = parse_json(mapped.metadata[METADATA], path)
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
