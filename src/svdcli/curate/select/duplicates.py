"""Clips that show the same: which one stays, and which it stands for.

What is the same is said by `annotate.groups`, of the hashes that the annotator `duplicates` made and of the embeddings
of `clip_embedding` where there are any. All hashes are held in memory, some two kilobytes a clip.
"""

from __future__ import annotations

from typing import Any

from svdcli.curate.annotate.groups import groups
from svdcli.curate.select.catalogue import Catalogue

DUPLICATES, EMBEDDINGS = "duplicates", "clip_embedding"
TWINS = "twins"
"""a temporary table: clip, keeper; a row a clip that goes"""
_FIRST = 1 << 40
"""pixels that no frame has"""


def find_duplicates(catalogue: Catalogue, stay: bool) -> int:
    """Make the table of twins; -> how many there are.

    Of each group stays the first of: kept by the last selection (if `stay`), most pixels, longest, smallest id. So
    what is packed stays, though a better copy comes later. Raises InputError where the hashes were not made.
    """
    catalogue.column(f"{DUPLICATES}.packets")
    rows = catalogue.records(f"SELECT * EXCLUDE (version) FROM scores_{DUPLICATES} WHERE not_computed = ''")
    if stay and catalogue.has("selection"):
        kept = {row[0] for row in catalogue.rows("SELECT clip FROM selection WHERE kept")}
        for row in rows:
            row["pixels"] += _FIRST * (row["clip"] in kept)
    twins = [
        (other, group.keeper) for group in groups(rows, _embeddings(catalogue)) for other in group.others
    ]
    catalogue.make(TWINS, {"clip": [clip for clip, _ in twins], "keeper": [keeper for _, keeper in twins]})
    return len(twins)


def _embeddings(catalogue: Catalogue) -> dict[str, Any]:
    if EMBEDDINGS not in catalogue.scores.get(EMBEDDINGS, {}):
        return {}
    found = catalogue.rows(
        f"SELECT clip, {EMBEDDINGS} FROM scores_{EMBEDDINGS} WHERE {EMBEDDINGS} IS NOT NULL"
    )
    return dict(found)
