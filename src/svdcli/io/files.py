"""Writing that is all or nothing: a temporary name in the same folder, renamed when the work is done.

Whatever ends the process, a kill included, nothing half-written ever stands under the final name. Temporary
names begin with a dot and keep the real suffix, because encoders choose their format by it.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from svdcli.errors import InputError, MachineError, SvdError, UsageError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BAD_PATH = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP, errno.EINVAL}
_BROKEN = {errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE}
_PROBE = b"\0" * 4096
UNFINISHED = re.compile(r"\..{1,40}\.[0-9a-f]{8}(\.[^.]*)?")
"""Names of what is being written, see `_temporary`."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends well and is removed when it fails.

    Raises UsageError where `path` cannot be written (folder missing, no permission, read-only, a folder of
    that name), MachineError where the disk is full or broken.
    """
    final = _target(path)
    if final.is_dir():
        raise UsageError(
            f"{final} is a folder, so no file can be written under that name.", "Give a file name."
        )
    temporary = _temporary(final)
    try:
        with _sentences(final, temporary):
            yield temporary
            _flush_to_disk(temporary)
            os.replace(temporary, final)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder to fill; it takes the place of `path` when the block ends well, else it is removed.

    A folder that stood there before stays whole until the new one is complete. Raises as `atomic_path` does.
    """
    final = _target(path)
    if final.exists() and not final.is_dir():
        raise UsageError(
            f"{final} is a file, so no folder can be made under that name.", "Give another name."
        )
    temporary = _temporary(final)
    try:
        with _sentences(final, temporary):
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            _replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: str | Path, *, parents: bool = False) -> None:
    """Raise now what `atomic_path(path)` would raise after hours of work; `parents` makes missing folders.

    Writes and removes one small hidden file beside `path`: permissions alone say little (read-only mounts,
    quotas, full disks, root). `path` may be a file or folder that exists already.
    """
    final = Path(path)
    with _sentences(final, final):
        if parents:
            _make_parents(final)
        final = _target(final)
        probe = _temporary(final)
        try:
            probe.write_bytes(_PROBE)
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def require_file(path: str | Path, what: str) -> Path:
    """`path` as a Path, or InputError when it is missing, a folder, no regular file, unreadable or empty.

    `what` names the expected thing in the sentence ("picture", "video").
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise InputError(f"{file} is a folder, not a {what}.", f"Give a {what} file inside it.")
        if not file.exists():
            raise InputError(f"There is no file {file}.", _nearest(file))
        if not file.is_file():
            raise InputError(f"{file} is not a regular file, so it cannot be read as a {what}.")
        with file.open("rb") as stream:
            if not stream.read(1):
                raise InputError(f"{file} is empty (0 bytes).", f"Copy or download the {what} again.")
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{file} cannot be read: {reason}.", "Check its name and permissions.") from error
    return file


def _nearest(file: Path) -> str:
    """A hint that names the closest file in the same folder, if there is one."""
    import difflib

    if not file.parent.is_dir():
        return f"There is no folder {file.parent} either; check the path."
    names = sorted(entry.name for entry in file.parent.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(file.name, names, n=1)
    return f"Did you mean {file.parent / close[0]}?" if close else "Check the path."


def _temporary(final: Path) -> Path:
    stem = final.stem[:40]  # leaves room for the random part within the 255 bytes of a name
    return final.with_name(f".{stem}.{secrets.token_hex(4)}{final.suffix}")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing in a folder and those in it. Nobody else may be writing there."""
    for path in [p for p in folder.rglob(".*") if UNFINISHED.fullmatch(p.name)]:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _target(path: str | Path) -> Path:
    """Where the result really goes: behind a link, in a folder that exists, never in place of a device."""
    final = Path(path)
    with _sentences(final, final), suppress(FileNotFoundError, NotADirectoryError):
        if final.is_symlink():
            final = Path(os.path.realpath(final))
        mode = final.stat().st_mode  # also finds names that are too long
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UsageError(
                f"{final} is a device or pipe, and cannot be replaced by a file.", "Give a file name."
            )
    _require_parent(final)
    return final


def _require_parent(final: Path) -> None:
    parent = final.parent
    if parent.is_dir():
        return
    if parent.exists():
        raise UsageError(
            f"{parent} is not a folder, so {final.name} cannot be written in it.", "Choose a folder."
        )
    raise UsageError(
        f"There is no folder {parent} to write {final.name} in.", f"Make it first: mkdir -p {parent}"
    )


def _make_parents(final: Path) -> None:
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"{final.parent} cannot be made a folder: part of that path is a file.", "Choose another folder."
        ) from error


@contextmanager
def _sentences(final: Path, temporary: Path) -> Iterator[None]:
    """Turn the operating system's errors about our own path into one sentence; let all others pass."""
    try:
        yield
    except OSError as error:
        sentence = _sentence(error, final) if _is_ours(error, final, temporary) else None
        if sentence is None:
            raise
        raise sentence from error


def _is_ours(error: OSError, final: Path, temporary: Path) -> bool:
    """Whether the error concerns the path that we write, not some other file that the block read."""
    if error.errno in _FULL or not isinstance(error.filename, str | bytes):
        return True
    named = Path(os.fsdecode(error.filename))
    return (
        named in {final, temporary, final.parent, *final.parents}
        or temporary in named.parents
        or (named.parent == final.parent and named.name.startswith("."))
    )


def _sentence(error: OSError, final: Path) -> SvdError | None:
    reason = (error.strerror or str(error)).rstrip(".")
    if error.errno in _FULL:
        return MachineError(
            f"The disk is full: {final} could not be written.", "Free some space, or write to another disk."
        )
    if error.errno in _REFUSED:
        return UsageError(
            f"{final} cannot be written: {reason.lower()}.",
            "Choose a folder where you may write, or mend its rights.",
        )
    if error.errno in _BAD_PATH:
        return UsageError(f"{final} cannot be written: {reason.lower()}.", "Choose another name.")
    if error.errno in _BROKEN:
        return MachineError(
            f"{final} could not be written: {reason.lower()}.", "Check the disk and its limits."
        )
    return None


def _flush_to_disk(file: Path) -> None:
    """After a power cut a renamed file must not be an empty one."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {
            errno.EINVAL,
            errno.ENOTSUP,
        }:  # some network and virtual file systems have no fsync
            raise
    finally:
        os.close(descriptor)


def _replace_folder(new: Path, final: Path) -> None:
    if not final.exists():
        os.replace(new, final)
        return
    old = _temporary(final)
    os.replace(final, old)
    try:
        os.replace(new, final)
    except OSError:
        os.replace(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)
