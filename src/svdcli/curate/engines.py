"""Engines: what runs a stage over items. Both journal every outcome at once, so either goes on where the other stopped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdcli.curate.journal import Entry, Journal
from svdcli.curate.stages import Stage, drain
from svdcli.curate.workers import Limits, Pool

if TYPE_CHECKING:
    from svdcli.recipe.curation import Executor


def run_stage(
    work: Stage, items: Sequence[Any], folder: Path, executor: Executor, models: bool = False
) -> Iterator[tuple[float, Entry]]:
    """(items that ended with it, entry) for every entry that is journalled.

    `models`: each worker loads a large model, so there are fewer. Raises MachineError and SvdError as `drain` does.
    """
    if executor.engine == "ray":
        from svdcli.curate.ray_engine import run_on_ray

        yield from run_on_ray(work, items, folder, executor, models)
    else:
        yield from _run_pool(work, items, folder, executor, models)


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


def _run_pool(
    work: Stage, items: Sequence[Any], folder: Path, executor: Executor, models: bool
) -> Iterator[tuple[float, Entry]]:
    size = min(workers(executor, models), len(items))
    with Journal(folder) as journal, Pool(work, size, limits(executor, models)) as pool:
        for outcome in drain(pool, work, items):
            entries = work.entries(outcome)
            for entry in entries:
                journal.append(entry)
                yield 1 / len(entries), entry
