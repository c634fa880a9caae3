"""From a folder of videos and a bundle to a recipe: what `svd finetune` trains by where no recipe is given.

The recipe is a shipped one, for large networks or for small; the bundle says the network's shape, its size in pixels and
how it is sampled, the folder what is held out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svdcli.data.dataset import VIDEO_SUFFIXES, find_videos, has_shards, holds_shards
from svdcli.engine.preflight import require_start
from svdcli.errors import InputError
from svdcli.model.bundle import open_bundle
from svdcli.model.bundle_files import BundleFiles
from svdcli.model.unet import UNet, UNetConfig
from svdcli.recipe.reading import override_key, read_tree
from svdcli.recipe.recipe import Recipe, parse_recipe
from svdcli.recipe.tasks import MultiViewTask
from svdcli.shipped import shipped_path

SMALL_WIDTH = 160
"""Channels of the finest level, half of SVD's, below which a network is trained as nano is."""
OWN_LENGTHS = ("interp", "multiview")
"""Kinds that make clips of a length of their own, whatever they begin with."""
HELD_OUT_SHARE = 0.1
SUGGESTIONS = ("guidance", "num_steps", "sampler", "sigma_min", "sigma_max", "temperature", "motion_bucket")
"""Of how a bundle is sampled: kept where the task stays the same."""


def recipe_for(
    kind: str, source: str, bundle: str | None, run: Path | None, changes: Sequence[str]
) -> Recipe:
    """A finetuning of a bundle (name, folder, file; None: the best one here) on a folder or URL of clips.

    By `recipes/finetune/KIND.toml`, or for small networks `recipes/nano/finetune/KIND.toml`.

    Raises InputError where the bundle is of a task that this kind cannot begin with, or the source holds too few
    videos, and RecipeError or UsageError for a wrong change.
    """
    files = open_bundle(bundle)
    unet = files.build("unet")
    assert isinstance(unet, UNet)
    small = unet.config.block_out_channels[0] < SMALL_WIDTH
    path = shipped_path("recipes", *(("nano",) if small else ()), "finetune", f"{kind}.toml")
    tree = read_tree(path)
    require_start(parse_recipe(tree, str(path)), files)
    settings = files.settings
    task, data = tree["task"], tree["data"]
    frames = task["num_frames"]
    task |= shape_of(unet.config) | begun_with(files, task["kind"])
    if kind in OWN_LENGTHS and files.task != kind:
        task["num_frames"] = frames
    if files.task == task["kind"]:
        task |= {name: getattr(settings, name) for name in SUGGESTIONS}
        if task["kind"] in ("i2v", "interp"):
            task["carry_detail"] = settings.carry_detail
    if kind != "multiview" or files.task == kind:  # views of objects are square
        data |= {"width": settings.width, "height": settings.height}
    if kind == "camera-lora" and small:
        task["num_frames"] = [n for n in frames if n <= settings.num_frames] or task["num_frames"]
        data |= {"width": half(settings.width), "height": half(settings.height)}
    data["source"] = source
    if files.task == kind == "multiview":
        task["pose"] = settings.pose
    if "camera" in data and not holds_shards(source):
        del data["camera"]  # a folder has no index that would tell: all of it shows the move
    data.pop("held_out", None)  # names of the recipe's own footage
    tree["run"]["folder"] = str(run or default_folder(kind, source))
    for change in changes:
        override_key(tree, change)
    data |= held_out_of(parse_recipe(tree, str(path)))
    return parse_recipe(tree, str(path))


def half(side: int) -> int:
    """Of a side in pixels, in whole latents. A small network learns a camera move at half its size as well, see
    assets/loras/README.md, and from clips as short as the recipe's, for much less work.
    """
    return max(side // 2 // 8, 1) * 8


def shape_of(config: UNetConfig) -> dict[str, Any]:
    """The keys of a recipe's task that say the network's shape."""
    layers, widths = config.per_level("layers_per_block"), config.per_level("cross_attention_dim")
    if len({*layers}) > 1 or len({*widths}) > 1:
        raise InputError(
            "The network's levels differ in their layers or in the width of their context, which no recipe can say.",
            "Write a recipe for another bundle.",
        )
    return {
        "block_out_channels": list(config.block_out_channels),
        "norm_num_groups": config.norm_num_groups,
        "num_attention_heads": list(config.per_level("num_attention_heads")),
        "attention_levels": [kind.startswith("CrossAttn") for kind in config.down_block_types],
        "layers_per_block": layers[0],
        "context_dim": widths[0],
    }


def begun_with(files: BundleFiles, kind: str) -> dict[str, Any]:
    """The keys that name the bundle and what it is given, to a task of that kind."""
    place = str(files.path)
    named = {"start": place, "vae": place, "num_frames": [files.settings.num_frames]}
    if kind == "t2v" and "text_encoder" in files.configs:
        named["text"] = place
    return named


def default_folder(kind: str, source: str) -> Path:
    """runs/i2v-holiday for i2v on ~/films/holiday."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).name or "clips").strip("-") or "clips"
    return Path("runs") / f"{kind}-{name}"


def held_out_of(recipe: Recipe) -> dict[str, Any]:
    """What is kept for evaluation: as the recipe says, else a share of the sources."""
    data = recipe.data
    if data.held_out or data.held_out_share:
        return {}
    if isinstance(recipe.task, MultiViewTask):
        return {"held_out_share": HELD_OUT_SHARE}
    if not has_shards(data) and len(find_videos(data)) < 2:
        raise InputError(
            f"{data.location} holds one video, and one has to be kept for evaluation.",
            f"Add another; videos end in {', '.join(sorted(VIDEO_SUFFIXES))}.",
        )
    return {"held_out_share": HELD_OUT_SHARE}
