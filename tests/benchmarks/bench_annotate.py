"""What each annotator costs: CPU-seconds a clip of five seconds at 1280x720, one thread.

    python tests/benchmarks/bench_annotate.py --clips 4

Motion, camera, text, quality and duplicates are the real ones. CLIP is ViT-B/32 in its real shape with random weights,
as no tower can be had offline: its cost is right, its scores are not looked at.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from svdcli.curate.annotate import Annotator, View
from svdcli.curate.annotate.clip_embedding import ClipTowers
from svdcli.curate.annotate.registry import annotators
from svdcli.curate.course import CourseMeter
from svdcli.curate.proxy import Proxy
from svdcli.curate.rows import CutClip
from svdcli.io.video import write_video
from svdcli.recipe.curation import Annotate

FPS, SECONDS, WIDTH, HEIGHT = 25, 5, 1280, 720


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    made = annotators(Annotate(), "cpu")
    with tempfile.TemporaryDirectory() as folder:
        views = [make_view(Path(folder), seed) for seed in range(given.clips)]
        print(f"{'annotator':>16} {'CPU-s a clip':>13} {'x real time':>12}")
        for annotator in made:
            if annotator.name in ("motion", "camera", "text", "quality", "duplicates"):
                report(annotator, views)
        for annotator in made:
            if annotator.name == "clip_embedding":
                annotator.towers = RandomTowers(annotator.towers)  # type: ignore[attr-defined]
                report(annotator, views)


def report(annotator: Annotator, views: list[View]) -> None:
    annotator.annotate(views[:1])  # loads what it needs
    begun = time.process_time()
    annotator.annotate(views)
    seconds = (time.process_time() - begun) / len(views)
    print(f"{annotator.name:>16} {seconds:>13.4f} {SECONDS / seconds:>12.0f}", flush=True)


class RandomTowers(ClipTowers):
    """ViT-B/32 of random weights."""

    def __init__(self, real: ClipTowers) -> None:
        super().__init__(real.settings, "cpu")

        def load() -> tuple[object, object, None]:
            from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

            return CLIPModel(CLIPConfig()).eval(), CLIPImageProcessor(), None

        self._parts = load  # type: ignore[assignment]


def make_view(folder: Path, seed: int) -> View:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 255, (60, 100, 3), dtype=np.uint8)
    wide = cv2.resize(noise, (WIDTH + 260, HEIGHT), interpolation=cv2.INTER_CUBIC)
    frames = np.stack([wide[:, 2 * i : 2 * i + WIDTH] for i in range(FPS * SECONDS)])
    path = folder / f"{seed}.mp4"
    write_video(path, frames, FPS, {}, "mp4")
    picked = [round(i * FPS / 2) for i in range(2 * SECONDS)] + [len(frames) - 1]
    small = np.stack([cv2.resize(frames[i], (114, 64), interpolation=cv2.INTER_AREA) for i in picked])
    ends = frames[[0, len(frames) // 2, -1]]
    keys = np.stack([cv2.resize(frame, (796, 448), interpolation=cv2.INTER_AREA) for frame in ends])
    shape = {"width": WIDTH, "height": HEIGHT, "num_frames": len(frames), "fps": float(FPS)}
    span = {"start_pts": 0, "end_pts": len(frames), "start": 0.0, "end": float(SECONDS)}
    ways = {"opens": "start", "closes": "end", "confidence": 1.0, "method": "encode"}
    meter = CourseMeter()
    for frame in frames:
        meter.push(
            cv2.cvtColor(cv2.resize(frame, (114, 64), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        )
    course = meter.course(0, len(frames), np.arange(len(frames)) / FPS)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    clip = CutClip(id=str(seed), source="s", path=path.name, size=0, digest=digest, **shape, **span, **ways)  # type: ignore[arg-type]
    return View(clip, path, Proxy(np.array(picked) / FPS, small, keys, course), {})


if __name__ == "__main__":
    main()
