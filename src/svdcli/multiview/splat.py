"""Pictures of a point cloud: each point a small soft disc, the nearest ones in front."""

from __future__ import annotations

import numpy as np

from svdcli.multiview.cameras import Cameras, Orbit

_TOLERANCE = (
    0.02  # how far behind the foremost point a point still adds its colour, in parts of the cloud's size
)


def draw_points(
    points: np.ndarray, colours: np.ndarray, cameras: Cameras, view: int, radius: float | None = None
) -> np.ndarray:
    """Points (N, 3) with sRGB colours (N, 3) -> a picture (H, W, 4) in [0, 1], straight alpha.

    `radius` of the discs in pixels; unless given, so large that the discs close up.
    """
    height, width = cameras.height, cameras.width
    pixels, depth = cameras.project(points, view)
    size = float((points.max(axis=0) - points.min(axis=0)).max())
    if radius is None:
        span = np.ptp(pixels[np.isfinite(pixels).all(axis=1)], axis=0)
        radius = max(1.2, 2.2 * float(np.sqrt(span.prod() / max(len(points), 1))))
    reach = int(np.ceil(radius))
    offsets = [(dx, dy) for dx in range(-reach, reach + 1) for dy in range(-reach, reach + 1)]
    base = np.floor(pixels).astype(np.int64)
    front = np.full(height * width, np.inf, np.float32)
    covered = []
    for dx, dy in offsets:
        x, y = base[:, 0] + dx, base[:, 1] + dy
        distance = np.hypot(x + 0.5 - pixels[:, 0], y + 0.5 - pixels[:, 1])
        good = np.flatnonzero(
            (distance < radius) & (x >= 0) & (x < width) & (y >= 0) & (y < height) & (depth > 0)
        )
        place = y[good] * width + x[good]
        np.minimum.at(front, place, depth[good].astype(np.float32))
        covered.append((good, place, distance[good]))
    total, weight = np.zeros((height * width, 3)), np.zeros(height * width)
    for good, place, distance in covered:
        near = depth[good] <= front[place] + _TOLERANCE * size
        share = np.exp(-2 * (distance[near] / radius) ** 2)
        weight += np.bincount(place[near], share, height * width)
        for channel in range(3):
            total[:, channel] += np.bincount(
                place[near], share * colours[good[near], channel], height * width
            )
    picture = np.zeros((height * width, 4))
    drawn = weight > 0
    picture[drawn, :3], picture[drawn, 3] = total[drawn] / weight[drawn, None], 1
    return picture.reshape(height, width, 4)


def turntable(points: np.ndarray, colours: np.ndarray, side: int = 256) -> np.ndarray:
    """Eight pictures of the cloud, uint8 (2·side, 4·side, 3) over white: around it from above, then from below."""
    low, high = points.min(axis=0), points.max(axis=0)
    placed = (points - (low + high) / 2) / (high - low).max()
    azimuths, elevations = np.arange(8) * 45.0, np.repeat([20.0, -20.0], 4)
    orbit = Orbit(azimuths, elevations)
    cameras = orbit.cameras(orbit.enclosing_radius(placed), side=side)
    cells = []
    for view in range(8):
        picture = draw_points(placed, colours, cameras, view)
        alpha = picture[..., 3:]
        cells.append(picture[..., :3] * alpha + 1 - alpha)
    rows = [np.concatenate(cells[:4], axis=1), np.concatenate(cells[4:], axis=1)]
    return np.rint(np.concatenate(rows).clip(0, 1) * 255).astype(np.uint8)
