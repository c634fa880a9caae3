"""Tars, read as WebDataset reads them: members by their place in the file. Nothing is ever extracted.

Names of members are never used as paths, so one that climbs out of its archive has nowhere to go; it is refused all
the same, since whoever wrote it meant harm. Compressed tars are refused: they have no places, and can be bombs.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from svdcli.errors import InputError

TARS = frozenset(["tar"])
MOST_MEMBERS = 10_000_000
_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """A file in a tar, or what pretends to be one."""

    name: str
    offset: int
    """its first byte within the tar"""
    size: int
    """bytes"""
    stamp: str
    """its time of change"""
    reason: str = ""
    """why it is not to be read, in a sentence"""


def is_tar(path: str) -> bool:
    return PurePosixPath(path).suffix.lower().removeprefix(".") in TARS


def members(path: str) -> Iterator[Member]:
    """The members of a tar, path or URL, in their order; folders are passed over. Raises InputError."""
    try:
        with open_any(path) as file:
            end = file.seek(0, 2)
            file.seek(0)
            yield from _members(path, file, end)
    except (OSError, tarfile.TarError, ImportError, ValueError) as error:
        raise InputError(f"The tar cannot be read: {error}.", "Give a plain, uncompressed tar.") from error


def _members(path: str, file: IO[bytes], end: int) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for count, info in enumerate(archive):
            archive.members = []  # type: ignore[attr-defined]  # it keeps them all
            if count >= MOST_MEMBERS:
                raise InputError(f"The tar has more than {MOST_MEMBERS} members.", "Split it.")
            if not info.isdir():
                name = info.name
                yield Member(name, info.offset_data, info.size, f"{info.mtime:g}", _fault(info, end))


def _fault(info: tarfile.TarInfo, end: int) -> str:
    if info.issym() or info.islnk():
        return "It is a link within an archive, which is not followed."
    if info.issparse():
        return "It is a sparse file, whose size within the archive is not its size."
    if not info.isreg():
        return "It is no regular file."
    parts = PurePosixPath(info.name).parts
    if info.name.startswith("/") or ".." in parts or "\0" in info.name:
        return "Its name leads out of the archive."
    if info.offset_data + info.size > end:
        return "The archive ends before it does."
    return ""


@contextmanager
def open_any(path: str) -> Iterator[Any]:
    """A file of this machine or behind a URL, for reading bytes at any place."""
    if "://" in path:
        import fsspec

        with fsspec.open(path, "rb") as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file
