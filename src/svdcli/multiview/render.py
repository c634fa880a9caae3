"""A mesh and cameras -> pictures, on the CPU: rays, matt surfaces, image-based light.

One ray through each pixel's centre, sixteen where the picture has an edge. Transparent surfaces are looked through,
front to back. Light is added up linear and premultiplied by alpha; the result is sRGB with straight alpha. There are
no cast shadows and no gloss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from svdcli.multiview.cameras import Cameras, pixel_centres
from svdcli.multiview.light import Light
from svdcli.multiview.meshes import Mesh, Part, to_linear, to_srgb
from svdcli.multiview.o3d import open3d, raycaster
from svdcli.multiview.sampling import wrapped

MAX_LAYERS = 8
"""How many transparent surfaces one behind another are looked through."""
_STEP = 1e-4  # how far behind a transparent surface the ray goes on
_EDGE = 0.03  # difference of neighbouring pixels, in sRGB, above which they are sampled finely
_CREASE = 0.5  # cosine below which a vertex normal is not believed: the file says smooth, the shape says edge
_CHUNK = 1 << 18  # rays at a time


@dataclass(frozen=True)
class Rendering:
    """One view. rgba: uint8 (H, W, 4), sRGB, straight alpha. depth: float32 (H, W) along the optical axis, inf where
    nothing is. normals: float32 (H, W, 3) in the world, 0 where nothing is. The last two at pixel centres."""

    rgba: np.ndarray
    depth: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class _Hits:
    """Where rays (N,) end: face −1 and depth inf where nowhere."""

    depth: np.ndarray
    face: np.ndarray
    weights: np.ndarray
    normal: np.ndarray


def render(mesh: Mesh, cameras: Cameras, light: Light | None = None, samples: int = 4) -> Iterator[Rendering]:
    """One rendering a camera, in order. `samples`² rays go through a pixel at an edge; 1 leaves edges jagged."""
    renderer = Renderer(mesh, float(cameras.radii.mean() / cameras.intrinsics[0, 0, 0]), light)
    for view in range(len(cameras)):
        yield renderer.view(cameras, view, samples)


class Renderer:
    """A mesh made ready for rays; `pixel_size` is what a pixel spans on the object, in world units."""

    def __init__(self, mesh: Mesh, pixel_size: float, light: Light | None = None) -> None:
        self.light = light or Light.neutral()
        self.parts = mesh.parts
        self._scene = raycaster(mesh.vertices, mesh.faces)
        self._part_of_face = np.repeat(np.arange(len(mesh.parts)), [len(part.faces) for part in mesh.parts])
        self._first_face = np.cumsum([0, *(len(part.faces) for part in mesh.parts)])
        self._textures = [_texture(part, pixel_size) for part in mesh.parts]

    def view(self, cameras: Cameras, view: int, samples: int = 4) -> Rendering:
        """What one camera sees."""
        height, width = cameras.height, cameras.width
        centre = cameras.centres[view]
        pixels = pixel_centres(width, height)
        light, hits = self._trace(centre, cameras.rays(view, pixels))
        light = light.reshape(height, width, 4)
        if samples > 1:
            rows, columns = np.nonzero(_edges(light, hits.depth.reshape(height, width)))
            offsets = (np.arange(samples) + 0.5) / samples
            across, down = (part.ravel() for part in np.meshgrid(offsets, offsets))
            finer = np.stack([columns[:, None] + across, rows[:, None] + down], axis=2)
            traced = self._trace(centre, cameras.rays(view, finer.reshape(-1, 2)))[0]
            light[rows, columns] = traced.reshape(len(rows), samples**2, 4).mean(axis=1)
        normals = np.where(hits.face[:, None] >= 0, hits.normal, 0).reshape(height, width, 3)
        return Rendering(_encoded(light), hits.depth.reshape(height, width), normals.astype(np.float32))

    # ---- rays

    def _trace(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, _Hits]:
        """Premultiplied linear RGBA (N, 4), float32, and the first hits."""
        parts = [self._trace_chunk(origin, rays[i : i + _CHUNK]) for i in range(0, len(rays), _CHUNK)]
        if not parts:
            return np.zeros((0, 4), np.float32), _Hits(
                np.zeros(0), np.zeros(0, int), np.zeros((0, 3)), np.zeros((0, 3))
            )
        joined = [
            np.concatenate(arrays) for arrays in zip(*(vars(hits).values() for _, hits in parts), strict=True)
        ]
        return np.concatenate([light for light, _ in parts]), _Hits(*joined)

    def _trace_chunk(self, origin: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, _Hits]:
        first = self._cast(np.broadcast_to(origin, rays.shape), rays)
        light = np.zeros((len(rays), 4), np.float32)
        active, hits, start = np.arange(len(rays)), first, np.zeros(len(rays))
        for _ in range(MAX_LAYERS):
            struck = hits.face >= 0
            active, hits, start = active[struck], _select(hits, struck), start[struck] + hits.depth[struck]
            if not len(active):
                break
            shaded = self._shade(hits, rays[active])
            left = 1 - light[active, 3:]
            light[active] += left * shaded
            onward = light[active, 3] < 0.996
            if not onward.any():
                break
            active, start = active[onward], start[onward] + _STEP
            hits = self._cast(origin + rays[active] * start[:, None], rays[active])
        return light, first

    def _cast(self, origins: np.ndarray, rays: np.ndarray) -> _Hits:
        o3d = open3d()
        found = self._scene.cast_rays(
            o3d.core.Tensor(np.concatenate([origins, rays], axis=1).astype(np.float32))
        )
        face = found["primitive_ids"].numpy().astype(np.int64)
        uv = found["primitive_uvs"].numpy()
        weights = np.stack([1 - uv[:, 0] - uv[:, 1], uv[:, 0], uv[:, 1]], axis=1)
        missed = face == 0xFFFFFFFF
        face[missed] = -1
        return _Hits(found["t_hit"].numpy(), face, weights, found["primitive_normals"].numpy())

    def _shade(self, hits: _Hits, rays: np.ndarray) -> np.ndarray:
        """Premultiplied linear RGBA (N, 4) of surfaces that were struck."""
        colour, normal = np.empty((len(rays), 4), np.float32), hits.normal.astype(float)
        part_of_hit = self._part_of_face[hits.face]
        for index in np.unique(part_of_hit):
            here = part_of_hit == index
            part, weights = self.parts[index], hits.weights[here][:, :, None]
            corners = part.faces[hits.face[here] - self._first_face[index]]
            colour[here] = _albedo(part, self._textures[index], corners, weights)
            smooth = (part.normals[corners] * weights).sum(axis=1)
            smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-12)
            flat = normal[here]
            agreement = (smooth * flat).sum(axis=1, keepdims=True)
            normal[here] = np.where(np.abs(agreement) > _CREASE, smooth * np.sign(agreement), flat)
        away = (hits.normal * rays).sum(axis=1) > 0  # both sides of a surface are seen
        normal[away] *= -1
        colour[:, :3] *= self.light.at(normal) * colour[:, 3:]
        return colour


def _albedo(part: Part, texture: np.ndarray | None, corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Linear RGBA (N, 4), straight, of points given by their face's corners (N, 3) and weights (N, 3, 1)."""
    colour = np.tile(part.base, (len(corners), 1))
    if part.colours is not None:
        colour *= (part.colours[corners] * weights).sum(axis=1)
    if texture is not None and part.uv is not None:
        colour *= wrapped(texture, (part.uv[corners] * weights).sum(axis=1))
    if part.alpha_mode == "opaque":
        colour[:, 3] = 1
    elif part.alpha_mode == "mask":
        colour[:, 3] = colour[:, 3] >= part.cutoff
    return colour


def _texture(part: Part, pixel_size: float) -> np.ndarray | None:
    """Linear float32 (H, W, 4), scaled down until a texel is about as large on the object as a pixel."""
    if part.texture is None or part.uv is None:
        return None
    table = to_linear(np.arange(256) / 255).astype(np.float32)
    height, width = part.texture.shape[:2]
    level = max(0.0, np.log2(max(_texels_per_length(part, width, height) * pixel_size, 1e-6)))
    texture = np.empty((height, width, 4), np.float32)
    texture[..., :3], texture[..., 3] = table[part.texture[..., :3]], part.texture[..., 3] / np.float32(255)
    factor = 2 ** int(level + 0.5)
    if factor == 1:
        return texture
    size = max(1, width // factor), max(1, height // factor)
    return cv2.resize(texture, size, interpolation=cv2.INTER_AREA)


def _texels_per_length(part: Part, width: int, height: int) -> float:
    """√(area in the texture / area on the object), of the whole part."""
    assert part.uv is not None
    corners, uv = part.vertices[part.faces], part.uv[part.faces] * (width, height)
    on_object = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    ).sum()
    a, b = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    in_texture = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    return float(np.sqrt(in_texture / on_object)) if on_object > 0 else 0.0


def _edges(light: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Pixels (H, W) beside which colour, coverage or depth jumps."""
    shown = np.concatenate([to_srgb(light[..., :3]), light[..., 3:]], axis=2).astype(np.float32)
    near = np.where(np.isfinite(depth), depth, 1e3).astype(np.float32)
    box = np.ones((3, 3), np.uint8)
    jump = (cv2.dilate(shown, box) - cv2.erode(shown, box)).max(axis=2) > _EDGE
    return jump | (cv2.dilate(near, box) - cv2.erode(near, box) > 0.02 * near)


def _encoded(light: np.ndarray) -> np.ndarray:
    alpha = light[..., 3:]
    straight = np.divide(light[..., :3], alpha, out=np.zeros_like(light[..., :3]), where=alpha > 1e-4)
    rgba = np.concatenate([to_srgb(straight), np.clip(alpha, 0, 1)], axis=2)
    return np.rint(rgba * 255).astype(np.uint8)


def _select(hits: _Hits, chosen: np.ndarray) -> _Hits:
    return _Hits(hits.depth[chosen], hits.face[chosen], hits.weights[chosen], hits.normal[chosen])
