"""Novel views against ground-truth orbits: LPIPS, PSNR, SSIM, CLIP-S and MSE per view (SVD §4.5, SV3D §4).

On a white background a blank frame scores well over the whole frame, so each measure is taken over three regions (the whole
frame, the object's box, the object's pixels), and beside each stands what an empty white frame gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from svdcli.errors import InputError
from svdcli.evaluate.orbits import OrbitViews
from svdcli.evaluate.similarity import Mask, Picture, mse, psnr_of, ssim
from svdcli.io.resample import resize

Region = Literal["whole", "box", "foreground"]
REGIONS: tuple[Region, ...] = ("whole", "box", "foreground")
LEAST_BOX = 32
"""side in pixels to which a smaller box is widened, which perceptual networks need"""
Distance = Callable[[Picture, Picture], float]
Row = dict[str, float]


@dataclass(frozen=True)
class Judges:
    """The networks that the user has given; a measure whose network is absent is named, not skipped."""

    perceptual: Distance | None = None
    perceptual_name: str = "lpips"
    clip: Distance | None = None

    def missing(self) -> dict[str, str]:
        found = {}
        if self.perceptual is None:
            found["lpips"] = "not computed: give --lpips-backbone and --lpips-heads, or --st-lpips"
        if self.clip is None:
            found["clip_s"] = "not computed: give --clip, a bundle or a CLIP vision model"
        return found


def compare_view(truth: Picture, made: Picture, where: Mask, judges: Judges) -> dict[Region, Row]:
    """Two pictures (H, W, 3) in [0, 1] and the object's pixels (H, W) -> measures by region.

    PSNR in dB is of the region's own MSE. Perceptual distance is of the whole and the box, CLIP-S of the whole. An object that is
    out of the picture has no box and no foreground.
    """
    rows: dict[Region, Row] = {"whole": _row(truth, made, None, judges)}
    if judges.clip is not None:
        rows["whole"]["clip_s"] = judges.clip(truth, made)
    if where.any():
        box = _box(where)
        rows["box"] = _row(truth[box], made[box], None, judges)
        rows["foreground"] = _row(truth, made, where, Judges())
    return rows


def compare_orbit(truth: OrbitViews, made: OrbitViews, judges: Judges) -> dict[str, Any]:
    """One object: rows of every view and region, of the generated views and of a blank frame.

    Generated views of another size are scaled to the truth's (Lanczos), and a note says so. Raises InputError where the views
    differ in number.
    """
    if len(truth.pixels) != len(made.pixels):
        raise InputError(
            f"{truth.name}: {len(made.pixels)} views were made, and the truth has {len(truth.pixels)}.",
            "Render the truth at the cameras of the generated orbit.",
        )
    notes = [f"truth {note}" for note in truth.notes]
    pixels, (height, width) = made.pixels, truth.pixels.shape[1:3]
    if pixels.shape != truth.pixels.shape:
        notes.append(f"views of {pixels.shape[2]}x{pixels.shape[1]} are scaled to {width}x{height}")
        pixels = np.stack([resize(view, width, height) for view in pixels])
    blank = np.ones_like(truth.pixels[0])
    views = zip(truth.pixels, pixels, truth.object, strict=True)
    generated, empty = [], []
    for real, view, where in views:
        generated.append(compare_view(real, view, where, judges))
        empty.append(compare_view(real, blank, where, judges))
    return {
        "name": truth.name,
        "azimuths_deg": truth.azimuths_deg.tolist(),
        "views": generated,
        "mean": mean_rows(generated),
        "blank": mean_rows(empty),
        "notes": notes,
    }


def mean_rows(rows: Sequence[Mapping[Region, Row]]) -> dict[Region, Row]:
    """The mean of each measure over views, region by region; a view in which the object is not counts for the whole alone."""
    found: dict[Region, Row] = {}
    for region in REGIONS:
        held = [row[region] for row in rows if region in row]
        if held:
            found[region] = {name: float(np.mean([row[name] for row in held])) for name in held[0]}
    return found


def summarise(objects: Sequence[Mapping[str, Any]], judges: Judges, num_draws: int = 1000) -> dict[str, Any]:
    """All objects -> means over objects with 95 % intervals (bootstrap over objects), the blank row, the curve by azimuth."""
    if not objects:
        raise InputError("No object could be compared.", "Name generated orbits as the true ones.")
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(objects), (num_draws, len(objects)))
    regions = {}
    for region in REGIONS:
        rows = [o["mean"][region] for o in objects if region in o["mean"]]
        blanks = [o["blank"][region] for o in objects if region in o["blank"]]
        if len(rows) < len(objects):
            continue
        regions[region] = {
            name: {"mean": _mean(values), "low": low, "high": high, "blank": _mean([b[name] for b in blanks])}
            for name in rows[0]
            for values in [np.array([row[name] for row in rows])]
            for low, high in [_interval(values[draws].mean(1))]
        }
    return {
        "kind": "svd-eval-views",
        "num_objects": len(objects),
        "num_views": [len(o["views"]) for o in objects],
        "regions": regions,
        "by_azimuth": by_azimuth(objects),
        "not_computed": judges.missing(),
        "perceptual": judges.perceptual_name if judges.perceptual else None,
        "conventions": "means over views, then over objects; PSNR in dB, the mean of each view's; SSIM: 11x11 Gaussian; "
        "gamma-encoded sRGB over white; blank: a white frame in place of every view",
        "objects": list(objects),
    }


def by_azimuth(objects: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Whole-frame measures along the orbit, the mean over objects whose views stand at the same azimuths (to a degree)."""
    first = np.round(objects[0]["azimuths_deg"]).tolist()
    alike = [o for o in objects if np.round(o["azimuths_deg"]).tolist() == first]
    curves = {"azimuth_deg": list(objects[0]["azimuths_deg"]), "num_objects": [float(len(alike))]}
    for name in objects[0]["mean"]["whole"]:
        curves[name] = np.mean([[view["whole"][name] for view in o["views"]] for o in alike], axis=0).tolist()
    return curves


def _row(truth: Picture, made: Picture, where: Mask | None, judges: Judges) -> Row:
    error = mse(truth, made, where)
    row = {"mse": error, "psnr": psnr_of(error), "ssim": ssim(truth, made, where)}
    if judges.perceptual is not None:
        row[judges.perceptual_name] = judges.perceptual(truth, made)
    return row


def _box(where: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """The object's box, LEAST_BOX a side at least, inside the picture."""
    found = []
    for axis, length in ((1, where.shape[0]), (0, where.shape[1])):
        hit = np.flatnonzero(where.any(axis))
        first, last = int(hit[0]), int(hit[-1]) + 1
        lacking = max(0, min(LEAST_BOX, length) - (last - first))
        first = min(max(0, first - lacking // 2), length - max(last - first, min(LEAST_BOX, length)))
        found.append(slice(first, max(last, first + min(LEAST_BOX, length))))
    return found[0], found[1]


def _interval(means: npt.NDArray[np.float64]) -> list[float]:
    """Of bootstrapped means, 95 %; none (NaN) where some are infinite, as the PSNR of equal pictures is."""
    finite = bool(np.isfinite(means).all())
    return list(np.percentile(means, [2.5, 97.5]).tolist()) if finite else [float("nan")] * 2


def _mean(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    return float(np.mean(values))
