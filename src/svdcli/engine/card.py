"""The card of a finished run: what a stranger who finds its model on the hub should know, and nothing of this machine.

It is written from what the run wrote (recipe.json, metrics.csv, run.json) and from the base that it began with. Paths become
names.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from svdcli import __version__
from svdcli.engine.adapter import COMFYUI, LORA
from svdcli.engine.observe import sessions
from svdcli.engine.report import Curves, read_metrics
from svdcli.model import hub
from svdcli.recipe.recipe import Recipe

PIPELINES = {
    "i2v": "image-to-video",
    "t2v": "text-to-video",
    "t2i": "text-to-image",
    "interp": "video-to-video",
    "multiview": "image-to-video",
}
"""What the hub calls our tasks."""
TEACHES = {
    "i2v": "a picture becomes a video",
    "t2v": "words become a video",
    "t2i": "words become a picture",
    "interp": "the frames between two, or a clip at four times its frame rate",
    "multiview": "a picture of an object becomes an orbit around it",
}
SAMPLED = {
    "i2v": "photo.png",
    "t2v": '--prompt "..."',
    "t2i": '--prompt "..."',
    "interp": "clip.mp4 --interpolate",
    "multiview": "object.png --orbit",
}
"""What `svd sample` makes something of with each."""
STABILITY = "stabilityai-ai-community"
PATHS = ("data.source", "run.folder", "task.start", "task.vae", "task.text", "task.image_encoder")


def model_card(recipe: Recipe, repo: str, num_videos: int, num_held_out: int) -> str:
    """README.md of the model in `repo` that the run in `recipe.run.folder` made of so many videos, front matter and all.

    Raises InputError where the run has no metrics.csv.
    """
    run, kind = recipe.run, recipe.task.kind
    base = str(getattr(recipe.task, "start", None) or "")
    curves = read_metrics(run.folder)
    noun = "LoRA" if recipe.adapter is not None else "model"
    trigger = (
        f" It teaches **{recipe.adapter.trigger}**." if recipe.adapter and recipe.adapter.trigger else ""
    )
    footage = f"{num_videos} videos of “{PurePath(recipe.data.location).name}”, {num_held_out} more held out"
    rows = [
        ("base", _linked(base) if base else "none, trained from the start"),
        ("data", f"{footage}, {recipe.data.width}x{recipe.data.height}"),
        ("steps", f"{run.num_steps} of {run.batch_size * run.accumulate} clips on each device"),
        ("learning rate", f"{recipe.optim.lr:g}, {recipe.optim.schedule}"),
        ("precision", recipe.machine.precision),
        *_time(run.folder),
    ]
    return "\n".join(
        [
            _front_matter(recipe, base),
            f"# {repo.partition('/')[2]}",
            "",
            f"A Stable Video Diffusion {noun}: {TEACHES.get(kind, kind)}.{trigger} Made with svdcli {__version__}.",
            "",
            *_table(("", ""), rows),
            "",
            "## How to use it",
            "",
            *_use(recipe, repo, base),
            "",
            "## Losses",
            "",
            *_losses(curves),
            "",
            "## Licence",
            "",
            _licence(base),
            "",
            "## Recipe",
            "",
            "```json",
            without_paths(recipe.model_dump_json(indent=1, exclude_none=True), recipe),
            "```",
            "",
        ]
    )


def without_paths(text: str, recipe: Recipe) -> str:
    """A text with the paths that the recipe names, which are nobody else's business, cut to their last names."""
    for key in PATHS:
        section, _, name = key.partition(".")
        path = getattr(getattr(recipe, section), name, None)
        if path is not None and len(PurePath(path).parts) > 1:
            for form in {str(path), json.dumps(str(path))[1:-1]}:
                text = text.replace(form, PurePath(path).name)
    return text


def _front_matter(recipe: Recipe, base: str) -> str:
    kind, published = recipe.task.kind, _repo_of(base)
    lines = [f"license: {_licence_tag(base)}", f"library_name: {'peft' if recipe.adapter else 'diffusers'}"]
    lines += [f"pipeline_tag: {PIPELINES[kind]}"] if kind in PIPELINES else []
    lines += [f"base_model: {published}"] if published else []
    tags = ["svd", "stable-video-diffusion", "svdcli", *(["lora"] if recipe.adapter else [])]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def _repo_of(base: str) -> str:
    """The hub repository of a base, where it is one."""
    if base in hub.KNOWN:
        return hub.KNOWN[base].repo
    return base if hub.is_hub_id(base) and not Path(base).exists() else ""


def _linked(base: str) -> str:
    repo = _repo_of(base)
    return f"[{repo}](https://huggingface.co/{repo})" if repo else PurePath(base).name


def _is_nano(base: str) -> bool:
    nano = hub.locate(hub.NANO)
    return base == hub.NANO or bool(nano and base and Path(base).resolve() == nano.path.resolve())


def _licence_tag(base: str) -> str:
    return "apache-2.0" if _is_nano(base) else "other"


def _licence(base: str) -> str:
    if _is_nano(base):
        return "Apache-2.0, as svdcli and its embedded model nano are."
    if not base:
        return "Not said yet: whoever publishes it chooses."
    return f"That of the base it was made from, {_linked(base)}, and what the footage asks for."


def _use(recipe: Recipe, repo: str, base: str) -> list[str]:
    words = SAMPLED.get(recipe.task.kind, SAMPLED["i2v"])
    if recipe.adapter is None:
        return ["```sh", f"svd models pull {repo}", f"svd sample {words} --bundle {repo}", "```"]
    lora = f"svd sample {words} --lora {LORA}:0.8 --bundle {_repo_of(base) or PurePath(base).name}"
    return [
        "```sh",
        f"hf download {repo} {LORA} --local-dir .",
        lora,
        "```",
        "",
        f"`{LORA}` loads in diffusers, `peft/` with `PeftModel.from_pretrained`, and `{COMFYUI}`, where it is here, in ComfyUI.",
    ]


def _losses(curves: Curves) -> list[str]:
    """The first and the last value of what was measured on held-out clips, and of the training loss."""
    wanted = {
        name: points for name, points in curves.items() if name.startswith("held_out") or name == "loss"
    }
    rows = []
    for name, points in sorted(wanted.items()):
        told = name.replace("held_out_loss_", "held out, σ ").replace("_", " ")
        rows.append((told, *(f"{value:.4g} (step {step:.0f})" for step, value in (points[0], points[-1]))))
    return _table(("loss", "first", "last"), rows) if rows else ["None was logged."]


def _time(folder: Path) -> list[tuple[str, str]]:
    found = sessions(folder)
    devices = dict.fromkeys(str(entry["device"]) for entry in found if "device" in entry)
    return [("device", ", ".join(devices))] if devices else []


def _table(head: tuple[str, ...], rows: list[Any]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
