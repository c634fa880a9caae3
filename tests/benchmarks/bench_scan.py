"""CPU-seconds for cuts, flow frames and key frames of a 720p video: one decode here, beside plain scripts doing the same.

    python tests/benchmarks/bench_scan.py [VIDEO]

Ours: `curate.scan` (cuts of three levels, pictures at 2 fps and beside changes, damage, bars, thumbnails), and the proxy of
the whole video. Scripts: PySceneDetect's default detector; OpenCV decoding again for frames at 2 fps scaled to 64 pixels;
and once more, by seeking, for the first, middle and last frame. Decoding alone is the bound. CPU time of this process, in
one thread, so other work on the machine matters little.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENCV_FFMPEG_THREADS"] = "1"
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "threads;1"

import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "curate" / "split"))

from svdcli.curate.split.opening import frames, opened  # noqa: E402
from svdcli.curate.split.probe import probe  # noqa: E402
from svdcli.curate.split.samples import clip_proxy  # noqa: E402
from svdcli.curate.split.scan import scan  # noqa: E402
from svdcli.recipe.curation import Split  # noqa: E402


def made(folder: Path, seconds: int = 20, gop: int = 51) -> Path:
    """A 720p video at 25 fps of drawn shots of four seconds, with grain, at a usual quality, a keyframe every `gop` - 1."""
    import edits

    random = np.random.default_rng(0)
    grain = random.normal(0, 3, (8, 720, 1280, 1))
    pictures = []
    for number in range(seconds // 4):
        small = edits.moving(number, 100, 0.7)
        for i, frame in enumerate(small):
            large = cv2.resize(frame, (1280, 720), interpolation=cv2.INTER_CUBIC) + grain[i % 8]
            pictures.append(np.clip(large, 0, 255).astype(np.uint8))
    return edits.write(folder / f"made-{gop}.mp4", pictures, gop=gop, options={"crf": "23"})


def decode_only(file: Path) -> None:
    with opened(file) as (container, stream):
        for _ in frames(container, stream):
            pass


def ours(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = probe(file)
        seen = scan(file, found, Split(), Path(folder))
        with seen.samples.file:
            start, end = int(seen.stamps[0]), int(seen.ends[-1])
            course = seen.course(start, end, found.source.time_base)
            clip_proxy(seen.samples, course, found.source, start, end, (0, 0, 0, 0), Split())


def scripts(file: Path) -> None:
    import scenedetect

    scenedetect.detect(str(file), scenedetect.AdaptiveDetector())
    video = cv2.VideoCapture(str(file))
    rate = video.get(cv2.CAP_PROP_FPS)
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    number = 0
    while video.grab():
        if number % round(rate / 2) == 0:
            cv2.resize(video.retrieve()[1], (114, 64), interpolation=cv2.INTER_AREA)
        number += 1
    for wanted in (0, count // 2, count - 1):
        video.set(cv2.CAP_PROP_POS_FRAMES, wanted)
        video.read()
    video.release()


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(sys.argv[1]) if len(sys.argv) > 1 else made(Path(folder))
        source = probe(file).source
        print(
            f"{file.name}: {source.width}x{source.height}, {source.seconds:.1f} s, {source.size / 1e6:.1f} MB"
        )
        for name, run in {
            "decode alone": decode_only,
            "svdcli, one decode": ours,
            "scripts": scripts,
        }.items():
            best = min(_cpu(run, file) for _ in range(2))
            print(f"  {name:<20} {best:6.2f} CPU-s  {source.seconds / best:6.1f} x real time")


def _cpu(run: Callable[[Path], None], file: Path) -> float:
    begun = time.process_time()
    run(file)
    return time.process_time() - begun


if __name__ == "__main__":
    main()
