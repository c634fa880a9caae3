"""What annotators with a model share: where it is, how it is loaded, and the version of rows that it makes.

Nothing is ever fetched: a hub id must be in the hub's cache. A model that is absent is a MachineError, at once the first
time and again, without another try, every time after: its scores are then not computed.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from svdcli.errors import InputError, MachineError, SvdError

if TYPE_CHECKING:
    import torch

Model = TypeVar("Model")


def stamp(version: int, *settings: object) -> int:
    """The version of an annotator's rows: that of its code, and a hash of the settings that its results depend on."""
    return version << 32 | zlib.crc32(repr(settings).encode())


class Once:
    """A model that is loaded when it is first asked for; what went wrong then is raised again each time."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._model: Any = None
        self._error: SvdError | None = None

    def __call__(self) -> Any:
        if self._error:
            raise self._error
        if self._model is None:
            try:
                self._model = self._load()
            except SvdError as error:
                self._error = error
                raise
        return self._model


def torch_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` -> the device. Raises MachineError where it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MachineError(f"There is no device {name}.", "Say cpu, cuda, cuda:1, or auto.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"This machine has no device {name}.", "Set the annotators' device to cpu or auto."
        )
    return device


def place(ref: str, what: str) -> str:
    """A model's hub id or folder -> what transformers is given. Raises MachineError for a folder that is not there."""
    path = Path(ref).expanduser()
    looks_like_path = path.is_absolute() or ref.startswith((".", "~")) or ref.count("/") != 1
    if path.is_dir():
        return str(path)
    if looks_like_path:
        raise MachineError(
            f"There is no folder {ref} with {what}.", "Give the folder of a transformers model, or a hub id."
        )
    return ref


def quiet_transformers() -> None:
    """It would say on stderr which of its processors it takes, and how far loading has got."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_part(part: Any, ref: str, what: str, **options: Any) -> Any:
    """`part.from_pretrained`, from this machine alone.

    Raises MachineError where the model is absent, lacks something, or needs a package that is not installed.
    """
    where = place(ref, what)
    fetch = f"Fetch it with `hf download {ref}`, or name the folder of a copy."
    try:
        return part.from_pretrained(where, local_files_only=True, **options)
    except ImportError as error:
        first = " ".join(str(error).split()).partition(". ")[0]
        raise MachineError(f"{ref} needs a package: {first}.", "Install what it names with pip.") from error
    except OSError as error:
        absent = not Path(where).is_dir()
        message = (
            f"{what.capitalize()} {ref} is not on this machine, and nothing is fetched unasked."
            if absent
            else f"The folder {ref} holds no whole model: {str(error).splitlines()[0]}"
        )
        raise MachineError(message, fetch if absent else "Fetch the model again.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        first = (str(error).splitlines() or ["unknown"])[0]
        bare = find_spec("torchvision") is None  # transformers then lacks classes, and says so in many ways
        raise MachineError(
            f"{ref} cannot serve as {what}: {first}",
            "Name a model of the right kind, or install torchvision, which many of them need."
            if bare
            else "Name a model of the right kind.",
        ) from error


def load_network(part: Any, ref: str, what: str, device: str, precision: str) -> Any:
    """As `load_part`, a network in eval mode on its device. Raises MachineError also where memory does not suffice."""
    import torch

    where = torch_device(device)
    model = load_part(part, ref, what)
    try:
        return model.to(where, getattr(torch, precision)).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"{ref} does not fit the memory of {where}.",
            "Set its precision to float16, or its device to cpu.",
        ) from error


def load_tensors(path: Path, what: str, hint: str) -> dict[str, torch.Tensor]:
    """A safetensors file, or a .pth of nothing but tensors, by name.

    The small networks of this room are published as .pth alone, so these are opened too, with torch's restricted
    unpickler, which makes tensors and runs nothing. Raises MachineError where the file is missing and InputError where
    it is none of both; `hint` says how to get a right one.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise MachineError(f"There is no {path} with {what}.", hint)
    try:
        found = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path.name} is no file of weights: {str(error).splitlines()[0]}", hint) from error
    if not isinstance(found, dict) or not all(torch.is_tensor(value) for value in found.values()):
        raise InputError(f"{path.name} holds something else than {what}.", hint)
    return found
