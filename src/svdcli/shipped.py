"""Where the files lie that ship with the package: the embedded bundle, example pictures, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from svdcli.errors import MachineError

_PACKAGE = Path(__file__).resolve().parent
# A wheel carries the folders inside the package; a checkout has them at its top, beside src/.
_HOMES = (_PACKAGE, _PACKAGE.parents[1])


def shipped_path(kind: Literal["assets", "recipes"], *parts: str) -> Path:
    """The path of a shipped file or folder, such as `shipped_path("assets", "nano")`.

    Raises MachineError where this installation lacks it.
    """
    for home in _HOMES:
        path = home.joinpath(kind, *parts)
        if path.exists():
            return path
    raise MachineError(
        f"this installation of svd lacks {'/'.join((kind, *parts))}",
        "install it again from a complete checkout: pip install --force-reinstall --no-deps .",
    )
