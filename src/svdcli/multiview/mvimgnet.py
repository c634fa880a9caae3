"""MVImgNet -> sequences to train on: class/instance folders of photographs with COLMAP models and masks.

Portrait pictures are turned to landscape, as SVD-MV does (app. D.6), cameras with them; frames are taken evenly over
the capture; the world is turned upright, centred where the cameras look, and scaled so that they stand as far off as
those of rendered orbits. Release 1.0 keeps masks apart, 2.0 beside the pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from svdcli.errors import InputError
from svdcli.io.files import atomic_folder
from svdcli.io.images import read_picture, write_png
from svdcli.multiview.cameras import NUM_VIEWS, SIDE, Cameras
from svdcli.multiview.colmap import Model, find_model, read_model
from svdcli.multiview.items import Item
from svdcli.multiview.transforms import NAME, Transforms, names_of, write_transforms

LICENCE = "MVImgNet terms of use"
RADIUS = 2.0
_LEAST_TURN = 0.02  # spread of the right sides (about 30° of arc) from which they say where up is


@dataclass(frozen=True)
class Sequences:
    """How captures are read. side: pixels of the shorter side. masks: the root of release 1.0's masks."""

    num_views: int = NUM_VIEWS
    side: int = SIDE
    masks: Path | None = None
    need_masks: bool = False


def find_instances(source: Path) -> list[Item]:
    """The class/instance folders, recognised by their `images` or `sparse`."""
    if not source.is_dir():
        raise InputError(
            f"There is no folder {source}.", "Give the folder that holds the classes of MVImgNet."
        )
    found = {
        path.parent for name in ("images", "sparse") for path in source.glob(f"*/*/{name}") if path.is_dir()
    }
    if not found:
        raise InputError(
            f"{source} has no class/instance folders.", "Give the folder that holds the classes of MVImgNet."
        )
    return [Item(path, LICENCE, f"MVImgNet {path.parent.name}/{path.name}") for path in sorted(found)]


def read_instance(item: Item, key: str, folder: Path, settings: Sequences) -> dict[str, Any]:
    """One capture -> a folder of views, masks and transforms.json; the facts of the index.

    Raises InputError, whose sentence is the reason, for an empty or damaged model, too few pictures, several sizes.
    """
    names, cameras = _registered(item.path, settings.num_views)
    cameras, arc = upright(cameras)
    kept = np.unique(np.linspace(0, len(names) - 1, settings.num_views).round().astype(int))
    cameras = cameras.take(kept).facing(len(kept) - 1)
    portrait = cameras.height > cameras.width
    if portrait:
        cameras = cameras.turned_left()
    factor = min(1.0, settings.side / min(cameras.width, cameras.height))
    cameras = cameras.resized(round(cameras.width * factor), round(cameras.height * factor))
    outputs, masks = names_of(len(kept)), []
    with atomic_folder(folder) as temporary:
        (temporary / "masks").mkdir()
        for name, index in zip(outputs, kept, strict=True):
            write_png(temporary / name, _fitted(item.path / "images" / names[index], cameras, portrait))
            mask = _mask(item.path, names[index], settings)
            masks.append(f"masks/{name}" if mask else None)
            if mask:
                write_png(temporary / "masks" / name, _fitted(mask, cameras, portrait)[..., 0])
        facts = {
            "class": item.path.parent.name, "instance": item.path.name, "turned": portrait, "arc_deg": arc,
            "pictures": len(names), "masks": sum(mask is not None for mask in masks), "licence": item.licence,
            "source": item.source, "conditioning_view": len(kept) - 1,
        }  # fmt: skip
        write_transforms(temporary / NAME, Transforms(cameras, tuple(outputs), tuple(masks), facts=facts))
    return facts


def upright(cameras: Cameras) -> tuple[Cameras, float]:
    """The cameras in a world with z up, its origin where they look, and their mean distance `RADIUS`; and the arc that
    they cover in azimuth, in degrees."""
    up = _up(cameras)
    across = np.eye(3) - np.einsum("vi,vj->vij", cameras.forward, cameras.forward)
    middle = np.linalg.lstsq(across.sum(axis=0), np.einsum("vij,vj->i", across, cameras.centres), rcond=None)[
        0
    ]
    side = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    side /= np.linalg.norm(side)
    rotation = np.stack([side, np.cross(up, side), up])
    scale = RADIUS / float(np.linalg.norm(cameras.centres - middle, axis=1).mean())
    placed = cameras.moved(rotation, -scale * rotation @ middle, scale)
    azimuths = np.sort(placed.azimuths_deg)
    gaps = np.diff(np.append(azimuths, azimuths[0] + 360))
    return placed, float(360 - gaps.max())


def _up(cameras: Cameras) -> np.ndarray:
    """People hold cameras level, so up is what is square to the pictures' right sides; where those are all alike, as on a
    short arc, it is what is up in the pictures, on average."""
    rights = cameras.world_to_camera[:, 0, :3]
    shown = -cameras.world_to_camera[:, 1, :3].mean(axis=0)
    values, vectors = np.linalg.eigh(rights.T @ rights / len(rights))
    if values[1] < _LEAST_TURN:
        return shown / np.linalg.norm(shown)
    return vectors[:, 0] * (1 if vectors[:, 0] @ shown >= 0 else -1)


def _registered(instance: Path, needed: int) -> tuple[list[str], Cameras]:
    """Names and cameras of the pictures that the model has and that are there, in the order of their names."""
    place = find_model(instance)
    if place is None:
        raise InputError(
            f"{instance} has no COLMAP model.", "About a tenth of MVImgNet has an empty sparse/."
        )
    model: Model = read_model(place)
    here = [i for i, name in enumerate(model.names) if (instance / "images" / name).is_file()]
    if len(here) < needed:
        raise InputError(
            f"{instance} has too few registered pictures, {len(here)} of {needed}.", "Ask for fewer views."
        )
    if len({(model.lenses[i].width, model.lenses[i].height) for i in here}) > 1:
        raise InputError(f"{instance} has pictures of several sizes.", "It cannot be one sequence.")
    lens = model.lenses[here[0]]
    intrinsics = np.stack([model.lenses[i].intrinsics for i in here])
    cameras = Cameras(model.world_to_camera[here], intrinsics, lens.width, lens.height)
    return [model.names[i] for i in here], cameras


def _fitted(path: Path, cameras: Cameras, portrait: bool) -> np.ndarray:
    pixels = read_picture(path).pixels
    pixels = np.ascontiguousarray(np.rot90(pixels)) if portrait else pixels
    given, wanted = pixels.shape[1] / pixels.shape[0], cameras.width / cameras.height
    if abs(given / wanted - 1) > 0.02:
        raise InputError(f"{path} has another shape than its camera says.", "Its model is of other pictures.")
    return cv2.resize(pixels, (cameras.width, cameras.height), interpolation=cv2.INTER_AREA)


def _mask(instance: Path, name: str, settings: Sequences) -> Path | None:
    """The mask of a picture, in the instance (2.0) or below the masks' root (1.0)."""
    bases = [instance / "masks"]
    if settings.masks is not None:
        bases.append(settings.masks / instance.parent.name / instance.name)
    for base in bases:
        for candidate in (base / f"{name}.png", base / f"{Path(name).stem}.png", base / name):
            if candidate.is_file():
                return candidate
    if settings.need_masks:
        raise InputError(f"{instance} has no mask of {name}.", "Give the masks' root, or do without.")
    return None


def instance_key(item: Item) -> str:
    """An instance is its class and number: its pictures are too many to hash."""
    return hashlib.sha256(f"{item.path.parent.name}/{item.path.name}".encode()).hexdigest()[:16]
