"""Is the embedded bundle worth watching? Measures it on the held-out videos of its recipe, which it never saw.

    python tests/benchmarks/nano_quality.py [BUNDLE] --out FOLDER [--quick]

What it is: one process that reconstructs, generates, measures, and writes everything down to be looked at: `clips.png` (generated
and real clips in turn), `motion.png` (each picture at each motion bucket), the mp4s, and `results.json`, which is printed too.
What it is not: a number to compare with papers. The clips are few, so both distances are compared between sets of one size only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from svdcli.data.dataset import find_videos
from svdcli.data.footage import is_held_out
from svdcli.data.frames import FrameSet, load_frames
from svdcli.data.motion import motion_score
from svdcli.engine.generate import Sampling, decode, generate
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.errors import SvdError
from svdcli.evaluate.frames import first_frame_psnr, psnr
from svdcli.evaluate.frechet import frechet_distance, kernel_distance, kernel_estimate, video_features
from svdcli.evaluate.fvd import real_floor
from svdcli.evaluate.i3d import load_i3d
from svdcli.evaluate.measures import Seen, measure_clip, summarise
from svdcli.evaluate.motion_response import Asked, motion_response
from svdcli.io.images import write_png
from svdcli.io.sheet import contact_sheet
from svdcli.io.video import write_video
from svdcli.model.bundle import open_bundle
from svdcli.recipe.recipe import load_recipe

Clip = npt.NDArray[np.uint8]

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
BUCKETS = (20, 60, 127, 200)
USUAL = 127
"""The bucket whose clips are compared with real ones."""
RECONSTRUCTED_FRAMES = 8
NUM_HALVES = 40


@dataclass(frozen=True, eq=False)
class Window:
    """A real clip at about the nominal rate; where a video is too short for one, its first frame alone."""

    video: str
    first: int
    frames: Clip
    """(T, H, W, 3)"""

    @property
    def name(self) -> str:
        return f"{Path(self.video).stem}-{self.first:03d}"


@dataclass
class Maker:
    """Makes each clip once: the same picture and bucket are asked for by several measures."""

    residence: Residence
    sampling: Sampling
    seed: int
    made: dict[tuple[str, float], Clip] = field(default_factory=dict)

    def clip(self, window: Window, bucket: float) -> Clip:
        """The clip (T, H, W, 3) that the model makes of the window's first frame. One seed for all buckets."""
        key = window.name, bucket
        if key not in self.made:
            started = time.monotonic()
            sampling = replace(self.sampling, motion_bucket=float(bucket))
            latents = generate(self.residence, to_pixels(window.frames[:1]), [self.seed], sampling)[0]
            self.made[key] = decode(self.residence, latents, None, 0)[0]
            say(f"{window.name} at motion {bucket}: {time.monotonic() - started:.1f} s")
        return self.made[key]


# ---- real footage --------------------------------------------------------------------------------------


def real_windows(footage: FrameSet, num_frames: int, fps: float, per_video: int) -> list[list[Window]]:
    """Windows of each video, spread evenly over it, at the stride whose rate is nearest to `fps`."""
    found = []
    for video in footage.videos:
        stride = max(1, round(video.fps / fps))
        last = video.num_frames - 1 - (num_frames - 1) * stride
        firsts = np.unique(np.linspace(0, last, per_video).round().astype(int)) if last >= 0 else []
        found.append(
            [
                Window(video.name, int(i), np.array(footage.clip(video, int(i), num_frames, stride)))
                for i in firsts
            ]
        )
    return found


def pictures(footage: FrameSet, windows: list[list[Window]], count: int) -> list[Window]:
    """One picture a video, spread over the videos: the first window, or the first frame where there is none."""
    all_ = [
        group[0] if group else Window(video.name, 0, np.array(footage.clip(video, 0, 1, 1)))
        for video, group in zip(footage.videos, windows, strict=True)
    ]
    return [all_[i] for i in np.unique(np.linspace(0, len(all_) - 1, count).round().astype(int))]


# ---- the measures --------------------------------------------------------------------------------------


def through_vae(residence: Residence, frames: Clip) -> Clip:
    """Encode and decode a clip (T, H, W, 3), all frames at once."""
    with torch.inference_mode(), residence.use("vae") as vae:
        latents = vae.encode(to_pixels(frames)[None].to(residence.device))[0]
    return decode(residence, latents * residence.files.configs["vae"]["scaling_factor"], None, 0)[0]


def measure_reconstruction(
    residence: Residence, footage: FrameSet, fps: float, per_video: int
) -> dict[str, Any]:
    """PSNR of whole frames after encoding and decoding, clips of 8; the mean over videos of their means."""
    by_video = {}
    for group in real_windows(footage, RECONSTRUCTED_FRAMES, fps, per_video):
        if group:
            values = [psnr(through_vae(residence, window.frames), window.frames) for window in group]
            by_video[group[0].video] = float(np.mean(values))
    return {"mean_db": float(np.mean(list(by_video.values()))), "by_video_db": by_video}


def measure_fidelity(maker: Maker, chosen: list[Window], stills: dict[str, Clip]) -> dict[str, Any]:
    """First generated frame against the input picture, beside the autoencoder's reconstruction of that picture."""
    first = [first_frame_psnr(maker.clip(window, USUAL), window.frames[0]) for window in chosen]
    ceiling = [first_frame_psnr(stills[window.name], window.frames[0]) for window in chosen]
    return {
        "first_frame_db": float(np.mean(first)),
        "reconstruction_of_that_picture_db": float(np.mean(ceiling)),
        "gap_db": float(np.mean(ceiling) - np.mean(first)),
        "by_picture_db": {w.name: [f, c] for w, f, c in zip(chosen, first, ceiling, strict=True)},
    }


def measure_motion(maker: Maker, chosen: list[Window]) -> dict[str, Any]:
    """How optical-flow motion follows the bucket: the curve, and rank correlations within pictures and over all."""
    fps = maker.sampling.fps
    table = {(w.name, b): motion_score(maker.clip(w, b), fps) for w in chosen for b in BUCKETS}
    result = motion_response(Asked(name, bucket, score) for (name, bucket), score in table.items())
    return result | {"by_picture": {w.name: [table[w.name, b] for b in BUCKETS] for w in chosen}}


def measure_distances(
    maker: Maker, windows: list[Window], stills: dict[str, Clip], i3d: Path
) -> dict[str, Any]:
    """Fréchet and kernel distance, in I3D's logits, of each set to the real windows; as many clips in each set.

    The real windows begin with the pictures that the others are made of. `halves`: on how many of the random halves of the
    clips the generated set is nearer to the real one than the still is, as the distance of few clips is a noisy thing.
    """
    if len(windows) < 2:
        return {"note": "too few real windows"}
    network = load_i3d(i3d, maker.residence.device)
    num_frames = maker.sampling.num_frames
    sets = {
        "real": [w.frames for w in windows],
        "generated": [maker.clip(w, USUAL) for w in windows],
        "still": [np.repeat(w.frames[:1], num_frames, axis=0) for w in windows],
        "still_through_vae": [stills[w.name] for w in windows],
    }
    features = {}
    for name, clips in sets.items():
        features[name] = video_features(network, clips)
        say(f"features of {len(clips)} clips, {name}")
    real = features.pop("real")
    result: dict[str, Any] = {"num_clips": len(windows)}
    result["frechet"] = {name: frechet_distance(f, real) for name, f in features.items()}
    result["kernel"] = {name: kernel_distance(f, real) for name, f in features.items()}
    result["kernel_intervals"] = {name: kernel_estimate(f, real).to_dict() for name, f in features.items()}
    result["floor"] = real_floor(real, features["generated"])
    if len(windows) >= 8:
        result["halves"] = compare_halves(real, features)
    return result


def compare_halves(real: npt.NDArray[Any], features: dict[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Share of random halves of the clips in which the generated set's Fréchet distance is below each still's."""
    rng = np.random.default_rng(0)
    wins = dict.fromkeys((name for name in features if name != "generated"), 0)
    for _ in range(NUM_HALVES):
        half = rng.choice(len(real), len(real) // 2, replace=False)
        distances = {name: frechet_distance(f[half], real[half]) for name, f in features.items()}
        for name in wins:
            wins[name] += distances["generated"] < distances[name]
    return {f"below_{name}": count / NUM_HALVES for name, count in wins.items()}


def describe_clips(maker: Maker, windows: list[Window]) -> dict[str, Any]:
    """What `svd eval flicker` measures, of generated clips at the usual bucket and of real ones, as means with intervals."""
    fps = maker.sampling.fps
    names = ("motion", "dynamic_degree", "temporal_flickering", "flicker", "colour_drift", "sharpness_kept")
    sets = {"generated": [maker.clip(w, USUAL) for w in windows], "real": [w.frames for w in windows]}
    return {
        kind: summarise({str(i): measure_clip(Seen(clip, fps), names) for i, clip in enumerate(clips)})
        for kind, clips in sets.items()
    }


# ---- to look at ----------------------------------------------------------------------------------------


def write_clips(maker: Maker, chosen: list[Window], out: Path) -> None:
    """The sheets and the videos."""
    rows: list[tuple[Clip, str]] = []
    for window in chosen:
        rows.append((maker.clip(window, USUAL), f"{window.name}, generated at motion {USUAL}"))
        if len(window.frames) > 1:
            rows.append((window.frames, f"{window.name}, real"))
    write_png(out / "clips.png", contact_sheet(*zip(*rows, strict=True), columns=7, cell_width=192))
    rows = [(maker.clip(w, b), f"{w.name}, motion {b}") for w in chosen for b in BUCKETS]
    write_png(out / "motion.png", contact_sheet(*zip(*rows, strict=True), columns=7, cell_width=192))
    for (name, bucket), frames in maker.made.items():
        write_video(out / f"{name}-motion{bucket:g}.mp4", frames, maker.sampling.fps, {}, "mp4")


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


STARTED = time.monotonic()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="nano")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "nano_quality")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "nano" / "i2v.toml")
    parser.add_argument("--videos", type=Path, default=SHARED / "videos")
    parser.add_argument("--i3d", type=Path, default=SHARED / "weights" / "i3d_kinetics400_fp16.safetensors")
    parser.add_argument("--frames", type=int, default=14, help="of each clip")
    parser.add_argument("--fps", type=float, default=7.0, help="nominal rate of all clips")
    parser.add_argument("--images", type=int, default=16, help="pictures of the motion test")
    parser.add_argument("--windows", type=int, default=4, help="real clips a video, for the distances")
    parser.add_argument("--steps", type=int, help="denoising steps; else the bundle's")
    parser.add_argument("--guidance", help="else the bundle's")
    parser.add_argument("--seed", type=int, default=23)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="4 pictures, one real clip a video")
    options = parser.parse_args(argv)
    if options.quick:
        options.images, options.windows = 4, 1
    return options


def prepare(options: argparse.Namespace) -> tuple[Maker, FrameSet]:
    """The bundle, ready to sample, and the held-out videos of the recipe at its size. Raises SvdError."""
    files = open_bundle(options.bundle)
    data = load_recipe(options.recipe).data.model_copy(update={"source": options.videos})
    settings = files.settings
    sampling = replace(
        Sampling.of(settings),
        num_frames=options.frames,
        fps=options.fps,
        num_steps=options.steps or settings.num_steps,
        guidance=options.guidance or settings.guidance,
    )
    residence = Residence(files, "high", torch.device(options.device), torch.float32)
    held_out = [
        p for p in find_videos(data) if is_held_out(p.name, p.name, data.held_out, data.held_out_share)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    size = settings.width, settings.height
    footage = load_frames(held_out, *size, data.max_fps, data.max_frames, options.out / "cache")
    return Maker(residence, sampling, options.seed), footage


def measure(options: argparse.Namespace, maker: Maker, footage: FrameSet) -> dict[str, Any]:
    """All measures, the dear ones last; `results.json` grows with each."""
    grouped = real_windows(footage, options.frames, options.fps, options.windows)
    chosen = pictures(footage, grouped, options.images)
    windows = [w for group in grouped for w in group if not options.quick or w in chosen]
    say(f"{len(chosen)} pictures; {len(windows)} real windows of {sum(map(bool, grouped))} videos")
    results: dict[str, Any] = {
        "bundle": maker.residence.files.name,
        "sampling": asdict(maker.sampling),
        "num_pictures": len(chosen),
        "videos_too_short": [v.name for v, g in zip(footage.videos, grouped, strict=True) if not g],
    }

    def record(name: str, value: Any) -> None:
        results[name] = value
        (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        say(f"{name} measured")

    per_video = 1 if options.quick else 2
    record("reconstruction", measure_reconstruction(maker.residence, footage, options.fps, per_video))
    still = {w.name: np.repeat(w.frames[:1], options.frames, axis=0) for w in [*chosen, *windows]}
    stills = {name: through_vae(maker.residence, frames) for name, frames in still.items()}
    record("motion", measure_motion(maker, chosen))
    record("fidelity", measure_fidelity(maker, chosen, stills))
    write_clips(maker, chosen, options.out)  # to be looked at while the rest runs
    record("distances", measure_distances(maker, windows, stills, options.i3d))
    record("clips", describe_clips(maker, windows))
    write_clips(maker, chosen, options.out)
    record("seconds", round(time.monotonic() - STARTED, 1))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    try:
        maker, footage = prepare(options)
    except SvdError as error:
        print(f"skipped: {error}")
        return 0
    results = measure(options, maker, footage)
    print_summary(results)
    print(json.dumps(results))
    return 0


def print_summary(results: dict[str, Any]) -> None:
    """A few lines for people, before the JSON."""
    motion, fidelity, distances = results["motion"], results["fidelity"], results["distances"]
    print(f"reconstruction of held-out frames  {results['reconstruction']['mean_db']:.2f} dB")
    print(
        f"first frame / its reconstruction   {fidelity['first_frame_db']:.2f} / "
        f"{fidelity['reconstruction_of_that_picture_db']:.2f} dB"
    )
    scores = "  ".join(f"{p['bucket']:g}: {p['mean_score']:.3f}" for p in motion["curve"])
    print(f"motion by bucket                   {scores}")
    print(
        f"Spearman                           mean of pictures {motion['mean_of_spearman']:.2f}, "
        f"of the mean {motion['spearman_of_mean']:.2f}, pooled {motion['pooled']:.2f}"
    )
    for kind in ("frechet", "kernel"):
        values = "  ".join(f"{name}: {value:.4g}" for name, value in distances.get(kind, {}).items())
        print(f"{kind + ' distance':34s} {values}")


if __name__ == "__main__":
    sys.exit(main())
