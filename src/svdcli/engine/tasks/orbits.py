"""Orbits as a footage: what `svd curate objaverse` and `svd curate mvimgnet` write, as the multi-view task trains on it.

An orbit is a folder of views with their transforms.json. Views with transparency are laid over white, and as further videos of
the same orbit over colours of its own, so that every latent can be kept (SV3D paper app. B renders both too); photographs
stay as they are. In a mirror an orbit that closes is that of another object, and one more video.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from svdcli.data.dataset import held_apart, is_wanted
from svdcli.data.footage import Frames, Size, Video
from svdcli.engine.orbit import FPS
from svdcli.errors import InputError
from svdcli.io.images import fit_picture, read_picture, to_bytes
from svdcli.multiview.cameras import Cameras, Orbit
from svdcli.multiview.items import INDEX
from svdcli.multiview.transforms import NAME, picture_path, read_transforms
from svdcli.recipe.recipe import Data

WHITE = (1.0, 1.0, 1.0)
LARGEST_GAP = 2.5
"""Steps between two views that a closed orbit may miss."""
MEASURED = 64
"""Orbits whose object is measured, see `object_share`."""
USUAL_SHARE = 0.9


@dataclass(frozen=True)
class Turn:
    """One orbit on disk."""

    folder: Path
    name: str
    """of the object"""
    cameras: Cameras
    images: tuple[str, ...]
    transparent: bool

    @cached_property
    def closed(self) -> bool:
        """Whether it comes back to where it began, so that any view may be its last."""
        azimuths = np.sort(self.cameras.azimuths_deg)
        gaps = np.diff(np.append(azimuths, azimuths[0] + 360))
        return bool(gaps.max() <= LARGEST_GAP * 360 / len(azimuths))

    def numbers(self, count: int, last: int) -> tuple[int, ...]:
        """Of `count` views, evenly around, the last one being `last`; of a capture that is not closed, along it."""
        total = len(self.images)
        if not self.closed:
            return tuple(np.linspace(0, last, count).round().astype(int).tolist())
        steps = np.arange(1, count + 1) * total / count
        return tuple((((last + np.rint(steps)) % total).astype(int)).tolist())

    def orbit(self, numbers: Sequence[int]) -> Orbit:
        """Where those views stand."""
        index = list(numbers)
        return Orbit(self.cameras.azimuths_deg[index], self.cameras.elevations_deg[index])


@dataclass(frozen=True)
class Side:
    """One way of showing an orbit."""

    turn: Turn
    background: int
    """0 is white"""
    mirrored: bool


def sides(turn: Turn, backgrounds: int, mirror: bool) -> list[Side]:
    """All ways of showing one orbit."""
    return [
        Side(turn, background, mirrored)
        for background in range(backgrounds if turn.transparent else 1)
        for mirrored in ((False, True) if mirror and turn.closed else (False,))
    ]


class Orbits:
    """See `Footage`. With `num_views` each is that many views, the last of which is the last of the folder."""

    skipped: Mapping[str, str] = {}

    def __init__(
        self,
        turns: Sequence[Turn],
        size: Size,
        backgrounds: int,
        num_views: int | None = None,
        mirror: bool = False,
    ) -> None:
        self.turns, self._size, self.num_views = turns, size, num_views
        self._sides = [side for turn in turns for side in sides(turn, backgrounds, mirror)]
        self.videos = [
            Video(side.turn.name, FPS, row, num_views or len(side.turn.images))
            for row, side in enumerate(self._sides)
        ]

    def turn(self, video: Video) -> Turn:
        """The orbit that a video shows."""
        return self._sides[video.start].turn

    def numbers(self, video: Video, numbers: Sequence[int]) -> list[int]:
        """Views of the folder that frames of a video are; what is mirrored runs backwards, so as to turn the usual way."""
        side = self._sides[video.start]
        total = len(side.turn.images)
        if self.num_views is not None:
            kept = side.turn.numbers(self.num_views, total - 1)
            numbers = [kept[number] for number in numbers]
        return [-number % total if side.mirrored else number for number in numbers]

    def orbit(self, video: Video, numbers: Sequence[int]) -> Orbit:
        """Where the cameras of those frames stand."""
        side = self._sides[video.start]
        orbit = side.turn.orbit(self.numbers(video, numbers))
        return Orbit(-orbit.azimuths_deg % 360, orbit.elevations_deg) if side.mirrored else orbit

    def background(self, video: Video) -> tuple[float, float, float]:
        """sRGB in [0, 1]: white, or a colour that the orbit's name draws."""
        side = self._sides[video.start]
        if not side.background:
            return WHITE
        seed = hashlib.sha256(f"{side.turn.folder.name} {side.background}".encode()).digest()
        red, green, blue = np.random.default_rng(list(seed)).random(3)
        return float(red), float(green), float(blue)

    def size(self, video: Video) -> Size:
        return self._size

    def times(self, video: Video) -> np.ndarray:
        return np.arange(video.num_frames) / FPS

    def take(self, video: Video, numbers: Sequence[int]) -> Frames:
        turn, under = self.turn(video), self.background(video)
        views = []
        for number in self.numbers(video, numbers):
            picture = read_picture(picture_path(turn.folder, turn.images[number]), under)
            views.append(to_bytes(fit_picture(picture, *self._size, "crop")))
        taken = np.stack(views)
        return taken[:, :, ::-1] if self._sides[video.start].mirrored else taken

    def motion(self, video: Video, numbers: Sequence[int], fps: float) -> float:
        return 0.0

    def identity(self, video: Video) -> str:
        turn = self.turn(video)
        stamp = (turn.folder / NAME).stat()
        said = [
            turn.folder.name,
            stamp.st_size,
            stamp.st_mtime_ns,
            self._size,
            self.background(video),
            self._sides[video.start].mirrored,
            self.num_views,
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]

    def captions(self, video: Video) -> tuple[str, str, str]:
        return "", "", ""

    def object_share(self) -> float:
        """The larger side of the object in its last view, as a share of the frame: the median of some orbits."""
        shares = []
        for turn in [turn for turn in self.turns if turn.transparent][:MEASURED]:
            alpha = read_picture(picture_path(turn.folder, turn.images[-1])).alpha
            if alpha is not None and (alpha > 0.5).any():
                rows, columns = (np.flatnonzero((alpha > 0.5).any(axis=axis)) for axis in (1, 0))
                shares.append(max(np.ptp(rows) + 1, np.ptp(columns) + 1) / max(alpha.shape))
        return round(float(np.median(shares)), 3) if shares else USUAL_SHARE


# ---- what a folder holds


def open_orbits(
    data: Data, num_frames: tuple[int, ...], backgrounds: int, mirror: bool = False
) -> tuple[Orbits, Orbits]:
    """The recipe's orbits as (training, held out); of the latter the shortest number of views each, as they are, on white.

    Raises InputError where either is empty, and for a damaged camera file.
    """
    size = data.width, data.height
    apart = list(_split(data))
    train = [read_turn(folder) for folder, name, held in apart if not held]
    held_out = [read_turn(folder) for folder, name, held in apart if held]
    for turn in (*train, *held_out):
        if len(turn.images) < max(num_frames):
            raise InputError(
                f"{turn.folder} has {len(turn.images)} views, and task.num_frames asks for {max(num_frames)}.",
                "Ask for fewer, leave it out by data.exclude, or render more.",
            )
    return Orbits(train, size, backgrounds, mirror=mirror), Orbits(held_out, size, 1, min(num_frames))


def count_orbits(data: Data) -> tuple[int, int]:
    """How many orbits there are (to train on, held out). Raises InputError where either is none."""
    flags = [held for _, _, held in _split(data)]
    return flags.count(False), flags.count(True)


def read_turn(folder: Path) -> Turn:
    """An orbit. Raises InputError where its cameras cannot be read or a first view is missing."""
    found = read_transforms(folder / NAME)
    first = picture_path(folder, found.images[0])
    try:
        with Image.open(first) as image:
            transparent = "A" in image.getbands()
    except OSError as error:
        raise InputError(f"{first} cannot be read.", "Curate the objects again.") from error
    return Turn(folder, name_of(folder), found.cameras, found.images, transparent)


def name_of(folder: Path) -> str:
    """What the object was called before it was rendered, else the folder."""
    try:
        said = json.loads((folder / NAME).read_text(encoding="utf-8")).get("svd", {}).get("source", "")
    except (OSError, ValueError, AttributeError):
        said = ""
    return str(said) or folder.name


def find_orbits(source: Path) -> list[Path]:
    """The folders of orbits below a folder: those that its index calls done, else all with a camera file."""
    if not source.is_dir():
        raise InputError(
            f"There is no folder {source}.",
            f"Give one that `svd curate objaverse` wrote; it starts at {Path.cwd()}.",
        )
    folders: list[Path] = []
    if (source / INDEX).is_file():
        rows = json.loads((source / INDEX).read_text(encoding="utf-8")).get("items", [])
        folders = [source / row["folder"] for row in rows if row.get("status") == "done"]
    folders = folders or sorted(path.parent for path in source.rglob(NAME))
    if not folders:
        raise InputError(
            f"{source} holds no orbits.",
            "Make some: `svd curate objaverse MESHES OUT`, or `svd curate mvimgnet`.",
        )
    return folders


def _split(data: Data) -> list[tuple[Path, str, bool]]:
    """(folder, name, whether it is held out) of each orbit that is wanted. Raises InputError where either part is empty."""
    named = [(folder, name_of(folder)) for folder in find_orbits(data.source)]
    named = [(folder, name) for folder, name in named if is_wanted(data, name, folder.name)]
    flags = held_apart(data, [(name, folder.name) for folder, name in named]).tolist()
    if not flags.count(True) or not flags.count(False):
        raise InputError(
            f"There are {flags.count(False)} orbits to train on and {flags.count(True)} held out; both need one at least.",
            "List some of the objects, not all, under data.held_out, or set data.held_out_share.",
        )
    return [(folder, name, held) for (folder, name), held in zip(named, flags, strict=True)]
