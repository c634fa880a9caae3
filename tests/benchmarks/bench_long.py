"""Long video of an image-to-video bundle: windows beside naive chaining, by flicker, drift and seams.

    python tests/benchmarks/bench_long.py PICTURE... --out FOLDER [--bundle nano] [--frames 120] [--size 128x72]

windows      `svd sample --frames 120`: windows that share a quarter of their frames, colours pulled half way back
known        the same by continuation: each window goes on from the last three frames, which are held wholly
chained      naive: each clip is made of the last frame of the one before, and nothing else is known

Of each: flicker (second difference in time by brightness, see `evaluate.frames.flicker`), how far colour, contrast and
sharpness have gone from the first frame's over the last quarter, and how much larger the change at seams is than elsewhere
(1 is no seam). `results.json` is printed too; `frames.png` shows every tenth frame.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svdcli.engine.generate import Sampling, condition, decode, denoise
from svdcli.engine.long import changed, first_picture, generate_windows
from svdcli.engine.memory import Residence
from svdcli.engine.subjects import Still, Told
from svdcli.evaluate.frames import flicker
from svdcli.io.images import write_png
from svdcli.io.sheet import contact_sheet
from svdcli.model.bundle import open_bundle

Frames = npt.NDArray[np.uint8]
KNOWN = 3


def windows(residence: Residence, told: Told) -> tuple[Tensor, list[int]]:
    return generate_windows(residence, told, 0), told.sampling.starts()[1:]


@torch.inference_mode()
def chained(residence: Residence, told: Told, known: int) -> tuple[Tensor, list[int]]:
    """Clip after clip from the last `known` frames of the one before; with 1, of its last frame alone, as people do by hand."""
    assert told.picture is not None
    piece = replace(told.sampling, num_frames=told.sampling.at_once)
    latents, seams = denoise(residence, told.conditioning, [0], piece)[0], []
    while len(latents) < told.sampling.num_frames:
        shared = latents[-known:]
        reference = torch.from_numpy(told.picture)
        picture = (
            first_picture(residence, shared, reference) if known > 1 else plain_picture(residence, shared)
        )
        conditioning = condition(residence, picture[None], [0], piece)
        change = partial(changed, known=shared if known > 1 else None, held=None, leading=0, let_go=False)
        made = denoise(residence, conditioning, [len(latents)], piece, None, change)[0]
        seams.append(len(latents))
        latents = torch.cat([latents, made[known:]])
    return latents[: told.sampling.num_frames], seams


def plain_picture(residence: Residence, latents: Tensor) -> Tensor:
    """The last of latents (t, c, h, w) as a picture (3, H, W) in [-1, 1]."""
    frames, _ = decode(residence, latents[-1:], None, 0)
    return torch.from_numpy(frames[0]).movedim(-1, 0).float() / 127.5 - 1


METHODS: dict[str, Callable[[Residence, Told], tuple[Tensor, list[int]]]] = {
    "windows": windows,
    "chained": partial(chained, known=1),
    "known": partial(chained, known=KNOWN),
}


def measures(frames: Frames, seams: list[int]) -> dict[str, float]:
    """See the head of this file; colour and contrast in levels of 255, sharpness as a ratio."""
    floats = frames.astype(np.float32)
    late, colour = floats[-len(floats) // 4 :], floats.mean((1, 2))
    sharp = [cv2.Laplacian(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var() for f in frames]
    change = np.abs(np.diff(floats, axis=0)).mean((1, 2, 3))
    at = [s - 1 for s in seams if s - 1 < len(change)]
    rest = np.delete(change, at)
    return {
        "flicker": float(flicker(frames)),
        "colour drift": float(np.abs(colour[-len(late) :].mean(0) - colour[0]).mean()),
        "contrast drift": float(abs(late.std((1, 2)).mean() - floats[0].std((0, 1)).mean())),
        "sharpness left": float(np.mean(sharp[-len(late) :]) / sharp[0]),
        "seam": float(np.mean(change[at]) / np.median(rest)) if at else 1.0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--window", type=int, default=14)
    parser.add_argument("--size", default="128x72")
    parser.add_argument("--steps", type=int)
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    files = open_bundle(wanted.bundle)
    residence = Residence(files, "high", torch.device("cpu"), torch.float32)
    width, height = map(int, wanted.size.split("x"))
    sampling = replace(
        Sampling.of(files.settings),
        num_frames=wanted.frames,
        window=wanted.window,
        width=width,
        height=height,
    )
    sampling = replace(sampling, num_steps=wanted.steps or sampling.num_steps)
    table: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    rows, titles = [], []
    for picture in wanted.pictures:
        told = Still(picture).tell(residence, 0, sampling)
        for name, method in METHODS.items():
            latents, seams = method(residence, told)
            frames = decode(residence, latents, 16, 3)[0]
            table[name].append(measures(frames, seams))
            rows.append(frames[:: max(1, len(frames) // 12)])
            titles.append(f"{picture.name}, {name}")
            results: dict[str, Any] = {n: {k: round(float(np.mean([m[k] for m in of])), 3) for k in of[0]}
                                       for n, of in table.items() if of}  # fmt: skip
            (wanted.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            write_png(wanted.out / "frames.png", contact_sheet(rows, titles, 13))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
