"""What each filter keeps and drops at its threshold: the clips next to it on either side, and how all scores lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from svdcli.curate.pages.charts import NUM_BINS, Mark, Scale
from svdcli.curate.select.catalogue import Catalogue, number, text, text_list
from svdcli.curate.select.lock import WHOLE, Lock, Threshold
from svdcli.curate.select.pool import Pool, Source
from svdcli.recipe.filter import Bound, Filter

BESIDE = 8
"""clips shown on either side of a threshold"""


@dataclass(frozen=True)
class Shown:
    """A clip on a sheet."""

    clip: str
    value: str
    dropped_by: str
    """the filter that accounts for it; "" where it is kept"""


@dataclass(frozen=True)
class Edge:
    """A threshold, and the clips next to it."""

    title: str
    dropped: tuple[Shown, ...]
    """the nearest first"""
    kept: tuple[Shown, ...]


@dataclass(frozen=True)
class Scores:
    """An axis, looked at."""

    name: str
    counts: tuple[int, ...]
    """clips a bin; none for classes"""
    scale: Scale
    marks: tuple[Mark, ...]
    classes: Mapping[str, int]
    """clips a class; none for numbers"""
    edges: tuple[Edge, ...]


def look(folder: Path, settings: Filter, lock: Lock) -> list[Scores]:
    """Every axis of a selection. Raises as `select` does."""
    with Catalogue(folder) as catalogue:
        pool = Pool(catalogue, settings.axes, with_twins=False)
        return [_numbers(pool, source, lock) if source.column.kind == "number" else _classes(pool, source)
                for source in pool.sources.values()]  # fmt: skip


def _numbers(pool: Pool, source: Source, lock: Lock) -> Scores:
    name, strata = source.name, lock.axes[source.name].strata
    low, middle, high = pool.catalogue.row(
        f"SELECT quantile_cont({source.value}, 0.002), median({source.value}), quantile_cont({source.value}, 0.998) "
        "FROM pool p"
    )
    if middle is None:
        return Scores(name, (), Scale(0, 1), (), {}, ())
    marks = [
        Mark(value, bound.kind in ("lowest", "below"))
        for bound in source.axis.bounds
        for value in _limits(bound, strata)
    ]
    scale = Scale.of(low, middle, high, [mark.value for mark in marks])
    counts = [0] * NUM_BINS
    sql = f"SELECT {scale.sql(source.value)} AS bin, count(*) FROM pool p WHERE {source.value} IS NOT NULL GROUP BY bin"
    for index, count in pool.catalogue.rows(sql):
        counts[index] = count
    shown = marks if len(marks) <= 8 else []
    edges = [_edge(pool, source, bound, strata) for bound in source.axis.bounds]
    return Scores(name, tuple(counts), scale, tuple(shown), {}, tuple(edges))


def _limits(bound: Bound, strata: Mapping[str, Threshold]) -> list[float]:
    """The thresholds of a bound: of strata each, and not the whole's."""
    if bound.kind in ("below", "above"):
        return [bound.number]
    own = [threshold for key, threshold in strata.items() if key != WHOLE] or list(strata.values())
    return sorted({v for t in own if (v := getattr(t, bound.kind)) is not None})


def _edge(pool: Pool, source: Source, bound: Bound, strata: Mapping[str, Threshold]) -> Edge:
    """Of strata the largest is shown."""
    where, title = "true", f"{bound.kind} {bound.number:g}"
    if bound.kind in ("lowest", "highest"):
        own = {key: t for key, t in strata.items() if key != WHOLE} if source.axis.by else dict(strata)
        if not own:
            return Edge(title, (), ())
        key = max(own, key=lambda key: own[key].num_clips)
        limit = getattr(own[key], bound.kind)
        title = f"{bound.kind} {100 * bound.number:.4g}%"
        if key != WHOLE:
            where, title = f"{source.stratum} = {text(key)}", f"{title} of {key}"
    else:
        limit = bound.number
    if limit is None:
        return Edge(title, (), ())
    value, at = source.value, number(limit)
    low = bound.kind in ("lowest", "below")
    outside, inside = ("<", ">=") if low else (">", "<=")
    return Edge(
        title,
        _beside(pool, value, f"{where} AND {value} {outside} {at}", f"{value} {'DESC' if low else 'ASC'}"),
        _beside(pool, value, f"{where} AND {value} {inside} {at}", f"{value} {'ASC' if low else 'DESC'}"),
    )


def _classes(pool: Pool, source: Source) -> Scores:
    """Of classes some clips that go and some that stay."""
    words = text_list(bound.word for bound in source.axis.bounds)
    counts = pool.catalogue.rows(
        f"SELECT {source.value} AS class, count(*) AS n FROM pool p WHERE class IS NOT NULL GROUP BY class ORDER BY n DESC, class"
    )
    edge = Edge(
        source.axis.drop,
        _beside(pool, source.value, f"{source.value} IN {words}", "hash(p.key)"),
        _beside(pool, source.value, f"{source.value} NOT IN {words}", "hash(p.key)"),
    )
    return Scores(source.name, (), Scale(0, 1), (), {name: n for name, n in counts[:20]}, (edge,))


def _beside(pool: Pool, value: str, where: str, order: str) -> tuple[Shown, ...]:
    rows = pool.catalogue.rows(
        f"SELECT c.id, n.value, coalesce(s.dropped_by, '') FROM "
        f"(SELECT p.key, {value} AS value, row_number() OVER (ORDER BY {order}, p.key) AS place FROM pool p "
        f"WHERE {where} ORDER BY {order}, p.key LIMIT {BESIDE}) n "
        f"JOIN clips c ON {pool.key('c.id')} = n.key LEFT JOIN selection s ON s.clip = c.id ORDER BY n.place"
    )
    return tuple(Shown(clip, v if isinstance(v, str) else f"{v:.4g}", by) for clip, v, by in rows)
