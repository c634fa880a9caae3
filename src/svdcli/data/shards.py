"""Shards: plain WebDataset tar files, an mp4 and a json a clip, each with a Parquet index beside it.

Any tool reads them: `tar -tf`, `webdataset`, DuckDB over `*.parquet`. The index knows the byte offset of every
video, so that a clip is read by itself, from a disk or an object store. A shard's index is written after the
shard, and both whole or not at all: whatever kills the writer, no index names what is not there.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from svdcli.data.clip import Clip, schema
from svdcli.errors import InputError, MachineError
from svdcli.io.files import atomic_path

SHARD_BYTES = 512 * 2**20
"""A shard is closed when it has grown to this."""
_KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # no dot: WebDataset ends the key there; short: one header block


def require_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet. Raises MachineError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MachineError(
            "Shards need pyarrow, which is not installed.", "pip install 'svdcli[shards]'"
        ) from error
    return pyarrow, pyarrow.parquet


class ShardWriter:
    """Appends clips to a dataset folder or URL: `with ShardWriter(place) as writer: writer.add(clip, mp4)`.

    Shards are numbered behind those that the folder's index names; a shard without index, which a killed writer
    may leave, is overwritten. Several writers may fill one folder if each has its own `prefix`.
    """

    def __init__(self, place: str | Path, prefix: str = "", shard_bytes: int = SHARD_BYTES) -> None:
        self.filesystem, self.root = open_place(place)
        self.prefix, self.shard_bytes = prefix, shard_bytes
        self.filesystem.makedirs(self.root, exist_ok=True)
        self.number = 1 + max(
            (int(m[1]) for p in self._parts() if (m := re.fullmatch(rf"{prefix}(\d{{6}})", p))), default=-1
        )
        self._clips: list[Clip] = []
        self._keys: set[str] = set()
        self._file: IO[bytes] | None = None
        self._tar: tarfile.TarFile | None = None

    def _parts(self) -> list[str]:
        return [Path(p).stem for p in self.filesystem.ls(self.root, detail=False) if p.endswith(".parquet")]

    def add(self, clip: Clip, video: bytes) -> Clip:
        """Write the clip's video and row; -> the row with its place in the shard.

        Raises InputError for a key that WebDataset cannot hold, or that the shard holds already.
        """
        if not _KEY.fullmatch(clip.key):
            raise InputError(
                f"A clip cannot be called {clip.key!r}.", "Use 1 to 90 letters, digits, - and _ for its key."
            )
        if clip.key in self._keys:
            raise InputError(f"Two clips are called {clip.key!r}.", "Give every clip a key of its own.")
        if self._tar is None:
            self._file = tempfile.TemporaryFile()
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        clip = replace(
            clip,
            shard=f"{self.prefix}{self.number:06d}.tar",
            offset=self._tar.offset + tarfile.BLOCKSIZE,
            size=len(video),
            digest=hashlib.sha256(video).hexdigest()[:32],
        )
        _add(self._tar, f"{clip.key}.mp4", video)
        _add(self._tar, f"{clip.key}.json", json.dumps(clip.to_row()).encode())
        self._clips.append(clip)
        self._keys.add(clip.key)
        if self._tar.offset >= self.shard_bytes:
            self.flush()
        return clip

    def flush(self) -> None:
        """Close the shard, put it in its place, then its index."""
        pa, pq = require_pyarrow()
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.seek(0)
        stem = f"{self.prefix}{self.number:06d}"
        with self._whole(f"{stem}.tar") as file:
            while block := self._file.read(2**20):
                file.write(block)
        table = pa.Table.from_pylist([clip.to_row() for clip in self._clips], schema=schema())
        with self._whole(f"{stem}.parquet") as file:
            pq.write_table(table, file)
        self._discard()
        self.number += 1

    @contextmanager
    def _whole(self, name: str) -> Iterator[IO[bytes]]:
        """A file that appears under its name when it is complete; object stores, to which it is copied in parts, do so by
        themselves.
        """
        if is_local(self.filesystem):
            with atomic_path(Path(self.root) / name) as temporary, open(temporary, "wb") as local:
                yield local
        else:
            with tempfile.TemporaryDirectory() as folder:
                with open(Path(folder) / name, "wb") as file:
                    yield file
                self.filesystem.put_file(str(Path(folder) / name), f"{self.root}/{name}")

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._tar = None
        self._clips, self._keys = [], set()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finishes the last shard; after an error the clips of the unfinished shard are left out."""
        if kind is None:
            self.flush()
        self._discard()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)  # time 0, owner 0: the same clips make the same bytes
    tar.addfile(info, io.BytesIO(data))


# ---- reading -------------------------------------------------------------------------------------------


def open_place(place: str | Path) -> tuple[Any, str]:
    """A folder or a URL -> fsspec's file system and the path in it. Raises MachineError for unknown protocols."""
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(str(place))
    except (ValueError, ImportError) as error:
        raise MachineError(
            f"{place} cannot be opened: {error}.", "Install what fsspec names for it."
        ) from error
    return filesystem, root


def is_local(filesystem: Any) -> bool:
    """Whether fsspec's file system is this machine's own."""
    return "file" in (
        filesystem.protocol if not isinstance(filesystem.protocol, str) else [filesystem.protocol]
    )


def index_files(place: str | Path) -> list[str]:
    """The Parquet files of a dataset's index, in order of their names; none where the place holds none."""
    filesystem, root = open_place(place)
    if not filesystem.isdir(root):
        return []
    return sorted(str(p) for p in filesystem.ls(root, detail=False) if str(p).endswith(".parquet"))


def read_index(place: str | Path, columns: Sequence[str] | None = None) -> Any:
    """The index as one pyarrow table, shards in order. Raises InputError where it is absent, empty or damaged."""
    pa, pq = require_pyarrow()
    filesystem, _ = open_place(place)
    tables = []
    for path in index_files(place):
        try:
            with filesystem.open(path, "rb") as file:
                tables.append(pq.read_table(file, columns=list(columns) if columns else None))
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(f"The index {path} is damaged: {reason}.", "Write the shard again.") from error
    if not sum(len(table) for table in tables):
        raise InputError(
            f"The index in {place} names no clip.", "Write shards there, or give another data.source."
        )
    try:
        return pa.concat_tables(tables, promote_options="default")
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"The parts of the index in {place} do not fit together: {reason}.", "See Clip."
        ) from error


def read_bytes(filesystem: Any, root: str, clip: Clip) -> bytes:
    """The bytes of a clip's video, read by its offset alone.

    Raises InputError where the shard is missing, shorter than the index says, or its bytes were changed.
    """
    path = f"{root}/{clip.shard}"
    try:
        data = filesystem.cat_file(path, start=clip.offset, end=clip.offset + clip.size)
    except OSError as error:
        raise InputError(f"The shard {path} cannot be read: {error}.", "Fetch or write it again.") from error
    if len(data) != clip.size:
        raise InputError(
            f"The shard {path} ends within clip {clip.key!r}.",
            "Fetch or write it again: its index knows more.",
        )
    if clip.digest and hashlib.sha256(data).hexdigest()[: len(clip.digest)] != clip.digest:
        raise InputError(
            f"The bytes of clip {clip.key!r} in {path} are not those of the index.", "Fetch it again."
        )
    return bytes(data)
