"""`svd.json`: what a bundle is for and how it is best sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import isfinite
from typing import Any

from svdcli.errors import InputError

SETTINGS = "svd.json"


@dataclass(frozen=True)
class Settings:
    """What a bundle is for and how it is best sampled: the content of `svd.json`. Defaults: SVD-XT."""

    task: str = "i2v"
    num_frames: int = 25
    width: int = 1024
    height: int = 576
    fps: float = 7.0
    """Frames a second as a user means them; the network is fed fps − 1."""
    motion_bucket: float = 127.0
    augment: float = 0.02
    guidance: str = "1.5:3.0"
    num_steps: int = 30
    sampler: str = "euler"
    sigma_min: float = 0.002
    """The last noise level before 0; the scheduler's configuration says it too, for other tools."""
    sigma_max: float = 700.0
    temperature: float = 1.0
    """Of the noise that sampling starts from; below 1 a small model is cleaner, and moves less."""
    carry_detail: bool = False
    """Whether the given picture's own pixels are carried into the decoded frames: for an autoencoder that loses much of them."""
    leading: int = 0
    """Clean leading frames that it was trained to go on from, at most; 0: none but the picture."""
    motion_calibration: tuple[tuple[float, float], ...] = ()
    """Knots (bucket, motion score) of the training clips; empty where unknown."""
    recipe: str = ""
    """The text of the recipe that made the bundle."""
    pose: str = ""
    """What a multi-view network is told of its cameras: none, elevation (the orbit's) or path (each view's)."""
    object_share: float = 0.9
    """Of a multi-view network: the larger side of the object in the given view, as a share of the frame."""

    @classmethod
    def default(cls, num_frames: int) -> Settings:
        """Of a bundle without `svd.json`, by its frames: those of svd (14) or svd-xt (svd-facts §4.1)."""
        if num_frames == 14:
            return cls(num_frames=14, guidance="1.0:2.5", num_steps=25)
        return cls(num_frames=num_frames)

    @classmethod
    def sv3d(cls, pose: str) -> Settings:
        """Of Stability's SV3D_u (pose none) and SV3D_p (path): svd-facts §4.1, §6.2; the share of SV4D's own preparation."""
        return cls(
            task="multiview", num_frames=21, width=576, height=576, augment=1e-5, guidance="triangle:1.0:2.5",
            num_steps=50, pose=pose, object_share=0.917,
        )  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], base: Settings) -> Settings:
        """From parsed `svd.json`; what it lacks comes from `base`, keys of later versions are left out.

        Raises InputError that names the key of a wrong value.
        """
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        for name, value in known.items():
            if not _fits(name, value, type(getattr(base, name))):
                raise InputError(
                    f"{SETTINGS} is wrong: {name} cannot be {value!r}.",
                    "Mend the file, or delete it for defaults.",
                )
        if "motion_calibration" in known:
            known["motion_calibration"] = tuple((float(a), float(b)) for a, b in known["motion_calibration"])
        return replace(base, **known)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _fits(name: str, value: Any, kind: type) -> bool:
    """Whether a parsed JSON value may stand for a setting: its type, finite, positive where that is
    needed.
    """
    if kind in (str, bool):
        return isinstance(value, kind)
    if kind is tuple:
        return isinstance(value, list) and all(
            isinstance(knot, list) and len(knot) == 2 and all(_is_number(n) for n in knot) for knot in value
        )
    whole = kind is float or value == int(value) if _is_number(value) else False
    return whole and (value > 0 or (name in ("augment", "leading", "temperature") and value == 0))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
