"""Edited videos whose cuts are known to the tick: shots, transitions between them, and what only looks like one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

WIDTH, HEIGHT = 160, 90
TICKS = 90_000  # a second


@dataclass
class Edit:
    """Frames as they are put together, and what is true of them."""

    frames: list[np.ndarray] = field(default_factory=list)
    hard: list[int] = field(default_factory=list)
    """number of each new shot's first frame"""
    gradual: list[tuple[int, int]] = field(default_factory=list)
    """(first mixed frame, first frame of the pure new shot)"""
    kinds: list[str] = field(default_factory=list)
    """of each gradual transition"""

    def cut(self, shot: np.ndarray) -> Edit:
        if self.frames:
            self.hard.append(len(self.frames))
        self.frames.extend(shot)
        return self

    def mix(self, shot: np.ndarray, length: int, kind: str) -> Edit:
        """Join by a transition of `length` mixed frames, for which both shots go on."""
        before, after = np.stack(self.frames[-length:]), shot[:length]
        del self.frames[-length:]
        start = len(self.frames)
        for i in range(length):
            self.frames.append(MIXES[kind](before[i], after[i], (i + 1) / (length + 1)))
        self.gradual.append((start, start + length))
        self.kinds.append(kind)
        self.frames.extend(shot[length:])
        return self


def dissolve(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    return np.rint(before * (1 - share) + after * share).astype(np.uint8)


def fade(before: np.ndarray, after: np.ndarray, share: float, level: int = 0) -> np.ndarray:
    """Out to one colour in the first half, in from it in the second."""
    pure = np.full_like(before, level)
    return dissolve(before, pure, share * 2) if share < 0.5 else dissolve(pure, after, share * 2 - 1)


def fade_white(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    return fade(before, after, share, 255)


def wipe(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    """A soft edge that runs from left to right."""
    width = before.shape[1]
    edge = np.clip((share * (width + 8) - np.arange(width)) / 8, 0, 1)[None, :, None]
    return np.rint(before * (1 - edge) + after * edge).astype(np.uint8)


def wipe_down(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    return wipe(before.swapaxes(0, 1), after.swapaxes(0, 1), share).swapaxes(0, 1)


MIXES = {
    "dissolve": dissolve,
    "fade": fade,
    "fade_white": fade_white,
    "wipe": wipe,
    "wipe_down": wipe_down,
}


# --- shots ---


def picture(seed: int, width: int = WIDTH * 4, height: int = HEIGHT * 4) -> np.ndarray:
    """A made picture (H, W, 3) with structure at all scales and a palette of its own, somewhat as photographs have."""
    random = np.random.default_rng(seed)
    palette = random.uniform(20, 235, (3, 3))
    total = np.zeros((height, width, 3))
    for octave in range(1, 7):
        grid = random.normal(size=(2**octave + 1, 2**octave + 1, 1)) @ np.ones((1, 3))
        grid += random.normal(size=grid.shape) * 0.35
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2 ** (octave * 0.8)
    share = np.clip(0.5 + 0.35 * total, 0, 1)
    low, middle, high = palette
    colour = np.where(
        share < 0.5, low + (middle - low) * share * 2, middle + (high - middle) * (share * 2 - 1)
    )
    for _ in range(int(random.integers(2, 8))):
        centre = (int(random.integers(width)), int(random.integers(height)))
        cv2.circle(
            colour,
            centre,
            int(random.integers(height // 16, height // 4)),
            random.uniform(0, 255, 3).tolist(),
            -1,
        )
    return colour.clip(0, 255).astype(np.uint8)


def moving(
    seed: int, length: int, dx: float = 0.4, dy: float = 0.1, zoom: float = 1.0, size: float = 2.0
) -> np.ndarray:
    """A shot (T, H, W, 3): a window over a made picture that moves by (dx, dy) pixels of the output a frame.

    The window begins `size` times the output, and shrinks by the factor `zoom` over the whole shot.
    """
    source = picture(seed)
    frames = []
    for i in range(length):
        scale = size / zoom ** (i / max(1, length - 1))
        width, height = WIDTH * scale, HEIGHT * scale
        left = (source.shape[1] - width) / 2 + (i - length / 2) * dx * scale
        top = (source.shape[0] - height) / 2 + (i - length / 2) * dy * scale
        matrix = np.array([[scale, 0, left], [0, scale, top]])
        flags = (
            cv2.INTER_AREA | cv2.WARP_INVERSE_MAP if scale > 1 else cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        )
        blurred = cv2.GaussianBlur(source, (0, 0), 0.45 * scale) if scale > 1.2 else source
        frames.append(
            cv2.warpAffine(blurred, matrix, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT)
        )
    return np.stack(frames)


def actors(seed: int, length: int) -> np.ndarray:
    """A still camera, three discs that move."""
    random = np.random.default_rng(seed + 1000)
    shot = moving(seed, 1, size=3.0).repeat(length, axis=0)
    for _ in range(3):
        place, speed = random.uniform(0, 1, 2) * (WIDTH, HEIGHT), random.normal(size=2) * 1.5
        colour, radius = random.uniform(0, 255, 3).tolist(), int(random.integers(6, 16))
        for i, frame in enumerate(shot):
            x, y = (place + speed * i) % (WIDTH, HEIGHT)
            cv2.circle(frame, (int(x), int(y)), radius, colour, -1)
    return shot


def flash(shot: np.ndarray, at: int, length: int = 2, strength: float = 0.8) -> np.ndarray:
    """A photographer's flash: some frames nearly white."""
    lit = shot.copy()
    lit[at : at + length] = np.rint(lit[at : at + length] * (1 - strength) + 255 * strength).astype(np.uint8)
    return lit


def shot_of(file: Path, length: int, start: int = 0, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Frames of a real clip (T, H, W, 3), scaled and cropped to cover the size; backwards again where it is short."""
    frames: list[np.ndarray] = []
    with av.open(str(file)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number >= start:
                frames.append(_cover(frame.to_ndarray(format="rgb24"), width, height))
            if len(frames) == length:
                break
    while len(frames) < length:
        frames += frames[-2::-1][: length - len(frames)]
    return np.stack(frames)


def _cover(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    scale = max(width / frame.shape[1], height / frame.shape[0])
    size = (max(width, round(frame.shape[1] * scale)), max(height, round(frame.shape[0] * scale)))
    scaled = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return scaled[top : top + height, left : left + width]


# --- files ---


def even_ticks(num_frames: int, fps: float = 25) -> list[int]:
    return [round(i * TICKS / fps) for i in range(num_frames)]


def write(
    file: Path,
    frames: Sequence[np.ndarray],
    ticks: Sequence[int] | None = None,
    codec: str = "libx264",
    gop: int = 250,
    bframes: int = 3,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    sar: Fraction | None = None,
    scenecut: bool = True,
) -> Path:
    """An encoded video whose frames are shown at `ticks` of 1/90000 s (evenly at 25 fps where none are given)."""
    ticks = ticks or even_ticks(len(frames))
    settings = {"crf": "20", "preset": "veryfast", "threads": "1"} if codec == "libx264" else {}
    if codec == "libx264" and not scenecut:
        settings["sc_threshold"] = "0"
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=25, options=settings | (options or {}))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.time_base, context.gop_size, context.max_b_frames = Fraction(1, TICKS), gop, bframes
        if sar:
            context.sample_aspect_ratio = sar
        for pixels, tick in zip(frames, ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file
