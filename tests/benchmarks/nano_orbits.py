"""Held-out objects seen all around by a multi-view bundle, beside what costs nothing: a still, a mirrored still, a blank frame.

    python tests/benchmarks/nano_orbits.py runs/nano-multiview/bundle orbits --sheet sheet.png

The objects are those that the bundle's training held out: `orbits` is the folder that `svd curate objaverse` wrote, and the
recipe in svd.json says which were kept. Views are compared at the bundle's size, over white; the given view itself is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svdcli.engine.generate import Sampling, decode, denoise
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.engine.orbit import condition_orbits
from svdcli.engine.tasks.orbits import open_orbits
from svdcli.evaluate.views import Judges, compare_view, mean_rows
from svdcli.io.images import write_png
from svdcli.io.sheet import contact_sheet
from svdcli.model.bundle import open_bundle
from svdcli.recipe.recipe import parse_recipe

Rows = dict[str, list[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("orbits", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--objects", type=int, default=16, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    files = open_bundle(asked.bundle)
    recipe = parse_recipe(json.loads(files.settings.recipe), "the bundle's recipe")
    data = recipe.data.model_copy(update={"source": asked.orbits})
    count = files.settings.num_frames
    _, held_out = open_orbits(data, (count,), 1)
    residence = Residence(files, "high", torch.device("cpu"), torch.float32)
    rows: Rows = {}
    pictures, titles = [], []
    for video in held_out.videos[: asked.objects]:
        true = held_out.take(video, range(count))
        orbit = held_out.orbit(video, range(count))
        sampling = Sampling.of(files.settings)
        told = condition_orbits(
            residence, to_pixels(true[-1:]), [asked.seed], [orbit], files.settings.pose, sampling
        )
        made, _ = decode(residence, denoise(residence, told, [asked.seed], sampling)[0], None, 0)
        with residence.use("vae") as vae, torch.no_grad():
            alone = vae.decode(vae.encode(to_pixels(true)[None]))[0]
        through = ((alone.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
        still = np.broadcast_to(true[-1], true.shape)
        kinds = {
            "generated": made, "still": still, "mirrored still": still[:, :, ::-1], "blank": np.full_like(true, 255),
            "autoencoder alone": through,
        }  # fmt: skip
        compare(rows, true, kinds)
        pictures += [true, made]
        titles += [f"{video.name}: true", "generated"]
        print(
            video.name,
            round(np.mean([r["whole"]["psnr"] for r in rows["generated"][-count + 1 :]]), 2),
            flush=True,
        )
    report(rows, count)
    if asked.sheet:
        write_png(asked.sheet, contact_sheet(pictures, titles, count, 64))


def compare(rows: Rows, true: np.ndarray, kinds: dict[str, np.ndarray]) -> None:
    """Add each kind's measures of all views but the given one."""
    for view in range(len(true) - 1):
        real = true[view].astype(np.float32) / 255
        where = (real < 250 / 255).any(axis=2)
        for kind, pixels in kinds.items():
            other = pixels[view].astype(np.float32) / 255
            rows.setdefault(kind, []).append(compare_view(real, other, where, Judges()))


def report(rows: Rows, count: int) -> None:
    """Means over all views, and of the PSNR of the box by quarters of the way around."""
    print(
        f"{'':18} {'PSNR':>6} {'SSIM':>6} {'box':>6} {'SSIM':>6} {'object':>7}   box, by fifths of the orbit"
    )
    for kind, found in rows.items():
        mean = mean_rows(found)
        views = np.arange(len(found)) % (count - 1)
        parts = [
            np.mean(
                [
                    r["box"]["psnr"]
                    for r, v in zip(found, views, strict=True)
                    if v * 5 // (count - 1) == part and "box" in r
                ]
            )
            for part in range(5)
        ]
        print(
            f"{kind:18} {mean['whole']['psnr']:6.2f} {mean['whole']['ssim']:6.3f} {mean['box']['psnr']:6.2f} "
            f"{mean['box']['ssim']:6.3f} {mean['foreground']['psnr']:7.2f}   {' '.join(f'{p:5.1f}' for p in parts)}"
        )


if __name__ == "__main__":
    main()
