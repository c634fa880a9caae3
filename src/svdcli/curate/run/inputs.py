"""Inputs: whatever a person points at -> the videos in it, each with a place where it is read; nothing is opened.

A folder, a glob pattern, a video, a list of paths, a CSV or Parquet table of them, a tar of WebDataset, or any of these
behind a URL that fsspec knows (`s3://`, `https://`). What cannot be used is listed too, with the reason, so that every
input is accounted for; what is no video by its name and its first bytes is left aside and counted.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from svdcli.curate.run.manifests import MANIFESTS, listed_in
from svdcli.curate.run.tars import TARS, Member, is_tar, members
from svdcli.errors import InputError, MachineError, UsageError

VIDEOS = frozenset(
    "3g2 3gp asf avi divx dv f4v flv gif h264 hevc ivf m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf obu ogm ogv rm rmvb ts "
    "vob webm wmv wtv y4m".split()
)
ARCHIVES = frozenset("7z bz2 gz rar tbz2 tgz txz xz zip zst".split())
PLAYLISTS = frozenset("asx concat ffconcat ism m3u m3u8 mpd pls xspf".split())
"""files that name other files or URLs"""
MEMBER = "::"
"""between a tar's path and its member's name"""
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_URL = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_HEAD = 192  # bytes that a container is known by

Kind = Literal["file", "member", "url", "unusable", "other"]


@dataclass(frozen=True)
class Input:
    """One of the things that were pointed at."""

    path: str
    """where it lies: an absolute path, a URL, or TAR::MEMBER; bytes that are no UTF-8 as surrogates"""
    kind: Kind
    size: int = 0
    """bytes; 0 where nobody said it"""
    stamp: str = ""
    """size and time of change: a path whose stamp changed holds something else"""
    offset: int = 0
    """of a member, its first byte within the tar"""
    reason: str = ""
    """why it is unusable, in a sentence"""

    @property
    def archive(self) -> str:
        """The tar that holds a member."""
        return self.path.partition(MEMBER)[0]


def list_inputs(source: str) -> Iterator[Input]:
    """All inputs that `source` stands for, in an order that depends on their names alone.

    Raises UsageError where there is nothing of that name, InputError for a manifest that cannot be read.
    """
    for place in _braces(source):
        yield from _expand(place)


def is_url(path: str) -> bool:
    return bool(_URL.match(path))


def suffix(path: str) -> str:
    """The ending of a name, in lower case, without its dot."""
    return PurePosixPath(path).suffix.lower().removeprefix(".")


def _expand(place: str) -> Iterator[Input]:
    archive, mark, name = place.partition(MEMBER)
    if mark and is_tar(archive) and not os.path.lexists(place):
        archive = archive if is_url(archive) else os.path.abspath(archive)
        found = [one for one in _members(archive) if one.path == f"{archive}{MEMBER}{name}"]
        if not found:
            raise UsageError(f"{archive} has no member {name}.", "List them: tar -tf")
        yield from found
    elif is_url(place):
        yield from _remote(place)
    elif os.path.isdir(place):
        yield from _walk(os.path.abspath(place))
    elif os.path.lexists(place) and suffix(place) in MANIFESTS:
        yield from _manifest(Path(place))
    elif os.path.lexists(place):
        yield from _file(os.path.abspath(place), asked=True)
    else:
        found_paths = sorted(glob.glob(place, recursive=True), key=os.fsencode)
        if not found_paths:
            raise UsageError(
                f"There is nothing at {place}.",
                "Give a folder, a video, a list, a tar, or a pattern in quotes.",
            )
        for path in found_paths:
            yield from _walk(os.path.abspath(path)) if os.path.isdir(path) else _file(os.path.abspath(path))


def _braces(source: str) -> Iterator[str]:
    """`shards/{000..002}.tar`, as WebDataset writes it -> each of them."""
    match = _BRACES.search(source)
    if not match or os.path.lexists(source):
        yield source
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _braces(source[: match.start()] + f"{number:0{len(first)}d}" + source[match.end() :])


# ---- files and folders


def _walk(folder: str, seen: set[tuple[int, int]] | None = None) -> Iterator[Input]:
    """A folder, links to folders included, each folder once."""
    seen = set() if seen is None else seen
    try:
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            yield Input(folder, "unusable", reason="It leads back to a folder that was listed already.")
            return
        seen.add((about.st_dev, about.st_ino))
        with os.scandir(folder) as entries:
            names = sorted((entry.name for entry in entries), key=os.fsencode)
    except OSError as error:
        yield Input(folder, "unusable", reason=f"The folder cannot be read: {_why(error)}.")
        return
    for name in names:
        path = os.path.join(folder, name)
        yield from _walk(path, seen) if os.path.isdir(path) else _file(path)


def _file(path: str, asked: bool = False) -> Iterator[Input]:
    """A file by its name and its first bytes; `asked` for by name, it is tried whatever it is called."""
    try:
        about = os.stat(path)
    except OSError as error:
        what = "It is a link that leads nowhere" if os.path.islink(path) else "It cannot be read"
        yield Input(path, "unusable", reason=f"{what}: {_why(error)}.")
        return
    stamp = f"{about.st_size}-{about.st_mtime_ns}"
    if not stat.S_ISREG(about.st_mode):
        yield Input(path, "unusable", reason="It is no regular file.")
    elif suffix(path) in TARS:
        yield from _members(path)
    elif refusal := _refusal(path):
        yield Input(path, "unusable", about.st_size, stamp, reason=refusal)
    elif asked or suffix(path) in VIDEOS or _looks_like_video(path):
        yield Input(path, "file", about.st_size, stamp)
    else:
        yield Input(path, "other", about.st_size)


def _refusal(path: str) -> str:
    if suffix(path) in PLAYLISTS:
        return "It is a playlist, which names other files; give those."
    if suffix(path) in ARCHIVES:
        return "It is a compressed archive, which is not unpacked; give a folder or a plain tar."
    return ""


def _looks_like_video(path: str) -> bool:
    """Whether a file of another name begins as a video container does."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    known = (
        b"\x1aE\xdf\xa3",
        b"FLV\x01",
        b"GIF8",
        b"\x30\x26\xb2\x75",
        b"\0\0\x01\xba",
        b"YUV4MPEG2",
        b"DKIF",
    )
    stream = head[:1] == b"G" and head[188:189] == b"G"  # MPEG-TS
    return head[4:8] == b"ftyp" or head[8:12] == b"AVI " or stream or head.startswith(known)


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).rstrip(".").lower()


# ---- tars


def _members(archive: str) -> Iterator[Input]:
    try:
        for member in members(archive):
            yield _member(archive, member)
    except InputError as error:
        yield Input(archive, "unusable", reason=error.message)


def _member(archive: str, member: Member) -> Input:
    path = f"{archive}{MEMBER}{member.name}"
    if member.reason:
        return Input(path, "unusable", member.size, reason=member.reason)
    kind: Kind = "member" if suffix(member.name) in VIDEOS else "other"
    if kind == "other" and (refusal := _refusal(member.name)):
        return Input(path, "unusable", member.size, reason=refusal)
    return Input(path, kind, member.size, f"{member.size}-{member.offset}-{member.stamp}", member.offset)


# ---- manifests


def _manifest(path: Path) -> Iterator[Input]:
    """What a list or table names; a relative path starts at the folder that the list is in."""
    home = os.path.dirname(os.path.abspath(path))
    for name in listed_in(path):
        if is_url(name):
            yield Input(name, "url")
            continue
        if "\0" in name:
            yield Input(readable_nul(name), "unusable", reason="Its name holds a null character.")
            continue
        place = os.path.join(home, name)
        archive, mark, _ = place.partition(MEMBER)
        try:
            yield from _expand(place) if mark and is_tar(archive) else _named(place)
        except UsageError as error:
            yield Input(place, "unusable", reason=error.message)


def readable_nul(name: str) -> str:
    return name.replace("\0", "\\x00")


def _named(path: str) -> Iterator[Input]:
    if os.path.isdir(path):
        return _walk(path)
    if not os.path.lexists(path):
        return iter([Input(path, "unusable", reason="There is no such file.")])
    return _file(path, asked=True)


# ---- behind URLs


def _remote(url: str) -> Iterator[Input]:
    """One file, a pattern, or a folder behind a URL."""
    if suffix(url) in TARS:
        yield from _members(url)
        return
    if "*" not in url and not url.endswith("/"):
        yield Input(url, "url")
        return
    yield from _found(url, _look(url))


def _look(url: str) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        import fsspec

        files, path = fsspec.core.url_to_fs(url)
        found = files.glob(path, detail=True) if "*" in path else files.find(path, detail=True)
        return sorted((files.unstrip_protocol(name), about) for name, about in found.items())
    except (ImportError, ValueError) as error:
        raise MachineError(
            f"{url} cannot be opened: {error}.", "Install what fsspec names for it."
        ) from error
    except OSError as error:
        raise InputError(
            f"{url} cannot be listed: {error}.", "Check the address and your rights to it."
        ) from error


def _found(url: str, files: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Input]:
    none = True
    for name, about in files:
        if about.get("type") == "directory":
            continue
        none = False
        size = int(about.get("size") or 0)
        stamp = f"{size}-{about.get('ETag') or about.get('etag') or about.get('mtime') or ''}"
        if suffix(name) in TARS:
            yield from _members(name)
        elif refusal := _refusal(name):
            yield Input(name, "unusable", size, reason=refusal)
        else:
            yield Input(name, "url" if suffix(name) in VIDEOS else "other", size, stamp)
    if none:
        raise UsageError(f"There is nothing at {url}.", "Check the address.")
