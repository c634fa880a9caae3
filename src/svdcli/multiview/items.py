"""What becomes views: an object or a capture, with its licence."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

INDEX = "index.json"
"""in a folder of views: what became of every item, with its licence"""


@dataclass(frozen=True)
class Item:
    """Something to turn into views. `licence` is what its source states, "" where it states none.

    hub_file: its place in the hub's repository of Objaverse, where it has no path here yet; `path` is then its id.
    """

    path: Path
    licence: str = ""
    source: str = ""
    hub_file: str = ""


def content_key(item: Item) -> str:
    """16 hexadecimal digits: the hash of a file's bytes, or the beginning of an Objaverse id. Raises OSError."""
    if item.hub_file:
        return item.path.name[:16]
    with item.path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
