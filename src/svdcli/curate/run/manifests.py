"""Manifests: lists and tables of paths or URLs, read a row at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from svdcli.errors import InputError, MachineError

MANIFESTS = frozenset(["txt", "lst", "list", "csv", "tsv", "parquet"])
COLUMNS = ("path", "url", "video", "file", "filename", "video_path", "source", "videoid_url", "contentUrl")
"""names of the column that holds paths or URLs; the first that is there counts"""


def listed_in(path: Path) -> Iterator[str]:
    """The paths or URLs that a manifest names, in its order; empty ones are passed over. Raises InputError."""
    kind = path.suffix.lower().removeprefix(".")
    try:
        if kind == "parquet":
            yield from _parquet(path)
        elif kind in ("csv", "tsv"):
            yield from _csv(path, "\t" if kind == "tsv" else ",")
        else:
            yield from _lines(path)
    except (OSError, csv.Error) as error:
        raise InputError(f"The list {path} cannot be read: {error}.", "Check its name and rights.") from error


def _lines(path: Path) -> Iterator[str]:
    """A path a line, or with null characters between them as `find -print0` writes."""
    with open(path, "rb") as file:
        if b"\0" in file.read(1 << 16):
            file.seek(0)
            names = iter(file.read().split(b"\0"))
        else:
            file.seek(0)
            names = (line.rstrip(b"\r\n") for line in file)
        for name in names:
            if name:
                yield name.decode("utf-8", "surrogateescape")


def _csv(path: Path, delimiter: str) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter)
        header = next(rows, [])
        index = header.index(_column(path, header))
        for row in rows:
            if len(row) > index and row[index]:
                yield row[index]


def _parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MachineError("Reading Parquet needs pyarrow.", "pip install 'svdcli[curate]'") from error
    try:
        file = pq.ParquetFile(path)
        column = _column(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=8192, columns=[column]):
            yield from (str(value) for value in batch.column(0).to_pylist() if value)
    except pa.ArrowException as error:
        raise InputError(f"The list {path} cannot be read: {error}.", "Give a Parquet file.") from error


def _column(path: Path, names: Sequence[str]) -> str:
    for name in COLUMNS:
        if name in names:
            return name
    raise InputError(
        f"{path} has no column of paths or URLs; it has {', '.join(names)}.",
        f"Call that column {COLUMNS[0]} or {COLUMNS[1]}.",
    )
