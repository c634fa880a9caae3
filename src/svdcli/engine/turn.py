"""A picture of an object in, its orbit out: cut out, placed, seen from all around, written with its cameras.

What it is: the subject of `svd sample --orbit` and the folder that it leaves. What it is not: the sampling (`produce`), the
conditioning (`orbit`), nor the point cloud, which `svd points` makes of that folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from svdcli.engine.generate import Sampling
from svdcli.engine.memory import Residence
from svdcli.engine.orbit import condition_orbits
from svdcli.engine.produce import Clip
from svdcli.engine.subjects import Told
from svdcli.io.images import fit_picture, read_picture, to_bytes, write_png
from svdcli.io.sheet import contact_sheet
from svdcli.model.settings import Settings
from svdcli.multiview.cameras import Cameras, Orbit
from svdcli.multiview.cutout import cut_out, place, radius_of
from svdcli.multiview.views import write_views

VIDEO, SHEET = "orbit.mp4", "sheet.png"
Cut = Literal["auto", "none"] | Path
"""How the object is cut out: by its transparency or the colour behind it, not at all, or by a matting model."""


@dataclass(frozen=True)
class Angles:
    """The way around an object, as a key: two paths of the same angles are equal."""

    azimuths_deg: tuple[float, ...]
    elevations_deg: tuple[float, ...]

    @classmethod
    def of(cls, orbit: Orbit) -> Angles:
        return cls(tuple(orbit.azimuths_deg.tolist()), tuple(orbit.elevations_deg.tolist()))

    @property
    def orbit(self) -> Orbit:
        return Orbit(np.array(self.azimuths_deg), np.array(self.elevations_deg))


@dataclass(frozen=True)
class Object:
    """See `Subject`: an object that is to be seen from all around, for a multi-view bundle."""

    source: Path
    path: Angles
    cut: Cut = "auto"

    @property
    def name(self) -> str:
        return self.source.name

    def placed(self, settings: Settings) -> tuple[np.ndarray, str]:
        """-> the picture as the network gets it, float32 (H, W, 3) in [0, 1], and how it was cut out. Raises InputError."""
        picture = read_picture(self.source)
        if self.cut == "none":
            return fit_picture(picture, settings.width, settings.height, "crop"), "not cut out"
        found = cut_out(picture, self.cut if isinstance(self.cut, Path) else None)
        if settings.width == settings.height:
            return place(found, settings.width, settings.object_share), found.how
        side = min(settings.width, settings.height)  # of a bundle of photographs
        sides = [((n - side) // 2, n - side - (n - side) // 2) for n in (settings.height, settings.width)]
        square = place(found, side, settings.object_share)
        return np.pad(square, (*sides, (0, 0)), constant_values=1), found.how

    def tell(self, residence: Residence, seed: int, sampling: Sampling) -> Told:
        settings = residence.files.settings
        placed, how = self.placed(settings)
        pixels = torch.from_numpy(placed).movedim(-1, 0)[None] * 2 - 1
        conditioning = condition_orbits(residence, pixels, [seed], [self.path.orbit], settings.pose, sampling)
        facts = {
            "cut_out_by": how,
            "azimuths_deg": [round(a, 4) for a in self.path.azimuths_deg],
            "elevations_deg": [round(e, 4) for e in self.path.elevations_deg],
        }
        return Told(conditioning, sampling, facts, placed)


def cameras_of(path: Angles, settings: Settings) -> Cameras:
    """Where the views stand, so far off that an object of size 1 is as large in the frame as the given one."""
    cameras = path.orbit.cameras(radius_of(settings.object_share), side=settings.height)
    if settings.width == settings.height:
        return cameras
    wider = cameras.intrinsics.copy()
    wider[:, 0, 2] = settings.width / 2
    return Cameras(cameras.world_to_camera, wider, settings.width, settings.height)


def write_turn(clip: Clip, settings: Settings) -> list[Path]:
    """Beside the clip's video: the views with their transforms.json, and a contact sheet; -> the files.

    The last view is the given one itself, as it was placed (so does Stability's sampler); the video has what the network
    made of it.
    """
    assert clip.frames is not None and clip.picture is not None and isinstance(clip.job.subject, Object)
    folder, path = clip.job.output.parent, clip.job.subject.path
    views = [*clip.frames[:-1], to_bytes(clip.picture)]
    facts = {"generated_by": clip.manifest["bundle"], "seed": clip.job.seed, "picture": clip.job.subject.name}
    write_views(folder, views, cameras_of(path, settings), facts)
    write_png(folder / SHEET, sheet_of(np.stack(views), path.orbit))
    return [folder / "transforms.json", folder / SHEET]


def sheet_of(views: np.ndarray, orbit: Orbit, rows: int = 3) -> np.ndarray:
    """All views (V, H, W, 3) in rows, each row under the azimuths and elevations that it spans."""
    parts: Sequence[np.ndarray] = np.array_split(np.arange(len(views)), rows)
    parts = [part for part in parts if len(part)]
    titles = [
        f"azimuth {orbit.azimuths_deg[p[0]] % 360:.0f} to {orbit.azimuths_deg[p[-1]] % 360:.0f}, "
        f"elevation {orbit.elevations_deg[p].min():.0f} to {orbit.elevations_deg[p].max():.0f}"
        for p in parts
    ]
    columns = max(len(part) for part in parts)
    return contact_sheet([views[part] for part in parts], titles, columns)


def facts_of(clip: Clip, files: Sequence[Path]) -> dict[str, Any]:
    """What is answered of an orbit."""
    return {
        "folder": str(clip.job.output.parent),
        "video": str(clip.job.output),
        "files": [str(f) for f in files],
    }
