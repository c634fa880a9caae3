"""Rooms with a box in them, and flat pictures, seen by a camera whose every move is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

HEIGHT, WIDTH = 64, 114
FINE = 2
"""samples a pixel, each way"""
FPS = 2.0
NUM_FRAMES = 6
ROOM, CEILING = 6.0, 5.0

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Camera:
    """x to the east, y to the north, z up; metres and radians."""

    x: float = 0.0
    y: float = -3.5
    z: float = 1.6
    yaw: float = 0.0
    """clockwise from north, seen from above: to the right"""
    pitch: float = -0.15
    """up"""
    roll: float = 0.0
    """clockwise, seen from behind"""
    focal: float = 1.1
    """in shortest sides of the picture"""
    box: float = 0.0
    """how far east the box stands"""

    def axes(self) -> npt.NDArray[np.float64]:
        """Rows: right, down, ahead."""
        (sy, cy), (sp, cp), (sr, cr) = ((np.sin(a), np.cos(a)) for a in (self.yaw, self.pitch, self.roll))
        ahead = np.array([sy * cp, cy * cp, sp])
        right = np.array([cy, -sy, 0.0])
        down = np.cross(ahead, right)
        return np.stack([cr * right + sr * down, cr * down - sr * right, ahead])


def procedural(seed: int) -> Picture:
    """Coloured noise of several sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((256, 256, 3), np.float32)
    for size, weight in ((6, 1.0), (16, 0.8), (48, 0.6), (96, 0.4)):
        noise = rng.standard_normal((size, size, 3)).astype(np.float32)
        total += weight * cv2.resize(noise, (256, 256), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(128 + 45 * total, 0, 255), np.uint8)


def real_pictures(folder: Path) -> list[Picture]:
    """Photographs of ../shared, as textures."""
    found = sorted((folder / "multiview" / "opensfm_berlin" / "images").glob("*.jpg"))
    names = (
        "sam2__bedroom",
        "mdn__rabbit",
        "vidtome__dog",
        "intel_samples__bottle-detection",
        "opencv__vtest",
    )
    pictures = [cv2.imread(str(path)) for path in found]
    for name in names:
        capture = cv2.VideoCapture(str(folder / "videos" / f"{name}.mp4"))
        pictures.append(capture.read()[1])
        capture.release()
    assert all(picture is not None for picture in pictures)
    return [cv2.resize(p, (384, 256), interpolation=cv2.INTER_AREA)[..., ::-1].copy() for p in pictures]


def film(cameras: Sequence[Camera], textures: Sequence[Picture], seed: int) -> Picture:
    """The room at each moment: (N, HEIGHT, WIDTH, 3), with a little of a sensor's noise."""
    frames = np.stack([_photograph(camera, textures) for camera in cameras]).astype(np.float32)
    noise = np.random.default_rng(seed).normal(0, 2.0, frames.shape)
    return np.asarray(np.clip(frames + noise, 0, 255), np.uint8)


def _photograph(camera: Camera, textures: Sequence[Picture]) -> Picture:
    rows, columns = np.mgrid[: HEIGHT * FINE, : WIDTH * FINE]
    u = (columns + 0.5) / (HEIGHT * FINE) - WIDTH / HEIGHT / 2
    v = (rows + 0.5) / (HEIGHT * FINE) - 0.5
    rays = (np.stack([u, v, np.full(u.shape, camera.focal)], -1) @ camera.axes()).astype(np.float32)
    place = np.array([camera.x, camera.y, camera.z], np.float32)
    inside = _hit(place, rays, np.array([-ROOM, -ROOM, 0]), np.array([ROOM, ROOM, CEILING]), inside=True)
    low, high = np.array([camera.box - 0.6, -0.6, 0]), np.array([camera.box + 0.6, 0.6, 1.5])
    box = _hit(place, rays, low, high, inside=False)
    picture = np.zeros((*u.shape, 3), np.uint8)
    nearer = box[0] < inside[0]
    for axis in range(3):
        others = [a for a in range(3) if a != axis]
        for where, face, size in ((~nearer, inside, 2 * ROOM), (nearer, box, 1.5)):
            for sign in (0, 1):
                here = where & (face[1] == axis) & (face[2] == sign)
                if not here.any():
                    continue
                shift = np.array([camera.box if size < 2 and a == 0 else 0.0 for a in others])
                uv = (place + rays[here] * face[0][here][:, None])[:, others] - shift
                spot = ((uv / size + 0.5) % 1.0).astype(np.float32)
                number = 2 * axis + sign + (0 if size > 2 else 6)
                texture = textures[number % len(textures)]
                spot *= np.array([texture.shape[1] - 1, texture.shape[0] - 1], np.float32)
                picture[here] = cv2.remap(texture, spot[:, :1], spot[:, 1:], cv2.INTER_LINEAR)[:, 0]
    return np.asarray(cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


def _hit(
    place: npt.NDArray[np.float64],
    rays: npt.NDArray[np.float32],
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    inside: bool,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where rays meet a box from inside or outside: distance, axis of the face, and whether its high side."""
    safe = np.where(np.abs(rays) < 1e-9, np.float32(1e-9), rays)
    low_way, high_way = (((corner - place) / safe).astype(np.float32) for corner in (low, high))
    first, last = np.minimum(low_way, high_way), np.maximum(low_way, high_way)
    if inside:
        axis, distance = last.argmin(-1), last.min(-1)
        high_side = np.take_along_axis(rays, axis[..., None], -1)[..., 0] > 0
        return distance, axis, high_side.astype(np.int64)
    axis, distance = first.argmax(-1), first.max(-1)
    distance = np.where((distance < last.min(-1)) & (distance > 0), distance, np.inf)
    high_side = np.take_along_axis(rays, axis[..., None], -1)[..., 0] < 0
    return distance, axis, high_side.astype(np.int64)


def moves(kind: str, rng: np.random.Generator) -> list[Camera]:
    """Six moments, two a second, of a camera that does `kind`; speeds, heights and lenses are drawn."""
    times = np.arange(NUM_FRAMES) / FPS
    start = Camera(
        x=rng.uniform(-0.5, 0.5),
        y=rng.uniform(-4.2, -3.2),
        z=rng.uniform(1.4, 2.6),
        pitch=rng.uniform(-0.35, -0.1),
        focal=rng.uniform(0.9, 1.4),
    )
    sign = -1.0 if kind in {"pan_left", "tilt_down", "zoom_out"} else 1.0
    way = rng.choice([-1.0, 1.0])
    speed = (
        rng.uniform(0.04, 0.22) / start.focal
    )  # radians a second; shortest sides a second by the focal length
    if kind == "static":
        walk = rng.choice([0.0, 0.6]) * way  # half of them with something that moves by itself
        return [replace(start, box=-0.8 * way + walk * t) for t in times]
    if kind.startswith("pan") and rng.random() < 0.3:  # a truck, past walls
        return [replace(start, x=sign * (0.5 * t - 0.8), y=-3.0, pitch=0.1) for t in times]
    if kind.startswith("pan"):
        return [replace(start, yaw=sign * speed * (t - 1.25)) for t in times]
    if kind.startswith("tilt"):
        return [replace(start, pitch=start.pitch + sign * speed * (t - 1.25)) for t in times]
    if kind.startswith("zoom") and rng.random() < 0.5:  # on wheels
        rate = rng.uniform(0.15, 0.45)
        return [replace(start, y=start.y + sign * rate * (t - 1.25)) for t in times]
    if kind.startswith("zoom"):
        rate = rng.uniform(0.05, 0.25)
        return [replace(start, focal=start.focal * np.exp(sign * rate * (t - 1.25))) for t in times]
    if kind == "roll":
        rate = way * rng.uniform(0.05, 0.25)
        return [replace(start, roll=rate * t) for t in times]
    if kind == "orbit":
        return _orbit(start, way * rng.uniform(0.12, 0.4), times)
    assert kind == "handheld"
    size = rng.uniform(0.02, 0.05)
    shake = rng.normal(0, size, (len(times), 4))
    return [
        replace(start, yaw=a, pitch=start.pitch + b, x=start.x + c, z=start.z + d) for a, b, c, d in shake
    ]


def _orbit(start: Camera, rate: float, times: npt.NDArray[np.float64]) -> list[Camera]:
    """Round the box, which stays in the middle."""
    distance = float(np.hypot(start.x, start.y))
    cameras = []
    for angle in rate * (times - times.mean()):
        x, y = distance * np.sin(angle), -distance * np.cos(angle)
        aim = np.arctan2(0.7 - start.z, distance)
        cameras.append(replace(start, x=float(x), y=float(y), yaw=float(-angle), pitch=float(aim)))
    return cameras
