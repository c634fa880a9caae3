"""Engines: what runs a stage over items. Both journal every outcome at once, so either goes on where the other stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from svdcli.curate.journal import Entry, Journal
from svdcli.curate.run.stages import Stage, drain
from svdcli.curate.run.workers import Limits, Pool
from svdcli.io.files import remove_unfinished

if TYPE_CHECKING:
    from svdcli.recipe.curation import Executor


class Engine(Protocol):
    """`with engine(...) as run: for entry in run(items): ...`: every entry, when it is journalled.

    Raises MachineError and SvdError as `drain` does.
    """

    def __call__(self, items: Sequence[Any]) -> Iterator[Entry]: ...


@contextmanager
def engine(work: Stage, folder: Path, executor: Executor, models: bool = False) -> Iterator[Engine]:
    """What runs items of this work, any number of times; its processes live as long as the block.

    `models`: each worker loads a large model, so there are fewer.
    """
    if executor.engine == "ray":
        from svdcli.curate.run.ray_engine import RayEngine

        try:
            with RayEngine(work, folder, executor, models) as ray:
                yield ray
        finally:
            remove_unfinished(folder)  # it replaces workers that were lost, and does not say so
    else:
        pool = Pool(work, workers(executor, models), limits(executor, models))
        try:
            with Journal(folder) as journal, pool:
                yield lambda items: _run_pool(work, items, journal, pool)
        finally:
            if pool.num_lost:
                remove_unfinished(folder)


def _run_pool(work: Stage, items: Sequence[Any], journal: Journal, pool: Pool) -> Iterator[Entry]:
    for outcome in drain(pool, work, items):
        for entry in work.entries(outcome):
            journal.append(entry)
            yield entry


def limits(executor: Executor, models: bool) -> Limits:
    """What the recipe allows an item."""
    gib = executor.model_gib if models else executor.memory_gib
    recycle = 1 << 30 if models else executor.recycle  # a model is not loaded again for nothing
    return Limits(executor.deadline, executor.per_second, memory=int(gib * 2**30), recycle=recycle)


def workers(executor: Executor, models: bool) -> int:
    """Processes of this machine."""
    if models:
        return executor.model_workers
    return (
        executor.workers or len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )
