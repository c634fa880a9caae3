"""The camera convention of the whole project, said once, and the orbits around an object.

World: right-handed, z up, the object's box centred at the origin, its largest side 1. Camera axes: OpenCV's (x right,
y down, z forward). Pixels: the centre of the first one lies at (0.5, 0.5), as in COLMAP and nerfstudio. Azimuth:
counter-clockwise seen from above, 0 at the conditioning view, which stands on the +x axis. Elevation: absolute,
positive above. The *last* view of an orbit is the conditioning view (SV3D §3.1). Field of view: 33.8° (SV3D app. B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

FOV_DEG = 33.8
NUM_VIEWS = 21
NUM_RENDERED = 84
"""Views of a rendered orbit, of which any 21 at stride 4 are a training example (SV3D app. B)."""
SIDE = 576
ELEVATIONS_DEG = (-5.0, 30.0)
"""Where training elevations are drawn from, uniformly (SVD app. D.6)."""
MAX_ELEVATION_DEG = 89.0
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
"""From OpenCV's camera axes to OpenGL's and Blender's (x right, y up, z backward), and back."""


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras of one picture size.

    world_to_camera: (V, 4, 4), rigid. intrinsics: (V, 3, 3), in pixels.
    """

    world_to_camera: np.ndarray
    intrinsics: np.ndarray
    width: int
    height: int

    def __post_init__(self) -> None:
        rotation = self.world_to_camera[:, :3, :3]
        if not np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-4):
            raise ValueError("a camera's pose is not rigid: its rotation is scaled or sheared")
        if not np.allclose(np.linalg.det(rotation), 1, atol=1e-3):
            raise ValueError("a camera's pose is mirrored: its rotation has determinant -1")

    def __len__(self) -> int:
        return len(self.world_to_camera)

    @property
    def centres(self) -> np.ndarray:
        """Where the cameras stand in the world: (V, 3)."""
        rotation, shift = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3]
        return -np.einsum("vji,vj->vi", rotation, shift)

    @property
    def forward(self) -> np.ndarray:
        """Unit vectors (V, 3) along which the cameras look."""
        return self.world_to_camera[:, 2, :3]

    @property
    def azimuths_deg(self) -> np.ndarray:
        """(V,) in [0, 360)."""
        x, y, _ = self.centres.T
        return np.round(np.degrees(np.arctan2(y, x)), 9) % 360

    @property
    def elevations_deg(self) -> np.ndarray:
        """(V,) in [-90, 90]."""
        x, y, z = self.centres.T
        return np.degrees(np.arctan2(z, np.hypot(x, y)))

    @property
    def radii(self) -> np.ndarray:
        """Distances (V,) from the origin."""
        return np.linalg.norm(self.centres, axis=1)

    @property
    def fov_deg(self) -> float:
        """Horizontal field of view of the first camera."""
        return float(np.degrees(2 * np.arctan(self.width / 2 / self.intrinsics[0, 0, 0])))

    def take(self, views: Sequence[int] | np.ndarray) -> Cameras:
        """Some of the cameras, in the order of `views`."""
        index = np.asarray(views)
        return replace(self, world_to_camera=self.world_to_camera[index], intrinsics=self.intrinsics[index])

    def resized(self, width: int, height: int) -> Cameras:
        """The cameras of the same pictures scaled to another size."""
        scale = np.array([[width / self.width], [height / self.height], [1.0]])
        return replace(self, intrinsics=self.intrinsics * scale, width=width, height=height)

    def turned_left(self) -> Cameras:
        """The cameras of the same pictures turned a quarter counter-clockwise (`np.rot90`)."""
        turn = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        pose, K = self.world_to_camera.copy(), np.tile(np.eye(3), (len(self), 1, 1))
        pose[:, :3] = turn @ pose[:, :3]
        K[:, 0, 0], K[:, 1, 1] = self.intrinsics[:, 1, 1], self.intrinsics[:, 0, 0]
        K[:, 0, 2], K[:, 1, 2] = self.intrinsics[:, 1, 2], self.width - self.intrinsics[:, 0, 2]
        return Cameras(pose, K, self.height, self.width)

    def facing(self, view: int) -> Cameras:
        """The same cameras in a world turned about z, so that `view` (the conditioning one) has azimuth 0."""
        return self.moved(turn_about_z(-float(self.azimuths_deg[view])))

    def moved(self, rotation: np.ndarray, shift: np.ndarray | None = None, scale: float = 1.0) -> Cameras:
        """The cameras in the world x' = scale · rotation · x + shift; what they see stays the same."""
        shift = np.zeros(3) if shift is None else shift
        pose = np.tile(np.eye(4), (len(self), 1, 1))
        pose[:, :3, :3] = self.world_to_camera[:, :3, :3] @ rotation.T
        centres = scale * self.centres @ rotation.T + shift
        pose[:, :3, 3] = -np.einsum("vij,vj->vi", pose[:, :3, :3], centres)
        return replace(self, world_to_camera=pose)

    def project(self, points: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
        """World points (N, 3) -> pixels (N, 2) and depths (N,) along the optical axis; behind it pixels mean nothing."""
        pose, K = self.world_to_camera[view], self.intrinsics[view]
        seen = points @ pose[:3, :3].T + pose[:3, 3]
        depth = seen[:, 2]
        safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
        return (seen[:, :2] / safe[:, None]) * (K[0, 0], K[1, 1]) + (K[0, 2], K[1, 2]), depth

    def rays(self, view: int, pixels: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) -> directions (N, 3) in the world, of depth 1: centre + d·ray has depth d."""
        K, rotation = self.intrinsics[view], self.world_to_camera[view, :3, :3]
        local = np.ones((len(pixels), 3))
        local[:, :2] = (pixels - (K[0, 2], K[1, 2])) / (K[0, 0], K[1, 1])
        return local @ rotation

    def pixel_rays(self, view: int) -> np.ndarray:
        """The rays through all pixel centres, row by row: (H·W, 3)."""
        return self.rays(view, pixel_centres(self.width, self.height))


@dataclass(frozen=True)
class Orbit:
    """Where the views of an orbit stand, in degrees; the last one is the conditioning view, at azimuth 0 (360)."""

    azimuths_deg: np.ndarray
    elevations_deg: np.ndarray

    def cameras(self, radius: float, fov_deg: float = FOV_DEG, side: int = SIDE) -> Cameras:
        """Square cameras that look at the origin from `radius`."""
        if not np.isfinite(radius) or radius <= 0 or not 0 < fov_deg < 180:
            raise ValueError(f"no camera has radius {radius} and a field of view of {fov_deg}°")
        poses = np.stack([look_at_origin(d * radius) for d in self.directions])
        focal = side / 2 / np.tan(np.radians(fov_deg) / 2)
        intrinsics = np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])
        return Cameras(poses, np.tile(intrinsics, (len(poses), 1, 1)), side, side)

    @property
    def directions(self) -> np.ndarray:
        """Unit vectors (V, 3) from the object to the cameras."""
        azimuth, elevation = np.radians(self.azimuths_deg), np.radians(self.elevations_deg)
        flat = np.cos(elevation)
        return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)], axis=1)

    def enclosing_radius(self, points: np.ndarray, fov_deg: float = FOV_DEG, margin: float = 0.05) -> float:
        """The least distance from which no view clips one of the points (N, 3).

        A point p lies inside the frame of a view from direction d when |p·right| and |p·up| are at most
        (r − p·d) tan(fov/2). `margin` is the part of the frame's half side that stays free.
        """
        slope = np.tan(np.radians(fov_deg) / 2) * (1 - margin)
        needed = [
            (points @ d + np.abs(points @ look_at_origin(d)[:2, :3].T).max(axis=1) / slope).max()
            for d in self.directions
        ]
        return float(max(needed))


def static_orbit(elevation_deg: float, num_views: int = NUM_VIEWS) -> Orbit:
    """Views at equal steps and one elevation."""
    azimuths = np.arange(1, num_views + 1) * 360 / num_views
    return Orbit(azimuths, np.full(num_views, float(elevation_deg)))


def dynamic_orbit(elevation_deg: float, rng: np.random.Generator, num_views: int = NUM_RENDERED) -> Orbit:
    """An orbit whose elevation swings and that ends at `elevation_deg` (SV3D app. B).

    The swing is a sum of sinusoids of one to five whole periods, amplitudes 0.5 to 10 degrees and random phases,
    smoothed by a small kernel; the steps of the azimuth are uneven by up to a quarter of a step.
    """
    step = 360 / num_views
    azimuths = np.arange(1, num_views + 1) * step
    azimuths[:-1] += rng.uniform(-step / 4, step / 4, num_views - 1)
    turn = np.radians(azimuths)
    periods, amplitudes = np.arange(1, 6), rng.uniform(0.5, 10, 5) * rng.uniform(0, 1, 5)
    swing = (amplitudes * np.sin(turn[:, None] * periods + rng.uniform(0, 2 * np.pi, 5))).sum(axis=1)
    swing = (np.roll(swing, 1) + 2 * swing + np.roll(swing, -1)) / 4
    elevations = np.clip(elevation_deg + swing - swing[-1], -MAX_ELEVATION_DEG, MAX_ELEVATION_DEG)
    return Orbit(azimuths, elevations)


def look_at_origin(centre: np.ndarray) -> np.ndarray:
    """World-to-camera (4, 4) of a camera at `centre` (3,) that looks at the origin, z up in its picture."""
    forward = -centre / np.linalg.norm(centre)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    length = np.linalg.norm(right)
    right = right / length if length > 1e-9 else np.array([0.0, 1.0, 0.0])  # straight above or below
    rotation = np.stack([right, np.cross(forward, right), forward])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, -rotation @ centre
    return pose


def turn_about_z(angle_deg: float) -> np.ndarray:
    """Rotation (3, 3), counter-clockwise seen from above."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def pixel_centres(width: int, height: int) -> np.ndarray:
    """(H·W, 2) of x, y, row by row."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x.ravel(), y.ravel()], axis=1)
