"""Clips that show the same: which one stays, and by which the others are represented."""

from __future__ import annotations

from collections.abc import Iterable

from svdcli.curate.catalogue import Catalogue
from svdcli.errors import InputError


def find_duplicates(catalogue: Catalogue, stay: bool) -> int:
    """A temporary table `twins` (clip, keeper), a row a clip that goes; -> how many.

    Of each group stays the first of: kept by the last selection (if `stay`), most pixels, longest, smallest id.
    """
    if "duplicates" not in catalogue.scores:
        raise InputError(
            "The filter of duplicates needs the table of the annotator duplicates, which was not computed.",
            'Run svd curate annotate with it, or set filter.duplicates = "keep".',
        )
    groups = grouped(_same_packets(catalogue))
    catalogue.rows("CREATE OR REPLACE TEMP TABLE groups (clip VARCHAR, number INTEGER)")
    members = [(clip, number) for number, group in enumerate(groups) for clip in group]
    if members:
        catalogue.connection.executemany("INSERT INTO groups VALUES (?, ?)", members)
    kept = catalogue.has("selection") and stay
    earlier = "coalesce(s.kept, false)" if kept else "false"
    join = "LEFT JOIN selection s ON s.clip = g.clip" if kept else ""
    catalogue.rows(
        "CREATE OR REPLACE TEMP TABLE twins AS SELECT clip, keeper FROM (SELECT g.clip, first_value(g.clip) OVER ("
        f"PARTITION BY g.number ORDER BY {earlier} DESC, c.width * c.height DESC, "
        'round((c."end" - c.start) * 1e6) DESC, g.clip) AS keeper '
        f"FROM groups g JOIN clips c ON c.id = g.clip {join}) WHERE clip != keeper"
    )
    return int(catalogue.row("SELECT count(*) FROM twins")[0])


def grouped(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Pairs that belong together -> groups, each in order."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = name = leader[leader[name]]
        return name

    for a, b in pairs:
        first, second = sorted((find(a), find(b)))
        leader[second] = first
    groups: dict[str, list[str]] = {}
    for name in sorted(leader):
        groups.setdefault(find(name), []).append(name)
    return list(groups.values())


def _same_packets(catalogue: Catalogue) -> list[tuple[str, str]]:
    rows = catalogue.rows(
        "SELECT min(clip) OVER (PARTITION BY packets), clip FROM scores_duplicates WHERE hash(packets) IN "
        "(SELECT h FROM (SELECT hash(packets) AS h, count(*) AS n FROM scores_duplicates "
        "WHERE packets != '' GROUP BY h) WHERE n > 1) AND packets != ''"
    )
    return [(first, clip) for first, clip in rows if first != clip]
