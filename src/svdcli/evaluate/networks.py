"""The feature network of FVD: the TorchScript I3D that papers use, or Kinetics-400 weights in safetensors.

A file or a hub id that is already in the cache; nothing is fetched here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from svdcli.errors import InputError, MachineError
from svdcli.evaluate.frechet import Array, video_features
from svdcli.evaluate.i3d import load_i3d
from svdcli.io.files import require_file

VARIABLE = "SVD_I3D"
"""Environment variable: the network that `svd eval fvd` takes where none is given."""
STANDARD_ID, STANDARD_FILE = "flateon/FVD-I3D-torchscript", "i3d_torchscript.pt"
STANDARD_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
"""of the TorchScript I3D of Brooks et al., as StyleGAN-V and the SVD paper (app. E.4) use it"""
_HOW = f"Fetch it once with `hf download {STANDARD_ID} {STANDARD_FILE}`, or give a file with --i3d."

Clips = Sequence[npt.NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Network:
    """Clips in, features out."""

    name: str
    sha256: str
    embed: Callable[[Clips], Array]
    """clips uint8 (T, H, W, 3) of one shape -> (N, D) float64"""

    @property
    def standard(self) -> bool:
        """Whether papers use exactly this file."""
        return self.sha256 == STANDARD_SHA256


def open_network(reference: str | None, device: str = "cpu") -> Network:
    """A path (.pt: TorchScript, .safetensors: Kinetics-400 I3D) or a hub id in the cache -> the network.

    Without a reference: SVD_I3D, else the standard one from the hub's cache. Raises MachineError where it is not on this
    machine, InputError where the file is no such network.
    """
    path = _locate(reference or os.environ.get(VARIABLE) or STANDARD_ID)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix == ".safetensors":
        network = load_i3d(path, device)
        return Network(path.name, sha256, lambda clips: video_features(network, clips, antialias=False))
    return Network(path.name, sha256, _torchscript(path, device))


def _locate(reference: str) -> Path:
    path = Path(reference).expanduser()
    if path.exists() or path.suffix in (".pt", ".safetensors") and reference.count("/") != 2:
        return require_file(path, "network")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    owner_and_name, _, file = reference.rpartition("/") if reference.count("/") == 2 else (reference, "", "")
    try:
        cached = try_to_load_from_cache(owner_and_name, file or STANDARD_FILE)
    except HFValidationError as error:
        raise InputError(f"{reference} is neither a file nor a hub id.", _HOW) from error
    if not isinstance(cached, str):
        raise MachineError(
            f"The I3D network {reference}, which FVD measures in, is not on this machine.", _HOW
        )
    return Path(cached)


def _torchscript(path: Path, device: str) -> Callable[[Clips], Array]:
    """The common I3D file: it rescales, resizes to 224 and returns 400 logits by its own three flags."""
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise InputError(f"{path} is not a TorchScript file.", _HOW) from error

    def embed(clips: Clips) -> Array:
        pixels = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).float().to(device)
        try:
            with torch.inference_mode():
                found = module(pixels, rescale=True, resize=True, return_features=True)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1][:200]
            raise InputError(f"{path.name} cannot be used as the I3D of FVD: {reason}", _HOW) from error
        return np.asarray(found.double().cpu().numpy(), dtype=np.float64)

    return embed
