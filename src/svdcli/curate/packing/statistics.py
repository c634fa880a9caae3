"""The figures of a dataset as the paper's table 1 gives them, of all clips and of those that are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from svdcli.curate.select.catalogue import MICROSECONDS, Catalogue

YEAR = 365.25 * 86_400
"""seconds"""


@dataclass(frozen=True)
class Statistics:
    """Of a set of clips; means are 0 where it is empty."""

    num_clips: int
    num_sources: int
    """that have a clip in it"""
    mean_seconds: float
    """of a clip"""
    std_seconds: float
    """of the clips' lengths, the population's"""
    total_seconds: float
    mean_frames: float
    """of a clip"""
    clips_per_source: float
    cuts_per_source: float
    """clips that begin at a cut, not at the source's own start or where a length ends"""
    scored: dict[str, int]
    """clips that have a score, by its table"""

    @property
    def total_years(self) -> float:
        return self.total_seconds / YEAR


def statistics(folder: Path) -> dict[str, Statistics]:
    """By name: `all`, and `kept` where the folder is filtered. Raises InputError where there are no clips."""
    with Catalogue(folder) as catalogue:
        found = {"all": _measure(catalogue, "")}
        if catalogue.has("selection"):
            found["kept"] = _measure(catalogue, "SELECT clip FROM selection WHERE kept")
        return found


def _measure(catalogue: Catalogue, chosen: str) -> Statistics:
    where = f"WHERE id IN ({chosen})" if chosen else ""
    count, sources, mean, std, total, frames, cuts = catalogue.row(
        "SELECT count(*), count(DISTINCT source), coalesce(avg(us), 0) / 1e6, coalesce(stddev_pop(us), 0) / 1e6, "
        "coalesce(sum(us), 0) / 1e6, coalesce(avg(num_frames), 0), count(*) FILTER (opens IN ('hard', 'gradual')) "
        f"FROM (SELECT *, {MICROSECONDS} AS us FROM clips {where})"
    )
    scored = {}
    for table in catalogue.scores:
        inside = f"AND clip IN ({chosen})" if chosen else ""
        sql = f"SELECT count(*) FROM \"scores_{table}\" WHERE not_computed = '' {inside}"
        scored[table] = int(catalogue.row(sql)[0])
    return Statistics(
        count,
        sources,
        mean,
        std,
        float(total),
        frames,
        count / max(1, sources),
        cuts / max(1, sources),
        scored,
    )
