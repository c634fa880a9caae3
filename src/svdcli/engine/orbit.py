"""An object seen from all around: what a multi-view network is told of its picture and of the cameras.

Training and sampling both build it here, so that they cannot drift apart. Angles are SV3D's: polar angle = 90° − elevation, and
azimuth relative to the given view, which is the last one and has azimuth 0; both in radians, unscaled (svd-facts §6.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from svdcli.engine.generate import Sampling, look_at
from svdcli.engine.memory import Residence
from svdcli.errors import UsageError
from svdcli.model.conditioning import Conditioning, condition_on_view
from svdcli.multiview.cameras import Orbit

POSES = {"none": 0, "elevation": 1, "path": 2}
"""What a network is told of the cameras, and how many angles that is."""
FPS = 7.0
"""Views a second of an orbit's video: 21 go round in three seconds."""


def pose_widths(pose: str, width: int) -> tuple[int, ...]:
    """Numbers that the augmentation and each angle are told by; SV3D_p: 256, and 512 an angle."""
    return (width, *((width if pose == "elevation" else 2 * width),) * POSES[pose])


def angles_of(pose: str, orbit: Orbit) -> Tensor | None:
    """-> what `condition_on_view` takes: polar angle (1, 1), or polar angles and azimuths (1, T, 2), radians; or None."""
    polars = np.radians(90 - orbit.elevations_deg)
    azimuths = np.radians((orbit.azimuths_deg - orbit.azimuths_deg[-1]) % 360)
    if pose == "none":
        return None
    told = polars[-1:] if pose == "elevation" else np.stack([polars, azimuths], axis=-1)
    return torch.from_numpy(np.ascontiguousarray(told)).float()[None]


def together(angles: Sequence[Tensor | None]) -> Tensor | None:
    """The angles of several orbits as those of a batch."""
    told = [one for one in angles if one is not None]
    return torch.cat(told) if told else None


@torch.inference_mode()
def condition_orbits(
    residence: Residence,
    pictures: Tensor,
    seeds: list[int],
    orbits: Sequence[Orbit],
    pose: str,
    sampling: Sampling,
) -> Conditioning:
    """Pictures (B, 3, H, W) in [-1, 1] and the orbit around each -> what the network is told; the seeds pin the augmentation."""
    embedding, latents, augment = look_at(residence, pictures, seeds, sampling)
    return condition_on_view(embedding, latents, augment, together([angles_of(pose, o) for o in orbits]))


def require_path(pose: str, orbit: Orbit, name: str) -> None:
    """Raise UsageError where a network that was trained on even orbits of one elevation is asked for another one."""
    steps = np.diff(np.concatenate([[0.0], orbit.azimuths_deg - orbit.azimuths_deg[-1] + 360]) % 360) % 360
    even = np.allclose(steps, 360 / len(orbit.azimuths_deg), atol=0.5)
    level = np.ptp(orbit.elevations_deg) < 0.5
    if pose != "path" and not (even and level):
        raise UsageError(
            f"{name} was trained on even orbits of one elevation, and this path is another",
            "Use --path static, or a bundle that is told each view's camera, such as sv3d_p.",
        )
