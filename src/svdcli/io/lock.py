"""One folder, one run, be it of training or of curation: a lock that names its holder and that no kill leaves behind.

The system takes the lock back when its process ends, however it ends. Where there are no such locks (Windows)
the file says whose it was, and counts for as long as that process lives.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

from svdcli.errors import MachineError, UsageError

try:
    fcntl: Any = importlib.import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the run folder for the length of the block.

    Raises MachineError where another process holds it, UsageError where it cannot be written to.
    """
    path = folder / LOCK
    try:
        file = open(path, "a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.", "Choose another folder.") from error
    with file:
        if not _take(file):
            raise _held(folder)
        file.seek(0)
        file.truncate()
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # the file stays: to delete it would let two others hold one each


def require_free(folder: Path) -> None:
    """Raise MachineError now, where `lock_run` would."""
    path = folder / LOCK
    if not path.is_file():
        return
    with open(path, "a+", encoding="utf-8") as file:
        if not _take(file):
            raise _held(folder)


def _take(file: IO[str]) -> bool:
    if fcntl is None:
        return not _lives(_holder(Path(file.name)))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return not _lives(_holder(Path(file.name)))
    return True


def _holder(path: Path) -> dict[str, object]:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _lives(holder: dict[str, object]) -> bool:
    """Whether the process that wrote the file still runs; one of another host may."""
    if not holder:
        return False
    pid = holder.get("pid")
    here = holder.get("host") == socket.gethostname()
    return not here or (
        pid != os.getpid() and isinstance(pid, int) and _started(pid) == holder.get("started")
    )


def _started(pid: int) -> float | None:
    """When the process began, which tells it from a later one of the same number; None where there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _held(folder: Path) -> MachineError:
    holder = _holder(folder / LOCK)
    who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
    return MachineError(
        f"{who[0].upper()}{who[1:]} works in {folder} at this moment.",
        f"Wait for it or end it, or choose another folder. If it has ended already, delete {folder / LOCK}.",
    )
