"""The paper's first finding (§3.2, fig. 3a) at a very small scale: a video model that begins from an image model, against one
that begins from random weights, after equally many steps on video.

    python tests/benchmarks/study_pretraining.py VIDEOS [--out FOLDER] [--seeds N] [--steps IMAGES VIDEOS LARGE]

Each seed trains stage 1 of recipes/nano once and stages 2 and 3 twice, with and without it, at the same clips and the same noise.
All is resumable: the same command goes on where it was stopped. Prints the held-out losses of both arms, their difference seed by
seed, and its 95 % interval (Student's t over the seeds); writes the same to FOLDER/result.json. The paper's own figure is a
preference of people: image pretraining is preferred both for quality and for following the prompt.

What it is not: a measure of the full-size model. Steps, pictures and network are a thousandth of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from svdcli.engine.train import METRICS, RECIPE, train
from svdcli.io.files import atomic_path
from svdcli.recipe.reading import read_tree
from svdcli.recipe.recipe import parse_recipe
from svdcli.shipped import shipped_path

ARMS = ("image", "random")
STAGES = ("stage2", "stage3")
SMALL = (
    "task.block_out_channels=[32,64]",
    "task.num_attention_heads=[2,4]",
    "task.context_dim=16",
    "data.width=128",
    "data.height=64",
    "data.max_frames=24",
    "optim.warmup_steps=20",
    "optim.ema_decay=0.98",
    "machine.accelerator=cpu",
)
OF_CLIPS = ("task.num_frames=[8]", "task.camera_moves=0", "run.batch_size=2")
"""Changes of the nano recipes, so that all of it takes minutes and not days."""


def run(name: str, folder: Path, start: Path | None, source: Path, steps: int, *changes: str) -> None:
    """One training of a nano recipe on `source`, from the run that lies in `start`; nothing where it is done."""
    if last_step(folder) >= steps:
        return
    path = shipped_path("recipes", "nano", f"{name}.toml")
    tree = read_tree(
        path,
        [
            *SMALL,
            f"task.vae={shipped_path('assets', 'nano')}",
            f"data.source={source}",
            f"run.folder={folder}",
            f"run.num_steps={steps}",
            f"run.evaluate_every={steps}",
            *changes,
        ],
    )
    if start is None:
        tree["task"].pop("start", None)
    else:
        tree["task"]["start"] = str(start / "bundle")
    recipe = parse_recipe(tree, str(path))
    print(f"{folder.name}: from step {max(0, last_step(folder))} to {steps}", file=sys.stderr, flush=True)
    train(recipe, lambda step, figures: None)


def last_step(folder: Path) -> int:
    """Of a run that is exported, or -1: such a run is not begun again."""
    if not (folder / "bundle" / "model_index.json").exists() or not (folder / RECIPE).exists():
        return -1
    with open(folder / METRICS, newline="") as file:
        return max(int(row[0]) for row in csv.reader(file))


def held_out(folder: Path, steps: int) -> dict[str, float]:
    """The last held-out losses of a run."""
    with open(folder / METRICS, newline="") as file:
        rows = [
            row for row in csv.reader(file) if row[1].startswith("held_out_loss") and int(row[0]) == steps
        ]
    return {name: float(value) for _, name, value in rows}


def train_seed(seed: int, options: argparse.Namespace) -> None:
    """All trainings of one seed."""
    images, clips, large = options.steps
    images_run = options.out / f"{seed}-stage1"
    run("stage1", images_run, None, options.videos, images, f"run.seed={seed}")
    for arm in ARMS:
        start = images_run if arm == "image" else None
        for name, steps in zip(STAGES, (clips, large), strict=True):
            folder = options.out / f"{seed}-{arm}-{name}"
            run(name, folder, start, options.videos, steps, *OF_CLIPS, f"run.seed={seed}")
            start = folder


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each stage and figure: means of both arms, the mean difference and its interval."""
    rows = []
    for name, steps in zip(STAGES, options.steps[1:], strict=True):
        losses = {
            arm: [held_out(options.out / f"{seed}-{arm}-{name}", steps) for seed in range(options.seeds)]
            for arm in ARMS
        }
        for figure in losses["image"][0]:
            image, random = (np.array([run[figure] for run in losses[arm]]) for arm in ARMS)
            differences = random - image
            rows.append(
                {
                    "stage": name,
                    "figure": figure,
                    "image": float(image.mean()),
                    "random": float(random.mean()),
                    "random - image": float(differences.mean()),
                    "interval": interval(differences),
                    "by seed": differences.tolist(),
                }
            )
    return rows


def interval(values: np.ndarray) -> list[float]:
    """Of the mean of one value a seed, 95 % (Student's t); without bounds for a single seed."""
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.inf
    half = float(student.ppf(0.975, max(1, len(values) - 1)) * error)
    return [float(values.mean()) - half, float(values.mean()) + half]


def show(rows: Sequence[dict[str, Any]]) -> None:
    print(f"{'stage':8}{'held-out loss':20}{'image':>9}{'random':>9}{'difference and 95 % interval':>34}")
    for row in rows:
        low, high = row["interval"]
        verdict = "image better" if low > 0 else "random better" if high < 0 else "undecided"
        print(
            f"{row['stage']:8}{row['figure'].removeprefix('held_out_'):20}{row['image']:9.4f}{row['random']:9.4f}"
            f"{row['random - image']:+12.4f} [{low:+.4f}, {high:+.4f}]  {verdict}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, nargs=3, default=(120, 80, 30), metavar=("IMAGES", "VIDEOS", "LARGE")
    )
    options = parser.parse_args(argv)
    options.videos, options.out = options.videos.resolve(), options.out.resolve()
    for seed in range(options.seeds):
        train_seed(seed, options)
    rows = compare(options)
    with atomic_path(options.out / "result.json") as temporary:
        temporary.write_text(
            json.dumps({"steps": list(options.steps), "seeds": options.seeds, "rows": rows}, indent=1) + "\n"
        )
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
