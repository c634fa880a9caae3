"""An input as a file of this machine: a local one as it is, a tar's member or a URL copied to scratch for a while."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from svdcli.curate.run.inputs import VIDEOS, Input, suffix
from svdcli.curate.run.tars import open_any
from svdcli.errors import InputError

SCRATCH = ".scratch"
"""folder within a curation folder; what a kill leaves in it is removed by the next run"""
_CHUNK = 1 << 20


@contextmanager
def local_file(item: Input, folder: Path, most: int) -> Iterator[Path]:
    """The absolute path of a file with the input's bytes, for the length of the block.

    `folder` is the curation folder, `most` the bytes that a copy may have. Raises InputError for one that is larger or
    shorter than was said, OSError where it cannot be read.
    """
    if item.kind == "file":
        yield Path(item.path)
        return
    name = hashlib.sha256(os.fsencode(item.path)).hexdigest()[:16]
    ending = suffix(item.path)
    home = folder / SCRATCH / f"{os.getpid()}-{name}"
    copy = home / f"source.{ending if ending in VIDEOS else 'video'}"  # never its own name
    home.mkdir(parents=True, exist_ok=True)
    try:
        with (
            open_any(item.archive if item.kind == "member" else item.path) as source,
            open(copy, "wb") as target,
        ):
            if item.kind == "member":
                source.seek(item.offset)
                _copy(source, target, item.size, most)
                if target.tell() < item.size:
                    raise InputError(f"{item.archive} ends within this member.", "Copy it again.")
            else:
                _copy(source, target, most + 1, most)
        yield copy
    finally:
        shutil.rmtree(home, ignore_errors=True)


def clear_scratch(folder: Path) -> None:
    """Remove what killed workers left; only while no other works in this folder."""
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)


def _copy(source: IO[bytes], target: IO[bytes], count: int, most: int) -> None:
    while count > 0 and (chunk := source.read(min(_CHUNK, count))):
        target.write(chunk)
        count -= len(chunk)
        if target.tell() > most:
            raise InputError(f"It has more than {most >> 20} MiB.", "Raise executor.source_gib to take it.")
