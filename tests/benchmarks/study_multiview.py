"""The paper's third finding (§4.5, fig. 8) at a very small scale: a multi-view model that begins from a video model, from an
image model or from random weights, after equally many steps on the same orbits.

    python tests/benchmarks/study_pretraining.py VIDEOS --out FOLDER     (the video and the image models, a seed each)
    python tests/benchmarks/study_multiview.py FOLDER ORBITS [--out FOLDER] [--seeds N] [--steps N] [--objects N]

ORBITS is a folder that `svd curate objaverse` wrote. Each seed trains recipes/nano/multiview.toml three times, at the same orbits
and the same noise, and is judged on the objects that the recipe holds out: PSNR and SSIM of all views but the given one, on the
whole frame and on the object's box, and the held-out loss. All is resumable: the same command goes on where it was stopped.
Prints each arm's means, and the differences of neighbours in the paper's order seed by seed with their 95 % intervals (Student's
t over the seeds); writes the same to FOLDER/result.json.

What it is not: a measure of the full-size model. Steps, pictures and network are a thousandth of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nano_orbits import Rows, by_fifths, compare, see
from study_pretraining import held_out, interval, run

from svdcli.evaluate.views import mean_rows
from svdcli.io.files import atomic_path
from svdcli.model.bundle import open_bundle

ARMS = {"video": "{seed}-image-stage3", "image": "{seed}-stage1", "scratch": None}
"""The run of study_pretraining.py that each arm begins from, in the paper's order."""
FLOORS = ("still", "mirrored still", "blank", "autoencoder alone")
SIZE = ("data.width=96", "data.height=96")


def judge(bundle: Path, orbits: Path, objects: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Figures of a bundle's views, and of what costs nothing, over held-out objects."""
    rows: dict[str, Rows] = {}
    files = open_bundle(str(bundle))
    for seen in see(files, orbits, objects, 0):
        for kind, pixels in seen.others.items():
            rows.setdefault(kind, []).extend(compare(seen.true, pixels))
    views = files.settings.num_frames - 1
    figures = {kind: figures_of(found, views) for kind, found in rows.items()}
    return figures["generated"], {kind: figures[kind] for kind in FLOORS}


def figures_of(rows: Rows, views: int) -> dict[str, float]:
    mean = mean_rows(rows)
    named = {
        f"{region} {measure}": mean[region][measure]
        for region in ("whole", "box")
        for measure in ("psnr", "ssim")
    }
    named["st-lpips"] = mean["whole"]["st-lpips"]
    return named | {
        f"box psnr, fifth {fifth + 1}": value for fifth, value in enumerate(by_fifths(rows, views))
    }


def train_and_judge(options: argparse.Namespace) -> tuple[dict[str, list[dict[str, float]]], Any]:
    """Figures of each arm by seed, and of what costs nothing."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    floors: Any = None
    for seed in range(options.seeds):
        for arm, of_run in ARMS.items():
            folder = options.out / f"{seed}-{arm}"
            start = options.pretrained / of_run.format(seed=seed) if of_run else None
            run(
                "multiview", folder, start, options.orbits, options.steps,
                *SIZE, f"run.seed={seed}", "optim.ema_decay=0.98", "task.export=half",
            )  # fmt: skip
            figures, floors = judge(folder / "bundle", options.orbits, options.objects)
            found[arm].append(figures | held_out(folder, options.steps))
            print(f"{folder.name}: box {figures['box psnr']:.2f} dB", file=sys.stderr, flush=True)
    return found, floors


def differences(found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """A row for each figure and each pair of neighbours in the paper's order."""
    rows = []
    arms = list(ARMS)
    for better, worse in zip(arms[:-1], arms[1:], strict=True):
        for figure in found[better][0]:
            values = np.array(
                [a[figure] - b[figure] for a, b in zip(found[better], found[worse], strict=True)]
            )
            rows.append(
                {
                    "pair": f"{better} - {worse}",
                    "figure": figure,
                    "difference": float(values.mean()),
                    "interval": interval(values),
                    "by seed": values.tolist(),
                }
            )
    return rows


def show(
    found: dict[str, list[dict[str, float]]], floors: dict[str, dict[str, float]], rows: list[dict[str, Any]]
) -> None:
    figures = list(found["video"][0])
    print(f"{'':28}" + "".join(f"{arm:>10}" for arm in ARMS) + "".join(f"{floor:>19}" for floor in FLOORS))
    for figure in figures:
        means = "".join(f"{np.mean([seed[figure] for seed in found[arm]]):10.4f}" for arm in ARMS)
        beside = "".join(f"{floors[floor][figure]:19.4f}" for floor in FLOORS if figure in floors[floor])
        print(f"{figure:28}{means}{beside}")
    for row in rows:
        low, high = row["interval"]
        print(
            f"{row['pair']:16} {row['figure']:28} {row['difference']:+9.4f} [{low:+.4f}, {high:+.4f}]"
            f"{'' if low <= 0 <= high else '  certain'}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pretrained", type=Path)
    parser.add_argument("orbits", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/multiview"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--objects", type=int, default=12)
    options = parser.parse_args(argv)
    options.pretrained, options.orbits, options.out = (
        path.resolve() for path in (options.pretrained, options.orbits, options.out)
    )
    found, floors = train_and_judge(options)
    rows = differences(found)
    said = {"steps": options.steps, "objects": options.objects, "arms": found, "floors": floors, "rows": rows}
    with atomic_path(options.out / "result.json") as temporary:
        temporary.write_text(json.dumps(said, indent=1) + "\n")
    show(found, floors, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
