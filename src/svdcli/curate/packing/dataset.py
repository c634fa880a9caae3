"""A dataset that is packed already: which clips it holds, and taking some out by rewriting their shards alone."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdcli.data.clip import Clip
from svdcli.data.shards import ShardWriter, index_files, open_place, read_index, require_pyarrow
from svdcli.errors import InputError


@dataclass(frozen=True)
class Removal:
    """What taking clips out of a dataset did."""

    clips: int = 0
    rewritten: tuple[str, ...] = ()
    """shards, by file name"""
    deleted: tuple[str, ...] = ()
    """shards that held nothing else"""


def indexed_keys(place: str | Path) -> Any:
    """The keys of all clips in a dataset, a pyarrow table with the column name; empty where there is no dataset yet."""
    pa, _ = require_pyarrow()
    if not index_files(place):
        return pa.table({"name": pa.array([], pa.string())})
    return read_index(place, ["key"]).rename_columns(["name"])


def remove_clips(place: str | Path, gone: Collection[str]) -> Removal:
    """Take clips out of a dataset; only shards that hold some are rewritten, the others are not touched.

    A kill leaves each shard old or new, or new under its old index: the same command again mends that, since a shard
    is read by its members' names. Raises InputError where a shard cannot be read.
    """
    count, rewritten, deleted = 0, [], []
    for index in index_files(place) if gone else ():
        rows = _rows(place, index)
        going = rows.keys() & set(gone)
        if not going:
            continue
        count += len(going)
        shard = Path(index).stem + ".tar"
        if going == rows.keys():
            filesystem, root = open_place(place)
            filesystem.rm_file(index)  # a shard without index is none
            filesystem.rm_file(f"{root}/{shard}")
            deleted.append(shard)
        else:
            _rewrite(place, shard, [clip for key, clip in rows.items() if key not in going])
            rewritten.append(shard)
    return Removal(count, tuple(rewritten), tuple(deleted))


def _rows(place: str | Path, index: str) -> dict[str, Clip]:
    pa, pq = require_pyarrow()
    filesystem, _ = open_place(place)
    try:
        with filesystem.open(index, "rb") as file:
            return {row["key"]: Clip.from_row(row) for row in pq.read_table(file).to_pylist()}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"The index {index} is damaged: {error}.", "Pack its clips again.") from error


def _rewrite(place: str | Path, shard: str, stay: list[Clip]) -> None:
    with ShardWriter(place, prefix=shard[: -len("000000.tar")], shard_bytes=2**63) as writer:
        writer.number = int(shard[-len("000000.tar") : -len(".tar")])
        wanted = {clip.key: clip for clip in stay}
        for key, video in _videos(place, shard):
            if key in wanted:
                writer.add(wanted.pop(key), video)
        if wanted:
            raise InputError(f"The shard {shard} in {place} has lost {min(wanted)}.", "Pack its clips again.")


def _videos(place: str | Path, shard: str) -> Iterator[tuple[str, bytes]]:
    filesystem, root = open_place(place)
    try:
        with filesystem.open(f"{root}/{shard}", "rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.name.endswith(".mp4") else None
                if content:
                    yield member.name.removesuffix(".mp4"), content.read()
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"The shard {root}/{shard} is damaged: {error}.", "Pack its clips again.") from error
