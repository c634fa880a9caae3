"""Held-out objects seen all around by a multi-view bundle, beside what costs nothing: a still, a mirrored still, a blank frame.

    python tests/benchmarks/nano_orbits.py BUNDLE ORBITS [--objects N] [--sheet sheet.png] [--points MESHES]

The objects are those that the bundle's training held out: ORBITS is a folder that `svd curate objaverse` wrote, and the recipe
in svd.json says which were kept. Views are compared at the bundle's size, over white; the given view itself is left out.
Perceptual distance (st-lpips, not the LPIPS of papers) is of the whole frame. With --points, the folder of the meshes, point
clouds are made of the generated and of the true views, by the same function at the same size, and compared with the meshes as
in bench_points.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_points import scores, truth_of

from svdcli.engine.generate import Sampling, decode, denoise
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.engine.orbit import condition_orbits
from svdcli.engine.tasks.orbits import Orbits, open_orbits
from svdcli.errors import InputError
from svdcli.evaluate.lpips import load_st_lpips
from svdcli.evaluate.views import Judges, compare_view, mean_rows
from svdcli.io.images import write_png
from svdcli.io.sheet import contact_sheet
from svdcli.model.bundle import open_bundle
from svdcli.model.bundle_files import BundleFiles
from svdcli.multiview.cameras import Cameras
from svdcli.multiview.meshes import load_mesh
from svdcli.multiview.points import reconstruct
from svdcli.multiview.views import load_views, write_views
from svdcli.recipe.recipe import parse_recipe

Rows = list[dict[str, Any]]
FIFTHS = 5


@dataclass(frozen=True)
class Seen:
    """A held-out object: the true views, the last one given, and others in their place, all uint8 (T, H, W, 3)."""

    name: str
    cameras: Cameras
    true: np.ndarray
    others: Mapping[str, np.ndarray]


def see(files: BundleFiles, orbits: Path, objects: int, seed: int) -> Iterator[Seen]:
    """Held-out objects of the bundle's own recipe, through the bundle."""
    held_out = held_out_of(files, orbits)
    count = files.settings.num_frames
    residence = Residence(files, "high", torch.device("cpu"), torch.float32)
    sampling = Sampling.of(files.settings)
    for video in held_out.videos[:objects]:
        true = held_out.take(video, range(count))
        told = condition_orbits(
            residence,
            to_pixels(true[-1:]),
            [seed],
            [held_out.orbit(video, range(count))],
            files.settings.pose,
            sampling,
        )
        made, _ = decode(residence, denoise(residence, told, [seed], sampling)[0], None, 0)
        with residence.use("vae") as vae, torch.no_grad():
            alone = vae.decode(vae.encode(to_pixels(true)[None]))[0]
        through = ((alone.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()
        still = np.broadcast_to(true[-1], true.shape)
        cameras = held_out.turn(video).cameras.take(held_out.numbers(video, range(count)))
        yield Seen(
            video.name,
            cameras.resized(true.shape[2], true.shape[1]),
            true,
            {
                "generated": made,
                "still": still,
                "mirrored still": still[:, :, ::-1],
                "blank": np.full_like(true, 255),
                "autoencoder alone": through,
            },
        )


def held_out_of(files: BundleFiles, orbits: Path) -> Orbits:
    """What the training of a bundle kept apart."""
    recipe = parse_recipe(json.loads(files.settings.recipe), "the bundle's recipe")
    data = recipe.data.model_copy(update={"source": orbits})
    return open_orbits(data, (files.settings.num_frames,), 1)[1]


@cache
def judges() -> Judges:
    return Judges(load_st_lpips(), "st-lpips")


def compare(true: np.ndarray, other: np.ndarray) -> Rows:
    """Measures of all views but the given one."""
    rows = []
    for view in range(len(true) - 1):
        real, made = (pixels[view].astype(np.float32) / 255 for pixels in (true, other))
        rows.append(dict(compare_view(real, made, (real < 250 / 255).any(axis=2), judges())))
    return rows


def by_fifths(rows: Rows, views: int) -> list[float]:
    """PSNR on the object's box, by fifths of the way around."""
    part = np.arange(len(rows)) % views * FIFTHS // views
    return [
        float(np.mean([row["box"]["psnr"] for row, p in zip(rows, part, strict=True) if p == fifth]))
        for fifth in range(FIFTHS)
    ]


def cloud_scores(
    seen: Seen, views: np.ndarray, truth: np.ndarray, folder: Path
) -> tuple[float, float, float]:
    """Chamfer distance and F-scores of the cloud that `svd points` makes of these views, the given one among them."""
    write_views(folder, [*views[:-1], seen.true[-1]], seen.cameras, {})
    return scores(reconstruct(load_views(folder)).points, truth)


def points(seen: Seen, meshes: Path) -> dict[str, tuple[float, float, float]]:
    """What the clouds of an object's generated and true views score. Raises InputError where one cannot be made."""
    mesh = load_mesh(meshes / seen.name)
    truth, _ = truth_of(mesh)
    found = {}
    for kind, views in (("generated", seen.others["generated"]), ("true", seen.true)):
        with tempfile.TemporaryDirectory() as folder:
            found[kind] = cloud_scores(seen, views, truth, Path(folder))
    return found


def report(rows: Mapping[str, Rows], views: int) -> None:
    print(
        f"{'':18} {'PSNR':>6} {'SSIM':>6} {'box':>6} {'SSIM':>6} {'object':>7} {'st-lpips':>8}   box, by fifths of the orbit"
    )
    for kind, found in rows.items():
        mean = mean_rows(found)
        fifths = " ".join(f"{value:5.1f}" for value in by_fifths(found, views))
        print(
            f"{kind:18} {mean['whole']['psnr']:6.2f} {mean['whole']['ssim']:6.3f} {mean['box']['psnr']:6.2f} "
            f"{mean['box']['ssim']:6.3f} {mean['foreground']['psnr']:7.2f} "
            f"{mean['whole']['st-lpips']:8.3f}   {fifths}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("orbits", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--objects", type=int, default=16, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--points", type=Path, help="folder of the meshes, for point clouds too")
    asked = parser.parse_args()
    files = open_bundle(asked.bundle)
    rows: dict[str, Rows] = {}
    clouds: dict[str, list[tuple[float, float, float]]] = {}
    pictures, titles = [], []
    for seen in see(files, asked.orbits, asked.objects, asked.seed):
        of_kind = {kind: compare(seen.true, other) for kind, other in seen.others.items()}
        for kind, found in of_kind.items():
            rows.setdefault(kind, []).extend(found)
        pictures += [seen.true, seen.others["generated"]]
        titles += [f"{seen.name}: true", "generated"]
        box = {kind: mean_rows(of_kind[kind])["box"]["psnr"] for kind in ("generated", "still")}
        print(f"{seen.name:45} box: {box['generated']:.2f} dB, still {box['still']:.2f}", flush=True)
        if asked.points:
            try:
                for kind, of_cloud in points(seen, asked.points).items():
                    clouds.setdefault(kind, []).append(of_cloud)
                    print(f"{'':45} cloud of {kind} views: {_scores(of_cloud)}", flush=True)
            except InputError as error:
                print(f"{'':45} no cloud: {error.message}", flush=True)
    report(rows, files.settings.num_frames - 1)
    for kind, found in clouds.items():
        print(f"clouds of {kind} views, mean of {len(found)}: {_scores(tuple(np.mean(found, axis=0)))}")
    if asked.sheet:
        write_png(asked.sheet, contact_sheet(pictures, titles, files.settings.num_frames, 64))


def _scores(found: tuple[float, ...]) -> str:
    chamfer, near, far = found
    return f"Chamfer {chamfer:.4f}, F.01 {near:.3f}, F.02 {far:.3f}"


if __name__ == "__main__":
    main()
