"""The manifest: every value that made an output, as a JSON sidecar and as text inside the file itself."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import svdcli
from svdcli.errors import InputError
from svdcli.io.files import atomic_path, require_file


def sidecar_path(output: str | Path) -> Path:
    """Where the manifest of `output` lies: `cat.mp4` -> `cat.json`, a folder `cat` -> `cat.json`."""
    output = Path(output)
    return output.with_name(f"{output.stem if output.suffix else output.name}.json")


def manifest_text(manifest: Mapping[str, Any], indent: int | None = None) -> str:
    """The manifest as JSON with sorted keys; one line unless `indent` is given.

    Paths, fractions, dataclasses, numpy and torch values are written plainly. NaN and infinity are refused
    (ValueError) because no other JSON reader takes them.
    """
    return json.dumps(
        manifest, sort_keys=True, ensure_ascii=False, indent=indent, default=_plain, allow_nan=False
    )


def write_manifest(path: str | Path, manifest: Mapping[str, Any]) -> None:
    """Write the sidecar, atomically. Raises as `atomic_path` does."""
    text = manifest_text(manifest, indent=2)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a sidecar. Raises InputError when it is missing or is not one JSON object."""
    file = require_file(path, "manifest")
    hint = "A manifest is the .json file that svd writes beside an output."
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON.", hint) from error
    if not isinstance(manifest, dict):
        raise InputError(f"{file} is not a manifest: it holds no JSON object.", hint)
    return manifest


def versions() -> dict[str, str]:
    """Versions of what shapes a result: svdcli, torch, python. Imports none of them."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    return {"svdcli": svdcli.__version__, "torch": torch, "python": platform.python_version()}


def _plain(value: Any) -> Any:
    """What JSON has no form for: the nearest thing that it has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
