"""Text-to-video with words at the size of the embedded bundle: captioned clips, training, and whether samples follow words.

    OMP_NUM_THREADS=1 python tests/benchmarks/t2v_words.py make VIDEOS WORK
    svd train nano/words --set data.source=WORK/clips --set task.text=WORK/text --set run.folder=WORK/run
    OMP_NUM_THREADS=1 python tests/benchmarks/t2v_words.py measure WORK

VIDEOS is a folder with the videos named in THINGS. A view moves over their footage, which itself moves, so that a caption
says both what is seen and what the camera does. What is seen in a sample is told by the nearest mean thumbnail of the clips
trained on, what the camera does by `svdcli.data.camera_class`; both probes are first tried on clips that were held out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from svdcli.data.camera import view
from svdcli.data.camera_class import Class, camera_class
from svdcli.data.footage import cover
from svdcli.data.reader import open_reader
from svdcli.engine.generate import Sampling, condition_on_prompts, decode, denoise
from svdcli.engine.memory import Residence
from svdcli.io.video import read_video, write_video
from svdcli.model.bundle import open_bundle

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from small_text import save_small_text_encoder  # noqa: E402

Frames = npt.NDArray[np.uint8]
THINGS = {
    "bottles on a table": ("intel_samples__bottle-detection.mp4",),
    "people in a yard": ("opencv__vtest.mp4",),
    "a man signs": ("intel_asl__again.mkv", "intel_asl__help.mkv"),
    "a dog on a path": ("sam2__01_dog.mp4",),
}
"""What is seen, and where; the last fifth of each video is held out. No traffic: the probe takes it for a moving camera."""
MOVES: dict[str, Class] = {"pans left": "pan_left", "pans right": "pan_right", "tilts up": "tilt_up"}
"""What the camera does. No zoom: recipes/nano/finetune/camera-lora.toml says what a network of this size makes of one."""
SIZE, NUM_FRAMES, FPS = (128, 72), 8, 7.0
TRAINED, HELD_OUT = 8, 2
"""Clips of each thing and move."""
VIEW = 0.65
"""Sides of the view that moves, as a share of the frame's."""
HELD_OUT_SHARE = 0.2
SEEDS = (0, 1)
THUMBNAIL = (16, 9)


def caption(thing: str, move: str) -> str:
    return f"{thing}, the camera {move}"


def footage(path: Path, held_out: bool, rng: np.random.Generator) -> Frames:
    """A window (T, H, W, 3) of the video's part that is trained on, or held out; as slow as it has to be for its length."""
    reader = open_reader(path, path.name, "pyav", None)
    times = np.asarray(reader.times, dtype=float)
    edge = int(len(times) * (1 - HELD_OUT_SHARE))
    first, end = (edge, len(times)) if held_out else (0, edge)
    rate = (len(times) - 1) / (times[-1] - times[0])
    stride = max(1, min(round(rate / FPS), (end - first - 1) // (NUM_FRAMES - 1)))
    start = first + int(rng.integers(end - first - (NUM_FRAMES - 1) * stride))
    numbers = [min(start + i * stride, end - 1) for i in range(NUM_FRAMES)]
    return np.stack([cover(frame, 2 * SIZE[0], 2 * SIZE[1]) for frame in reader.read(numbers)])


def moved(frames: Frames, move: str) -> Frames:
    """Frames (T, 2 H, 2 W, 3) as a view sees them that moves so -> (T, H, W, 3)."""
    way = np.linspace(-0.5, 0.5, NUM_FRAMES)[:, None] * (1 - VIEW)
    centres = way * {"pan_left": (-1, 0), "pan_right": (1, 0), "tilt_up": (0, -1)}[MOVES[move]]
    full = frames.shape[2], frames.shape[1]
    seen = [view(frame, VIEW, centre, full) for frame, centre in zip(frames, centres, strict=True)]
    return np.stack([cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA) for frame in seen])


def make(videos: Path, work: Path) -> None:
    """Clips with a caption beside each, and a text encoder that knows their words."""
    rng = np.random.default_rng(0)
    (work / "clips").mkdir(parents=True, exist_ok=True)
    for thing, names in THINGS.items():
        for move in MOVES:
            for index in range(TRAINED + HELD_OUT):
                held_out = index >= TRAINED
                clip = moved(footage(videos / names[index % len(names)], held_out, rng), move)
                name = f"{'held-out' if held_out else 'clip'} {caption(thing, move)} {index}".replace(
                    " ", "-"
                )
                write_video(work / "clips" / f"{name}.mp4", clip, FPS, {}, "mp4")
                (work / "clips" / f"{name}.txt").write_text(caption(thing, move))
    save_small_text_encoder(work / "text", [caption(t, m) for t in THINGS for m in MOVES], 64)


# ---- the probes ----------------------------------------------------------------------------------------


def thumbnail(clip: Frames) -> npt.NDArray[np.float64]:
    """A clip (T, H, W, 3) -> its mean frame, small, as one vector."""
    return cv2.resize(clip.mean(axis=0), THUMBNAIL, interpolation=cv2.INTER_AREA).ravel()


def thing_of(clip: Frames, means: dict[str, npt.NDArray[np.float64]]) -> str:
    """What is seen: the thing whose mean thumbnail is nearest."""
    small = thumbnail(clip)
    return min(means, key=lambda thing: float(np.linalg.norm(means[thing] - small)))


def move_of(clip: Frames) -> str:
    """What the camera does, in the words of captions, or a class that they have no words for."""
    found, _, _ = camera_class(clip, FPS)
    return next((words for words, name in MOVES.items() if name == found), found)


def clips_of(work: Path, pattern: str, thing: str, move: str | None = None) -> list[Frames]:
    stem = (caption(thing, move) if move else f"{thing}, the camera *").replace(" ", "-")
    return [read_video(path)[0] for path in sorted((work / "clips").glob(f"{pattern}-{stem}-*.mp4"))]


# ---- measuring -----------------------------------------------------------------------------------------


def samples(bundle: Path) -> dict[tuple[str, str], list[Frames]]:
    """A clip of each caption and seed."""
    files = open_bundle(bundle)
    residence = Residence(files, "high", torch.device("cpu"), torch.float32)
    sampling = Sampling.of(files.settings)
    made = {}
    for thing in THINGS:
        for move in MOVES:
            told = condition_on_prompts(residence, [caption(thing, move)], "", sampling)
            clips = [denoise(residence, told, [seed], sampling)[0] for seed in SEEDS]
            made[thing, move] = [decode(residence, latents, None, 0)[0] for latents in clips]
    return made


def judge(clips: dict[tuple[str, str], list[Frames]], means: dict[str, npt.NDArray[np.float64]]) -> dict:
    """How often what is seen and what the camera does are what the caption says, and what was taken for what."""
    things: dict[str, dict[str, int]] = {}
    moves: dict[str, dict[str, int]] = {}
    for (thing, move), some in clips.items():
        for clip in some:
            for table, asked, found in ((things, thing, thing_of(clip, means)), (moves, move, move_of(clip))):
                row = table.setdefault(asked, {})
                row[found] = row.get(found, 0) + 1
    count = sum(len(some) for some in clips.values())
    return {
        "samples": count,
        "thing_right": sum(row.get(asked, 0) for asked, row in things.items()) / count,
        "thing_by_chance": 1 / len(THINGS),
        "move_right": sum(row.get(asked, 0) for asked, row in moves.items()) / count,
        "move_by_chance": 1 / len(MOVES),
        "things": things,
        "moves": moves,
    }


def measure(work: Path) -> None:
    """Both probes on held-out clips and on samples; and a sheet of some."""
    from svdcli.io.images import write_png
    from svdcli.io.sheet import contact_sheet

    means = {
        thing: np.mean([thumbnail(c) for c in clips_of(work, "clip", thing)], axis=0) for thing in THINGS
    }
    real = {(thing, move): clips_of(work, "held-out", thing, move) for thing in THINGS for move in MOVES}
    made = samples(work / "run" / "bundle")
    rows = {caption(*asked): clips[0] for asked, clips in made.items()}
    write_png(work / "samples.png", contact_sheet(list(rows.values()), list(rows), NUM_FRAMES))
    print(json.dumps({"held_out": judge(real, means), "samples": judge(made, means)}, indent=1))


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        measure(Path(sys.argv[2]))
