"""The dataset: the clips that the filter keeps, in WebDataset shards with a Parquet index, as `svd train` reads them.

Clips go in the order of their ids, those of one source together. What the dataset holds already stays as it is, and new
clips come in new shards behind it; so a kill costs the shard under way, and the same command finishes to the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdcli.curate.packing.dataset import indexed_keys, remove_clips
from svdcli.curate.rows import read_clip
from svdcli.curate.select.catalogue import SELECTION, Catalogue, quoted
from svdcli.data.clip import Clip
from svdcli.data.shards import ShardWriter
from svdcli.errors import InputError
from svdcli.recipe.curation import Pack

SCORES = (
    "motion",
    "text_area",
    "aesthetic",
    "camera",
    "similarities",
    "caption_image",
    "caption_video",
    "caption_summary",
)
"""the columns of an index that annotators measure"""
BATCH = 1000
_KEPT = "SELECT clip FROM selection WHERE kept"
_STALE = f"SELECT name FROM present WHERE name IN (SELECT id FROM clips) AND name NOT IN ({_KEPT})"
"""clips of this folder only: a dataset may hold those of other folders too"""


@dataclass(frozen=True)
class PackResult:
    """What became of the clips that are kept."""

    place: str
    added: int
    present: int
    """that the dataset held already"""
    removed: int
    """that it held, and the filter no longer keeps"""
    lost: Mapping[str, str]
    """why clips could not be packed, by id"""
    bytes: int
    """of video that was added"""


def pack(folder: Path, settings: Pack, place: str | Path) -> PackResult:
    """Add to the dataset in `place`, a folder or URL, the kept clips of a curation folder that it does not hold yet.

    Raises InputError where nothing was selected yet, and where the dataset holds clips that the selection drops.
    """
    with Catalogue(folder) as catalogue:
        if not catalogue.has("selection"):
            raise InputError(
                f"{folder} has no {SELECTION}: it is not filtered yet.", "Run svd curate filter first."
            )
        catalogue.register("present", indexed_keys(place))
        stale = {row[0] for row in catalogue.rows(_STALE)}
        if stale and settings.stale == "stop":
            raise InputError(
                f"{place} holds {len(stale)} clips that the filter no longer keeps, such as {min(stale)}.",
                "Pack into a new place, or take them out with --set pack.stale=remove.",
            )
        remove_clips(place, stale)
        present = catalogue.row("SELECT count(*) FROM present")[0] - len(stale)
        added, lost, size = write_clips(catalogue, _KEPT, place, settings.shard_mib * 2**20)
    return PackResult(str(place), added, present, len(stale), lost, size)


def write_clips(
    catalogue: Catalogue, chosen: str, place: str | Path, shard_bytes: int
) -> tuple[int, dict[str, str], int]:
    """Clips that a query names (column clip), less those that `place` holds -> how many, why others were lost, bytes."""
    lost, added, size = dict[str, str](), 0, 0
    with ShardWriter(place, shard_bytes=shard_bytes) as writer:
        catalogue.register("known", indexed_keys(place))
        for row, clip in index_rows(catalogue, f"{chosen} EXCEPT SELECT name FROM known"):
            try:
                video = read_clip(catalogue.folder / row["path"], row["digest"])
            except InputError as error:
                lost[clip.key] = error.message
                continue
            writer.add(clip, video)
            added, size = added + 1, size + len(video)
    return added, lost, size


def index_rows(catalogue: Catalogue, chosen: str) -> Iterator[tuple[dict[str, Any], Clip]]:
    """Clips that a query names, in the order of their ids: the row of the clips' table, and that of the index."""
    columns, joins = ["c.*", "s.path AS source_path"], ["JOIN sources s ON s.id = c.source"]
    for name in SCORES:
        tables = [table for table, held in catalogue.scores.items() if name in held]
        if tables:
            view = quoted(f"scores_{tables[0]}")
            columns.append(f"{view}.{quoted(name)} AS {quoted('score_' + name)}")
            joins.append(f"LEFT JOIN {view} ON {view}.clip = c.id")
    sql = (
        f"SELECT {', '.join(columns)} FROM clips c {' '.join(dict.fromkeys(joins))} "
        f"WHERE c.id IN ({chosen}) ORDER BY c.id"
    )
    for row in catalogue.stream(sql, BATCH):
        yield row, _clip(row)


def _clip(row: Mapping[str, Any]) -> Clip:
    scores = {name: row[f"score_{name}"] for name in SCORES if row.get(f"score_{name}") is not None}
    return Clip.from_row(
        {"key": row["id"], "source": Path(row["source_path"]).name}
        | {name: row[name] for name in ("start", "end", "fps", "width", "height", "num_frames")}
        | scores
    )
