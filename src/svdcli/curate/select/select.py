"""Which clips are kept (SVD paper §3.1, app. C and E.2.2): thresholds, frozen once, and every clip accounted for.

A clip is dropped by the first filter, in the recipe's order, that it falls to; the waterfall says how many clips and
how many seconds each takes, and sums to the input. It fails closed: a score that was not computed stops the filter,
unless the recipe says what becomes of clips without it, and a clip that could not be measured is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from svdcli.curate.select.catalogue import SELECTION, Catalogue, text
from svdcli.curate.select.duplicates import DUPLICATES, TWINS, find_duplicates
from svdcli.curate.select.lock import WHOLE, FrozenAxis, Lock, Threshold, read_lock
from svdcli.curate.select.pool import FAILED, Pool, Source
from svdcli.curate.select.waterfall import Reason, Waterfall, waterfall
from svdcli.data.shards import require_pyarrow
from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.recipe.filter import Axis, Filter

_FILTER = "filter"
"""the key of the settings in the selection's own metadata"""


@dataclass(frozen=True)
class Selection:
    """What the filter decided, and why."""

    folder: Path
    waterfall: Waterfall
    lock: Lock
    correlations: Mapping[tuple[str, str], float]
    """Pearson's, of each two scores"""
    notes: tuple[str, ...]
    """sentences on what a person should know before trusting it"""


def select(
    folder: Path, settings: Filter, *, refreeze: bool = False, write: bool = True, memory: str = ""
) -> Selection:
    """Judge every clip of a curation folder, by the thresholds of filter.lock.json if there is one.

    Writes filter.lock.json and selection.parquet (clip, kept, dropped_by, keeper: a row a clip, in the order of their
    ids), unless `write` is off. `refreeze` takes the thresholds anew. `memory`, such as "2GB", bounds DuckDB.

    Raises InputError where a score that is filtered by was not computed, RecipeError where the recipe asks for other
    thresholds than those frozen.
    """
    lock = None if refreeze else read_lock(folder)
    if lock:
        lock.require_same(settings)
    with Catalogue(folder, memory) as catalogue:
        twins = settings.duplicates == "drop"
        if twins:
            find_duplicates(catalogue, stay=lock is not None)
        judge = _Judge(Pool(catalogue, settings.axes, twins), settings, lock)
        counts = judge.pool.judge(judge.judged, list(judge.conditions.values()))
        found = waterfall(counts, judge.reasons)
        new = lock or Lock(settings.pool, found.all.clips, found.all.seconds, judge.frozen)
        if write:
            _write_selection(folder, judge)
            if new != lock:
                new.save(folder)
        notes = (*judge.notes, *_idle(found, settings))
        return Selection(folder, found, new, judge.pool.correlations(), notes)


def last_settings(folder: Path) -> Filter | None:
    """What the selection of a curation folder was made by; None where there is none. Raises InputError."""
    if not (folder / SELECTION).is_file():
        return None
    pa, pq = require_pyarrow()
    try:
        told = pq.read_schema(folder / SELECTION).metadata[_FILTER.encode()]
        return Filter.model_validate_json(told)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / SELECTION} is damaged.", "Run svd curate filter again.") from error


class _Judge:
    """Goes through the filters in order; what each drops becomes a condition in SQL."""

    def __init__(self, pool: Pool, settings: Filter, lock: Lock | None) -> None:
        self.pool, self.settings, self.lock = pool, settings, lock
        self.judged = "pool p"
        self.conditions: dict[str, str] = {}
        self.reasons: list[Reason] = []
        self.frozen: dict[str, FrozenAxis] = {}
        self.notes: list[str] = []
        order = [DUPLICATES, *settings.axes]
        placed = [name for name in settings.order if name in order]
        for name in placed + [name for name in order if name not in placed]:
            if name == DUPLICATES:
                self._duplicates()
            else:
                self._axis(pool.sources[name])

    def _duplicates(self) -> None:
        if self.pool.hashed:
            self._missing(self.pool.hashed)
            self._drop(DUPLICATES, "show what another clip shows", "p.twin")

    def _missing(self, source: Source) -> None:
        if lacking := self.pool.lacking(source):
            words = _require_measured(self.pool, source, lacking)
            if source.axis.missing != "keep":
                self._drop(f"{source.name} missing", words, f"(NOT p.twin AND {source.missing})")
            self.notes.append(f"{source.name}: {lacking} clips {words}.")

    def _axis(self, source: Source) -> None:
        name, axis = source.name, source.axis
        if self.lock:
            self.lock.require_version(name, source.column.version)
        self._missing(source)
        if self.lock:
            strata = dict(self.lock.axes[name].strata)
        else:
            before = " OR ".join(self.conditions.values()) if self.settings.pool == "survivors" else ""
            strata = self.pool.freeze(source, self.judged, before or "false")
        column = source.column
        self.frozen[name] = FrozenAxis(column.table, column.name, column.version, axis.drop, axis.by, strata)
        if new := self.pool.load(source, strata):
            named = ", ".join(new[:5]) + (", ..." if len(new) > 5 else "")
            self.notes.append(
                f"{name}: {named} had no clip when thresholds were frozen; those of all clips hold."
            )
        self.judged += self.pool.join(source)
        self._drop(name, in_words(axis, strata), self.pool.condition(source, strata))

    def _drop(self, name: str, words: str, condition: str) -> None:
        self.conditions[name] = condition
        self.reasons.append(Reason(name, words))


def in_words(axis: Axis, strata: Mapping[str, Threshold]) -> str:
    """`lowest 25% (below 0.043)`; of strata the range of their thresholds."""
    parts = []
    for bound in axis.bounds:
        if bound.kind == "is":
            parts.append(f"is {bound.word}")
        elif bound.kind in ("below", "above"):
            parts.append(f"{bound.kind} {bound.number:g}")
        else:
            side = "below" if bound.kind == "lowest" else "above"
            own = [t for key, t in strata.items() if key != WHOLE] or list(strata.values())
            limits = [v for t in own if (v := getattr(t, bound.kind)) is not None]
            told = f"{min(limits):.4g}" if limits else "nothing"
            told += f" to {max(limits):.4g} by {', '.join(axis.by)}" if axis.by and limits else ""
            parts.append(f"{bound.kind} {100 * bound.number:.4g}% ({side} {told})")
    return ", ".join(parts)


def _require_measured(pool: Pool, source: Source, lacking: int) -> str:
    """Why clips lack a score, in words. Raises InputError where some were never measured and the recipe says stop."""
    reasons = pool.why_lacking(source)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    unmeasured = sum(count for reason, count in reasons.items() if reason != FAILED)
    if source.axis.missing == "stop" and unmeasured:
        raise InputError(
            f"The filter {source.name} needs the score {source.column.name}, and of {lacking} clips there is none: {told}.",
            f"Run svd curate annotate, or go on without: --set {_without(source.name)}",
        )
    return f"have no score ({told})"


def _without(name: str) -> str:
    if name == DUPLICATES:
        return "filter.duplicates=keep"
    place = name if name in Filter.model_fields else f"further.{name}"
    return f"filter.{place}.missing=drop (or keep), or filter.{place}.drop=nothing"


def _idle(found: Waterfall, settings: Filter) -> list[str]:
    """A percentile that drops nothing: so many clips share one score that the threshold is that score."""
    shares = {
        name
        for name, axis in settings.axes.items()
        if any(b.kind in ("lowest", "highest") for b in axis.bounds)
    }
    return [
        f"{step.reason.name} drops no clip: {step.reason.words}."
        for step in found.steps
        if step.reason.name in shares and not step.alone.clips and found.all.clips > 1
    ]


def _write_selection(folder: Path, judge: _Judge) -> None:
    pool, catalogue = judge.pool, judge.pool.catalogue
    first = " ".join(
        f"WHEN v.mask & {1 << index} != 0 THEN {text(name)}" for index, name in enumerate(judge.conditions)
    )
    dropped_by = f"CASE {first} ELSE '' END" if first else "''"
    twins = judge.settings.duplicates == "drop"
    keeper = "coalesce(w.keeper, '')" if twins else "''"
    join = f" LEFT JOIN {TWINS} w ON w.clip = c.id" if twins else ""
    told = text(judge.settings.model_dump_json())
    with atomic_path(folder / SELECTION) as temporary:
        target = text(str(temporary))
        catalogue.rows(
            f"COPY (SELECT c.id AS clip, v.mask = 0 AS kept, {dropped_by} AS dropped_by, {keeper} AS keeper "
            f"FROM (SELECT id FROM clips) c JOIN verdicts v ON v.key = {pool.key('c.id')}{join} ORDER BY c.id) "
            f"TO {target} (FORMAT parquet, COMPRESSION zstd, KV_METADATA {{{_FILTER}: {told}}})"
        )
