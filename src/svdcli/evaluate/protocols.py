"""FVD protocols: everything that moves the figure, besides the network and the number of videos, in one value.

Published FVDs of one model differ by factors because of the frame rate, the resize or the choice of clips alone, so
a figure is only ever compared with another of the same `digest`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from svdcli.errors import UsageError

Window = Literal["first", "random"]


@dataclass(frozen=True)
class Protocol:
    """Which frames of a video are looked at, and at what size."""

    name: str
    about: str
    """where it comes from, and what it leaves open"""
    num_frames: int
    fps: float | None
    """frames are taken nearest to this rate; None: one after another, whatever the video's own rate"""
    window: Window
    """where in a longer video the clip begins; `random` is drawn from the video's content, so it never changes"""
    size: tuple[int, int] | None
    """(H, W) in pixels: scaled to cover it (bilinear, antialiased), the middle kept; None: as the video is"""
    num_videos: int | None = None
    """of each set, that its source asks for"""
    equal_numbers: bool = False
    """the larger set is thinned to the smaller one's number, as the bias depends on both"""

    def settings(self) -> dict[str, Any]:
        """What decides the figure: all but the words."""
        return {key: value for key, value in asdict(self).items() if key not in ("name", "about")}

    def view(self) -> dict[str, Any]:
        """What decides the features of one video."""
        return {key: getattr(self, key) for key in ("num_frames", "fps", "window", "size")}

    def digest(self, network: str) -> str:
        """Twelve hexadecimal digits of these settings and the network's own digest."""
        return digest({"protocol": self.settings(), "network": network})


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


MATCHED = Protocol(
    "matched",
    "ours: 2 s at the 7 fps of SVD, one antialiased resize that keeps the aspect, as many videos in both sets",
    num_frames=14,
    fps=7.0,
    window="random",
    size=(224, 224),
    equal_numbers=True,
)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        MATCHED,
        Protocol(
            "svd-ucf101",
            "SVD paper, app. E.4: 320x576 becomes 240x432, its middle 240x320, 16 frames at 25 fps; I3D rescales and "
            "resizes. Which 16 frames of a longer real video is not stated: the first",
            num_frames=16,
            fps=25.0,
            window="first",
            size=(240, 320),
            num_videos=13_320,
        ),
        Protocol(
            "stylegan-v",
            "StyleGAN-V, fvd2048_16f: 16 frames in a row of 2048 videos, at the dataset's own size and rate",
            num_frames=16,
            fps=None,
            window="random",
            size=None,
            num_videos=2048,
        ),
    )
}


def find_protocol(name: str, num_frames: int | None = None, fps: float | None = None) -> Protocol:
    """A protocol by name; with frames or rate changed it is called `custom`. Raises UsageError."""
    if name not in PROTOCOLS:
        raise UsageError(f"There is no FVD protocol {name}.", f"Choose one of {', '.join(PROTOCOLS)}.")
    found = PROTOCOLS[name]
    if num_frames is None and fps is None:
        return found
    if (num_frames is not None and num_frames < 9) or (fps is not None and not fps > 0):
        raise UsageError(
            "A clip needs 9 frames or more, at a rate above 0.", "I3D pools over time: give --frames 14."
        )
    return replace(
        found,
        name="custom",
        about=f"{name}, with other frames",
        num_frames=num_frames or found.num_frames,
        fps=fps or found.fps,
        num_videos=None,
    )
