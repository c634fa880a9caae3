"""Does an interpolation bundle beat blending and optical flow? Measured on the held-out videos of its recipe.

    python tests/benchmarks/bench_interp.py BUNDLE --out FOLDER [--data FOLDER] [--per-video 2]

Of five frames the first and the last are given; the three between are found and compared with the real ones, by PSNR
(at most 60 dB a frame) and by `model.perceptual`'s distance (not comparable with LPIPS in papers), also apart for the
half that moves more. Beside the model stand: a cross-fade of the given frames; both warped by optical flow to the time
in question and blended (Super SloMo's approximation of the flow from there, Jiang et al. 2018, eq. 4, with OpenCV's
Farnebäck and DIS flow); and, as the ceiling of the model, the real frames through its autoencoder. `frames.png` shows
them; `results.json` is printed too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from svdcli.data.dataset import open_dataset
from svdcli.data.motion import dense_flow
from svdcli.engine.generate import Sampling, to_frames
from svdcli.engine.interpolate import pair_motion_score
from svdcli.engine.latents import to_pixels
from svdcli.engine.lift import Filler
from svdcli.engine.memory import Residence
from svdcli.evaluate.frames import psnr
from svdcli.io.images import write_png
from svdcli.io.sheet import contact_sheet
from svdcli.model.bundle import open_bundle
from svdcli.model.perceptual import PerceptualDistance, load_perceptual
from svdcli.recipe.recipe import Data

Frames = npt.NDArray[np.uint8]
Method = Callable[[Frames], Frames]
"""Five real frames (T, H, W, 3), of which only the ends may be looked at, -> those between."""


@dataclass(frozen=True, eq=False)
class Window:
    name: str
    frames: Frames
    fps: float

    @property
    def motion(self) -> float:
        """Score of the ends, in shortest sides a second."""
        return pair_motion_score(self.frames[0], self.frames[-1], len(self.frames), self.fps)


def windows_of(data: Data, num_frames: int, fps: float, per_video: int, cache: Path) -> list[Window]:
    """Spread evenly over each held-out video, at the stride whose rate is nearest to `fps`."""
    _, footage = open_dataset(data, cache)
    found = []
    for video in footage.videos:
        stride = max(1, round(video.fps / fps))
        last = video.num_frames - 1 - (num_frames - 1) * stride
        places = np.unique(np.linspace(0, last, per_video + 2)[1:-1].round().astype(int)) if last >= 0 else []
        for first in places:
            numbers = range(int(first), int(first) + num_frames * stride, stride)[:num_frames]
            frames = np.array(footage.take(video, numbers))
            found.append(Window(f"{Path(video.name).stem}-{first}", frames, video.fps / stride))
    return found


# ---- what the model is compared with -------------------------------------------------------------------


def blend(frames: Frames) -> Frames:
    first, last = frames[0].astype(np.float32), frames[-1].astype(np.float32)
    shares = np.linspace(0, 1, len(frames), dtype=np.float32)[1:-1, None, None, None]
    return np.rint(first + shares * (last - first)).astype(np.uint8)


def farneback(before: Frames, after: Frames) -> npt.NDArray[np.float32]:
    return dense_flow(before, after)


def dis(before: Frames, after: Frames) -> npt.NDArray[np.float32]:
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(method.calc(before, after, None), np.float32)  # type: ignore[call-overload]


def by_flow(flow: Callable[[Frames, Frames], npt.NDArray[np.float32]]) -> Method:
    """Both ends warped to the time in question, and blended by how near they are."""

    def method(frames: Frames) -> Frames:
        first, last = frames[0], frames[-1]
        grey = [np.asarray(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), np.uint8) for f in (first, last)]
        forward, backward = flow(grey[0], grey[1]), flow(grey[1], grey[0])
        found = []
        for t in np.linspace(0, 1, len(frames))[1:-1]:
            to_first = -(1 - t) * t * forward + t * t * backward
            to_last = (1 - t) ** 2 * forward - t * (1 - t) * backward
            found.append((1 - t) * warped(first, to_first) + t * warped(last, to_last))
        return np.rint(found).clip(0, 255).astype(np.uint8)

    return method


def warped(picture: Frames, flow: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """The picture looked up at p + flow[p]."""
    height, width = picture.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    across, down = x + flow[..., 0].astype(np.float32), y + flow[..., 1].astype(np.float32)
    return cv2.remap(
        picture.astype(np.float32), across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )


def through_autoencoder(residence: Residence) -> Method:
    def method(frames: Frames) -> Frames:
        with residence.use("vae") as vae, torch.inference_mode():
            return to_frames(vae.decode(vae.encode(to_pixels(frames)[None])))[0, 1:-1]

    return method


# ---- measuring -----------------------------------------------------------------------------------------


def measure(found: Frames, real: Frames, perceptual: PerceptualDistance) -> dict[str, float]:
    with torch.inference_mode():
        distance = perceptual(to_pixels(found), to_pixels(real)).mean().item()
    return {
        "psnr_db": float(np.mean([psnr(a, b) for a, b in zip(found, real, strict=True)])),
        "perceptual": distance,
    }


def summary(rows: list[dict[str, dict[str, float]]], motions: list[float]) -> dict[str, Any]:
    """Means over all windows, and over the half that moves more."""
    middle = float(np.median(motions))
    halves = {"all": rows, "moving half": [r for r, m in zip(rows, motions, strict=True) if m > middle]}
    return {
        half: {
            name: {key: round(float(np.mean([r[name][key] for r in some])), 4) for key in some[0][name]}
            for name in some[0]
        }
        for half, some in halves.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the videos; else where the recipe says")
    parser.add_argument("--cache", type=Path, help="else below --out")
    parser.add_argument("--per-video", type=int, default=2)
    parser.add_argument("--fps", type=float, help="of the five frames; else the bundle's")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the sampling, such as num_steps=2"
    )
    wanted = parser.parse_args()
    wanted.out.mkdir(parents=True, exist_ok=True)
    files = open_bundle(wanted.bundle)
    files.require_task("interp")
    data = Data.model_validate_json(json.dumps(json.loads(files.settings.recipe)["data"]))
    if wanted.data is not None:
        data = data.model_copy(update={"source": wanted.data})
    sampling = replace(Sampling.of(files.settings), width=data.width, height=data.height)
    changes = dict(change.split("=", 1) for change in wanted.set)
    sampling = replace(sampling, **{k: type(getattr(sampling, k))(v) for k, v in changes.items()})
    residence = Residence(files, "high", torch.device("cpu"), torch.float32)
    fill, plain = (
        Filler(residence, replace(sampling, carry_detail=carry), seed=0) for carry in (True, False)
    )
    methods: dict[str, Method] = {
        "blend": blend,
        "flow (Farnebäck)": by_flow(farneback),
        "flow (DIS)": by_flow(dis),
        "model": lambda frames: fill(frames[[0, -1]][None], 0)[0],
        "model without carried detail": lambda frames: plain(frames[[0, -1]][None], 0)[0],
        "autoencoder": through_autoencoder(residence),
    }
    windows = windows_of(
        data,
        sampling.num_frames,
        wanted.fps or sampling.fps,
        wanted.per_video,
        wanted.cache or wanted.out / "cache",
    )
    perceptual, rows, seconds = load_perceptual(), [], dict.fromkeys(methods, 0.0)
    shown: list[tuple[Window, dict[str, Frames]]] = []
    for window in windows:
        found = {}
        for name, method in methods.items():
            started = time.process_time()
            found[name] = method(window.frames)
            seconds[name] += time.process_time() - started
        rows.append({name: measure(f, window.frames[1:-1], perceptual) for name, f in found.items()})
        shown.append((window, found))
    motions = [window.motion for window in windows]
    results = {"bundle": str(wanted.bundle), "windows": len(windows), **summary(rows, motions),
               "cpu_seconds_a_window": {n: round(s / len(windows), 3) for n, s in seconds.items()},
               "sampling": vars(sampling),
               "each": {w.name: {"motion": round(w.motion, 3), **r} for w, r in zip(windows, rows, strict=True)}}  # fmt: skip
    draw(wanted.out / "frames.png", [shown[i] for i in np.argsort(motions)[::-1][:4]])
    (wanted.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({k: v for k, v in results.items() if k != "each"}, indent=1))


def draw(path: Path, shown: list[tuple[Window, dict[str, Frames]]]) -> None:
    """The windows that move most: the real frames, then what each method found."""
    rows, titles = [], []
    for window, found in shown:
        rows.append(window.frames)
        titles.append(f"{window.name}: real")
        for name, frames in found.items():
            rows.append(np.concatenate([window.frames[:1], frames, window.frames[-1:]]))
            titles.append(name)
    write_png(path, np.ascontiguousarray(contact_sheet(rows, titles, 5)))


if __name__ == "__main__":
    main()
