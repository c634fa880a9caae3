"""One model, measured by everything that needs no human: what `svd eval model` says of it.

Every figure stands beside what it must beat: real clips, the picture standing still, and the autoencoder alone, all of the same
pictures and in the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svdcli.data.motion import MotionCalibration
from svdcli.errors import UsageError
from svdcli.evaluate.cases import Case, View
from svdcli.evaluate.features import FeatureSet, measure_features
from svdcli.evaluate.frames import psnr
from svdcli.evaluate.frechet import paired_kernel_estimate
from svdcli.evaluate.fvd import FEWEST, compare_sets
from svdcli.evaluate.measures import FAITHFUL, FLICKER, NOT_HERE, Row, bootstrap, measure_clips, summarise
from svdcli.evaluate.motion_response import Asked, motion_response
from svdcli.evaluate.networks import Network
from svdcli.evaluate.protocols import Protocol, find_protocol
from svdcli.evaluate.similarity import ssim
from svdcli.evaluate.videos import Manifested, read_whole
from svdcli.io.manifest import read_manifest, sidecar_path

KIND = "svd-eval-model"
NAMES = ("motion", *FLICKER)
"""measures of every set; of those that a network had a part in also how the first frame fits the picture"""
SETS = {
    "made": "what the model makes of the first frames",
    "coded": "the real clips through its autoencoder: the most that it can show",
    "still": "the first frames, standing still: what it must beat",
    "still_coded": "the first frames standing still, through its autoencoder",
    "real": "the real clips",
}
Notify = Callable[[str], None]


@dataclass(frozen=True)
class Sets:
    """Where the clips of one model lie; `folder` holds those that its networks had a part in."""

    cases: tuple[Case, ...]
    moved: tuple[Case, ...]
    """those that are asked for every bucket"""
    buckets: tuple[int, ...]
    usual: int
    """the bucket of the clips that are compared with real ones"""
    folder: Path

    def made(self, case: Case, bucket: int | None = None) -> Path:
        """What the model makes of a case."""
        return self.folder / "made" / f"{case.name}-m{self.usual if bucket is None else bucket:03d}"

    def of(self, kind: str) -> list[Path]:
        """The clips of one of SETS, as many of each kind and in one order: of the cases that have a real clip."""
        whole = [case for case in self.cases if case.real is not None]
        if kind == "made":
            return [self.made(case) for case in whole]
        if kind in ("coded", "still_coded"):
            return [self.coded(case, kind) for case in whole]
        return [case.still if kind == "still" else case.real or case.still for case in whole]

    def coded(self, case: Case, kind: str) -> Path:
        return self.folder / kind / case.name


def fitting_protocol(name: str, view: View) -> Protocol | None:
    """The FVD protocol of that name where clips of the view are long enough for it, else as near as they come.

    None for clips of fewer than nine frames, which I3D cannot pool.
    """
    found = find_protocol(name)
    room = view.num_frames / view.fps - (found.num_frames - 1) / (found.fps or view.fps)
    if room >= 1 / max(found.fps or 0, view.fps) - 1e-6:
        return found
    return find_protocol(name, view.num_frames, view.fps) if view.num_frames >= 9 else None


def measure_model(
    sets: Sets,
    view: View,
    protocol: Protocol | None,
    network: Network,
    calibration: MotionCalibration | None,
    cache: Path | None,
    force: bool,
    notify: Notify = lambda note: None,
) -> dict[str, Any]:
    """All measures of one model. `notify` is called once a clip and set; `num_steps` says how often."""
    made = [Manifested(path, read_manifest(sidecar_path(path))) for path in _all_made(sets)]
    rows = _by_path(made, (*NAMES, *FAITHFUL), cache, notify)
    measures = {"made": summarise({c.name: rows[sets.made(c)] for c in sets.cases})}
    for kind in ("coded", "still_coded", "still", "real"):
        clips = [Manifested(path, read_manifest(sidecar_path(path))) for path in sets.of(kind)]
        names = (*NAMES, *FAITHFUL) if "coded" in kind else NAMES
        measures[kind] = summarise({str(p): r for p, r in _by_path(clips, names, cache, notify).items()})
    return {
        "num_cases": len(sets.cases),
        "num_clips": len(sets.of("real")),
        "measures": measures,
        "reconstruction": _reconstruction(sets),
        "motion": _motion(sets, rows, calibration),
        "distances": _distances(sets, protocol, network, cache, force, notify),
        "not_computed": NOT_HERE
        | ({} if protocol else {"fvd": f"clips of {view.num_frames} frames are too short"}),
    }


def num_steps(sets: Sets, protocol: Protocol | None) -> int:
    """How often `measure_model` notifies."""
    num = len(sets.of("real"))
    return len(_all_made(sets)) + num * 4 + (num * len(SETS) if protocol else 0)


def figures(model: Mapping[str, Any]) -> dict[str, float]:
    """measure -> figure of one model: what thresholds are tested on, and the head of the page."""
    found = {name: row["mean"] for name, row in model["measures"]["made"].items()}
    found |= {f"reconstruction_{name}": row["mean"] for name, row in model["reconstruction"].items()}
    if model["motion"]["mean_of_spearman"] is not None:
        found["motion_spearman"] = model["motion"]["mean_of_spearman"]
    if made := model["distances"].get("made"):
        found["kernel_distance"] = made["kernel_distance"]["value"]
        if made["fvd"] is not None:
            found["fvd"] = made["fvd"]
    return found


# ---- parts


def _all_made(sets: Sets) -> list[Path]:
    paths = [sets.made(case) for case in sets.cases]
    paths += [sets.made(case, bucket) for case in sets.moved for bucket in sets.buckets]
    return list(dict.fromkeys(paths))


def _by_path(
    clips: Sequence[Manifested], names: Sequence[str], cache: Path | None, notify: Notify
) -> dict[Path, Row]:
    """Measures of clips that were just written: one that cannot be read is an error, not left out."""
    rows, left_out = measure_clips(clips, names, {}, cache, notify)
    if left_out:
        path, reason = next(iter(left_out.items()))
        raise UsageError(f"{path} cannot be read again: {reason}.", "Delete its folder, and run again.")
    return {Path(path): row for path, row in rows.items()}


def _reconstruction(sets: Sets) -> dict[str, dict[str, float]]:
    """Real clips through the autoencoder against the clips themselves, all frames."""
    values: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for real, coded in zip(sets.of("real"), sets.of("coded"), strict=True):
        a, b = read_whole(real)[0], read_whole(coded)[0]
        values["psnr"].append(psnr(a, b))
        values["ssim"].append(float(np.mean([ssim(x / 255.0, y / 255.0) for x, y in zip(a, b, strict=True)])))
    return {name: bootstrap(np.array(found)) for name, found in values.items()}


def _motion(sets: Sets, rows: Mapping[Path, Row], calibration: MotionCalibration | None) -> dict[str, Any]:
    """The response to the buckets, and each picture's own curve."""
    scores = {c.name: {b: rows[sets.made(c, b)]["motion"] for b in sets.buckets} for c in sets.moved}
    asked = [Asked(name, float(b), score) for name, row in scores.items() for b, score in row.items()]
    return motion_response(asked, calibration) | {"by_picture": scores}


def _distances(
    sets: Sets, protocol: Protocol | None, network: Network, cache: Path | None, force: bool, notify: Notify
) -> dict[str, Any]:
    """Of each set to the real clips: FVD (None below FEWEST, unless forced), kernel distance, floor."""
    if protocol is None:
        return {}
    features: dict[str, FeatureSet] = {
        kind: measure_features(sets.of(kind), protocol, network, cache, notify) for kind in SETS
    }
    real, found = features.pop("real"), {}
    for kind, other in features.items():
        result = compare_sets(real, other, protocol, network, force=True)
        if len(real.names) == len(other.names) == len(sets.of("real")):  # none left out: i belongs to i
            paired = paired_kernel_estimate(real.features, other.features)
            result["kernel_distance"] = paired.to_dict() | {"confidence": 0.95, "paired": True}
        kept = ("fvd", "kernel_distance", "floor", "num_real", "num_generated", "protocol_hash", "cautions")
        found[kind] = {name: result[name] for name in kept}
        if min(result["num_real"], result["num_generated"]) < FEWEST and not force:
            found[kind]["fvd"] = None
    return found
