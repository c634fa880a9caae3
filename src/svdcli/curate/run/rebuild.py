"""The tables made of the journal: rows that are new are added, rows that are no longer so are taken out.

What comes out depends on what the journal says last of each item, not on the way there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from svdcli.curate import tables
from svdcli.curate.journal import ANNOTATE, REMOVE, SPLIT, Journal, Ledger, Mark
from svdcli.curate.rows import CutClip, Source


def make_split_tables(folder: Path) -> None:
    """Sources and clips as the journal has them; a source that lies at several paths counts once, by the first."""
    ledger = Ledger(folder)
    removed = set(ledger.of(REMOVE))
    table = tables.table_folder(folder, "sources")
    chosen = _one_path_a_source(
        ledger, {row["id"]: row["path"] for row in tables.read(table, ["id", "path"])}
    )
    with Journal(folder) as journal:
        for path, mark in sorted(ledger.of(SPLIT).items()):
            if mark.status != "done" or chosen[mark.item][0] == path:
                continue
            entry, reason = ledger.entry(mark), f"It has the same bytes as {chosen[mark.item][0]}."
            journal.append(replace(entry, status="duplicate", reason=reason, rows=(), lost={}, at=0.0))
    wanted = {name: mark for name, (_, mark) in sorted(chosen.items()) if name not in removed}
    _refresh(
        table, wanted, (ledger.entry(mark).rows[0] for mark in wanted.values()), tables.row_schema(Source)
    )
    clips = (row for mark in wanted.values() for row in ledger.entry(mark).rows[1:])
    names = {row["id"] for mark in wanted.values() for row in ledger.entry(mark).rows[1:]}
    _refresh(tables.table_folder(folder, "clips"), names, clips, tables.row_schema(CutClip))


def _one_path_a_source(ledger: Ledger, before: Mapping[str, str]) -> dict[str, tuple[str, Mark]]:
    """By source: the path that stands for it, the one that the table has if any, and its mark."""
    chosen: dict[str, tuple[str, Mark]] = {}
    for path, mark in sorted(ledger.of(SPLIT).items()):
        if mark.status == "done" and (
            mark.item not in chosen or before.get(mark.item) == tables.readable(path)
        ):
            chosen[mark.item] = path, mark
    return chosen


def _refresh(
    table: Path, wanted: Iterable[str], rows: Iterable[Mapping[str, Any]], schema: Any, key: str = "id"
) -> None:
    """Take out of a table what is no longer wanted, and add what is new."""
    tables.remove(table, tables.keys(table, key) - set(wanted), key)
    tables.append(table, rows, schema, key)


def make_scores_table(folder: Path, annotator: Any, absent: str = "") -> None:
    """A row a clip: its scores as the journal has them, or why there are none."""
    ledger = Ledger(folder)
    known = ledger.of(ANNOTATE + annotator.name)
    table = tables.table_folder(folder, f"{tables.SCORES}/{annotator.name}")
    columns = ["clip", "version", "not_computed"]
    before = {row["clip"]: (row["version"], row["not_computed"]) for row in tables.read(table, columns)}

    def mark_of(clip: str) -> Mark | None:
        mark = known.get(clip)
        return mark if mark and mark.stamp == str(annotator.version) else None

    def state(clip: str) -> tuple[int, str]:
        mark = mark_of(clip)
        if mark is None:
            return annotator.version, absent or "It was not measured."
        return annotator.version, "" if mark.status == "done" else ledger.entry(mark).reason

    names = sorted(row["id"] for row in tables.read(tables.table_folder(folder, "clips"), ["id"]))
    stays = {name for name in names if before.get(name) == state(name)}

    def rows() -> Iterator[dict[str, Any]]:
        for name in names:
            if name in stays:
                continue
            version, reason = state(name)
            mark = mark_of(name)
            scores = ledger.entry(mark).rows[0] if mark and not reason else {}
            yield {**scores, "clip": name, "version": version, "not_computed": reason}

    _refresh(table, stays, rows(), tables.scores_schema(annotator.columns), "clip")
