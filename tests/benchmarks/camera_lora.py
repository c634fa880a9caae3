"""A camera LoRA of the embedded bundle, end to end: panning clips made of stills, training, and whether samples pan.

    OMP_NUM_THREADS=1 python tests/benchmarks/camera_lora.py make VIDEOS WORK
    svd train nano/finetune/camera-lora --set data.source=WORK/clips --set run.folder=WORK/run
    OMP_NUM_THREADS=1 python tests/benchmarks/camera_lora.py measure VIDEOS WORK

VIDEOS is a folder of any videos. Clips are made of frames of some of them; the samples are made of frames of the others.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from svdcli.data.camera import move
from svdcli.data.camera_class import camera_class
from svdcli.data.footage import cover
from svdcli.data.reader import Corrupt, open_reader
from svdcli.engine.generate import Sampling, decode, generate
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.io.video import write_video
from svdcli.model.bundle import open_bundle
from svdcli.model.lora import open_lora
from svdcli.recipe.recipe import load_recipe

Frames = npt.NDArray[np.uint8]
SIZE = (128, 72)
NUM_CLIPS, NUM_HELD_OUT, NUM_FRAMES, FPS = 120, 6, 20, 7.0
REACH = (0.05, 0.12)
"""How far a clip pans, shares of the still: motion buckets of 147 to 170, from which samples at 60 to 127 learn all the same."""
LEFT = np.pi
"""Angle of a view that moves left, see `svdcli.data.camera.move`."""
NUM_SAMPLES, LENGTH = 12, 14
STRENGTHS = (0.0, 1.0)


def stills(folder: Path, held_out: bool) -> list[Frames]:
    """A frame (H, W, 3) of the middle of each video that the nano recipe trains on, or holds out."""
    data = load_recipe(Path("recipes/nano/i2v.toml")).data
    found = []
    for path in sorted(folder.iterdir()):
        if any(path.match(p) for p in data.exclude) or any(path.match(p) for p in data.held_out) != held_out:
            continue
        try:
            reader = open_reader(path, path.name, "pyav", None)
            middle = len(reader.times) // 2
            found += [cover(frame, *SIZE) for frame in reader.read([middle // 2, middle])]
        except Corrupt:
            continue
    return found


def make(videos: Path, work: Path) -> None:
    """Clips that pan left, of all speeds."""
    rng = np.random.default_rng(0)
    (work / "clips").mkdir(parents=True, exist_ok=True)
    for held_out, count in ((False, NUM_CLIPS), (True, NUM_HELD_OUT)):
        pictures = stills(videos, held_out)
        for index in range(count):
            reach = rng.uniform(*REACH)
            clip = move(pictures[index % len(pictures)], NUM_FRAMES, "pan", reach, LEFT)
            name = f"{'held-out' if held_out else 'pan'}-{index:03d}.mp4"
            write_video(work / "clips" / name, clip, FPS, {}, "mp4")


def samples(pictures: list[Frames], loras: dict[float, str]) -> dict[str, list[Frames]]:
    """Clips of each picture at each strength of a LoRA."""
    made: dict[str, list[Frames]] = {}
    for strength, path in loras.items():
        files = open_bundle("nano")
        files = replace(files, loras=(open_lora(Path(path), strength, files),))
        residence = Residence(files, "high", torch.device("cpu"), torch.float32)
        sampling = replace(Sampling.of(files.settings), num_frames=LENGTH, width=SIZE[0], height=SIZE[1])
        clips = [generate(residence, to_pixels(p[None]), [i], sampling)[0] for i, p in enumerate(pictures)]
        made[str(strength)] = [decode(residence, latents, None, 0)[0] for latents in clips]
    return made


def measure(videos: Path, work: Path) -> None:
    """At each strength the share of samples whose camera class is a pan to the left, and how fast each pans, in shortest sides
    a second; and a sheet of some."""
    from svdcli.io.images import write_png
    from svdcli.io.sheet import contact_sheet

    pictures = stills(videos, held_out=True)[::2][:NUM_SAMPLES]
    made = samples(pictures, dict.fromkeys(STRENGTHS, str(work / "run" / "lora.safetensors")))
    table = {}
    for strength, clips in made.items():
        found = [camera_class(clip, Sampling.of(open_bundle("nano").settings).fps) for clip in clips]
        table[strength] = {
            "pan_left": sum(name == "pan_left" for name, _, _ in found) / len(found),
            "classes": [name for name, _, _ in found],
            "pans": [round(move.pan, 4) for _, move, _ in found],
        }
    titles = [f"picture {i}, strength {s}" for i in range(4) for s in made]
    rows = [made[s][i] for i in range(4) for s in made]
    write_png(work / "samples.png", contact_sheet(rows, titles, 7))
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    {"make": make, "measure": measure}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
