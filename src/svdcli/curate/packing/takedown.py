"""Takedown: all that came of a source goes, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from svdcli.curate.journal import REMOVE, Entry, Journal
from svdcli.curate.packing.dataset import Removal, remove_clips
from svdcli.curate.select.catalogue import SELECTION, Catalogue, text_list
from svdcli.curate.tables import SCORES, readable, remove, table_folder
from svdcli.data.shards import require_pyarrow
from svdcli.errors import InputError
from svdcli.io.files import atomic_path

DATASET = "dataset"


@dataclass(frozen=True)
class Takedown:
    """What went."""

    sources: tuple[str, ...]
    """paths"""
    clips: int
    dataset: Removal


def remove_source(folder: Path, source: str, place: str | Path | None = None) -> Takedown:
    """Take out a source, by its id or its path as the input list said it, or all of a folder of that path.

    Its clips leave the dataset in `place` (absent: the folder's own), the tables, and the disk, and the journal says
    that it is not to come back. The video itself stays where it is. Repeating the command finishes what a kill cut
    short.

    Raises InputError where no source is called so.
    """
    with Catalogue(folder) as catalogue:
        wanted = readable(source)
        rows = catalogue.rows(
            "SELECT id, path FROM sources WHERE id = ? OR path = ? OR starts_with(path, ?) ORDER BY id",
            [wanted, wanted, wanted.rstrip("/") + "/"],
        )
        if not rows:
            raise InputError(
                f"{folder} has no source {source}.", "Give its id, or its path as the input list said it."
            )
        ids = {row[0] for row in rows}
        clips = {
            row[0]: row[1]
            for row in catalogue.rows(f"SELECT id, path FROM clips WHERE source IN {text_list(sorted(ids))}")
        }
        scores = list(catalogue.scores)
    removal = remove_clips(place or folder / DATASET, clips.keys())
    for path in clips.values():
        (folder / path).unlink(missing_ok=True)
        (folder / "proxies" / Path(path).parent.name / f"{Path(path).stem}.npz").unlink(missing_ok=True)
    with Journal(folder) as journal:  # before the tables, which are made from it
        for name, path in rows:
            journal.append(Entry(REMOVE, name, path, "done", "taken down"))
    for name in scores:
        remove(table_folder(folder, f"{SCORES}/{name}"), clips.keys(), "clip")
    remove(table_folder(folder, "clips"), clips.keys())
    _forget(folder / SELECTION, clips.keys())
    remove(table_folder(folder, "sources"), ids)  # last: by it the command finds the rest when repeated
    return Takedown(tuple(row[1] for row in rows), len(clips), removal)


def _forget(selection: Path, gone: Collection[str]) -> None:
    """Take rows out of the selection; what it says of the others holds until the next filter."""
    if not selection.is_file():
        return
    pa, pq = require_pyarrow()
    import pyarrow.compute as pc

    table = pq.ParquetFile(selection).read()
    stays = pc.invert(pc.is_in(table["clip"], value_set=pa.array(sorted(gone), pa.string())))
    with atomic_path(selection) as temporary:
        pq.write_table(table.filter(stays), temporary, compression="zstd")
