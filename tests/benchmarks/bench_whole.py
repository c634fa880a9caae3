"""A whole curation beside plain scripts doing the same: cuts, clips, key frames, motion, quality and text of a 720p video.

    python tests/benchmarks/bench_whole.py [VIDEO ...]

Ours: `split_source` (which opens every clip again in PyAV and decord, trims, and finds damage) and the annotators motion,
quality and text. Scripts: PySceneDetect's adaptive detector; ffmpeg, copying or encoding each scene; PyAV counting its
frames and decord showing its ends; for each clip OpenCV, decoding it again for Farneback's flow at 2 fps and, in the same
pass, for black, frozen and flickering frames; seeking its first, middle and last frame; and rapidocr's detector on these.
CPU-seconds of this process and its children, in one thread, so other work on the machine matters little; minima of three
runs. Where keyframes lie near the cuts clips are copied here too; where they lie far apart clips are encoded again, to
begin at the cut.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENCV_FFMPEG_THREADS"] = "1"
os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "threads;1"

import resource  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from bench_scan import made as drawn  # noqa: E402

from svdcli.curate.annotate import Annotator, View  # noqa: E402
from svdcli.curate.annotate.registry import annotators  # noqa: E402
from svdcli.curate.annotate.text import TextAnnotator  # noqa: E402
from svdcli.curate.proxy import Proxy  # noqa: E402
from svdcli.curate.split.probe import probe  # noqa: E402
from svdcli.curate.split.split import split_source  # noqa: E402
from svdcli.recipe.curation import Annotate, Split  # noqa: E402

RUNS = 3


class Clock:
    """CPU-seconds of this process and its children, by step; of several runs the least."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self.last = _cpu()

    def __call__(self, step: str) -> None:
        now = _cpu()
        self.steps[step] = self.steps.get(step, 0.0) + now - self.last
        self.last = now


def ours(video: Path, folder: Path, made: dict[str, Annotator]) -> Clock:
    clock = Clock()
    clips = split_source(video, folder, Split()).clips
    clock("cuts, clips, check, key frames")
    proxies = (folder / "proxies" / clip.id[:2] / f"{clip.id}.npz" for clip in clips)
    views = [
        View(clip, folder / clip.path, Proxy.load(proxy), {})
        for clip, proxy in zip(clips, proxies, strict=True)
    ]
    made["motion"].annotate(views)
    made["quality"].annotate(views)
    clock("motion, quality")
    made["text"].annotate(views)
    clock("text")
    return clock


def scripts(video: Path, folder: Path, text: TextAnnotator, encode: bool) -> Clock:
    import scenedetect

    clock = Clock()
    scenes = scenedetect.detect(str(video), scenedetect.AdaptiveDetector(), start_in_scene=True)
    clock("cuts, clips, check, key frames")
    how = (
        ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-threads", "1"]
        if encode
        else ["-c", "copy"]
    )
    clips = []
    for number, (start, end) in enumerate(scenes):
        clips.append(folder / f"{number}.mp4")
        span = ["-ss", f"{start.seconds}", "-threads", "1", "-i", str(video)]
        length = ["-t", f"{end.seconds - start.seconds}", "-an"]
        subprocess.run([_ffmpeg(), "-v", "error", *span, *length, *how, str(clips[-1])], check=True)
    for clip in clips:
        open_again(clip)
    clock("cuts, clips, check, key frames")
    for clip in clips:
        measure(clip)
    clock("motion, quality")
    keys = [key_frames(clip) for clip in clips]
    clock("cuts, clips, check, key frames")
    for pictures in keys:
        for picture in pictures:
            text.boxes(picture)
    clock("text")
    return clock


def open_again(clip: Path) -> tuple[int, np.ndarray]:
    """The frames that PyAV decodes, and what decord shows at both ends."""
    import av
    import decord

    with av.open(str(clip)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        count = sum(1 for _ in container.decode(video=0))
    video = decord.VideoReader(str(clip), num_threads=1)
    return count, video.get_batch([0, len(video) - 1]).asnumpy()


def measure(clip: Path) -> tuple[float, np.ndarray]:
    """Mean flow at 2 fps of frames whose shortest side is 16; of every frame brightness and change."""
    reader = cv2.VideoCapture(str(clip))
    step = max(1, round(reader.get(cv2.CAP_PROP_FPS) / 2))
    number, before, speeds = 0, None, []
    rows: list[tuple[float, float]] = []
    last: np.ndarray | None = None
    while reader.grab():
        picture = reader.retrieve()[1]
        scale = 64 / min(picture.shape[:2])
        look = cv2.cvtColor(cv2.resize(picture, None, fx=scale, fy=scale), cv2.COLOR_BGR2GRAY)
        rows.append((float(look.mean()), 0.0 if last is None else float(cv2.absdiff(look, last).mean())))
        last = look
        if number % step == 0:
            scale = 16 / min(picture.shape[:2])
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
            if before is not None:
                flow = cv2.calcOpticalFlowFarneback(before, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
                speeds.append(float(np.linalg.norm(flow, axis=-1).mean()))
            before = grey
        number += 1
    return float(np.mean(speeds)) if speeds else 0.0, np.array(rows)


def key_frames(clip: Path) -> list[np.ndarray]:
    reader = cv2.VideoCapture(str(clip))
    count = int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    found = []
    for wanted in (0, count // 2, count - 1):
        reader.set(cv2.CAP_PROP_POS_FRAMES, wanted)
        good, picture = reader.read()
        if good:
            scale = min(1.0, 448 / min(picture.shape[:2]))
            small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            found.append(np.ascontiguousarray(small[..., ::-1]))
    return found


def main() -> None:
    cv2.setNumThreads(1)
    settings = Annotate()
    names = ("motion", "quality", "text")
    made = {one.name: one for one in annotators(settings, "cpu") if one.name in names}
    text = made["text"]
    assert isinstance(text, TextAnnotator)
    text.boxes(np.zeros((64, 64, 3), np.uint8))  # its model is loaded before anything is timed
    with tempfile.TemporaryDirectory() as name:
        given = [Path(argument) for argument in sys.argv[1:]]
        for video in given or [drawn(Path(name), gop=51), drawn(Path(name), gop=251)]:
            compare(video, made, text)


def compare(video: Path, made: dict[str, Annotator], text: TextAnnotator) -> None:
    source = probe(video).source
    print(f"{video.name}: {source.width}x{source.height}, {source.seconds:.1f} s, CPU-seconds")
    ways: dict[str, Callable[[Path], Clock]] = {
        "svdcli": lambda folder: ours(video, folder, made),
        "scripts, ffmpeg copying": lambda folder: scripts(video, folder, text, encode=False),
        "scripts, ffmpeg encoding": lambda folder: scripts(video, folder, text, encode=True),
    }
    totals: dict[str, float] = {}
    for way, run in ways.items():
        best: dict[str, float] = {}
        for _ in range(RUNS):
            with tempfile.TemporaryDirectory() as folder:
                once = run(Path(folder)).steps
            best = {step: min(seconds, best.get(step, seconds)) for step, seconds in once.items()}
        totals[way] = sum(best.values())
        steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in best.items())
        speed, ratio = source.seconds / totals[way], totals[way] / totals["svdcli"]
        print(f"  {way:<24} {totals[way]:6.2f} ({steps})  {speed:4.1f} x real time, {ratio:.2f} x ours")


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    main()
