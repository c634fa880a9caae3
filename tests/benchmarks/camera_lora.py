"""A camera LoRA of the embedded bundle, end to end: clips of one move made of stills, training, and whether samples move so.

    OMP_NUM_THREADS=1 python tests/benchmarks/camera_lora.py make zoom-in VIDEOS WORK
    svd train nano/finetune/camera-lora --set data.source=WORK/clips --set run.folder=WORK/run --set adapter.trigger=zoom_in
    OMP_NUM_THREADS=1 python tests/benchmarks/camera_lora.py measure zoom-in VIDEOS WORK [--lora FILE] [--size 256 144]

VIDEOS is a folder of any videos. Clips are made of frames of some of them; the samples are made of frames of the others.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from svdcli.data.camera import Kind, move
from svdcli.data.camera_class import Class, camera_class
from svdcli.data.footage import cover
from svdcli.data.reader import Corrupt, open_reader
from svdcli.engine.detail import carry_detail
from svdcli.engine.generate import Sampling, decode, generate
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.io.video import write_video
from svdcli.model.bundle import open_bundle
from svdcli.model.lora import open_lora
from svdcli.recipe.recipe import load_recipe

Frames = npt.NDArray[np.uint8]
Size = tuple[int, int]
SIZE = (128, 72)
NUM_CLIPS, NUM_HELD_OUT, NUM_FRAMES, FPS = 120, 6, 20, 7.0
NUM_SAMPLES, LENGTH = 12, 14


@dataclass(frozen=True)
class Taught:
    """A move that a LoRA is trained on."""

    name: Class
    kind: Kind
    reach: tuple[float, float]
    """How far a clip goes, shares of the still: motion buckets around 140, from which samples at 60 to 127 learn all the same."""
    angle: float = 0.0
    detail: int = 1
    """Sides of the still in those of the clip: more than 1 where the view narrows, else the clip would teach to blur."""

    @property
    def axis(self) -> str:
        """What its speed is one of: pan, tilt or zoom."""
        return self.name.split("_")[0]


MOVES = {
    "pan-left": Taught("pan_left", "pan", (0.05, 0.12), angle=np.pi),
    "tilt-up": Taught("tilt_up", "pan", (0.05, 0.12), angle=-np.pi / 2),
    "zoom-in": Taught("zoom_in", "in", (0.18, 0.22), detail=2),
}


def stills(folder: Path, held_out: bool, size: Size) -> list[Frames]:
    """Frames (H, W, 3) of each video that the nano recipe trains on, or holds out: of its middle and of before it."""
    data = load_recipe(Path("recipes/nano/i2v.toml")).data
    found = []
    for path in sorted(folder.iterdir()):
        if any(path.match(p) for p in data.exclude) or any(path.match(p) for p in data.held_out) != held_out:
            continue
        try:
            reader = open_reader(path, path.name, "pyav", None)
            middle = len(reader.times) // 2
            found += [cover(frame, *size) for frame in reader.read([middle // 2, middle])]
        except Corrupt:
            continue
    return found


def clip_of(still: Frames, taught: Taught, reach: float) -> Frames:
    """A still (detail H, detail W, 3) -> a clip (T, H, W, 3) that moves so."""
    frames = move(still, NUM_FRAMES, taught.kind, reach, taught.angle)
    if taught.detail == 1:
        return frames
    return np.stack([cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA) for frame in frames])


def make(taught: Taught, videos: Path, work: Path) -> None:
    """Clips that move so, at all speeds."""
    rng = np.random.default_rng(0)
    (work / "clips").mkdir(parents=True, exist_ok=True)
    for held_out, count in ((False, NUM_CLIPS), (True, NUM_HELD_OUT)):
        pictures = stills(videos, held_out, (taught.detail * SIZE[0], taught.detail * SIZE[1]))
        for index in range(count):
            clip = clip_of(pictures[index % len(pictures)], taught, rng.uniform(*taught.reach))
            name = f"{'held-out' if held_out else taught.kind}-{index:03d}.mp4"
            write_video(work / "clips" / name, clip, FPS, {}, "mp4")


def samples(pictures: list[Frames], lora: Path | None) -> list[Frames]:
    """A clip of each picture, of its size, with a LoRA or without, as `svd sample` makes it."""
    files = open_bundle("nano")
    if lora:
        files = replace(files, loras=(open_lora(lora, 1.0, files),))
    residence = Residence(files, "high", torch.device("cpu"), torch.float32)
    height, width = pictures[0].shape[:2]
    sampling = replace(Sampling.of(files.settings), num_frames=LENGTH, width=width, height=height)
    clips = [generate(residence, to_pixels(p[None]), [i], sampling)[0] for i, p in enumerate(pictures)]
    decoded = [decode(residence, latents, None, 0)[0] for latents in clips]
    return [carry_detail(frames, {0: p}) for frames, p in zip(decoded, pictures, strict=True)]


def measure(taught: Taught, videos: Path, work: Path, lora: Path, size: Size) -> None:
    """Without the LoRA and with it, the share of samples whose camera class is its own, and how fast each moves; and a sheet.

    Speeds are in shortest sides a second for a pan or a tilt, in logarithms of the scale for a zoom.
    """
    from svdcli.io.images import write_png
    from svdcli.io.sheet import contact_sheet

    pictures = stills(videos, held_out=True, size=size)[::2][:NUM_SAMPLES]
    made = {"without": samples(pictures, None), "with": samples(pictures, lora)}
    fps = Sampling.of(open_bundle("nano").settings).fps
    table = {}
    for name, clips in made.items():
        found = [camera_class(clip, fps) for clip in clips]
        speeds = [getattr(m, taught.axis) for _, m, _ in found]
        table[name] = {
            taught.name: sum(c == taught.name for c, _, _ in found) / len(found),
            "classes": [c for c, _, _ in found],
            "speeds": [round(speed, 4) for speed in speeds],
        }
    titles = [f"picture {i}, {name}" for i in range(4) for name in made]
    rows = [made[name][i] for i in range(4) for name in made]
    write_png(work / f"samples-{size[0]}x{size[1]}.png", contact_sheet(rows, titles, 7))
    print(json.dumps(table, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("make", "measure"))
    parser.add_argument("move", choices=MOVES)
    parser.add_argument("videos", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--lora", type=Path, help="default: WORK/run/lora.safetensors")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, help="of the samples")
    args = parser.parse_args()
    if args.step == "make":
        make(MOVES[args.move], args.videos, args.work)
    else:
        lora = args.lora or args.work / "run" / "lora.safetensors"
        measure(MOVES[args.move], args.videos, args.work, lora, tuple(args.size))


if __name__ == "__main__":
    main()
