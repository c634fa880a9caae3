"""Latents on disk, saved before they are decoded, so that a failed decode costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from svdcli.errors import InputError
from svdcli.io.files import atomic_path, require_file

_KEY = "latents"
_GIVEN = "given."  # and the frame's number


def save_latents(
    path: str | Path,
    latents: Tensor,
    metadata: Mapping[str, str],
    given: Mapping[int, npt.NDArray[np.uint8]] | None = None,
) -> None:
    """Latents (T, C, h, w), any dtype and device -> a safetensors file with `metadata`, written atomically.

    `given`: pictures (H, W, 3) that some of the frames were given as, by frame.

    Raises as `atomic_path` does: the bytes are written by Python, because the library's own writer reports
    a full disk as an error of its own.
    """
    if latents.ndim != 4:
        raise ValueError(f"latents must be (T, C, h, w), not {tuple(latents.shape)}")
    tensors = {_KEY: latents.detach().cpu().contiguous()}
    tensors |= {f"{_GIVEN}{frame}": torch.from_numpy(picture) for frame, picture in (given or {}).items()}
    content = safetensors.torch.save(tensors, metadata=dict(metadata))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_latents(path: str | Path) -> tuple[Tensor, dict[str, str]]:
    """(latents (T, C, h, w) on the CPU in the saved dtype, metadata). Raises InputError."""
    file = require_file(path, "latents file")
    hint = "Give the .safetensors file that `svd sample` saved before decoding."
    try:
        with safetensors.safe_open(file, framework="pt") as stored:
            if _KEY not in stored.keys():  # noqa: SIM118 - not a dict
                raise InputError(f"{file} holds no latents, only {_named(stored.keys())}.", hint)
            latents = stored.get_tensor(
                _KEY
            ).clone()  # the file may be replaced while we still hold the tensor
            metadata = dict(stored.metadata() or {})
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file} is not a safetensors file, or is truncated or damaged.", hint) from error
    if latents.ndim != 4 or not latents.is_floating_point():
        raise InputError(f"The latents in {file} are {tuple(latents.shape)}, not (T, C, h, w) numbers.", hint)
    return latents, metadata


def load_given(path: str | Path) -> dict[int, npt.NDArray[np.uint8]]:
    """The pictures (H, W, 3) in a latents file that `load_latents` has read, by frame. Raises InputError where they are none."""
    with safetensors.safe_open(path, framework="np") as stored:
        keys = [key for key in stored.keys() if key.startswith(_GIVEN)]  # noqa: SIM118 - not a dict
        given = {key.removeprefix(_GIVEN): stored.get_tensor(key).copy() for key in keys}
    for frame, picture in given.items():
        if not frame.isdecimal() or picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise InputError(
                f"{_GIVEN}{frame} in {path} is no picture.",
                "Give a file that `svd sample` saved before decoding.",
            )
    return {int(frame): picture for frame, picture in given.items()}


def _named(keys: list[str]) -> str:
    shown = ", ".join(sorted(keys)[:3])
    return (shown + (", ..." if len(keys) > 3 else "")) or "nothing"
