"""The pool: every clip's length and scores in one table in memory, and what an axis' thresholds say of it.

What it is: the SQL of the filter, and only that. What it is not: the decision, which is `select`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svdcli.curate.journal import ANNOTATE, Ledger
from svdcli.curate.select.catalogue import MICROSECONDS, Catalogue, Column, number, quoted, text_list
from svdcli.curate.select.duplicates import DUPLICATES, TWINS
from svdcli.curate.select.lock import WHOLE, Threshold
from svdcli.curate.select.waterfall import Amount
from svdcli.errors import InputError, RecipeError
from svdcli.recipe.filter import Axis

FAILED = "failed to be measured"


@dataclass(frozen=True)
class Source:
    """Where an axis' value and strata stand in the pool."""

    name: str
    axis: Axis
    column: Column
    value: str
    """SQL of its value in the pool"""
    stratum: str
    """SQL of the stratum's name there; the whole pool's where the axis has no strata"""
    table: str
    """of its thresholds, where it has strata: stratum, lowest, highest"""

    @property
    def missing(self) -> str:
        """SQL: whether it cannot judge a clip."""
        return f"({self.value} IS NULL OR {self.stratum} IS NULL)"


class Pool:
    """A temporary table `pool`: key, us (length), twin, and a column a score."""

    def __init__(self, catalogue: Catalogue, axes: Mapping[str, Axis], with_twins: bool) -> None:
        self.catalogue = catalogue
        self.sources: dict[str, Source] = {}
        self._columns: dict[str, Column] = {}
        self.hashed: Source | None = None
        """what is known of duplicates"""
        if with_twins:
            column = self._column(f"{DUPLICATES}.packets")
            nothing = Axis(column=f"{DUPLICATES}.packets", drop="nothing")
            self.hashed = Source(DUPLICATES, nothing, column, f"p.{quoted(column.name)}", "''", "")
        for name, axis in axes.items():
            self.sources[name] = self._source(name, axis)
        self.whole_keys = False
        self._make(with_twins)

    def _source(self, name: str, axis: Axis) -> Source:
        column = self._column(axis.column or name)
        classes = any(bound.kind == "is" for bound in axis.bounds)
        if classes != (column.kind == "class"):
            raise RecipeError(
                f"The filter {name} drops {axis.drop!r}, and {column.name} is a {column.kind}.",
                "Numbers take lowest, highest, below and above; classes take is.",
            )
        strata = [f"p.{quoted(self._column(by, 'class').name)}" for by in axis.by]
        stratum = f"concat_ws('/', {', '.join(strata)})" if strata else "''"
        if strata:  # concat_ws passes over NULL
            stratum = f"CASE WHEN {' AND '.join(f'{s} IS NOT NULL' for s in strata)} THEN {stratum} END"
        return Source(name, axis, column, f"p.{quoted(column.name)}", stratum, quoted(f"strata_{name}"))

    def _column(self, name: str, kind: str = "") -> Column:
        column = self.catalogue.column(name)
        if kind and column.kind != kind:
            raise RecipeError(
                f"Percentiles cannot be taken apart by {name}, which is a {column.kind}.",
                "Take a class, such as resolution, source or camera.",
            )
        known = self._columns.setdefault(column.name, column)
        if known != column:
            raise RecipeError(
                f"Filters on {known.table}.{column.name} and {column.table}.{column.name} do not go together.",
                "Filter by one of them.",
            )
        return column

    def key(self, name: str) -> str:
        """SQL that clips are joined by: 64 bits of a hash, which take half the time and memory of their ids."""
        return name if self.whole_keys else f"hash({name})"

    def _make(self, with_twins: bool) -> None:
        """Two of 10 million ids share a hash once in 400,000 corpora; then there are too many rows, and ids are joined."""
        expected = self.catalogue.row("SELECT count(*) FROM clips")[0]
        for self.whole_keys in (False, True):
            self.catalogue.rows(self._sql(with_twins))
            if self.catalogue.row("SELECT count(*) FROM pool")[0] == expected:
                return
        raise InputError(
            f"A table in {self.catalogue.folder} has two rows of one clip.", "Run svd curate annotate again."
        )

    def _sql(self, with_twins: bool) -> str:
        tables: dict[str, list[Column]] = {}
        for column in self._columns.values():
            tables.setdefault(column.table, []).append(column)
        own = [f"{c.sql} AS {quoted(c.name)}" for c in tables.pop("", [])]
        parts = [f"SELECT {self.key('id')} AS key, {', '.join([f'{MICROSECONDS} AS us', *own])} FROM clips"]
        chosen, joins = ["c.*"], []
        for index, (table, columns) in enumerate(tables.items()):
            values = ", ".join(f"{c.sql} AS {quoted(c.name)}" for c in columns)
            view = quoted(f"scores_{table}")
            joins.append(
                f"LEFT JOIN (SELECT {self.key('clip')} AS key, {values} FROM {view}) t{index} ON t{index}.key = c.key"
            )
            chosen += [f"t{index}.{quoted(c.name)}" for c in columns]
        if with_twins:
            joins.append(f"LEFT JOIN (SELECT {self.key('clip')} AS key FROM {TWINS}) w ON w.key = c.key")
        chosen.append("w.key IS NOT NULL AS twin" if with_twins else "false AS twin")
        return (
            f"CREATE OR REPLACE TEMP TABLE pool AS SELECT {', '.join(chosen)} FROM ({parts[0]}) c "
            + " ".join(joins)
        )

    # ---- thresholds ------------------------------------------------------------------------------------

    def lacking(self, source: Source) -> int:
        """How many clips, twins aside, an axis cannot judge."""
        sql = f"SELECT count(*) FROM pool p WHERE NOT twin AND {source.missing}"
        return int(self.catalogue.row(sql)[0])

    def why_lacking(self, source: Source) -> dict[str, int]:
        """Why an axis cannot judge clips, twins aside, and how many; the commonest first."""
        table = source.column.table
        if not table:
            return {"say nothing of it": self.lacking(source)}
        rows = self.catalogue.rows(
            f"SELECT c.id, s.not_computed FROM pool p JOIN clips c ON {self.key('c.id')} = p.key "
            f"LEFT JOIN {quoted(f'scores_{table}')} s ON s.clip = c.id WHERE NOT p.twin AND {source.missing}"
        )
        marks = Ledger(self.catalogue.folder).of(ANNOTATE + table)
        found: dict[str, int] = {}
        for clip, reason in rows:
            if clip in marks and marks[clip].status == "failed":
                reason = FAILED
            elif reason is None:
                reason = "not measured yet"
            else:
                reason = f"not computed: {reason.rstrip('.')}" if reason else "measured without a result"
            found[reason] = found.get(reason, 0) + 1
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def freeze(self, source: Source, judged: str, before: str) -> dict[str, Threshold]:
        """Exact percentiles of the clips that are no twins and not `before` (SQL), as numpy's: linear in between.

        `judged` is the pool with what `before` needs. Of the whole first, then by stratum.
        """
        shares = {bound.kind: bound.number for bound in source.axis.bounds}
        if not shares.keys() & {"lowest", "highest"}:
            return {}
        quantiles = [
            f"quantile_cont({source.value}, {share!r})" if share is not None else "NULL"
            for share in (shares.get("lowest"), 1 - shares["highest"] if "highest" in shares else None)
        ]
        pool = f"FROM {judged} WHERE NOT twin AND NOT {source.missing} AND NOT ({before})"
        rows = self.catalogue.rows(f"SELECT '{WHOLE}', {', '.join(quantiles)}, count(*) {pool}")
        if source.axis.by:
            rows += self.catalogue.rows(
                f"SELECT {source.stratum} AS s, {', '.join(quantiles)}, count(*) {pool} GROUP BY s ORDER BY s"
            )
        return {str(name): Threshold(lowest, highest, count) for name, lowest, highest, count in rows}

    def load(self, source: Source, strata: Mapping[str, Threshold]) -> list[str]:
        """Put the thresholds of strata where `condition` finds them; -> strata that have none of their own."""
        if not source.axis.by:
            return []
        create = (
            f"CREATE OR REPLACE TEMP TABLE {source.table} (stratum VARCHAR, lowest DOUBLE, highest DOUBLE)"
        )
        self.catalogue.rows(create)
        values = [(key, t.lowest, t.highest) for key, t in strata.items() if key != WHOLE]
        if values:
            self.catalogue.connection.executemany(f"INSERT INTO {source.table} VALUES (?, ?, ?)", values)
        found = self.catalogue.rows(f"SELECT DISTINCT {source.stratum} AS s FROM pool p ORDER BY s")
        return [str(row[0]) for row in found if row[0] is not None and row[0] not in strata]

    def join(self, source: Source) -> str:
        """SQL that puts an axis' thresholds beside the pool."""
        if not source.axis.by:
            return ""
        return f" LEFT JOIN {source.table} ON {source.table}.stratum = {source.stratum}"

    def condition(self, source: Source, strata: Mapping[str, Threshold]) -> str:
        """SQL: whether an axis drops a clip whose score it knows."""
        tests, whole = [], strata.get(WHOLE, Threshold())
        for bound in source.axis.bounds:
            if bound.kind == "is":
                continue
            sign = "<" if bound.kind in ("lowest", "below") else ">"
            if bound.kind in ("below", "above"):
                limit = number(bound.number)
            else:
                frozen = whole.lowest if bound.kind == "lowest" else whole.highest
                limit = "NULL" if frozen is None else number(frozen)
                if source.axis.by:
                    limit = f"coalesce({source.table}.{bound.kind}, {limit})"
            tests.append(f"{source.value} {sign} {limit}")
        words = [bound.word for bound in source.axis.bounds if bound.kind == "is"]
        tests += [f"{source.value} IN {text_list(words)}"] if words else []
        return f"coalesce(NOT {source.missing} AND ({' OR '.join(tests)}), false)"

    # ---- counts ----------------------------------------------------------------------------------------

    def judge(self, judged: str, conditions: Sequence[str]) -> dict[int, Amount]:
        """A temporary table `verdicts` (key, us, mask), bit i being condition i; -> how many have which mask."""
        bits = [f"CASE WHEN {sql} THEN {1 << i} ELSE 0 END" for i, sql in enumerate(conditions)]
        mask = f"CAST({' + '.join(bits) or '0'} AS BIGINT)"
        self.catalogue.rows(
            f"CREATE OR REPLACE TEMP TABLE verdicts AS SELECT p.key, p.us, {mask} AS mask FROM {judged}"
        )
        rows = self.catalogue.rows("SELECT mask, count(*), sum(us) FROM verdicts GROUP BY mask ORDER BY mask")
        return {mask: Amount(count, int(us)) for mask, count, us in rows}

    def correlations(self) -> dict[tuple[str, str], float]:
        """Pearson's, of the scores of each two axes that are numbers; only where both vary."""
        names = [name for name, source in self.sources.items() if source.column.kind == "number"]
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        if not pairs:
            return {}
        sql = ", ".join(f"corr({self.sources[a].value}, {self.sources[b].value})" for a, b in pairs)
        found = self.catalogue.row(f"SELECT {sql} FROM pool p WHERE NOT twin")
        return {
            pair: value
            for pair, value in zip(pairs, found, strict=True)
            if value is not None and value == value
        }
